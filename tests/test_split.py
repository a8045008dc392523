"Splits under odd catalogs: patients stay whole, counts are exact, nothing is ever deleted."
import importlib.util
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, real_data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from medfast import folders, leaks
from medfast import split as split_module
from medfast.catalog import coronahack_catalog, dmr_catalog, folder_catalog, medmnist_catalog, radiography_catalog
from medfast.sides import leak_of_copies, split_kind
from medfast.split import (LeakageError, SplitError, audit_leakage, balance_training, balanced_sample, check_training, class_weights, drop_leaks, images_per_patient, item_ids,
                           make_folders, patient_folds, split_catalog, split_command, split_hash, split_summary, study_order, upsample_training)
from medfast.twins import near_twins

spec = importlib.util.spec_from_file_location('bench_twins', ROOT/'bench'/'twins.py')
bench_twins = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench_twins)

fast = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def catalog_of(sizes):
    "A catalog without files; `sizes` is {label: [images of each patient]}."
    rows,number = [], 0
    for label,counts in sizes.items():
        for n in counts:
            number += 1
            rows += [dict(path=f'/data/txt/T{number:04d}.1.1.D.2015-07-20.{i:02d}.txt', patient=f'{number:04d}', label=label) for i in range(n)]
    return pd.DataFrame(rows).astype(dict(patient='string'))


def study_like(): return catalog_of(dict(Healthy=[20]*120 + [11], Sick=[20]*26 + [14])) # 2,411 and 534 images


counts = st.lists(st.integers(1, 12), min_size=3, max_size=25)
catalogs = st.builds(lambda h, s: catalog_of(dict(Healthy=h, Sick=s)), counts, counts)
fractions = st.sampled_from([0., .1, .2, .25, .4])


# --- properties

@fast
@given(catalogs, fractions, fractions, st.integers(0, 99))
def test_by_patient(catalog, valid, test, seed):
    split = split_catalog(catalog, valid=valid, test=test, seed=seed)
    assert split.path.tolist() == catalog.path.tolist() and split.split.isin(['train', 'valid', 'test']).all() # the union is the whole
    assert split.groupby('patient').split.nunique().max() == 1
    parts = split.groupby(['label', 'split']).patient.nunique().unstack(fill_value=0)
    assert set(parts) == {'train'} | ({'valid'} if valid else set()) | ({'test'} if test else set()) and (parts > 0).all(axis=None)
    audit_leakage(split, files=False)
    again = split_catalog(catalog.sample(frac=1, random_state=seed), valid=valid, test=test, seed=seed)
    assert split_hash(again) == split_hash(split)


@fast
@given(catalogs, st.integers(0, 2), st.integers(0, 99))
def test_by_image_is_exact(catalog, valid, seed):
    test = int(catalog.label.value_counts().min()) - valid - 1
    if test < 0: return
    split = split_catalog(catalog, valid=valid, test=test, by='image', seed=seed)
    for label,own in split.groupby('label'):
        assert (own.split == 'valid').sum() == valid and (own.split == 'test').sum() == test
        assert (own.split == 'train').sum() == len(own) - valid - test
    assert set(split.split_by) == {'image'} == {split.attrs['split_by']}


@fast
@given(catalogs, st.integers(1, 60), st.integers(0, 99))
def test_counts_by_patient_come_as_near_as_they_can(catalog, valid, seed):
    try: split = split_catalog(catalog, valid=valid, seed=seed)
    except SplitError: return
    for label,own in split.groupby('label'):
        got = (own.split == 'valid').sum()
        largest = own.groupby('patient').size().max()
        assert abs(got - valid) <= max(largest/2, largest - valid)


@fast
@given(catalogs, st.data(), st.sampled_from(['patients', 'images']), st.integers(0, 99))
def test_balanced_sample(catalog, data, how, seed):
    n = data.draw(st.integers(1, int(catalog.label.value_counts().min())))
    sample = balanced_sample(catalog, n, seed=seed, how=how)
    assert sample.label.value_counts().to_dict() == dict(Healthy=n, Sick=n) and sample.path.is_unique
    shuffled = balanced_sample(catalog.sample(frac=1, random_state=seed), n, seed=seed, how=how)
    assert set(shuffled.path) == set(sample.path)


@fast
@given(st.integers(1, 12), st.integers(3, 20), st.integers(3, 40), st.data())
def test_equal_frames_a_patient(frames, sick, healthy, data):
    catalog = catalog_of(dict(Healthy=[frames]*healthy, Sick=[frames]*sick))
    n = data.draw(st.integers(1, frames*min(sick, healthy)))
    per = balanced_sample(catalog, n).groupby(['label', 'patient']).size()
    a,b = (sorted(per[c].tolist()) for c in ('Healthy', 'Sick'))
    assert a == b and max(a) == -(-n//min(sick, healthy)) # the same in both classes, spread over as many patients as there are


@fast
@given(catalogs, st.integers(2, 5), st.integers(0, 99))
def test_folds(catalog, n_folds, seed):
    if catalog.groupby('label').patient.nunique().min() < n_folds:
        with pytest.raises(SplitError, match='at most'): patient_folds(catalog, n_folds, seed)
        return
    folds = patient_folds(catalog, n_folds, seed)
    assert folds.groupby('patient').fold.nunique().max() == 1
    assert (folds.groupby(['fold', 'label']).size().unstack(fill_value=0) > 0).all(axis=None) and folds.fold.nunique() == n_folds
    again = patient_folds(catalog.sample(frac=1, random_state=seed), n_folds, seed)
    assert again.sort_values('path').fold.tolist() == folds.sort_values('path').fold.tolist()


@fast
@given(catalogs, st.integers(0, 99))
def test_balance_touches_training_only(catalog, seed):
    split = split_catalog(catalog, valid=.3, test=.3, seed=seed)
    ours = balance_training(split, seed=seed)
    train = ours[ours.split == 'train']
    assert train.label.value_counts().nunique() == 1 and set(train.path) <= set(split[split.split == 'train'].path)
    assert ours[ours.split != 'train'].path.tolist() == split[split.split != 'train'].path.tolist()


# --- the study's figures

def test_study_layouts():
    catalog = study_like()
    assert catalog.label.value_counts().to_dict() == dict(Healthy=2411, Sick=534)
    first,second = study_order(catalog), study_order(catalog, valid=80, test=100)
    assert first.groupby(['label', 'split']).size().unstack().to_dict('list') == dict(train=[400, 400], valid=[100, 100])
    assert second.groupby(['label', 'split']).size().unstack().to_dict('list') == dict(test=[100, 100], train=[320, 320], valid=[80, 80])
    per = images_per_patient(first)
    assert per.loc['Sick', 'median'] >= 18 and 3 <= per.loc['Healthy', 'median'] <= 5 # about 19 against 4
    with pytest.raises(LeakageError, match='same patient on two sides'): audit_leakage(second, files=False)
    shared = audit_leakage(second, files=False, raises=False).found['same patient']
    assert shared >= 27 + 80 # every sick patient, most healthy ones


def test_our_order_with_the_study_counts():
    split = split_catalog(study_like(), valid=80, test=100, seed=1)
    sick = split[split.label == 'Sick'].groupby('split').size()
    assert abs(sick['valid'] - 80) <= 10 and abs(sick['test'] - 100) <= 10
    ours = balance_training(split)
    assert images_per_patient(ours[ours.split == 'train'])['most'].nunique() == 1


# --- refusals

@pytest.mark.parametrize('column', ['path', 'label'])
def test_missing_columns(column):
    with pytest.raises(SplitError, match=f"no column '{column}'"): split_catalog(catalog_of(dict(A=[2, 2], B=[2, 2])).drop(columns=column))


def test_no_patient_column():
    catalog = catalog_of(dict(A=[2, 2], B=[2, 2])).drop(columns='patient')
    with pytest.raises(SplitError, match=r"catalog\.assign\(patient=\.\.\.\)\. Choose by='image' and say so where nobody knows\.$"): split_catalog(catalog)
    for column in ('split', 'official'):
        with pytest.raises(SplitError, match=r"Choose by='image' and say so where nobody knows, or by='official', as the data came split\.$"): split_catalog(catalog.assign(**{column: 'train'}))
    with pytest.raises(SplitError, match="how='images'"): balanced_sample(catalog, 2)
    split = split_catalog(catalog, by='image')
    assert split_summary(split).patients.isna().all()
    assert audit_leakage(split, files=False).checked['same patient'] == 0


def test_a_single_unknown_patient_is_enough():
    catalog = catalog_of(dict(A=[2, 2], B=[2, 2]))
    catalog.loc[0, 'patient'] = pd.NA
    with pytest.raises(SplitError, match='patient of 1 of 8 images is unknown'): split_catalog(catalog)


def test_empty_unlabelled_and_one_class():
    catalog = catalog_of(dict(A=[2, 2], B=[2, 2]))
    with pytest.raises(SplitError, match='empty'): split_catalog(catalog[:0])
    with pytest.raises(SplitError, match='1 image has no label'): split_catalog(catalog.assign(label=[None, *catalog.label[1:]]))
    for by in ('patient', 'image'):
        with pytest.raises(SplitError, match='All 4 images are A'): split_catalog(catalog[catalog.label == 'A'], by=by)


def test_patient_with_both_labels():
    with pytest.raises(SplitError, match='1 patient has two labels: 0001'):
        split_catalog(catalog_of(dict(A=[2, 2], B=[2, 2])).assign(label=['B', *['A']*3, *['B']*4]))


@pytest.mark.parametrize('valid,test', [(1., 0.), (-.1, 0.), (.5, .5), (True, 0), ('.2', 0), (None, 0), (-3, 0), (float('nan'), 0.)])
def test_odd_sizes(valid, test):
    with pytest.raises(SplitError, match='fraction|leave nothing'): split_catalog(catalog_of(dict(A=[2]*9, B=[2]*9)), valid=valid, test=test)


@pytest.mark.parametrize('seed', [-1, 2**32, 1.5])
def test_odd_seeds(seed):
    catalog = study_like()
    split = split_catalog(catalog)
    for call in (lambda: split_catalog(catalog, seed=seed), lambda: split_catalog(catalog, by='image', seed=seed), lambda: patient_folds(catalog, seed=seed),
                 lambda: balanced_sample(catalog, 10, seed=seed), lambda: balance_training(split, seed=seed), lambda: study_order(catalog, seed=seed)):
        with pytest.raises(SplitError, match=f'seed = {seed}'): call()


def test_odd_names():
    catalog = catalog_of(dict(A=[2]*9, B=[2]*9))
    with pytest.raises(SplitError, match="by = 'patients'"): split_catalog(catalog, by='patients')
    with pytest.raises(SplitError, match="how = 'frames'"): balanced_sample(catalog, 3, how='frames')
    with pytest.raises(SplitError, match='more than once'): split_catalog(pd.concat([catalog, catalog[:1]]), by='image')


@pytest.mark.parametrize('sizes,options,needed', [
    (dict(A=[4]*9, B=[4]*2), dict(valid=.2, test=.2), 'Class B has 2 patients with 8 images.*at least 3 patients'),
    (dict(A=[4]*9, B=[4]*1), dict(valid=.2), 'at least 2 patients'),
    (dict(A=[4]*9, B=[4]*3), dict(valid=100), 'more than 100 images'),
    (dict(A=[4]*9, B=[4]*3), dict(valid=10, test=2, by='image'), 'at least 3 images, one for each part, and more than 12 images')])
def test_too_few(sizes, options, needed):
    with pytest.raises(SplitError, match=needed): split_catalog(catalog_of(sizes), **options)


def test_official():
    catalog = catalog_of(dict(A=[2]*3, B=[2]*3)).assign(split=['train', 'train', 'valid', 'valid', 'test', 'test']*2)
    assert set(split_catalog(catalog, by='official').split_by) == {'official'}
    assert set(split_catalog(catalog.assign(split_by='image'), by='official').split_by) == {'image'} # an image split keeps its name
    with pytest.raises(SplitError, match='holds dev'): split_catalog(catalog.assign(split='dev'), by='official')
    with pytest.raises(SplitError, match="no column 'split'"): split_catalog(catalog.drop(columns='split'), by='official')


def test_rows_with_a_repeated_index():
    catalog = catalog_of(dict(A=[2]*5, B=[2]*5)).set_index(np.zeros(20, int))
    split = split_catalog(catalog, valid=.2, test=.2)
    assert split.groupby('patient').split.nunique().max() == 1 and len(patient_folds(catalog, 3)) == 20
    assert len(balance_training(split)) <= 20 and len(balanced_sample(catalog, 4)) == 8


def test_arguments_are_left_alone():
    catalog = catalog_of(dict(A=[2]*5, B=[2]*5))
    before = catalog.copy()
    split_catalog(catalog); patient_folds(catalog, 2); balanced_sample(catalog, 3); balance_training(split_catalog(catalog))
    pd.testing.assert_frame_equal(catalog, before)


def test_same_numbers_in_another_process(tmp_path):
    catalog = catalog_of(dict(Healthy=[3]*20, Sick=[3]*9))
    catalog.to_csv(tmp_path/'c.csv', index=False)
    code = ('import pandas as pd; from medfast.split import *; c = pd.read_csv("c.csv", dtype="string");'
            'print(split_hash(split_catalog(c, test=.2, seed=7)), split_hash(study_order(c, 20, valid=5, seed=7)))')
    run = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ, PYTHONHASHSEED='3'))
    assert run.stdout.split() == [split_hash(split_catalog(catalog, test=.2, seed=7)), split_hash(study_order(catalog, 20, valid=5, seed=7))]


def test_item_ids_of_nested_and_packed_files():
    assert item_ids(pd.DataFrame(dict(path=['/d/x.npz#test/1', '/d/x.npz#train/1']))) == ['x.npz#test/1', 'x.npz#train/1']
    assert item_ids(pd.DataFrame(dict(path=['/d/a/1.png', '/d/b/1.png', '/d/b/2.png']))) == ['a/1.png', 'b/1.png', 'b/2.png']


# --- leaks

@pytest.fixture
def files(tmp_path):
    "A split catalog with real files: 8 patients a class, 3 images each."
    catalog = catalog_of(dict(Healthy=[3]*8, Sick=[3]*8))
    catalog['path'] = [str(tmp_path/'src'/Path(p).name) for p in catalog.path]
    (tmp_path/'src').mkdir()
    for i,p in enumerate(catalog.path): Path(p).write_text(f'image {i:03d}')
    return split_catalog(catalog, valid=.25, test=.25, seed=3)


def test_planted_leaks_are_found(files):
    rng = np.random.default_rng(0)
    for _ in range(100):
        a,b = files[files.split == 'train'].sample(random_state=rng).iloc[0], files[files.split != 'train'].sample(random_state=rng).iloc[0]
        bad = files.copy()
        bad.loc[bad.path == b.path, 'patient'] = a.patient
        with pytest.raises(LeakageError, match=a.patient): audit_leakage(bad, files=False)


def test_planted_copies_are_found(files):
    for _,b in files[files.split == 'test'].iterrows():
        a = files[files.split == 'train'].path.iloc[0]
        old = Path(b.path).read_bytes()
        Path(b.path).write_bytes(Path(a).read_bytes())
        with pytest.raises(LeakageError, match='same bytes'): audit_leakage(files)
        Path(b.path).write_bytes(old)
    assert audit_leakage(files).found.sum() == 0


def test_copies_on_one_side_are_no_leak(files):
    a,b = files[files.split == 'train'].path.iloc[:2]
    Path(b).write_bytes(Path(a).read_bytes())
    assert audit_leakage(files).found.sum() == 0


def test_audit_of_folds_and_lost_files(files):
    assert audit_leakage(patient_folds(files, 4), on='fold').found.sum() == 0
    with pytest.raises(LeakageError): audit_leakage(files.assign(fold=range(len(files))), on='fold')
    os.remove(files.path[0])
    with pytest.raises(SplitError, match='1 file of the catalog is not there'): audit_leakage(files)


@pytest.fixture
def pictures(tmp_path):
    "A split catalog of 24 small pictures of one size: 12 patients, two images each."
    catalog,rng = catalog_of(dict(Healthy=[2]*6, Sick=[2]*6)), np.random.default_rng(0)
    catalog['path'] = [str(tmp_path/f'{i:02d}.png') for i in range(24)]
    for p in catalog.path: Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)).save(p)
    return split_catalog(catalog, valid=.25, test=.25, seed=3)


def planted(split, name, change=lambda o: o, **options):
    "The first test image becomes a changed copy of the first training image, in a file `name` of a new patient."
    there,here = split[split.split == 'train'].path.iloc[0], split.index[split.split == 'test'][0]
    fn = Path(there).with_name(name)
    change(Image.open(there)).save(fn, **options)
    bad = split.copy()
    bad.loc[here, ['path', 'patient']] = str(fn), '0999'
    return bad, Path(there).name


@pytest.mark.parametrize('name,change', [('a.bmp', lambda o: o), ('a.tif', lambda o: o), ('a.png', lambda o: o.convert('RGB')), ('a.png', lambda o: o.convert('RGBA'))])
def test_planted_pixels_are_found_with_their_names(pictures, name, change):
    assert audit_leakage(pictures).found.sum() == 0
    bad,own = planted(pictures, name, change)
    pair = ' = '.join(sorted([own, name], key=lambda o: list(bad.path.map(os.path.basename)).index(o)))
    with pytest.raises(LeakageError, match=f'^same pixels on two sides: 1 \\({pair}\\)'): audit_leakage(bad)
    with pytest.raises(LeakageError, match='same pixels'): check_training(bad)
    assert audit_leakage(bad, pixels=False).loc['same pixels', ['checked', 'found']].tolist() == [0, 0]
    assert list(audit_leakage(bad, files=False).index) == ['same patient']


def test_equal_bytes_are_not_told_twice(pictures):
    bad,own = planted(pictures, 'b.png')
    Path(bad.path[bad.patient == '0999'].iloc[0]).write_bytes(Path(own).read_bytes() if Path(own).exists() else Path(bad.path.iloc[0]).with_name(own).read_bytes())
    table = audit_leakage(bad, raises=False)
    assert table.found.to_dict() == {'same patient': 0, 'same bytes': 1, 'same pixels': 0}


def test_pixels_of_large_catalogs_are_asked_for_and_remembered(pictures, monkeypatch):
    monkeypatch.setattr(leaks, 'MOST_PIXELS', 10*64*64)
    bad,_ = planted(pictures, 'c.bmp')
    with pytest.warns(UserWarning, match=r'pixels of 24 images were not compared.*pixels=True'): table = audit_leakage(bad)
    assert table.loc['same pixels', 'checked'] == 0
    with pytest.raises(LeakageError, match='same pixels'): audit_leakage(bad, pixels=True)
    with pytest.raises(LeakageError, match='same pixels'): audit_leakage(bad) # what was read is remembered: no warning, no cost


def test_the_table_says_how_it_was_split(pictures):
    assert set(audit_leakage(pictures).split_by) == {'patient'} and set(audit_leakage(pictures.drop(columns='split_by')).split_by) == {'unknown'}
    assert set(audit_leakage(split_catalog(pictures.drop(columns='split'), by='image'), raises=False).split_by) == {'image'}


def shifted(image): return Image.fromarray(np.roll(np.asarray(image), 1, 0))


def test_near_twins_are_told_and_refused_only_when_strict(pictures):
    bad,own = planted(pictures, 'd.png', shifted)
    check_training(bad)
    table = audit_leakage(bad, twins=True)
    assert table.loc['near twins', ['checked', 'found']].tolist() == [24, 1] and own in table['first']['near twins']
    for options in (dict(strict=True), dict(strict=True, twins=True), dict(strict=True, twins=near_twins(bad))):
        with pytest.raises(LeakageError, match='near twins on two sides: 1.*d.png'): audit_leakage(bad, **options)
    assert audit_leakage(bad, strict=True, raises=False).found['near twins'] == 1
    assert audit_leakage(pictures, strict=True).found.sum() == 0
    with pytest.raises(SplitError, match='made of other images or sides'): audit_leakage(bad, twins=near_twins(pictures))
    with pytest.raises(SplitError, match="near_twins\\(catalog, on='fold'\\)"): audit_leakage(patient_folds(pictures, 2), on='fold', twins=near_twins(pictures))


def test_near_twins_of_repeated_images_and_folds(pictures):
    bad,_ = planted(pictures, 'e.png', shifted)
    assert audit_leakage(upsample_training(bad, times=dict(Sick=2)), twins=True).found['near twins'] == 1
    folds = patient_folds(bad.assign(label=np.where(bad.patient == '0999', 'Sick', bad.label)), 2)
    assert audit_leakage(folds, on='fold', twins=True).checked['near twins'] == 24


def test_before_a_training(pictures):
    check_training(pictures)
    by_image = split_catalog(pictures.drop(columns='split'), valid=.25, by='image')
    assert audit_leakage(by_image, raises=False).found['same patient'] > 0
    check_training(by_image) # was asked for
    for by in ('patient', 'official'):
        with pytest.raises(LeakageError, match='same patient'): check_training(by_image.assign(split_by=by))
    with pytest.raises(LeakageError, match='same patient'): check_training(by_image.drop(columns='split_by'))
    bad,_ = planted(split_catalog(pictures.drop(columns='split'), valid=.25, test=.25, by='image'), 'f.bmp')
    with pytest.raises(LeakageError, match='^same pixels'): check_training(bad)
    with pytest.warns(UserWarning, match='same pixels.*too good by as much'): check_training(bad, leaks='warn')
    with pytest.raises(SplitError, match="leaks = 'ignore'"): check_training(bad, leaks='ignore')


def test_leaks_leave_the_training_part_not_the_test(pictures):
    bad,own = planted(pictures, 'g.bmp')
    bad.loc[bad.index[bad.split == 'valid'][0], ['path', 'patient']] = planted(pictures, 'h.tif')[0].path[lambda o: o.str.endswith('h.tif')].iloc[0], '0998'
    clean = drop_leaks(upsample_training(bad, times=dict(Healthy=2, Sick=2)))
    assert audit_leakage(clean).found.sum() == 0 and (clean.split == 'test').sum() == (bad.split == 'test').sum() and (clean.split == 'valid').sum() == (bad.split == 'valid').sum() - 1
    assert own not in set(clean.path.map(os.path.basename)) and len(clean) == len(bad) - 2 + (bad.split == 'train').sum() - 1 # with its repetition
    assert len(drop_leaks(pictures)) == 24
    near,own = planted(pictures, 'i.png', shifted)
    assert len(drop_leaks(near)) == 24 and own not in set(drop_leaks(near, near_twins(near)).path.map(os.path.basename))
    with pytest.raises(SplitError, match='1 image of the list is not in this catalog'): drop_leaks(pictures, near_twins(near))


def test_the_line_that_an_error_names_works(pictures):
    catalog,_ = planted(pictures, 'j.bmp')
    with pytest.raises(LeakageError) as e: audit_leakage(catalog)
    line = re.search(r'\. (drop_leaks\(catalog\)) takes', str(e.value))[1]
    check_training(eval(line))
    near,_ = planted(pictures, 'k.png', shifted)
    with pytest.raises(LeakageError) as e: audit_leakage(near, strict=True)
    line = re.search(r'\. (drop_leaks\(.*\)\)) takes', str(e.value))[1]
    audit_leakage(eval(line, globals(), dict(catalog=near)), strict=True)


def test_an_error_names_the_way_out_for_what_was_found(pictures):
    bad,_ = planted(pictures, 'l.bmp')
    with pytest.raises(LeakageError) as e: audit_leakage(bad)
    assert "by='patient'" not in str(e.value) and 'drop_leaks(catalog)' in str(e.value)
    with pytest.raises(LeakageError) as e: audit_leakage(split_catalog(pictures.drop(columns='split'), valid=.25, by='image'), files=False)
    assert "split_catalog(catalog, by='patient')" in str(e.value) and 'drop_leaks' not in str(e.value)
    with pytest.raises(LeakageError, match=r'patient_folds\(catalog\)\. Keep one of the images that are equal'): audit_leakage(patient_folds(bad.assign(label=np.where(bad.patient == '0999', 'Sick', bad.label)), 2, seed=1).assign(fold=range(24)), on='fold')
    with pytest.raises(LeakageError, match="say leaks='warn'"): check_training(bad)


def test_images_in_memory_are_compared(pictures):
    images = np.random.default_rng(0).random((24, 8, 8, 3), np.float32)
    named = pictures.assign(path=[f'array {i}' for i in range(24)])
    assert audit_leakage(named, images=images).loc['same pixels', ['checked', 'found']].tolist() == [24, 0]
    i,j = (np.flatnonzero(pictures.split == o)[0] for o in ('train', 'test'))
    images[j] = images[i]
    with pytest.raises(LeakageError, match=f'same pixels on two sides: 1 .*array {max(i, j)}'): check_training(named, images=images)
    more = upsample_training(named, times=dict(Sick=2))
    with pytest.raises(LeakageError, match='same pixels'): audit_leakage(more, images=images)
    with pytest.raises(SplitError, match='23 images for 24 rows'): audit_leakage(named, images=images[:-1])
    images[j] = images[np.flatnonzero(pictures.split == 'test')[1]]
    check_training(named, images=images) # equal, on one side


def test_the_table_tells_what_was_not_looked_for(pictures):
    table = audit_leakage(pictures)
    assert repr(table).endswith('Altered copies (near twins) were not looked for: audit_leakage(catalog, twins=True).') and 'twins=True).</p>' in table._repr_html_() and len(table.limits) == 1
    assert 'flips, turns of 2' in repr(audit_leakage(pictures, twins=True)) and 'not looked for' not in repr(audit_leakage(pictures, twins=True))
    unknown = pictures.assign(patient=pd.NA, split_by='image')
    assert audit_leakage(unknown, pixels=False).limits[:3] == ['Split by image: the same patient may be on both sides, and nothing measured on it is about new patients.', 'Patients unknown: 24 of 24 images.', 'Pixels not compared: 24 of 24 images.']
    assert type(table[['found']]) is pd.DataFrame and table.found.sum() == 0


@pytest.mark.parametrize('kinds,told', [(['image'] + ['patient']*23, 'image'), (['patient']*24, 'patient'), (['official'] + ['patient']*23, 'unknown'), ([None] + ['patient']*23, 'unknown')])
def test_one_row_split_by_image_labels_all(pictures, kinds, told):
    mixed = pictures.assign(split_by=kinds)
    assert split_kind(mixed) == told and set(split_summary(mixed).split_by) == {told} == set(audit_leakage(mixed).split_by)
    assert near_twins(mixed).split_by == told


def test_a_file_is_read_once_for_all_audits(pictures, monkeypatch):
    bad,_ = planted(pictures, 'm.bmp')
    audit_leakage(bad, raises=False)
    monkeypatch.setattr('medfast.twins.read_pixels', lambda p: pytest.fail(f'{p} is decoded again'))
    assert audit_leakage(bad, raises=False).found['same pixels'] == 1
    os.utime(bad.path.iloc[0])
    with pytest.raises(BaseException, match='decoded again'): audit_leakage(bad, raises=False)


def test_a_file_that_was_written_again_is_looked_at_again(pictures):
    bad,_ = planted(pictures, 'n.bmp')
    assert audit_leakage(bad, raises=False).found.sum() == 1
    fn = bad.path[bad.patient == '0999'].iloc[0]
    changed = np.asarray(Image.open(fn)) ^ 1
    Image.fromarray(changed).save(fn)
    assert audit_leakage(bad).found.sum() == 0


def tiny_study(folder, n=60, side=12):
    "Patients with one or two tiny pictures, half of them sick."
    rng,rows = np.random.default_rng(0), []
    for i in range(2*n):
        fn = folder/f'{i:03d}.png'
        Image.fromarray(rng.integers(0, 256, (side, side), np.uint8)).save(fn)
        rows.append(dict(path=str(fn), patient=f'{i//2:04d}', label='AB'[i//2 % 2]))
    return pd.DataFrame(rows).astype(dict(patient='string'))


@pytest.mark.parametrize('n', [25, pytest.param(1000, marks=pytest.mark.full)])
def test_planted_leaks_are_refused_and_clean_studies_are_not(tmp_path, n):
    table,refused = bench_twins.planted_leaks(n, tiny_study(tmp_path))
    assert table.found.to_dict() == dict(patient=n, bytes=n, pixels=n) and refused == 0


def test_cost_grows_no_faster_than_the_catalog(tmp_path):
    def seconds(n):
        images = np.random.default_rng(0).integers(0, 256, (n, 28, 28), np.uint8)
        cut = n*7//10
        np.savez(tmp_path/f'{n}.npz', train_images=images[:cut], val_images=images[cut:cut], test_images=images[cut:], classes=np.array(['a', 'b']),
                 **{f'{p}_labels': np.arange(k)[:, None] % 2 for p,k in dict(train=cut, val=0, test=n - cut).items()})
        catalog = medmnist_catalog(tmp_path/f'{n}.npz')
        start = time.perf_counter()
        check_training(catalog)
        return time.perf_counter() - start
    seconds(100)
    assert seconds(20_000) < 12*seconds(4_000) # five times as many


# --- folders

def tree(folder): return {o.relative_to(folder).as_posix(): o.read_bytes() for o in sorted(Path(folder).rglob('*')) if o.is_file()}


@pytest.mark.parametrize('link', [False, True, 'hard', 'symbolic'])
def test_folders(files, tmp_path, link):
    before = tree(tmp_path/'src')
    dest = make_folders(files, tmp_path/'dest', link=link)
    assert len(tree(dest)) == len(files) + 1 and tree(tmp_path/'src') == before
    assert not [o for o in dest.rglob('.writing-*')]
    for p,s,l in zip(files.path, files.split, files.label): assert (dest/s/l/Path(p).name).read_bytes() == Path(p).read_bytes()
    assert make_folders(files, dest, link=link) == dest # a second call changes nothing


@pytest.mark.parametrize('link', [False, 'symbolic'])
def test_patients_and_kind_of_split_survive_the_folders(tmp_path, link):
    rows = []
    for i in range(16):
        label = ('A', 'B')[i % 2]
        fn = tmp_path/'src'/label/f'scan {i}.png'
        fn.parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (4, 4), i).save(fn)
        rows.append(dict(path=str(fn), patient=f'{i//4:04d}{label}', label=label))
    catalog = split_catalog(pd.DataFrame(rows).astype(dict(patient='string')), valid=2, by='image')
    back = folder_catalog(make_folders(catalog, tmp_path/'dest', link=link), links=link == 'symbolic')
    assert set(back.split_by) == {'image'} and split_hash(back) == split_hash(catalog)
    assert back.set_index(back.path.map(os.path.basename)).patient.to_dict() == catalog.set_index(catalog.path.map(os.path.basename)).patient.to_dict()


def test_interrupted_folders_are_completed(files, tmp_path, monkeypatch):
    calls,put = [], folders._put
    def stop(*args):
        calls.append(1)
        if len(calls) == 20: raise KeyboardInterrupt
        put(*args)
    monkeypatch.setattr(folders, '_put', stop)
    with pytest.raises(KeyboardInterrupt): make_folders(files, tmp_path/'dest')
    assert len(tree(tmp_path/'dest')) == 20
    monkeypatch.setattr(folders, '_put', put)
    make_folders(files, tmp_path/'dest')
    make_folders(files, tmp_path/'whole')
    assert tree(tmp_path/'dest') == tree(tmp_path/'whole')


def test_disk_full_says_so_and_can_go_on(files, tmp_path, monkeypatch):
    copy,n = folders.shutil.copyfile, []
    def full(source, target):
        n.append(1)
        if len(n) == 5: raise OSError(28, 'No space left on device')
        return copy(source, target)
    monkeypatch.setattr(folders.shutil, 'copyfile', full)
    with pytest.raises(SplitError, match='No space left on device.*second call goes on'): make_folders(files, tmp_path/'dest')
    assert not list((tmp_path/'dest').rglob('.writing-*'))
    make_folders(files, tmp_path/'dest')
    assert len(tree(tmp_path/'dest')) == len(files) + 1


@pytest.mark.parametrize('plant', ['notes.txt', 'train/Sick/other.txt', 'models/weights.pth', '.hidden'])
def test_other_files_are_never_touched(files, tmp_path, plant):
    dest = tmp_path/'dest'
    (dest/plant).parent.mkdir(parents=True)
    (dest/plant).write_text('mine')
    with pytest.raises(SplitError, match='1 other file'): make_folders(files, dest)
    assert tree(dest) == {plant: b'mine'}


@pytest.mark.parametrize('plant', ['.DS_Store', 'train/Thumbs.db', 'valid/Sick/desktop.ini'])
def test_files_of_the_operating_system_do_not_count(files, tmp_path, plant):
    dest = tmp_path/'dest'
    (dest/plant).parent.mkdir(parents=True)
    (dest/plant).write_text('the window was open')
    make_folders(files, dest)
    make_folders(files, dest) # nor in folders that are full
    assert (dest/plant).read_text() == 'the window was open' and len(tree(dest)) == len(files) + 2


def test_a_changed_file_is_not_overwritten(files, tmp_path):
    dest = make_folders(files, tmp_path/'dest')
    mine = next(dest.glob('train/*/*'))
    mine.write_text('corrected')
    with pytest.raises(SplitError, match='not the same as its source'): make_folders(files, dest)
    assert mine.read_text() == 'corrected'


def test_another_split_in_the_same_place_is_refused(files, tmp_path):
    dest = make_folders(files, tmp_path/'dest')
    before = tree(dest)
    with pytest.raises(SplitError, match='another split'): make_folders(split_catalog(files.drop(columns='split'), valid=.25, test=.25, seed=4), dest)
    with pytest.raises(SplitError, match='is a file'): make_folders(files, dest/'split.csv')
    with pytest.raises(SplitError, match='other files'): make_folders(files, tmp_path/'src') # into its own source
    assert tree(dest) == before


def test_hostile_labels_and_lost_sources(files, tmp_path):
    for label in ('../out', 'a/b', '..', '', 'a\\b'):
        with pytest.raises(SplitError, match='cannot be the name of a folder'): make_folders(files.assign(label=files.label.replace('Sick', label)), tmp_path/'dest')
    os.remove(files.path[0])
    with pytest.raises(SplitError, match='1 file is not there'): make_folders(files, tmp_path/'dest')
    assert not (tmp_path/'dest').exists()


def test_equal_names_from_two_folders(tmp_path):
    rows = []
    for folder in ('one', 'two'):
        for label in 'AB':
            for i in range(4):
                fn = tmp_path/'src'/folder/label/f'{i}.txt'
                fn.parent.mkdir(parents=True, exist_ok=True)
                fn.write_text(f'{folder} {label} {i}')
                rows.append(dict(path=str(fn), label=label, patient=f'{folder}{label}{i}'))
    catalog = split_catalog(pd.DataFrame(rows), valid=.25)
    assert len(tree(make_folders(catalog, tmp_path/'dest'))) == 17


# --- repeated images and weights

@settings(fast, max_examples=20)
@given(catalogs, fractions, fractions, st.integers(0, 99))
def test_upsampling(catalog, valid, test, seed):
    split = split_catalog(catalog, valid=valid, test=test, seed=seed)
    more = upsample_training(split, seed=seed)
    train = more[more.split == 'train']
    assert train.label.value_counts().nunique() == 1 and len(train) == 2*split[split.split == 'train'].label.value_counts().max()
    pd.testing.assert_frame_equal(more[:len(split)].drop(columns='copy'), split, check_dtype=False) # the images themselves, as they were
    copies = more[len(split):]
    assert (copies['copy'] > 0).all() and set(copies.split) <= {'train'} and (more['copy'][:len(split)] == 0).all() and str(more['copy'].dtype) == 'Int64'
    assert not more.duplicated(['path', 'copy']).any() and more.path.value_counts()[train[train.label == train.label.iloc[0]].path].gt(0).all()
    for _,own in train.groupby('label'): assert own.path.value_counts().max() - own.path.value_counts().min() <= 1 # all about equally often
    assert split_hash(more) == split_hash(split) and audit_leakage(more, files=False).found.sum() == 0
    assert split_summary(more).drop(columns='copies').equals(split_summary(split)) and split_summary(more).copies['whole'] == len(copies)
    again = upsample_training(split.sample(frac=1, random_state=seed), seed=seed)
    assert set(zip(again.path, again['copy'])) == set(zip(more.path, more['copy']))


def corona_like(): return pd.DataFrame([dict(path=f'/data/{l}/{i}.jpeg', label=l) for l,n in dict(Normal=1576, Pneumonia=4334).items() for i in range(n)])


def test_study_000():
    split = split_catalog(corona_like(), valid=0, test=.2, by='image')
    train = lambda o: o[o.split == 'train'].label.value_counts().to_dict()
    assert train(split) == dict(Normal=1261, Pneumonia=3467) and (split.split == 'test').sum() == 1182
    assert train(upsample_training(split, times=dict(Normal=3))) == dict(Normal=3783, Pneumonia=3467)
    assert train(upsample_training(split)) == dict(Normal=3467, Pneumonia=3467)
    weights = class_weights(split)
    assert weights == pytest.approx(dict(Normal=4728/2/1261, Pneumonia=4728/2/3467))
    assert sum(weights[l] for l in split.label[split.split == 'train'])/4728 == pytest.approx(1)


def test_before_the_split_it_says_what_would_leak():
    with pytest.raises(SplitError, match=r'about 93% of the tested Normal images, and 47% of all, would have a copy of themselves in the training part.*Split first: split_catalog'): upsample_training(corona_like())
    with pytest.raises(SplitError, match='not split yet. Only training images'): class_weights(corona_like())


@fast
@given(st.integers(10, 40), st.integers(2, 6), st.integers(0, 999))
def test_the_number_in_the_warning_is_right(m, k, seed):
    "Drawn a hundred times, as often as it says, for classes of 10 m and 10 m k images."
    rng,test,image = np.random.default_rng(seed), 2*m*k, np.tile(np.arange(10*m), k)
    share = []
    for _ in range(100):
        order = rng.permutation(image)
        share.append(np.isin(order[:test], order[test:]).mean())
    told = int(leak_of_copies(pd.Series(dict(a=10*m, b=10*m*k)), pd.Series(dict(a=10*m*k, b=10*m*k))).partition('about ')[2].partition('%')[0])/100
    assert abs(np.mean(share) - told) < .03


def test_repeated_images_are_not_drawn_again():
    split = split_catalog(catalog_of(dict(A=[2]*9, B=[2]*4)), valid=.25)
    more = upsample_training(split)
    for call in (lambda: split_catalog(more), lambda: split_catalog(more, by='image'), lambda: patient_folds(more, 2), lambda: balanced_sample(more, 2), lambda: balance_training(more), lambda: study_order(more)):
        with pytest.raises(SplitError, match=r"rows are repeated images.*catalog\[catalog\['copy'\] == 0\]"): call()
    with pytest.raises(SplitError, match='repeated already'): upsample_training(more)
    assert split_hash(split_catalog(more, by='official')) == split_hash(split) and set(class_weights(more).values()) == {1.}
    originals = more[more['copy'] == 0].drop(columns='split')
    assert split_hash(split_catalog(originals, valid=.25)) == split_hash(split)


@pytest.mark.parametrize('spoil', [lambda m: m.assign(split=[*m.split[:-1], 'valid']), lambda m: m.drop(index=m.index[(m['copy'] == 0) & (m.path == m.path.iloc[-1])]),
                                   lambda m: m.assign(split=m.split.mask((m['copy'] == 0) & (m.path == m.path.iloc[-1]), 'test'))])
def test_stray_copies_are_leaks(spoil):
    "A copy outside train, without its image, or with its image on another side."
    more = spoil(upsample_training(split_catalog(catalog_of(dict(A=[2]*9, B=[2]*4)), valid=.25)))
    for call in (split_summary, split_hash, class_weights, lambda o: split_catalog(o, by='official')):
        with pytest.raises(LeakageError, match='Repeated images outside the training part'): call(more)
    with pytest.raises(LeakageError, match='copies outside train: 1'): audit_leakage(more, files=False)
    assert audit_leakage(more, files=False, raises=False).loc['copies outside train', 'found'] == 1


def test_a_copy_beside_its_image_is_a_leak_outside_train():
    split = split_catalog(catalog_of(dict(A=[2]*9, B=[2]*4)), valid=.25).assign(copy=0)
    more = pd.concat([split, split[split.split == 'valid'][:1].assign(copy=1)], ignore_index=True)
    with pytest.raises(LeakageError, match='Repeated images outside the training part'): split_hash(more)


def test_the_seed_decides_which_images_are_repeated_once_more():
    split = split_catalog(catalog_of(dict(A=[1]*30, B=[1]*20)), valid=.2)
    repeated = lambda seed: set(upsample_training(split, seed=seed).query('copy > 0').path)
    assert len(repeated(0)) == 8 and repeated(0) == repeated(0) and len({frozenset(repeated(o)) for o in range(5)}) > 1


@pytest.mark.parametrize('times,told', [(dict(C=2), "'C' is no class. Choose from A, B"), (dict(B=0), 'whole numbers from 1'), (dict(B=1.5), 'whole numbers'), (dict(B=True), 'whole numbers')])
def test_odd_times(times, told):
    with pytest.raises(SplitError, match=told): upsample_training(split_catalog(catalog_of(dict(A=[2]*9, B=[2]*4))), times=times)


def test_a_class_without_training_images():
    catalog = catalog_of(dict(A=[2]*3, B=[2]*3)).assign(split=['train']*6 + ['test']*6)
    for call in (upsample_training, class_weights):
        with pytest.raises(SplitError, match='Class B has no training image'): call(catalog)


def test_folders_hold_each_image_once(files, tmp_path):
    more = upsample_training(files, times=dict(Sick=2))
    with pytest.raises(SplitError, match='a folder holds each image once'): make_folders(more, tmp_path/'dest')
    make_folders(more[more['copy'] == 0], tmp_path/'dest')


# --- splits that came with the data

def test_official_parts_of_coronahack():
    catalog = catalog_of(dict(Normal=[2]*12, Pneumonia=[3]*12)).assign(official='TRAIN')
    catalog.loc[catalog.patient.isin(['0001', '0013']), 'official'] = 'TEST'
    split = split_catalog(catalog, valid=.25, by='official', seed=3)
    assert set(split.split_by) == {'official'} and (split.split == 'test').equals(split.official == 'TEST') and set(split.split) == {'train', 'valid', 'test'}
    assert split.groupby('patient').split.nunique().max() == 1
    assert split_hash(split_catalog(catalog.sample(frac=1, random_state=1), valid=.25, by='official', seed=3)) == split_hash(split)
    assert set(split_catalog(catalog, valid=0, by='official').split) == {'train', 'test'}
    unknown = catalog.assign(patient=catalog.patient.mask(catalog.index == 5))
    with pytest.raises(SplitError, match=r'patient of 1 of 55 images in TRAIN is unknown.*valid=0'): split_catalog(unknown, by='official')
    assert len(split_catalog(unknown, valid=0, by='official')) == 60
    with pytest.raises(SplitError, match='`official` holds dev'): split_catalog(catalog.assign(official='DEV'), by='official')
    with pytest.raises(SplitError, match="no column 'split'"): make_folders(catalog, 'nowhere')


def npz(fn, several=False, n=dict(train=12, val=6, test=6)):
    "A made-up archive of three classes, every image different."
    rng = np.random.default_rng(0)
    labels = {f'{p}_labels': rng.integers(0, 2, (m, 3)) if several else np.arange(m)[:, None] % 3 for p,m in n.items()}
    np.savez(fn, **labels, **{f'{p}_images': rng.integers(0, 256, (m, 8, 8), np.uint8) for p,m in n.items()}, classes=np.array(['a', 'b', 'c']), source=np.array('made up'))
    return medmnist_catalog(fn)


def test_archives_keep_their_split(tmp_path):
    catalog = npz(tmp_path/'x.npz')
    split = split_catalog(catalog, by='official')
    assert split_summary(split).images.to_dict() == dict(train=12, valid=6, test=6, whole=24) and split_summary(split).patients.isna().all() and set(split.split_by) == {'official'}
    with pytest.raises(SplitError, match="patient of 24 of 24 images is unknown.*by='official'"): split_catalog(catalog)
    assert audit_leakage(split).checked.tolist() == [0, 24, 24]
    more = upsample_training(split[split.label.ne('a') | split.index.isin([0, 12, 18])])
    assert more[more.split == 'train'].label.value_counts().to_dict() == dict(a=4, b=4, c=4)
    with pytest.raises(SplitError, match='lies inside another file'): make_folders(split, tmp_path/'dest')


def test_equal_pixels_in_an_archive_are_found(tmp_path):
    catalog = npz(tmp_path/'x.npz')
    arrays = dict(np.load(tmp_path/'x.npz'))
    arrays['test_images'][4] = arrays['train_images'][7]
    np.savez(tmp_path/'y.npz', **arrays)
    with pytest.raises(LeakageError, match=r'same bytes on two sides: 1 \(y.npz#train/7 = y.npz#test/4\)'): audit_leakage(medmnist_catalog(tmp_path/'y.npz'))
    both = pd.concat([catalog, medmnist_catalog(tmp_path/'y.npz')], ignore_index=True)
    assert audit_leakage(both[(both.split == 'train') | both.path.str.contains('y.npz#test')], raises=False).loc['same bytes', 'found'] == 1
    os.remove(tmp_path/'x.npz')
    with pytest.raises(SplitError, match=r'24 files of the catalog are not there, the first is x.npz#train/0'): audit_leakage(catalog)


def test_several_findings_are_counted_one_by_one_and_not_balanced(tmp_path):
    split = split_catalog(npz(tmp_path/'x.npz', several=True), by='official')
    summary = split_summary(split)
    assert summary.loc['whole', 'a images'] == split.label.str.split('|').map(lambda o: 'a' in o).sum() and {'a images', 'b images', 'c images', 'none images'} <= set(summary)
    for call in (upsample_training, class_weights, lambda o: split_catalog(o, by='image'), lambda o: balanced_sample(o, 2, how='images'), lambda o: patient_folds(o, 2)):
        with pytest.raises(SplitError, match='several findings'): call(split)
    with pytest.raises(SplitError, match='not split yet'): upsample_training(split.drop(columns='split'))


def test_large_archives_in_seconds():
    "As many images as tissuemnist has; without files."
    from time import perf_counter
    parts = dict(train=165_466, valid=23_640, test=47_280)
    catalog = pd.concat([pd.DataFrame(dict(path=[f'/d/t.npz#{p}/{i}' for i in range(n)], label=(np.arange(n)**2 % 7 % 4).astype(str), split=p)) for p,n in parts.items()], ignore_index=True)
    start = perf_counter()
    split = split_catalog(catalog, by='official')
    split_summary(split); split_hash(split); class_weights(split); audit_leakage(split, files=False)
    assert len(upsample_training(split)) == 236_386 + 47_276 and split_catalog(catalog.drop(columns='split'), by='image').split.nunique() == 2
    assert perf_counter() - start < 60


@pytest.mark.filterwarnings('ignore')
def test_public_coronahack_by_patient():
    catalog = coronahack_catalog(real_data('coronahack'))
    split = split_catalog(catalog, valid=.2, test=.2, seed=1)
    assert audit_leakage(split).found.sum() == 0 and split_summary(split).patients['whole'] == 952
    assert catalog.patient.str.replace('_(bacteria|virus)|NORMAL2-', '', regex=True).nunique() < 952 # bare numbers repeat across kinds
    by_image = audit_leakage(split_catalog(catalog, valid=.2, test=.2, by='image', seed=1), raises=False)
    assert by_image.found['same patient'] > 50 and by_image.found['same bytes'] > 0 # twins, all of one patient each
    more = upsample_training(split)
    assert more[more.split == 'train'].label.value_counts().nunique() == 1 and audit_leakage(more).found.sum() == 0


@pytest.mark.filterwarnings('ignore')
def test_public_archives_have_twins_on_two_sides():
    for name,(found,gone) in dict(breastmnist=(1, 1), pneumoniamnist=(8, 10)).items(): # groups of equal images, images to leave out
        catalog = medmnist_catalog(real_data('medmnist'), name)
        assert audit_leakage(catalog, raises=False).loc['same bytes', 'found'] == found
        with pytest.raises(LeakageError, match=f'{name}.npz#train/'): check_training(catalog)
        with pytest.warns(UserWarning, match='too good by as much'): check_training(catalog, leaks='warn')
        check_training(drop_leaks(catalog))
        assert len(catalog) - len(drop_leaks(catalog)) == gone


@pytest.mark.filterwarnings('ignore')
def test_public_radiography_twins():
    catalog = radiography_catalog(real_data('radiography'))
    with pytest.raises(SplitError, match="patient of 900 of 900 images is unknown.*by='image'"): split_catalog(catalog)
    twins = catalog.path.str.contains('COVID-314[24]')
    planted = split_catalog(catalog, by='image').assign(split=np.where(catalog.path.str.contains('COVID-3142'), 'valid', 'train'))
    assert twins.sum() == 2
    with pytest.raises(LeakageError, match='COVID-3142.png = COVID-3144.png'): audit_leakage(planted)


# --- the command, and real matrices

def test_command(small_study, tmp_path, capsys):
    split_command(str(small_study), str(tmp_path/'dest'), valid='.34', seed=1)
    out = capsys.readouterr().out
    assert 'patients' in out and str(tmp_path) not in out
    expected = split_catalog(dmr_catalog(small_study), valid=.34, seed=1)
    assert split_hash(folder_catalog(tmp_path/'dest')) == split_hash(expected)
    with pytest.raises(SystemExit): split_command(str(small_study), str(tmp_path/'dest'), valid='.34', seed=2)
    assert 'another split' in capsys.readouterr().err
    split_command(str(small_study), str(tmp_path/'study'), by='image', sample=5, valid='1', test='1', link='hard')
    assert set(folder_catalog(tmp_path/'study').split_by) == {'image'}


def fails(capsys, *args, **options):
    "What the command writes before it ends."
    with pytest.raises(SystemExit) as e: split_command(*map(str, args), **options)
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.startswith('medfast-split: ') and len(err.splitlines()) == 1
    return err


def class_folders(src, n=12, split=()):
    for i in range(n):
        fn = src/(split[i % len(split)] if split else '')/('Healthy', 'Sick')[i % 2]/f'scan {i}.png'
        fn.parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (8, 8), i).save(fn)
    return src


def test_the_command_speaks_of_its_options(tmp_path, capsys):
    src = class_folders(tmp_path/'src')
    told = fails(capsys, src, tmp_path/'out')
    assert 'Choose --by image and say so where nobody knows.' in told and 'by=' not in told and 'catalog' not in told and 'official' not in told
    assert '--valid 5, --test 4 needs' in fails(capsys, src, tmp_path/'out', by='image', valid='5', test='4')
    assert "--by frames: choose 'patient'" in fails(capsys, src, tmp_path/'out', by='frames')
    assert '--link soft' in fails(capsys, src, tmp_path/'out', by='image', link='soft')
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('dest', ['src/out', 'src', 'src/../src/deep/out'])
def test_a_destination_in_the_source_is_refused(tmp_path, capsys, dest):
    src = class_folders(tmp_path/'src')
    assert 'lies in SRC (src)' in fails(capsys, src, tmp_path/dest, by='image')
    assert len(tree(src)) == 12 and not (src/'out').exists()
    split_command(str(src), str(tmp_path/'src-out'), by='image') # beside it


def test_a_source_without_class_folders_gets_a_hint(tmp_path, capsys):
    (tmp_path/'loose').mkdir(); Image.new('L', (8, 8)).save(tmp_path/'loose'/'1.png')
    (tmp_path/'empty').mkdir()
    for name in ('loose', 'empty'): assert f'{name} must hold a folder for each class, as in {name}/Healthy/1.png' in fails(capsys, tmp_path/name, tmp_path/'out', by='image')
    assert "missing='drop'" not in fails(capsys, tmp_path/'loose', tmp_path/'out', by='image')


def test_the_command_does_not_split_again_by_a_slip(tmp_path, capsys):
    src = class_folders(tmp_path/'src', split=('train', 'train', 'test', 'test'))
    assert 'SRC is split already (test, train; by official)' in fails(capsys, src, tmp_path/'out')
    split_command(str(src), str(tmp_path/'official'), by='official')
    assert folder_catalog(tmp_path/'official').split.value_counts().to_dict() == dict(train=6, test=6)
    split_command(str(src), str(tmp_path/'anew'), by='image', valid='2')
    assert folder_catalog(tmp_path/'anew').split.value_counts().to_dict() == dict(train=8, valid=4)
    assert capsys.readouterr().err == ''


def test_a_split_that_is_replaced_is_told():
    split = split_catalog(two_by_two(), valid=.25, test=.25)
    for by in ('patient', 'image'):
        with pytest.warns(UserWarning, match=f'split already .4 test, 16 train, 4 valid; by patient., and that split is replaced by one by {by}') as seen: split_catalog(split, by=by)
        assert seen[0].filename == __file__
    with warnings.catch_warnings(action='error'):
        split_catalog(split, by='official'); split_catalog(split.drop(columns='split')); split_catalog(split.assign(split=pd.NA))


@pytest.mark.parametrize('by', [None, 'patient', 'official'])
def test_the_study_order_is_by_image_and_has_to_be_asked_for(small_study, tmp_path, capsys, by):
    with pytest.raises(SystemExit): split_command(str(small_study), str(tmp_path/'dest'), by=by, sample=5, valid='1', test='1')
    assert 'add --by image, or balance the training part with --balance.' in capsys.readouterr().err
    assert not (tmp_path/'dest').exists()


def test_command_ends_in_a_message(small_study, tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit): split_command(str(small_study), str(tmp_path/'dest'), by='image', seed=-1)
    assert capsys.readouterr().err.startswith('medfast-split: --seed -1: give a whole number')
    for trouble in (ValueError('an odd value'), PermissionError(13, 'Permission denied')):
        def fail(*args): raise trouble
        monkeypatch.setattr(split_module, '_catalog_of', fail)
        with pytest.raises(SystemExit): split_command(str(small_study), str(tmp_path/'dest'))
        assert str(trouble) in capsys.readouterr().err


def test_real_matrices(dmr_ir):
    split = split_catalog(dmr_catalog(dmr_ir), valid=.2, test=.2, seed=42)
    assert split_summary(split).patients.tolist() == [73, 24, 24, 121]
    assert audit_leakage(split).checked.tolist() == [121]*3


# --- spellings, dirty tables, claims

def two_by_two(**changes): return catalog_of(dict(A=[2]*6, B=[2]*6)).assign(**changes)


def test_one_image_under_two_spellings(tmp_path):
    (tmp_path/'link').symlink_to(tmp_path)
    catalog = two_by_two()
    catalog['path'] = [f'{tmp_path}/{Path(p).name}' for p in catalog.path]
    for other in ('/./', '/link/'):
        twice = pd.concat([catalog, catalog[:1].assign(path=catalog.path[0].replace(f'{tmp_path}/', f'{tmp_path}{other}'))], ignore_index=True)
        with pytest.raises(SplitError, match=r'more than once \(1 row too many\)'): item_ids(twice)
        with pytest.raises(SplitError, match='more than once'): split_catalog(twice, by='image')
        split = twice.assign(split=['train']*24 + ['test'])
        for call in (audit_leakage, lambda o: audit_leakage(o, files=False), upsample_training, split_hash):
            with pytest.raises(LeakageError, match='more than once, in test and train'): call(split)


def test_a_copy_may_be_spelt_otherwise(tmp_path):
    more = upsample_training(split_catalog(two_by_two(), valid=.2), times=dict(A=2))
    other = more.assign(path=[p if c == 0 else p.replace('/data/', '/data/./') for p,c in zip(more.path, more['copy'])])
    assert split_hash(other) == split_hash(more) and item_ids(other) == item_ids(more)


def test_items_of_an_archive_under_two_names():
    catalog = pd.DataFrame(dict(path=['o.npz#valid/0', f'{os.getcwd()}/o.npz#val/00'], label=['a', 'b'], split=['valid', 'train']))
    with pytest.raises(LeakageError, match='o.npz#valid/0 stands in the catalog more than once, in train and valid'): audit_leakage(catalog, files=False)


def test_a_number_sign_in_a_folder_or_a_name(tmp_path):
    split = split_catalog(two_by_two(), valid=.2)
    assert split_hash(split.assign(path=split.path.str.replace('/data/txt/', '/study #2/'))) == split_hash(split)
    folder = tmp_path/'study #2'; folder.mkdir()
    files = split.assign(path=[str(folder/f'i#{i}.png') for i in range(24)])
    for i,p in enumerate(files.path): Path(p).write_text(f'{i}')
    assert len(list(make_folders(files, tmp_path/'out').glob('*/*/i#*.png'))) == 24


def test_relative_and_absolute_paths_of_one_name():
    assert item_ids(pd.DataFrame(dict(path=[f'{os.getcwd()}/a/1.png', 'b/1.png']))) == ['a/1.png', 'b/1.png']


@pytest.mark.parametrize('spelt', [lambda i: f'p{i//2}' + ' '*(i % 2), lambda i: i//2 if i % 2 else str(i//2)])
def test_a_patient_is_one_however_typed(spelt):
    catalog = two_by_two(patient=[spelt(i) for i in range(24)])
    split = split_catalog(catalog, valid=.4)
    assert split.groupby('patient').split.nunique().max() == 1 and split.patient.nunique() == 12
    leak = catalog.assign(split=['train', 'test']*12)
    with pytest.raises(LeakageError, match='same patient on two sides: 12'): audit_leakage(leak, files=False)


def test_an_empty_patient_is_unknown():
    with pytest.raises(SplitError, match='patient of 2 of 24 images is unknown'): split_catalog(two_by_two(patient=['', ' '] + [f'p{i//2}' for i in range(2, 24)]))


def test_labels_and_paths_that_are_none():
    with pytest.raises(SplitError, match="'B' is a text and 1 is none"): split_catalog(two_by_two(label=[1]*12 + ['B']*12))
    with pytest.raises(SplitError, match='1 row has no path'): split_catalog(two_by_two(path=[None] + [f'{i}.png' for i in range(23)]), by='image')


def test_patients_on_two_sides_of_an_official_split_are_told():
    official = ['TRAIN']*11 + ['TEST'] + ['TRAIN']*9 + ['TEST']*3
    with pytest.warns(UserWarning, match='^2 patients stand on more than one side of the official split') as seen: split_catalog(two_by_two(official=official), by='official', valid=0)
    assert '0006' not in str(seen[0].message)


def test_sizes_that_an_official_split_would_ignore():
    catalog = two_by_two(official=['TRAIN']*10 + ['TEST']*2 + ['TRAIN']*10 + ['TEST']*2)
    with pytest.raises(SplitError, match='test = 0.3'): split_catalog(catalog, by='official', test=.3)
    with pytest.raises(SplitError, match='valid = 0.3: the catalog has a column `split`'): split_catalog(catalog.assign(split='train'), by='official', valid=.3)
    with pytest.raises(SplitError, match="valid = '.2'"): split_catalog(catalog, by='official', valid='.2')


@pytest.mark.parametrize('change,told', [(lambda s: s.replace('train', 'Train'), 'holds Train'), (lambda s: s.where(s.index > 3), 'holds nothing')])
def test_parts_of_other_names_are_the_cause(change, told):
    split = split_catalog(two_by_two(), valid=.2)
    for call in (upsample_training, class_weights, split_summary, split_hash):
        with pytest.raises(SplitError, match=told): call(split.assign(split=change(split.split)))


def test_copy_as_text():
    more = upsample_training(split_catalog(two_by_two(), valid=.2))
    for call in (split_summary, upsample_training, audit_leakage):
        with pytest.raises(SplitError, match="`copy` holds texts such as '0'"): call(more.assign(copy=more['copy'].astype(str)))


def test_a_split_by_patient_without_patients_is_no_claim():
    split = split_catalog(two_by_two(), valid=.2).drop(columns='patient')
    for call in (split_summary, lambda o: audit_leakage(o, files=False), lambda o: audit_leakage(o, files=False, raises=False)):
        with pytest.raises(LeakageError, match="split_by says 'patient', but the patient of 24 of 24"): call(split)


def test_classes_may_be_numbers_and_0_is_one():
    split = split_catalog(two_by_two(label=[0]*12 + [1]*12), valid=.25)[4:]
    assert split_summary(split, positive=0).loc['whole', 'prevalence by image'] == .4 and split_summary(split).loc['whole', 'prevalence by image'] == .6
    with pytest.raises(SplitError, match='positive = 7 is not a class. Choose one of 0, 1'): split_summary(split, positive=7)
    with pytest.raises(SplitError, match='times: 7 is no class. Choose from 0, 1'): upsample_training(split, times={7: 2})


def test_digits_are_classes_in_numeric_order():
    assert list(class_weights(two_by_two(label=['2']*12 + ['10']*12, split='train'))) == ['2', '10']
