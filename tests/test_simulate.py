"What the simulator promises over many studies, and what happens to its folder when something goes wrong."
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medfast import simulate
from medfast.archive import read_archive
from medfast.files import list_files, read_json, sha256
from medfast.phantom import ORGANS, describe_chest, describe_scan, draw_chest, draw_organ
from medfast.pictures import coronahack_catalog, medmnist_catalog, missing_images, radiography_catalog
from medfast.settings import Settings
from medfast.simulate import (CLASSES, FILE_SIZE, ORGAN_COUNTS, RADIOGRAPHY_SIZES, SimulationError, asymmetry_features, embedded_study, matrix_text,
    simulate_chest, simulate_command, simulate_frame, simulate_frames, simulate_organs, simulate_patient, simulate_study, skin_rise, study_labels)
from medfast.thermogram import parse_name, read_thermogram

RISE = { # Peak rise in °C and full width at half maximum in mm, by diameter and clearance in mm
    10: {3: (1.76, 18), 5: (1.20, 22), 10: (.54, 30), 15: (.28, 37), 20: (.15, 43), 25: (.09, 49)},
    15: {3: (1.91, 22), 5: (1.34, 25), 10: (.60, 32), 15: (.30, 39), 20: (.15, 45), 25: (.08, 50)},
    20: {3: (2.26, 25), 5: (1.64, 28), 10: (.77, 35), 15: (.38, 41), 20: (.20, 47), 25: (.10, 52)},
    25: {3: (2.52, 27), 5: (1.81, 31), 10: (.90, 37), 15: (.45, 43), 20: (.23, 48), 25: (.12, 53)}}


def checksums(folder): return {o.relative_to(folder).as_posix(): sha256(o) for o in list_files(folder)}


def features(seed, n, frame=3, **knobs):
    "A row of features and a label a patient, without files."
    labels = study_labels(n, seed)
    rows = [asymmetry_features(simulate_frame(simulate_patient(i, o, seed=seed, **knobs), frame)) for i,o in enumerate(labels, 1)]
    return np.array(rows), np.array(labels) == 'Sick'


def fresh_auc(seed, n, **knobs):
    "AUC of a logistic regression on `n` patients, measured on `n` others."
    (x,y),(newx,newy) = features(2*seed, n, **knobs), features(2*seed + 1, n, **knobs)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=.1, max_iter=1000)).fit(x, y)
    return roc_auc_score(newy, model.predict_proba(newx)[:,1])


# --- physics

@pytest.mark.parametrize('diameter', RISE)
def test_rise_and_width_by_depth(diameter):
    peaks = []
    for clearance,(peak,width) in RISE[diameter].items():
        r,rise = skin_rise(diameter, clearance)
        half = 2*np.interp(-rise[0]/2, -rise, r)
        assert rise[0] == pytest.approx(peak, rel=.04, abs=.02), clearance
        assert half == pytest.approx(width, abs=3.5), clearance
        peaks.append(rise[0])
    assert (np.diff(peaks) < 0).all()


# --- what studies show

def test_signal_is_there_and_only_where_it_is_planted():
    default,null = fresh_auc(0, 40), fresh_auc(0, 40, signal=False)
    assert default > .75 and null < .72 and default - null > .15


@pytest.mark.full
def test_null_studies_are_null():
    assert .46 <= np.mean([fresh_auc(s, 60, signal=False) for s in range(40)]) <= .54


@pytest.mark.full
def test_default_studies_can_be_learnt():
    aucs = [fresh_auc(s, 120) for s in range(4)]
    assert np.mean(aucs) >= .75 and min(aucs) > .7


def test_frames_of_a_patient_are_nearly_one_picture():
    same,other = [], []
    chests = [simulate_frames(simulate_patient(i, CLASSES[i%2]), 20)[::4,160:400:4,120:520:4].reshape(5, -1) for i in range(1, 11)]
    for i,o in enumerate(chests): same += list(np.corrcoef(o)[np.triu_indices(5, 1)])
    for i,o in enumerate(chests[1:]): other.append(np.corrcoef(o[0], chests[i][0])[0,1])
    assert .93 <= np.median(same) <= .99
    assert np.median(other) < np.median(same) - .1


@pytest.mark.parametrize('knobs', [dict(signal=False), dict(site_shift=1.1), dict(marker='Sick')])
def test_a_knob_changes_nothing_of_the_healthy(knobs):
    plain,turned = simulate_patient(3, 'Healthy', seed=1), simulate_patient(3, 'Healthy', seed=1, **knobs)
    assert np.array_equal(simulate_frame(plain), simulate_frame(turned))


def test_tumour_is_where_the_truth_says():
    for i in range(1, 9):
        sick,healthy = (simulate_patient(i, o, seed=7) for o in ('Sick', 'Healthy'))
        row,col = np.unravel_index(np.argmax(sick.scene - healthy.scene), sick.scene.shape)
        assert ('left' if col > sick.scene.shape[1]/2 else 'right') == sick.truth['side'], i
        assert (sick.scene - healthy.scene).max() > sick.truth['rise_c']*.8, i


def test_marker_is_a_cold_square_of_one_class():
    sick = simulate_frame(simulate_patient(2, 'Sick', marker='Sick'), static=True)
    assert sick[405:420,315:325].mean() < 25 < simulate_frame(simulate_patient(2, 'Sick'), static=True)[405:420,315:325].mean()


@pytest.mark.parametrize('n,sick', [(2, 1), (3, 1), (4, 1), (8, 3), (60, 22), (216, 78)])
def test_prevalence_is_counted(n, sick):
    assert all(study_labels(n, seed).count('Sick') == sick for seed in range(3))
    assert n < 5 or study_labels(n, 0) != study_labels(n, 1)


def test_features_do_not_know_left_from_right():
    temps = simulate_frame(simulate_patient(2, 'Sick'))
    assert np.allclose(asymmetry_features(temps), asymmetry_features(temps[:,::-1]), atol=.12)


# --- files

def test_same_seed_same_bytes_whatever_the_threads(tmp_path):
    knobs = dict(n_patients=5, n_frames=2, static=('frontal', 'left 90°'))
    one,two = (simulate_study(tmp_path/str(n), n_workers=n, seed=3, **knobs) for n in (1, 2))
    assert checksums(one) == checksums(two)
    assert checksums(one)['patients.xlsx'] != checksums(simulate_study(tmp_path/'other', seed=4, **knobs))['patients.xlsx']


def test_files_are_dmr_ir(tmp_path):
    study = simulate_study(tmp_path/'s', n_patients=3, n_frames=2, static=('right 45°',))
    files = list_files(study/'txt')
    names = [parse_name(o) for o in files]
    assert len(files) == 9 and {o.patient for o in names} == {'0001', '0002', '0003'}
    assert sorted((o.view, o.kind, o.frame) for o in names[:3]) == [('frontal', 'dynamic', 0), ('frontal', 'dynamic', 1), ('right 45°', 'static', 0)]
    temps = np.loadtxt(files[0])
    assert temps.shape == (480, 640) and files[0].read_text().count('\n') == 480 and files[0].stat().st_size == FILE_SIZE
    assert np.array_equal(temps.astype(np.float32), read_thermogram(files[0]))
    table = pd.read_excel(study/'patients.xlsx')
    assert table.shape == (3, 23) and list(table)[:10] == simulate.STUDY_COLUMNS
    assert table.Diagnosis.tolist() == study_labels(3) == pd.read_csv(study/'truth.csv').label.tolist()
    assert {o.date for o in names} == set(table.Date.dt.date)


def test_the_table_does_not_hold_the_time_of_writing(tmp_path):
    study = simulate_study(tmp_path/'s', n_patients=2, n_frames=1)
    with zipfile.ZipFile(study/'patients.xlsx') as z:
        assert {o.date_time[:3] for o in z.infolist()} == {(2015, 7, 20)}
        assert set(re.findall(rb'\d{4}-\d\d-\d\dT', z.read('docProps/core.xml'))) == {b'2015-07-20T'}


def test_text_of_extreme_values():
    temps = np.full((480, 640), 10., np.float32)
    temps[0,0],temps[-1,-1] = 99.99, 36.345
    assert np.allclose(np.loadtxt(bytes(matrix_text(temps)).decode().splitlines()), temps, atol=.0051)
    for bad in (9.99, 100., -3., np.nan, np.inf):
        temps[5,5] = bad
        with warnings.catch_warnings(), pytest.raises(ValueError, match='10 to 99.99'):
            warnings.simplefilter('error')
            matrix_text(temps)


def test_goes_on_after_a_kill(tmp_path):
    knobs = 'n_patients=8, n_frames=5, seed=2'
    child = subprocess.Popen([sys.executable, '-c', f'from medfast.simulate import simulate_study; simulate_study({str(tmp_path/"s")!r}, {knobs})'],
        stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while len(list((tmp_path/'s/txt').glob('T*'))) < 5 and time.monotonic() < end: time.sleep(.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    before = {o.name: o.stat().st_mtime_ns for o in (tmp_path/'s/txt').glob('T*')}
    assert 5 <= len(before) < 40 and not read_json(tmp_path/'s/simulation.json')['complete']
    study = simulate_study(tmp_path/'s', n_patients=8, n_frames=5, seed=2)
    assert {k: (study/'txt'/k).stat().st_mtime_ns for k in before} == before
    assert checksums(study) == checksums(simulate_study(tmp_path/'whole', n_patients=8, n_frames=5, seed=2))


def test_a_cut_file_is_written_again(tmp_path):
    study = simulate_study(tmp_path/'s', n_patients=2, n_frames=1)
    before,fn = checksums(study), list_files(study/'txt')[0]
    fn.write_bytes(fn.read_bytes()[:1000])
    (study/'truth.csv').unlink()
    assert checksums(simulate_study(study, n_patients=2, n_frames=1)) == before


@pytest.mark.parametrize('other', [dict(n_patients=4), dict(n_frames=2), dict(seed=1), dict(signal=False), dict(site_shift=1.1),
    dict(marker='Sick'), dict(views=('left 45°',)), dict(static=('frontal',))])
def test_other_parameters_are_refused(tmp_path_factory, other):
    dest = tmp_path_factory.getbasetemp()/'refused'
    simulate_study(dest, n_patients=3, n_frames=1)
    before = checksums(dest)
    with pytest.raises(SimulationError, match=f'{next(iter(other))} is .* there'): simulate_study(dest, **{**dict(n_patients=3, n_frames=1), **other})
    assert checksums(dest) == before


def test_a_folder_of_others_is_refused(tmp_path):
    (tmp_path/'thesis.docx').write_text('years of work')
    with pytest.raises(SimulationError, match='holds files that are not a simulated study'): simulate_study(tmp_path, n_patients=2)
    assert [o.name for o in tmp_path.iterdir()] == ['thesis.docx']


@pytest.mark.parametrize('bad', [dict(n_patients=1), dict(n_patients=10_000), dict(n_frames=0), dict(n_frames=101), dict(seed=-1),
    dict(site_shift=float('nan')), dict(site_shift=20.), dict(marker='sick'), dict(views=('top',)), dict(static=('top',))])
def test_bad_knobs_leave_no_folder(tmp_path, bad):
    with pytest.raises(SimulationError, match=next(iter(bad)) if 'top' not in str(bad) else 'no view'): simulate_study(tmp_path/'s', **bad)
    assert not (tmp_path/'s').exists()


def test_a_full_disk_is_told_before_work(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate.shutil, 'disk_usage', lambda _: type('', (), dict(free=1e6)))
    with pytest.raises(SimulationError, match='need 0.1 GB more'): simulate_study(tmp_path/'s', n_patients=9)
    assert not (tmp_path/'s/txt').exists()


def test_an_error_in_a_thread_comes_out_and_stops_the_rest(tmp_path, monkeypatch):
    calls = []
    def broken(*args, **kwargs):
        calls.append(1)
        raise OSError('disk is gone')
    monkeypatch.setattr(simulate, 'matrix_text', broken)
    with pytest.raises(OSError, match='disk is gone'): simulate_study(tmp_path/'s', n_patients=60, n_frames=1)
    assert len(calls) < 30 and not read_json(tmp_path/'s/simulation.json')['complete']


def _embedded(data): return embedded_study(Settings(simulated=data, n_patients=4, n_frames=2))


def test_two_processes_may_want_the_embedded_study_at_once(tmp_path):
    with multiprocessing.get_context('spawn').Pool(2) as pool: first,second = pool.map(_embedded, [tmp_path, tmp_path])
    assert first == second and read_json(first/'simulation.json')['complete']
    assert not [o for o in first.rglob('.writing-*')]
    assert checksums(first) == checksums(simulate_study(tmp_path/'alone', n_patients=4, n_frames=2, seed=42))


# --- chest X-rays

CORONA = dict(n_patients=40, size=24)
RADIO = dict(n_patients=24, size=24, layout='radiography')


@pytest.fixture(scope='module')
def corona(tmp_path_factory): return simulate_chest(tmp_path_factory.mktemp('corona')/'s', **CORONA)


@pytest.fixture(scope='module')
def radio(tmp_path_factory): return simulate_chest(tmp_path_factory.mktemp('radio')/'s', **RADIO, equal=True)


def chest_table(folder): return pd.read_csv(folder/'truth.csv', keep_default_na=False)


def thumbnails(folder, table): return np.array([np.asarray(Image.open(folder/o).resize((16, 16), Image.Resampling.BOX)).ravel()/255 for o in table.file])


def chest_auc(tmp_path, seed, **knobs):
    "AUC of thumbnails, trained on one study and measured on another, by child."
    (x,y),(newx,newy) = ((thumbnails(d, t), t.label == 'Pneumonia') for d in (simulate_chest(tmp_path/f'{seed}-{i}-{len(knobs)}', n_patients=120, size=32, seed=2*seed + i,
        max_images=1, prevalence=.5, **knobs) for i in (0, 1)) for t in [chest_table(d)])
    return roc_auc_score(newy, LogisticRegression(C=.03, max_iter=500).fit(x, y).predict_proba(newx)[:,1])


def test_coronahack_is_written_as_kaggle_has_it(corona):
    lines = (corona/'Chest_xray_Corona_Metadata.csv').read_text().splitlines()
    assert lines[0] == ',X_ray_image_name,Label,Dataset_type,Label_2_Virus_category,Label_1_Virus_category'
    table = pd.read_csv(corona/'Chest_xray_Corona_Metadata.csv', index_col=0)
    assert set(table.Label) == {'Normal', 'Pnemonia'} and set(table.Dataset_type) == {'TRAIN', 'TEST'}
    assert set(table.Label_1_Virus_category.dropna()) == {'bacteria', 'Virus'} and (table.Label == 'Normal').sum() == table.Label_1_Virus_category.isna().sum()
    names = re.compile(r'(person\d+_(bacteria|virus)_\d+|(NORMAL2-)?IM-\d{4}-0001(-\d{4})?)\.jpeg')
    assert all(names.fullmatch(o) for o in table.X_ray_image_name) and table.X_ray_image_name.is_unique
    for o in table.itertuples():
        if (fn := corona/o.Dataset_type.lower()/o.X_ray_image_name).exists(): assert Image.open(fn).size == (24, 24) and Image.open(fn).mode == 'L'
    assert {o.name for o in corona.iterdir()} == {'train', 'test', 'Chest_xray_Corona_Metadata.csv', 'truth.csv', 'simulation.json'}


def test_coronahack_is_read_by_its_catalog(corona):
    with pytest.warns(UserWarning, match='no image'): found = coronahack_catalog(corona)
    truth = chest_table(corona)[lambda o: o.listed]
    found.index = [Path(o).relative_to(corona).as_posix() for o in found.path]
    assert found.loc[truth.file, 'patient'].tolist() == truth.patient.tolist() and found.loc[truth.file, 'label'].tolist() == truth.label.tolist()
    assert len(found) == len(truth) and found.patient.nunique() == 40 and set(missing_images(corona).trouble) == {'no image', 'no row'}


def test_children_have_several_images_in_one_part_and_numbers_that_repeat(corona):
    truth = chest_table(corona)
    assert truth.groupby('patient').file.count().between(1, 4).all() and (truth.groupby('patient').file.count() > 1).mean() > .25
    assert truth.groupby('patient').split.nunique().max() == 1 and set(truth.groupby('split').label.nunique()) == {2}
    bare = [set(truth.patient[truth.patient.str.endswith(o)].str.extract(r'(\d+)')[0]) for o in ('bacteria', 'virus')]
    assert bare[0] & bare[1]


def test_rows_without_image_and_images_without_row_are_counted(tmp_path):
    odd = missing_images(simulate_chest(tmp_path/'s', n_patients=20, size=16, n_missing=2, n_unlisted=3, max_images=1))
    assert odd.trouble.value_counts().to_dict() == {'no image': 2, 'no row': 3}
    assert missing_images(simulate_chest(tmp_path/'clean', n_patients=20, size=16, n_missing=0, n_unlisted=0)).empty


@pytest.mark.parametrize('prevalence', [None, .5, .2])
def test_prevalence_of_pneumonia_is_counted(tmp_path, prevalence):
    truth = chest_table(simulate_chest(tmp_path/'s', n_patients=60, size=16, prevalence=prevalence))
    ill = truth.drop_duplicates('patient').label.eq('Pneumonia').mean()
    assert ill == pytest.approx(prevalence or .73, abs=.02)


def test_radiography_has_a_mask_of_the_lungs_for_every_image(radio):
    truth = chest_table(radio)
    for o in truth.sample(8, random_state=0).itertuples():
        image,mask = (np.asarray(Image.open(radio/f)) for f in (o.file, o.mask))
        assert image.shape == mask.shape == (24, 24) and set(np.unique(mask)) == {0, 255}
        assert image[mask > 0].mean() < image[8:][mask[8:] == 0].mean()
    found = radiography_catalog(radio)
    assert found['mask'].notna().all() and found.patient.isna().all() and sorted(found.label.unique()) == list(RADIOGRAPHY_SIZES)
    assert set(truth.kind) == {'covid', 'opacity', 'normal', 'viral'} and truth.age.min() >= 18


def test_radiography_classes_are_in_proportion_or_equal(tmp_path, radio):
    assert set(chest_table(radio).label.value_counts()) == {6}
    real = chest_table(simulate_chest(tmp_path/'s', n_patients=212, size=16, layout='radiography')).label.value_counts()
    assert {k: abs(real[k] - v/100) < 1 for k,v in RADIOGRAPHY_SIZES.items()} == dict.fromkeys(RADIOGRAPHY_SIZES, True)


def test_traps_of_the_radiography_set_are_planted_where_asked(tmp_path, radio):
    trapped = simulate_chest(tmp_path/'s', **RADIO, equal=True, odd_size=True, n_duplicates=3)
    truth = chest_table(trapped)
    assert {k: {Image.open(trapped/o).size for o in v} for k,v in truth.groupby('label').file} == {k: {(27, 27) if k == 'Viral Pneumonia' else (24, 24)} for k in RADIOGRAPHY_SIZES}
    twins = truth[truth.duplicate_of != '']
    assert len(twins) == 3 and all(sha256(trapped/o.file) == sha256(trapped/o.duplicate_of) and o.file != o.duplicate_of for o in twins.itertuples())
    plain = [sha256(radio/o) for o in chest_table(radio).file]
    assert len(set(plain)) == len(plain) and (chest_table(radio).duplicate_of == '').all()
    with pytest.warns(UserWarning) as told: radiography_catalog(trapped)
    assert any('sizes differ by class' in str(o.message) for o in told) and any('3 images lie there more than once' in str(o.message) for o in told)


def test_truth_is_what_was_drawn(corona):
    for o in chest_table(corona).sample(6, random_state=1).itertuples():
        drawn = draw_chest(describe_chest(o.number, o.kind), o.image, size=24)
        assert drawn.truth['heart'] == pytest.approx(o.heart, abs=.001) and drawn.truth['side'] == o.side and drawn.truth['lobe'] == o.lobe and drawn.truth['severity'] == pytest.approx(o.severity, abs=.001)
        assert abs(drawn.image.astype(int) - np.asarray(Image.open(corona/o.file))).mean() < 6


def test_without_signal_nothing_is_drawn_and_healthy_pictures_stay(tmp_path, corona):
    null = simulate_chest(tmp_path/'s', **CORONA, signal=False)
    one,two = chest_table(corona), chest_table(null)
    assert one.file.tolist() == two.file.tolist() and one.label.tolist() == two.label.tolist() and set(two.kind) == {'normal'} and not two.severity.any()
    same = np.array([sha256(corona/o) == sha256(null/o) for o in one.file])
    assert same[one.label == 'Normal'].all() and same[one.label == 'Pneumonia'].mean() < .2


@pytest.mark.parametrize('source,column', [('marker', 'marker'), ('contrast', 'exposure'), ('age', 'age')])
@pytest.mark.parametrize('knobs', [CORONA, RADIO | dict(equal=True)], ids=['corona', 'radio'])
def test_a_source_tells_the_class_where_asked(tmp_path, source, column, knobs):
    truth = chest_table(simulate_chest(tmp_path/'s', **knobs, signal=False, source=source))
    if source == 'age': assert truth.age[truth.label.isin(['Pneumonia', 'Viral Pneumonia'])].max() < truth.age[~truth.label.isin(['Pneumonia', 'Viral Pneumonia'])].min()
    else: assert (truth.groupby('label')[column].nunique() == 1).all() and truth[column].nunique() == truth.label.nunique()


def test_chest_findings_can_be_learnt_and_only_where_they_are_drawn(tmp_path):
    default,null = (np.mean([chest_auc(tmp_path, s, **k) for s in (0, 1)]) for k in ({}, dict(signal=False)))
    assert default > .6 and abs(null - .5) < .14 and default > null + .1


@pytest.mark.full
def test_null_chest_studies_are_null(tmp_path):
    assert .46 <= np.mean([chest_auc(tmp_path, s, signal=False) for s in range(20)]) <= .54


@pytest.mark.parametrize('knobs', [CORONA, RADIO | dict(n_duplicates=2, odd_size=True)], ids=['corona', 'radio'])
def test_chest_same_seed_same_bytes_whatever_the_threads(tmp_path, knobs):
    one,two,other = (checksums(simulate_chest(tmp_path/str(i), **knobs, seed=s, n_workers=n)) for i,(s,n) in enumerate([(3, 1), (3, 3), (4, 1)]))
    assert one == two and one != other


@pytest.mark.parametrize('call', ['simulate_chest(dest, n_patients=30, size=48)', 'simulate_organs(dest, n_volumes=24, n_slices=10)'], ids=['chest', 'organs'])
def test_two_processes_write_the_same_study(tmp_path, call):
    code = f'import sys; from medfast.simulate import *; dest = sys.argv[1]; {call}'
    pairs = [subprocess.Popen([sys.executable, '-c', code, str(tmp_path/o)]) for o in ('one', 'one', 'two')]
    assert [o.wait() for o in pairs] == [0, 0, 0]
    assert checksums(tmp_path/'one') == checksums(tmp_path/'two')


def kill_while(code, folder, pattern, n):
    "Run `code` in a process of its own and kill it once `n` files are there."
    child = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while len(list(folder.rglob(pattern))) < n and time.monotonic() < end: time.sleep(.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


def test_chest_goes_on_after_a_kill(tmp_path):
    kill_while(f'from medfast.simulate import simulate_chest; simulate_chest({str(tmp_path/"s")!r}, n_patients=60, size=96)', tmp_path, '[!.]*.jpeg', 5)
    before = {o: o.stat().st_mtime_ns for o in tmp_path.rglob('[!.]*.jpeg')}
    assert len(before) >= 5 and not read_json(tmp_path/'s/simulation.json')['complete']
    study = simulate_chest(tmp_path/'s', n_patients=60, size=96)
    assert {o: o.stat().st_mtime_ns for o in before} == before
    assert checksums(study) == checksums(simulate_chest(tmp_path/'whole', n_patients=60, size=96))


@pytest.mark.parametrize('lose', ['image', 'cut', 'truth.csv', 'Chest_xray_Corona_Metadata.csv'])
def test_what_is_lost_or_cut_comes_back(tmp_path, lose):
    study = simulate_chest(tmp_path/'s', n_patients=6, size=24)
    before,image = checksums(study), min(study.glob('train/*'))
    if lose == 'cut': image.write_bytes(image.read_bytes()[:300])
    else: (image if lose == 'image' else study/lose).unlink()
    others = {o: o.stat().st_mtime_ns for o in study.glob('t*/*.jpeg') if o != image}
    assert checksums(simulate_chest(study, n_patients=6, size=24)) == before
    assert {o: o.stat().st_mtime_ns for o in others} == others


def test_a_complete_study_is_not_touched(radio):
    times = {o: o.stat().st_mtime_ns for o in radio.rglob('*') if o.is_file()}
    simulate_chest(radio, **RADIO, equal=True)
    assert {o: o.stat().st_mtime_ns for o in radio.rglob('*') if o.is_file()} == times


@pytest.mark.parametrize('other', [dict(n_patients=41), dict(size=32), dict(seed=1), dict(signal=False), dict(source='age'), dict(prevalence=.5), dict(n_missing=1), dict(max_images=1), dict(layout='radiography')])
def test_other_chest_parameters_are_refused(corona, other):
    before = checksums(corona)
    with pytest.raises(SimulationError, match=f'{next(iter(other))} is .* there'): simulate_chest(corona, **CORONA | other)
    assert checksums(corona) == before


@pytest.mark.parametrize('bad,match', [(dict(layout='kaggle'), 'layout'), (dict(n_patients=3), 'n_patients'), (dict(n_patients=10_000), 'n_patients'), (dict(size=8), 'size'), (dict(seed=-1), 'seed'),
    (dict(n_patients=12.5), 'n_patients = 12.5: a whole number'), (dict(size='96'), "size = '96': a whole number"), (dict(seed=None), 'seed = None'), (dict(n_unlisted=5), 'n_unlisted'), (dict(n_workers=0), 'n_workers = 0: from 1'), (dict(prevalence='half'), 'prevalence'),
    (dict(prevalence=0.), 'prevalence'), (dict(prevalence=float('nan')), 'prevalence'), (dict(max_images=5), 'max_images'), (dict(n_missing=-1), 'n_missing'), (dict(source='hospital'), 'source'),
    (dict(equal=True), "belongs to the layout 'radiography'"), (dict(layout='radiography', prevalence=.5), "belongs to the layout 'coronahack'"),
    (dict(layout='radiography', n_duplicates=-1), 'n_duplicates'), (dict(layout='radiography', size=1000, odd_size=True), 'up to 896')])
def test_bad_chest_knobs_leave_no_folder(tmp_path, bad, match):
    with pytest.raises(SimulationError, match=match): simulate_chest(tmp_path/'s', **bad)
    assert not (tmp_path/'s').exists()


@pytest.mark.parametrize('simulate_it', [lambda d: simulate_chest(d, n_patients=4, size=16), lambda d: simulate_organs(d, n_volumes=6, n_slices=20)], ids=['chest', 'organs'])
def test_folders_of_others_are_refused(tmp_path, small_study, simulate_it):
    (tmp_path/'thesis.docx').write_text('years of work')
    with pytest.raises(SimulationError, match='holds files that are not a simulated study'): simulate_it(tmp_path)
    assert [o.name for o in tmp_path.iterdir()] == ['thesis.docx']
    with pytest.raises(SimulationError, match='holds another study'): simulate_it(small_study)


@pytest.mark.parametrize('simulate_it', [lambda d: simulate_study(d, n_patients=2, n_frames=1), lambda d: simulate_chest(d, n_patients=4, size=16), lambda d: simulate_organs(d, n_volumes=6, n_slices=20)], ids=['thermogram', 'chest', 'organs'])
def test_a_study_within_a_study_is_refused(tmp_path, simulate_it):
    study = simulate_chest(tmp_path/'study', n_patients=4, size=16)
    before = checksums(study)
    (tmp_path/'link').symlink_to(study/'train')
    for inner in ('study/inner', 'study/train/deep/inner', 'link/inner', 'other/../study/inner'):
        with pytest.raises(SimulationError, match='inner lies in the simulated study study.*Choose a folder beside it'): simulate_it(tmp_path/inner)
    assert checksums(study) == before and not list(tmp_path.rglob('inner'))
    assert simulate_it(tmp_path/'study beside').is_dir()


def test_the_command_refuses_a_study_within_a_study(tmp_path, capsys):
    study = simulate_chest(tmp_path/'study', n_patients=4, size=16)
    with pytest.raises(SystemExit): simulate_command(str(study/'inner'), kind='chest', n_patients=4, size=16)
    assert capsys.readouterr().err.startswith('medfast-simulate: inner lies in the simulated study study')


@pytest.mark.parametrize('simulate_it', [lambda d: simulate_chest(d, n_patients=4), lambda d: simulate_organs(d)], ids=['chest', 'organs'])
def test_a_full_disk_is_told_before_drawing(tmp_path, monkeypatch, simulate_it):
    monkeypatch.setattr(simulate.shutil, 'disk_usage', lambda _: type('', (), dict(free=1e3)))
    with pytest.raises(SimulationError, match='GB more in s, 0.0 GB are free'): simulate_it(tmp_path/'s')
    assert [o.name for o in (tmp_path/'s').iterdir()] == ['simulation.json']


# --- organs

@pytest.fixture(scope='module')
def organs(tmp_path_factory): return simulate_organs(tmp_path_factory.mktemp('organs')/'s', n_volumes=24, n_slices=20)


def arrays(folder):
    with np.load(folder/'organsmnist_simulated.npz') as z: return {k: z[k] for k in z.files}


def neighbour(folder, part, scanner):
    "Accuracy of the nearest neighbour of the training part, for the slices of `part` that come from `scanner`."
    a,truth = arrays(folder), pd.read_csv(folder/'truth.csv')
    x = np.concatenate([a[f'{k}_images'] for k in ('train', 'val', 'test')]).reshape(len(truth), -1)/255
    train,asked = (truth.split == 'train').to_numpy(), ((truth.split == part) & (truth.scanner == scanner)).to_numpy()
    return KNeighborsClassifier(1).fit(x[train], truth.label[train]).score(x[asked], truth.label[asked])


def test_organs_have_the_arrays_of_medmnist(organs):
    a = arrays(organs)
    assert {f'{p}_{k}' for p in ('train', 'val', 'test') for k in ('images', 'labels')} | {'source'} == set(a)
    for p in ('train', 'val', 'test'):
        images,labels = a[f'{p}_images'], a[f'{p}_labels']
        assert images.dtype == labels.dtype == np.uint8 and images.shape == (len(labels), 28, 28) and labels.shape == (len(labels), 1)
        share = np.bincount(labels.ravel(), minlength=11)/len(labels) - ORGAN_COUNTS[p]/ORGAN_COUNTS[p].sum()
        assert set(labels.ravel()) == set(range(11)) and abs(share).max() < .03
    assert sum(len(a[f'{p}_labels']) for p in ('train', 'val', 'test')) == 480 and 'made up' in str(a['source'])


def test_organs_are_read_by_their_catalog_and_not_mistaken(organs):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = medmnist_catalog(organs)
    truth = pd.read_csv(organs/'truth.csv')
    assert found.label.tolist() == truth.organ.tolist() and found.split.tolist() == truth.split.tolist() and found.source.str.contains('no official set').all()
    assert read_archive(organs/'organsmnist_simulated.npz').release.startswith('no official set: simulated sagittal slices')
    assert found.attrs['classes'] == list(ORGANS) and [o.split('#')[1] for o in found.path] == truth.item.tolist()


def test_every_item_is_the_slice_that_the_truth_names(organs):
    a = arrays(organs)
    for o in pd.read_csv(organs/'truth.csv').sample(12, random_state=0).itertuples():
        part,i = o.item.replace('valid', 'val').split('/')
        assert np.array_equal(a[f'{part}_images'][int(i)], draw_organ(o.organ, describe_scan(o.volume, scanner=o.scanner), o.index, view='sagittal').image)
        assert a[f'{part}_labels'][int(i),0] == o.label == ORGANS.index(o.organ)


def test_volumes_lie_in_one_part_and_the_test_part_is_of_scanner_b(organs):
    truth = pd.read_csv(organs/'truth.csv')
    assert truth.groupby('volume').split.nunique().eq(1).all() and truth.groupby('volume').item.count().eq(20).all()
    assert {k: set(v) for k,v in truth.groupby('split').scanner} == dict(train={'A'}, valid={'A'}, test={'B'})
    assert not truth.duplicated(['volume', 'index']).any()


def test_a_split_by_slice_leaks_and_another_scanner_is_harder(tmp_path):
    make = lambda by, seed: simulate_organs(tmp_path/f'{by}{seed}', n_volumes=60, n_slices=20, seed=seed, split_by=by)
    known,new,abroad = (np.mean([neighbour(make(by, seed), part, scanner) for seed in range(3)]) for by,part,scanner in (('slice', 'test', 'A'), ('volume', 'valid', 'A'), ('volume', 'test', 'B')))
    assert known > new + .05 and new > abroad + .05
    leaky = pd.read_csv(make('slice', 0)/'truth.csv')
    assert leaky.groupby('volume').split.nunique().median() == 3


def test_organs_are_neither_trivial_nor_hopeless(tmp_path):
    a = arrays(simulate_organs(tmp_path/'s', n_volumes=60, n_slices=20))
    x,y = ({k: a[f'{k}_{o}'].reshape(len(a[f'{k}_{o}']), -1) for k in ('train', 'val', 'test')} for o in ('images', 'labels'))
    model = RidgeClassifier(alpha=300).fit(x['train']/255, y['train'].ravel())
    score = {k: model.score(x[k]/255, y[k].ravel()) for k in x}
    assert .55 < score['val'] < .92 and .4 < score['test'] < .85


def test_organs_same_seed_same_bytes_and_a_cut_file_comes_back(tmp_path, organs):
    knobs = dict(n_volumes=24, n_slices=20)
    before = checksums(organs)
    assert checksums(simulate_organs(tmp_path/'a', **knobs)) == before != checksums(simulate_organs(tmp_path/'b', **knobs, seed=1))
    fn = tmp_path/'a/organsmnist_simulated.npz'
    fn.write_bytes(fn.read_bytes()[:5000])
    assert checksums(simulate_organs(tmp_path/'a', **knobs)) == before
    time_of = fn.stat().st_mtime_ns
    assert simulate_organs(tmp_path/'a', **knobs)/fn.name == fn and fn.stat().st_mtime_ns == time_of


@pytest.mark.parametrize('bad', [dict(n_volumes=2), dict(n_volumes=20.), dict(size=True), dict(n_slices=0), dict(size=8), dict(seed=-1), dict(split_by='patient'), dict(n_volumes=10, n_slices=5)])
def test_bad_organ_knobs_leave_no_folder(tmp_path, bad):
    with pytest.raises(SimulationError, match=next(iter(bad)) if len(bad) == 1 else 'leave 5 slices for validation'): simulate_organs(tmp_path/'s', **bad)
    assert not (tmp_path/'s').exists()


# --- the command and the workbook

@pytest.mark.parametrize('kind,knobs,sentence', [('chest', dict(n_patients=4, size=16), '4 patients in'), ('radiography', dict(n_patients=4, size=16, source='marker'), '4 patients in'),
    ('organs', dict(n_patients=6, n_frames=20), '6 volumes with 20 slices each in'), ('thermogram', dict(n_patients=2, n_frames=1), '2 patients with 1 frames each in')])
def test_command_writes_every_kind(tmp_path, capsys, kind, knobs, sentence):
    simulate_command(str(tmp_path/'s'), kind=kind, **knobs)
    assert sentence in capsys.readouterr().out and read_json(tmp_path/'s/simulation.json')['complete']


@pytest.mark.parametrize('knobs,match', [(dict(kind='brain'), '--kind brain: choose one of thermogram, chest'), (dict(kind='organs', no_signal=True), '--no-signal does not belong to --kind organs'),
    (dict(kind='chest', marker='Sick'), '--marker does not belong'), (dict(source='age'), '--source does not belong to --kind thermogram'), (dict(n_patients=0), 'n_patients = 0'),
    (dict(kind='chest', n_frames=0), '--n-frames does not belong'), (dict(kind='chest', n_patients=0), 'n_patients = 0')])
def test_command_ends_in_a_sentence(tmp_path, capsys, knobs, match):
    with pytest.raises(SystemExit) as e: simulate_command(str(tmp_path/'s'), **knobs)
    out,err = capsys.readouterr()
    assert (e.value.code, out, err.count('\n')) == (2, '', 1) and err.startswith('medfast-simulate: ') and match in err
    assert not (tmp_path/'s').exists()


def test_embedded_studies_have_names_of_their_own(tmp_path):
    settings = Settings(simulated=tmp_path, seed=3)
    made = [embedded_study(settings, 'chest', n_patients=4, size=16), embedded_study(settings, 'radiography', n_patients=4, size=16), embedded_study(settings, 'organs', n_volumes=6, n_slices=20)]
    assert [o.name for o in made] == ['chest-patients4-size16-seed3', 'radiography-patients4-size16-seed3', 'organs-slices20-volumes6-seed3']
    assert all(read_json(o/'simulation.json')['parameters']['seed'] == 3 for o in made)
    with pytest.raises(SimulationError, match='the settings tell the size'): embedded_study(settings, n_patients=4)
    with pytest.raises(SimulationError, match="kind = 'brain'"): embedded_study(settings, 'brain')


@pytest.mark.parametrize('options,told', [(dict(n_patients=2.5), 'n_patients = 2.5: a whole number'), (dict(n_frames=1.5), 'n_frames = 1.5: a whole number'), (dict(n_frames=0), 'n_frames = 0: from 1 to 100'),
    (dict(seed=1.5), 'seed = 1.5: a whole number'), (dict(signal='no'), "signal = 'no': True or False")])
def test_studies_of_odd_numbers(tmp_path, options, told):
    with pytest.raises(SimulationError, match=told): simulate_study(tmp_path/'study', **dict(n_patients=2, n_frames=1) | options)
    assert not (tmp_path/'study').exists()


def test_texts_are_no_flags_and_files_no_folders(tmp_path):
    for options in (dict(signal='no'), dict(layout='radiography', equal='no'), dict(layout='radiography', odd_size=1.5)):
        with pytest.raises(SimulationError, match='True or False'): simulate_chest(tmp_path/'chest', n_patients=8, size=16, **options)
    (tmp_path/'file').write_text('mine')
    for dest,told in ((tmp_path/'file', 'file is a file'), (tmp_path/'file'/'below', 'below cannot be written')):
        with pytest.raises(SimulationError, match=told): simulate_chest(dest, n_patients=8, size=16)
    assert (tmp_path/'file').read_text() == 'mine'
