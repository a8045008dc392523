"The rivals that see less than the model: what each may look at, what is compared with what, and what they say when they cannot."
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from conftest import ROOT
from medfast.catalog import CatalogError, add_ranges, add_sharpness, dmr_catalog
from medfast.controls import (BORDER_NOTE, CANNOT_TELL, COLUMNS, CONTROLS, ControlsError, concordance_within, metadata_control, plot_controls, run_controls, shuffle_labels,
    verdict)
from medfast.evaluate import OUT_OF_FOLD, Predictions, evaluate, paired_gain
from medfast.features import FeaturesError, FeatureTrainer, body_features
from medfast.masks import KEEPS, Mask, MaskError, hide
from medfast.split import patient_folds, split_catalog

FOUR = ('patient number', 'format', 'minimum', 'maximum')


# --- metadata

def made(n=90, shift=20, seed=0):
    rng = np.random.default_rng(seed)
    sick = np.arange(n) % 3 == 0
    return pd.DataFrame(dict(path=[f'/d/{i}.txt' for i in range(n)], patient=pd.array([f'{i:04d}' for i in rng.permutation(n)*3 + sick*(int(shift)*3 + 1)], dtype='string'),
        label=np.where(sick, 'Sick', 'Healthy'), format=np.where(rng.random(n) < .3, 'tab', 'blank'), minimum=rng.normal(21, 1, n), maximum=rng.normal(35, 1, n),
        date=pd.Timestamp('2012-01-01') + pd.to_timedelta(rng.integers(0, 900, n), 'D'),
        split=np.array(['train', 'train', 'valid', 'test', 'train'])[np.arange(n)//3 % 5], split_by='patient'))


def test_it_is_the_plain_regression_of_scikit_learn():
    df = made()
    x = np.c_[df.patient.astype(int), df.minimum, df.maximum].astype(float)
    train, valid = (df.split == 'train').to_numpy(), (df.split == 'valid').to_numpy()
    mean, std = x[train].mean(0), x[train].std(0)
    one_hot = np.c_[df.format == 'blank', df.format == 'tab']
    x = np.c_[(x - mean)/std, one_hot]
    want = LogisticRegression(max_iter=2000).fit(x[train], df.label[train]).predict_proba(x[valid])
    got = metadata_control(df, columns=FOUR)['valid']
    np.testing.assert_allclose(got.probs, want, atol=1e-5)
    assert got.items == df.path[valid].tolist() and got.patients == df.patient[valid].tolist()
    assert got.split_by == 'patient' and got.classes == ['Healthy', 'Sick']


def test_nothing_of_valid_and_test_is_learned():
    df = made()
    other = df.copy()
    other.loc[other.split != 'train', 'label'] = 'Sick'
    other.loc[other.split == 'valid', 'maximum'] = 99.
    np.testing.assert_array_equal(metadata_control(df)['test'].probs, metadata_control(other)['test'].probs)


def test_nothing_of_its_own_fold_is_learned():
    df = made().drop(columns='split').assign(fold=np.arange(90) // 3 % 5)
    before = metadata_control(df)
    assert list(before) == ['out-of-fold'] and len(before['out-of-fold']) == 90
    other = df.assign(label=df.label.where(df.fold != 2, 'Sick'))
    after = metadata_control(other)['out-of-fold']
    same = (df.fold == 2).to_numpy()
    np.testing.assert_array_equal(before['out-of-fold'].probs[same], after.probs[same])
    assert not np.array_equal(before['out-of-fold'].probs[~same], after.probs[~same])


def test_the_sealed_part_stays_out_of_the_folds():
    df = made().assign(fold=lambda d: pd.array(np.arange(90) % 4, dtype='Int64'))
    df.loc[df.index[df.split == 'train'][:3], 'fold'] = pd.NA
    assert set(metadata_control(df)['out-of-fold'].items) == set(df.path[(df.split != 'test') & df.fold.notna()])


def test_time_gives_the_class_away_and_only_where_it_does():
    assert evaluate(metadata_control(made(shift=70))['test']).value['auc'] > .95
    by_date = evaluate(metadata_control(made(300), columns=['date'])['test']).loc['auc']
    assert by_date.low < .5 < by_date.high


def test_the_index_of_the_catalog_does_not_matter():
    df = made()
    np.testing.assert_array_equal(metadata_control(df)['valid'].probs, metadata_control(df.set_axis(list(range(500, 545))*2))['valid'].probs)


def test_a_format_that_training_never_met_is_predicted():
    df = made()
    df.loc[df.split == 'test', 'format'] = 'comma'
    assert np.isfinite(metadata_control(df)['test'].probs).all()


def test_a_class_that_training_never_met_gets_nothing():
    df = made()
    df.loc[df.index[(df.split == 'test')][:2], 'label'] = 'Unknown'
    assert (metadata_control(df)['test'].probs[:, 2] == 0).all()


@pytest.mark.parametrize('spoil, rule', [
    (lambda d: d.drop(columns='minimum'), "no column 'minimum': `add_ranges\\(catalog\\)` adds it"),
    (lambda d: d.drop(columns='format'), "no column 'format'"),
    (lambda d: d.drop(columns='patient'), "no column 'patient'"),
    (lambda d: d.assign(patient='person1'), "Row 0: the patient 'person1' has no number"),
    (lambda d: d.assign(maximum=d.maximum.where(d.index != 7)), "'maximum', row 7: no value \\(1 of 90"),
    (lambda d: d.assign(label=np.where(d.split == 'train', 'Sick', d.label)), 'holds 1 class'),
    (lambda d: d.drop(columns='split'), 'Split it first')])
def test_refused_with_the_way_out(spoil, rule):
    with pytest.raises(ControlsError, match=rule): metadata_control(spoil(made()), columns=FOUR)
    with pytest.raises(ControlsError, match='`columns` is empty'): metadata_control(made(), columns=[])


def test_without_a_list_it_takes_what_varies_and_tells_the_rest():
    df = made().assign(rows=480, sharpness=1., bytes=np.nan)
    found = metadata_control(df)
    assert found.columns == ('patient number', 'date', 'format', 'minimum', 'maximum')
    assert found.left_out == {'rows': 'the same for all: 480', 'columns': 'not in the catalog', 'bytes': 'never told', 'sharpness': 'the same for all: 1.0'}
    assert 'left out: rows (the same for all: 480)' in repr(found) and set(found.columns) | set(found.left_out) == set(COLUMNS)
    np.testing.assert_array_equal(found['test'].probs, metadata_control(df, columns=found.columns)['test'].probs)


def test_whether_a_date_is_known_may_be_what_gives_the_class_away():
    df = made(300, shift=0)
    df['date'] = df.date.where(df.label == 'Sick')
    assert evaluate(metadata_control(df[['path', 'label', 'split', 'date']].assign(patient=df.patient))['test']).value['auc'] > .95
    with pytest.raises(ControlsError, match="'date', row 1: no value"): metadata_control(df, columns=['date'])


def test_nothing_but_labels_is_refused():
    with pytest.raises(ControlsError, match='tells nothing beside labels'): metadata_control(made()[['path', 'label', 'split']])


def test_whole_numbers_with_gaps_are_filled_from_training_only():
    df = made().assign(rows=lambda d: pd.array(np.where(np.arange(len(d)) % 7, np.arange(len(d)), 0), dtype='Int64'))
    df.loc[df.index % 5 == 0, 'rows'] = pd.NA
    other = df.copy()
    other.loc[other.split == 'valid', 'rows'] = 10**6
    np.testing.assert_array_equal(metadata_control(df)['test'].probs, metadata_control(other)['test'].probs)


def test_out_of_fold_says_so():
    preds = metadata_control(made().drop(columns='split').assign(fold=np.arange(90) // 3 % 5))['out-of-fold']
    assert preds.folds == [str(o) for o in np.arange(90) // 3 % 5] and OUT_OF_FOLD in evaluate(preds).method['auc']


# --- sharpness

def brute_slope(x):
    slopes = [np.hypot(x[i + 1, j] - x[i, j], x[i, j + 1] - x[i, j]) for i in range(x.shape[0] - 1) for j in range(x.shape[1] - 1)]
    return np.mean(slopes)


def test_sharpness_is_the_mean_slope_of_the_image_as_it_was_written(tmp_path):
    rng = np.random.default_rng(0)
    grey, deep, colour = rng.integers(0, 256, (9, 7), dtype=np.uint8), rng.integers(0, 65536, (8, 8)).astype(np.uint16), rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    for name, pixels in dict(grey=grey, deep=deep, colour=colour).items(): Image.fromarray(pixels).save(tmp_path/f'{name}.png')
    np.savez(tmp_path/'set.npz', train_images=np.stack([grey]*4), train_labels=np.array([[0], [1]]*2), val_images=np.stack([grey]), val_labels=np.array([[0]]), test_images=np.stack([grey]), test_labels=np.array([[1]]))
    paths = [str(tmp_path/f'{o}.png') for o in ('grey', 'deep', 'colour')] + [f'{tmp_path}/set.npz#train/0']
    found = add_sharpness(pd.DataFrame(dict(path=paths)))
    wanted = [brute_slope(grey/255), brute_slope(deep/65535), brute_slope(colour/255 @ [.299, .587, .114]), brute_slope(grey/255)]
    np.testing.assert_allclose(found.sharpness, wanted, rtol=1e-6)
    assert found.bytes[0] == (tmp_path/'grey.png').stat().st_size and np.isnan(found.bytes[3])


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    (tmp_path/'broken.png').write_bytes(b'no picture')
    with pytest.raises(CatalogError, match='broken.png cannot be read'): add_sharpness(pd.DataFrame(dict(path=[tmp_path/'broken.png'])))


# --- masks

@pytest.mark.parametrize('shape', [(96, 128), (480, 640), (31, 57)])
@pytest.mark.parametrize('mask', [Mask(), Mask(rows=.9, columns=.7, centre=(.6, .45))])
def test_a_pixel_is_seen_as_its_middle_lies(shape, mask):
    n, m = shape
    rectangle, ellipse = np.zeros(shape, bool), np.zeros(shape, bool)
    for i in range(n):
        for j in range(m):
            a, b = abs((i + .5)/n - mask.centre[0])/(mask.rows/2), abs((j + .5)/m - mask.centre[1])/(mask.columns/2)
            rectangle[i, j], ellipse[i, j] = max(a, b) < 1, a*a + b*b < 1
    frame, around, middle = (mask.keeping(o).visible(shape) for o in KEEPS)
    assert (frame == ~rectangle).all() and (around == ~ellipse).all() and (middle == ellipse).all()
    margin = mask.keeping('centre masked').visible(shape, margin=1)
    assert all(around[max(i - 1, 0):i + 2, max(j - 1, 0):j + 2].all() == margin[i, j] for i in range(n) for j in range(0, m, 3))


@pytest.mark.parametrize('options, rule', [(dict(keep='all'), 'choose one of'), (dict(rows=0.), 'shares of the sides'), (dict(columns=1.2), 'shares of the sides'), (dict(centre=.5), 'shares of the sides'),
    (dict(centre=(.5, 2)), 'shares of the sides'), (dict(rows=True), 'shares of the sides')])
def test_masks_that_cannot_be(options, rule):
    with pytest.raises(MaskError, match=rule): Mask(**options)


def test_a_mask_that_shows_nothing_or_all_is_refused():
    with pytest.raises(MaskError, match='hides everything.*smaller'): Mask(rows=1., columns=1.).visible((64, 64))
    with pytest.raises(MaskError, match='hides nothing.*larger'): Mask(rows=.01, columns=.01).visible((10, 10))
    with pytest.raises(MaskError, match='hides everything.*larger'): Mask('centre only', rows=.01, columns=.01).visible((10, 10))


def test_hide_puts_one_value_and_leaves_the_rest():
    image = np.arange(600, dtype=float).reshape(20, 30)
    hidden = hide(image, Mask(), -1)
    seen = Mask().visible((20, 30))
    assert (hidden[~seen] == -1).all() and (hidden[seen] == image[seen]).all() and image.min() == 0


def two_studies(folder, n=8):
    "Catalogs of pictures that differ inside the rectangle of a mask, and nowhere else."
    rng, found = np.random.default_rng(0), []
    images = rng.integers(0, 256, (n, 60, 80), dtype=np.uint8)
    for name in 'ab':
        rows = [dict(path=str(folder/f'{name}{i}.png'), patient=str(i), label='xy'[i % 2], split='train' if i < n//2 else 'valid', split_by='patient') for i in range(n)]
        for i, r in enumerate(rows):
            other = rng.integers(0, 256, (60, 80), dtype=np.uint8)
            Image.fromarray(np.where(Mask().visible((60, 80)), images[i], other)).save(r['path'])
        found.append(pd.DataFrame(rows))
    return found


@pytest.mark.parametrize('kind', ['study', 'array'])
def test_nothing_hidden_comes_through_loaders_not_even_by_augmentation(kind, tmp_path):
    from medfast.loaders import array_dls, study_dls
    from medfast.masks import masked_dls
    a, b = two_studies(tmp_path)
    make = dict(study=lambda c: study_dls(c, size=36, bs=4, augment='thermogram', seed=3), array=lambda c: array_dls(c, size=36, bs=4, augment='chest', stats=([.5], [.2]), seed=3))[kind]
    def batch(c, part, masked):
        from fastai.torch_core import no_random
        with no_random(1): return (masked_dls(make(c), Mask()) if masked else make(c))[part].one_batch()[0].numpy()
    for part in (0, 1):
        assert not np.array_equal(batch(a, part, False), batch(b, part, False))
        np.testing.assert_array_equal(batch(a, part, True), batch(b, part, True))
        assert batch(a, part, True).std() > .1


def test_a_mask_does_not_change_the_order_of_training(tmp_path):
    from medfast.loaders import study_dls
    from medfast.masks import masked_dls
    catalog = two_studies(tmp_path, 16)[0]
    make = lambda: study_dls(catalog, size=24, bs=2, seed=5)
    orders = [[t.tolist() for _, t in dls.train] for dls in (make(), masked_dls(make(), Mask()))]
    assert orders[0] == orders[1]


# --- features

def test_nothing_hidden_reaches_the_features(tmp_path):
    a, b = two_studies(tmp_path)
    options = dict(pretrained=False, size=32, bs=3, progress=False)
    x, y = (body_features(o.path, 'squeezenet1_1', Mask(), **options)[0] for o in (a, b))
    np.testing.assert_array_equal(x, y)
    x, y = (body_features(o.path, 'squeezenet1_1', **options)[0] for o in (a, b))
    assert not np.array_equal(x, y)


def test_untrained_bodies_follow_their_seed_and_leave_the_outside_alone(tmp_path):
    import torch
    paths = two_studies(tmp_path)[0].path[:2]
    one = lambda seed: body_features(paths, 'squeezenet1_1', pretrained=False, size=32, seed=seed, progress=False)[0]
    torch.manual_seed(7); before = torch.get_rng_state().clone()
    a, b, c = one(1), one(1), one(2)
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)


def test_a_file_that_is_written_again_is_looked_at_again(tmp_path):
    catalog, fit = two_studies(tmp_path)[0], FeatureTrainer(pretrained=False, size=32, progress=False)
    before = fit.features(catalog.path)
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(catalog.path[2])
    after = fit.features(catalog.path)
    assert not np.array_equal(before[2], after[2]) and np.array_equal(before[[0, 1, 3]], after[[0, 1, 3]])


def test_untrained_bodies_are_asked_for_by_seed_and_the_others_as_told(monkeypatch):
    import medfast.features as features
    asked = []
    def spy(paths, arch, mask, *, pretrained, seed, **options):
        asked.append((pretrained, seed))
        return np.zeros((len(paths), 2)), 'named'
    monkeypatch.setattr(features, 'body_features', spy)
    fit = FeatureTrainer(pretrained=True)
    for options in (dict(seed=3), dict(seed=4), dict(random=True, seed=3), dict(random=True, seed=4), dict(random=True, seed=4)): fit.features(['a', 'b'], **options)
    assert asked == [(True, 0), (False, 3), (False, 4)] and 'named' in repr(fit)


def test_a_prediction_does_not_depend_on_who_else_is_held_out(tmp_path):
    catalog, fit = two_studies(tmp_path, 12)[0], FeatureTrainer(pretrained=False, size=32, progress=False)
    whole, fewer = fit(catalog)['valid'], fit(catalog.iloc[:8])['valid']
    np.testing.assert_allclose(whole.probs[:2], fewer.probs, atol=1e-9)


def test_the_trainer_learns_from_training_labels_only(tmp_path):
    catalog, fit = two_studies(tmp_path)[0], FeatureTrainer(pretrained=False, size=32, progress=False)
    other = catalog.assign(label=catalog.label.where(catalog.split == 'train', 'y'))
    np.testing.assert_array_equal(fit(catalog)['valid'].probs, fit(other)['valid'].probs)
    flipped = catalog.assign(label=catalog.label.map(dict(x='y', y='x')).where(catalog.split == 'train', catalog.label))
    np.testing.assert_allclose(fit(catalog)['valid'].probs, fit(flipped)['valid'].probs[:, ::-1], atol=1e-6)
    with pytest.raises(FeaturesError, match='1 class'): fit(catalog.assign(label=np.where(catalog.split == 'train', 'x', 'y')))


# --- shuffled labels

def test_only_training_labels_are_dealt_one_a_patient_and_as_many():
    df = made(120).assign(patient=lambda d: (np.arange(len(d))//2).astype(str))
    df['label'] = df.groupby('patient').label.transform('first')
    df['split'] = df.groupby('patient').split.transform('first')
    train = df.split == 'train'
    for seed in range(5):
        dealt = shuffle_labels(df, seed=seed)
        assert (dealt.label[~train] == df.label[~train]).all() and (dealt[train].groupby('patient').label.nunique() == 1).all()
        assert sorted(dealt[train].drop_duplicates('patient').label) == sorted(df[train].drop_duplicates('patient').label)
        pd.testing.assert_frame_equal(dealt.drop(columns='label'), df.drop(columns='label'))
    assert len({tuple(shuffle_labels(df, seed=s).label) for s in range(20)}) == 20
    pd.testing.assert_frame_equal(shuffle_labels(df, seed=3), shuffle_labels(df, seed=3))


def test_every_patient_gets_every_label_as_often_as_it_occurs():
    df = made(30).assign(split='train')
    share = np.mean([shuffle_labels(df, seed=s).label == 'Sick' for s in range(2000)], 0)
    assert abs(share - 1/3).max() < .05


def test_folds_are_dealt_within_and_the_test_part_is_left():
    df = patient_folds(study(60).assign(split='train', split_by='patient'), 4, seed=0)
    df.loc[df.patient.isin(sorted(df.patient)[:10]), 'split'] = 'test'
    inside, one = df.split != 'test', lambda d: d.drop_duplicates('patient').set_index('patient')
    for seed in range(5):
        dealt = shuffle_labels(df, folds=True, seed=seed)
        assert (dealt.label[~inside] == df.label[~inside]).all() and (dealt[inside].groupby('patient').label.nunique() == 1).all()
        count = lambda d: one(d[inside]).groupby('fold').label.value_counts().to_dict()
        assert count(dealt) == count(df) and all((one(dealt).label != one(df).label)[one(df).fold == f].any() for f in range(4))
        pd.testing.assert_frame_equal(dealt.drop(columns='label'), df.drop(columns='label'))


def test_every_patient_of_a_fold_gets_every_label_as_often_as_the_fold_has_it():
    df = made(30).assign(fold=np.arange(30) % 2 * 3)
    df['label'] = np.where(np.arange(30) < 9, 'Sick', 'Healthy')
    share = np.mean([shuffle_labels(df.drop(columns='split'), folds=True, seed=s).label == 'Sick' for s in range(2000)], 0)
    assert abs(share - np.where(df.fold == 0, 5, 4)/15).max() < .05


def test_labels_are_not_dealt_where_patients_are_unknown_or_have_two():
    df = made()
    with pytest.raises(ControlsError, match='unknown for 1 of 90.*by=.image.'): shuffle_labels(df.assign(patient=df.patient.where(df.index != 4)))
    with pytest.raises(ControlsError, match='has two labels'): shuffle_labels(df.assign(patient='1', split='train'))
    assert (shuffle_labels(df.drop(columns='patient'), by='image').label != df.label).any()


# --- all in one call, with a trainer that reads columns instead of pictures

def study(n=120, whole=1.5, border=0., random=.5, seed=0, frames=2):
    "Patients with a signal for the whole picture, its border and an untrained body; `format` and number tell nothing."
    rng = np.random.default_rng(seed)
    sick = np.arange(n) % 3 == 0
    df = pd.DataFrame(dict(patient=[f'{o:04d}' for o in rng.permutation(n)], label=np.where(sick, 'Sick', 'Healthy'), format=np.where(rng.random(n) < .5, 'a', 'b'),
        whole=rng.normal(size=n) + whole*sick, border=rng.normal(size=n) + border*sick, random=rng.normal(size=n) + random*sick))
    df = df.assign(**{f'noise{i}': rng.normal(size=n) for i in range(12)})
    df = df.loc[df.index.repeat(frames)].reset_index(drop=True)
    return df.assign(path=[f'/d/{i}.png' for i in range(len(df))])


class Reader:
    "Fits one column beside noise; writes down what it was asked."
    def __init__(self): self.calls = []
    def __call__(self, catalog, mask=None, random=False, seed=0):
        self.calls.append(dict(mask=mask, random=random, seed=seed, catalog=catalog.copy()))
        column = 'random' if random else 'border' if mask is not None and mask.keep != 'centre only' else 'whole'
        train, classes = catalog.split == 'train', sorted(catalog.label.unique())
        columns = [column, *[f'noise{i}' for i in range(12)]]
        model = LogisticRegression().fit(catalog.loc[train, columns], catalog.label[train])
        parts = {p: catalog[catalog.split == p] for p in catalog.split[~train].unique()}
        return {p: Predictions(model.predict_proba(o[columns]), [classes.index(l) for l in o.label], classes, o.path, o.patient, 'patient') for p, o in parts.items()}


def test_all_rows_are_about_the_same_patients_and_gains_are_paired():
    catalog, fit = split_catalog(study(whole=2.5), valid=.4, test=.3), Reader()
    found = run_controls(catalog, trainer=fit, parts=('valid', 'test'), progress=False)
    assert list(found.predictions) == ['model', *CONTROLS[:-1], 'labels shuffled by patient']
    for part in ('valid', 'test'):
        wanted = set(catalog.patient[catalog.split == part])
        assert all(set(o[part].patients) == wanted for o in found.predictions.values())
        for name in CONTROLS[:-1]:
            gain = paired_gain(found.predictions['model'][part], found.predictions[name][part]).iloc[0]
            row = found.table.loc[(part, name)]
            assert (row.gain, row['gain low'], row['gain high'], row.n) == (gain.value, gain.low, gain.high, len(wanted))
            assert row.auc == evaluate(found.predictions[name][part]).value['auc']
    assert found.table.auc['test', 'model'] > .75 and found.table['gain low']['test', 'border only'] > 0


def test_by_default_the_sealed_part_is_not_even_shown_to_the_trainer():
    catalog, fit = split_catalog(study(), valid=.2, test=.3), Reader()
    found = run_controls(catalog, trainer=fit, progress=False)
    assert list(found.predictions['model']) == ['valid'] and all(set(o['catalog'].split) == {'train', 'valid'} for o in fit.calls)
    assert list(found.predictions['metadata']) == ['valid']


def test_each_control_is_asked_for_what_it_may_see():
    catalog, fit, mask = split_catalog(study(), valid=.3), Reader(), Mask(rows=.7)
    run_controls(catalog, trainer=fit, mask=mask, seed=4, controls=(*CONTROLS, 'centre only'), progress=False)
    asked = [(o['mask'], o['random']) for o in fit.calls]
    assert asked[:5] == [(None, False), (mask.keeping('border only'), False), (mask.keeping('centre masked'), False), (None, True), (mask.keeping('centre only'), False)]
    assert asked[5:] == [(None, False)]*20
    for o in fit.calls[:5]: assert (o['catalog'].label.to_numpy() == catalog.label.to_numpy()).all()
    assert fit.calls[3]['seed'] != fit.calls[0]['seed']


def test_refits_of_a_hold_out_learn_dealt_labels_and_are_asked_about_true_ones():
    catalog, fit = split_catalog(study(), valid=.3), Reader()
    found = run_controls(catalog, trainer=fit, controls=('labels shuffled',), n_refits=30, progress=False)
    train, refits = (catalog.split == 'train').to_numpy(), [o['catalog'].label.to_numpy() for o in fit.calls[1:]]
    assert len(refits) == 30 and len({tuple(o) for o in refits}) == 30
    for o in refits: assert (o[~train] == catalog.label.to_numpy()[~train]).all() and (o[train] != catalog.label.to_numpy()[train]).any()
    row = found.table.loc[('valid', 'labels shuffled by patient')]
    assert (row.auc, row.lowest, row.highest) == (np.mean(found.refits['valid']), min(found.refits['valid']), max(found.refits['valid'])) and row.lowest < .5 < row.highest
    assert np.isnan([row.low, row.high, row.gain]).all() and 'no interval' in row.method and found.table[['lowest', 'highest', 'p']].iloc[0].isna().all()
    assert found.refits['valid'][0] == pytest.approx(evaluate(found.predictions['labels shuffled by patient']['valid']).value['auc'])


def test_one_deal_serves_all_folds_and_refits_are_asked_about_it():
    catalog, fit = patient_folds(study(), 4, seed=1), Reader()
    found = run_controls(catalog, trainer=fit, controls=('labels shuffled',), progress=False)
    first, true = found.predictions['labels shuffled by patient']['out-of-fold'], catalog.set_index('path').label
    deals = [[o['catalog'].set_index('path').label for o in fit.calls[4*i:4*i + 4]] for i in range(1, 21)]
    for deal in deals:
        assert all(o.reindex(deal[0].index).equals(deal[0]) for o in deal) and (deal[0] != true[deal[0].index]).any()
        for _, fold in catalog.groupby('fold'): assert sorted(deal[0][fold.path]) == sorted(true[fold.path])
    assert len({tuple(o[0][catalog.path]) for o in deals}) == 20
    assert [first.classes[o] for o in first.targets] == deals[0][0][first.items].tolist()
    assert found.refits['out-of-fold'][0] == pytest.approx(evaluate(first).value['auc'])
    assert 'asked about as dealt' in found.table.method.iloc[-1] and found.table.p.iloc[-1] == 1/21


def null_p_values(part, n_studies, n=45, ridge=30):
    "p of studies whose labels mean nothing, for a regression that is linear in its labels; each fold holds as many sick patients, as `patient_folds` makes them."
    catalog = pd.DataFrame(dict(patient=np.arange(n).astype(str), label=np.where(np.arange(n) < n//3, 'Sick', 'Healthy'), fold=np.arange(n) % 5))
    catalog, found = catalog.assign(split=np.where((catalog.fold < 2) & (part == 'valid'), 'valid', 'train')), []
    sick, asked = (lambda c: (c.label == 'Sick').to_numpy()), np.ones(n, bool) if part == 'out-of-fold' else (catalog.split == 'valid').to_numpy()
    for s in range(n_studies):
        x, scores = np.random.default_rng(s).normal(size=(n, 6)), np.zeros((n, n))
        for out in [(catalog.fold == o).to_numpy() for o in range(5)] if part == 'out-of-fold' else [asked]:
            a, m = x[~out], x[~out].mean(0)
            scores[np.ix_(out, ~out)] = 1/len(a) + (x[out] - m) @ np.linalg.solve((a - m).T @ (a - m) + ridge*np.eye(6), (a - m).T)
        def auc(c):
            y, p = sick(c)[asked], (scores @ sick(c))[asked]
            return (p[y][:, None] > p[~y]).mean()
        found.append((sum(auc(shuffle_labels(catalog, folds=part == 'out-of-fold', seed=[s, i])) >= auc(catalog) for i in range(20)) + 1)/21)
    return np.array(found)


@pytest.mark.parametrize('part', ['valid', 'out-of-fold'])
def test_a_p_value_of_a_tenth_comes_once_in_ten_studies_without_any_truth(part):
    p = null_p_values(part, 250)
    assert .05 < (p <= .1).mean() < .14 and .4 < (p <= .5).mean() < .6


def test_a_trainer_that_looks_up_true_labels_is_refused():
    catalog = patient_folds(study(), 4, seed=1)
    true = dict(zip(catalog.path, catalog.label))
    def cheat(catalog, mask=None, random=False, seed=0): return {k: Predictions(o.probs, [o.classes.index(true[i]) for i in o.items], o.classes, o.items, o.patients, 'patient') for k, o in Reader()(catalog).items()}
    with pytest.raises(ControlsError, match='Take labels from that catalog'): run_controls(catalog, trainer=cheat, controls=('labels shuffled',), progress=False)


def test_folds_within_which_nothing_can_be_dealt_are_refused_before_any_training():
    catalog, fit = study(12), Reader()
    with pytest.raises(ControlsError, match='within the folds: 1. With fewer than 20'): run_controls(catalog.assign(fold=catalog.patient.astype(int)), trainer=fit)
    with pytest.raises(ControlsError, match='in the training part: 6. With fewer than 20'): run_controls(catalog.assign(split=np.where(np.arange(24) < 12, 'train', 'valid'), label=np.where(np.arange(24) % 12 < 2, 'Sick', 'Healthy')), trainer=fit)
    assert fit.calls == []
    run_controls(catalog.assign(fold=catalog.patient.astype(int)), trainer=fit, controls=('border only',), progress=False)


def test_the_p_value_counts_the_refits_that_reach_the_model():
    catalog = split_catalog(study(whole=0.), valid=.3)
    found = run_controls(catalog, trainer=Reader(), controls=('labels shuffled',), n_refits=39, progress=False)
    model = evaluate(found.predictions['model']['valid']).value['auc']
    assert found.table.p.iloc[1] == (sum(o >= model for o in found.refits['valid']) + 1)/40 > .02
    strong = run_controls(split_catalog(study(whole=3.), valid=.3), trainer=Reader(), controls=('labels shuffled',), progress=False)
    assert strong.table.p.iloc[1] == 1/21


def test_folds_are_those_of_the_catalog_and_everybody_is_predicted_once():
    catalog, fit = patient_folds(study(), 4, seed=1), Reader()
    found = run_controls(catalog, trainer=fit, progress=False)
    assert len(fit.calls) == 4*(4 + 20)
    for o in fit.calls[:4]:
        held = o['catalog'][o['catalog'].split == 'valid']
        assert held.fold.nunique() == 1 and len(held) == (catalog.fold == held.fold.iloc[0]).sum()
    for name, o in found.predictions.items():
        preds = o['out-of-fold']
        assert sorted(preds.items) == sorted(catalog.path) and preds.folds is not None, name
        assert dict(zip(preds.items, preds.folds)) == dict(zip(catalog.path, catalog.fold.astype(str)))
    assert OUT_OF_FOLD in found.table.method.iloc[0]


def test_a_part_that_is_sealed_stays_out_of_the_folds():
    catalog = split_catalog(study(), valid=.2, test=.3)
    catalog['fold'] = catalog.patient.astype(int) % 3
    fit = Reader()
    found = run_controls(catalog, trainer=fit, parts=('out-of-fold',), controls=('metadata', 'border only'), progress=False)
    assert set(found.predictions['model']['out-of-fold'].items) == set(catalog.path[catalog.split != 'test']) == set(found.predictions['metadata']['out-of-fold'].items)


def test_a_model_from_elsewhere_is_compared_and_its_stand_in_named(tmp_path):
    catalog = two_studies(tmp_path, 24)[0]
    better = Predictions(np.eye(2)[[0, 1]*6]*.8 + .1, [0, 1]*6, ['x', 'y'], catalog.path[12:], catalog.patient[12:], 'patient')
    fit = FeatureTrainer(pretrained=False, size=32, progress=False)
    found = run_controls(catalog, dict(valid=better), trainer=fit, columns=['patient number'], controls=('metadata', 'border only', 'labels shuffled'), progress=False)
    assert list(found.predictions) == ['model', 'whole images', 'metadata', 'border only', 'labels shuffled by patient'] and found.rival == 'whole images'
    assert found.predictions['model']['valid'] is better and 'trained elsewhere' in found.notes[-1] and 'of whole images' in found.table.method.iloc[-1]
    assert found.table.p.iloc[-1] == (sum(o >= found.table.auc['valid', 'whole images'] for o in found.refits['valid']) + 1)/21
    assert found.records()[-1]['rival'] == 'whole images' and any('for the stand-in (whole images), not for the model' in o for o in found.findings())
    own = run_controls(split_catalog(study(), valid=.3), run_controls(split_catalog(study(), valid=.3), trainer=Reader(), controls=('metadata',)).predictions['model'], trainer=Reader(), controls=('border only',))
    assert list(own.predictions) == ['model', 'border only']


def test_unknown_patients_are_counted_by_image_only_where_that_was_asked_for():
    catalog = split_catalog(study(), valid=.3).assign(patient=pd.NA, split_by='image')
    fit = lambda catalog, mask=None, random=False, seed=0: {k: Predictions(o.probs, o.targets, o.classes, o.items, None, 'image') for k, o in Reader()(catalog.assign(patient='1'), mask, random, seed).items()}
    with pytest.raises(ControlsError, match="unknown for 240 of 240.*level='image'"): run_controls(catalog, trainer=fit)
    found = run_controls(catalog, trainer=fit, level='image', progress=False)
    row = found.table.loc[('valid', 'border only')]
    assert row.n == (catalog.split == 'valid').sum() and 'patients unknown' in row.method and 'patients unknown' in found.gain('border only', 'valid')['method']
    assert 'labels shuffled by image' in found.predictions


def test_several_classes_are_averaged_one_against_the_rest():
    catalog = study()
    catalog['label'] = np.where(catalog.label == 'Sick', 'Sick', np.where(catalog.patient.astype(int) % 2, 'Healthy', 'Benign'))
    found = run_controls(split_catalog(catalog, valid=.4), trainer=Reader(), progress=False)
    assert 'macro average' in found.table.method.iloc[0]
    first = found.predictions['labels shuffled by patient']['valid']
    assert found.refits['valid'][0] == pytest.approx(evaluate(first).value['auc'])


def test_records_are_plain_data_in_the_shape_of_a_run():
    catalog = split_catalog(study(), valid=.3, test=.3)
    found = run_controls(catalog, trainer=Reader(), parts=('valid', 'test'), progress=False)
    records = json.loads(json.dumps(found.records()))
    assert [o['name'] for o in records] == [*CONTROLS[:-1], 'labels shuffled by patient']
    for o in records[:-1]:
        assert set(o) == {'name', 'features', 'valid', 'test', 'gain'} and set(o['gain']) == {'valid', 'test'}
        assert {'auc', 'accuracy', 'sensitivity', 'specificity'} <= set(o['test']) and {'value', 'low', 'high', 'n', 'method'} <= set(o['test']['auc'])
        assert o['gain']['test'] == found.gain(o['name'], 'test')
    assert records[0]['features'] == ['patient number', 'format']
    assert records[-1]['refits'] == found.refits['test'] and len(records[-1]['refits']) == 20 and records[-1]['gain'] == {}
    assert set(records[-1]) == {'name', 'features', 'valid', 'test', 'gain', 'refits', 'refits_by_part', 'lowest', 'highest', 'p', 'rival'} and records[-1]['rival'] == 'model'
    for part in ('valid', 'test'):
        row, refits = records[-1][part]['auc'], found.refits[part]
        assert (row['low'], row['high'], row['lowest'], row['highest'], row['n_refits'], row['rival']) == (None, None, min(refits), max(refits), 20, 'model')
    assert (records[-1]['lowest'], records[-1]['p']) == (min(found.refits['test']), records[-1]['test']['auc']['p'])


@pytest.mark.parametrize('options, rule', [
    (dict(n_refits=19), 'n_refits = 19: with fewer than 20'), (dict(controls=('border',)), "no control 'border'"), (dict(level='frame'), "level = 'frame'"), (dict(trainer='resnet18'), "trainer = 'resnet18'"),
    (dict(parts=('test',)), "nothing to compare for 'test'"), (dict(model=[1]), 'a dict of `Predictions` by part'), (dict(trainer=lambda catalog, seed: {}), 'cannot be called as fit\\(catalog, seed=..., mask=...'),
    (dict(trainer=lambda catalog, mask=None, random=False, seed=0: None), 'The trainer returned NoneType'), (dict(trainer=lambda catalog, mask=None, random=False, seed=0: dict(test=1)), 'one for each of valid'),
    (dict(columns=['age']), "no column 'age'"), (dict(columns=['patient number'], controls=('metadata without patient number',)), 'no metadata left')])
def test_requests_that_cannot_be_met_are_refused_before_any_training(options, rule):
    fit = Reader()
    with pytest.raises(ControlsError, match=rule): run_controls(split_catalog(study(), valid=.3), **dict(dict(trainer=fit, progress=False), **options))
    assert fit.calls == []


def test_one_class_in_training_is_refused_and_the_fold_named():
    catalog = study().assign(fold=lambda d: (d.label == 'Sick').astype(int))
    with pytest.raises(ControlsError, match='training part of fold 0 holds 1 class \\(Sick\\)'): run_controls(catalog, trainer=Reader())
    with pytest.raises(ControlsError, match='neither split nor fold'): run_controls(study(), trainer=Reader())


def test_predictions_of_the_wrong_rows_are_refused():
    def short(catalog, mask=None, random=False, seed=0): return {k: o.take(slice(1, None)) for k, o in Reader()(catalog).items()}
    with pytest.raises(ControlsError, match='`Predictions` of its'): run_controls(split_catalog(study(), valid=.3), trainer=short)


# --- what follows

def with_gain(low, high): return dict(value=(low + high)/2, low=low, high=high)


def test_the_verdict_is_decided_by_the_interval():
    assert CANNOT_TELL in verdict(with_gain(-.1, .2)) and 'holds 0' in verdict(with_gain(0., .2))
    assert CANNOT_TELL in verdict(with_gain(-.3, -.1)) and 'metadata do better' in verdict(with_gain(-.3, -.1))
    assert CANNOT_TELL not in verdict(with_gain(.01, .2)) and 'That need not be disease' in verdict(with_gain(.01, .2))
    for o in (None, {}, dict(low=None, high=None), dict(low=.1, high=None), dict(low=np.nan, high=.2), with_gain(np.nan, np.nan), pd.Series(with_gain(np.nan, np.nan)), pd.Series(dict(low=pd.NA, high=.2), dtype=object)):
        assert verdict(o) == verdict(None) and 'nothing shows that the model sees disease' in verdict(o)
    assert verdict(pd.Series(with_gain(.01, .2))) == verdict(with_gain(.01, .2))
    assert not any('single picture' in verdict(o) for o in (None, with_gain(-.3, -.1), with_gain(-.1, .2), with_gain(.01, .2)))


def test_findings_follow_the_numbers():
    honest = run_controls(split_catalog(study(300, whole=2., random=0.), valid=.5), trainer=Reader(), progress=False)
    assert CANNOT_TELL not in honest.findings()[0] and not any('border alone tells' in o for o in honest.findings()) and honest.findings()[-1] == BORDER_NOTE
    leaking = run_controls(split_catalog(study(300, whole=2., border=2.), valid=.5), trainer=Reader(), progress=False)
    assert any('The border alone tells the classes apart' in o and 'may come from there' in o for o in leaking.findings()) and BORDER_NOTE in leaking.findings()
    nothing = run_controls(split_catalog(study(300, whole=0.), valid=.5), trainer=Reader(), progress=False)
    assert CANNOT_TELL in nothing.findings()[0]
    for o in (honest, leaking): assert BORDER_NOTE in o._repr_html_() and '<svg' in o._repr_html_() and '<script' not in o._repr_html_()


def test_the_figure_shows_every_row_and_every_refit():
    import matplotlib.pyplot as plt
    found = run_controls(split_catalog(study(), valid=.3), trainer=Reader(), progress=False)
    ax = plot_controls(found)
    assert [o.get_text() for o in ax.get_yticklabels()] == list(found.predictions)
    assert sorted(next(o for o in ax.lines if len(o.get_xdata()) == 20).get_xdata()) == sorted(found.refits['valid'])
    last = len(found.predictions) - 1
    assert [len(o.get_xdata()) for o in ax.lines if set(o.get_ydata()) == {last}] == [20, 1], 'no line for a range'
    plt.close(ax.figure)


# --- near pairs

def brute_concordance(preds, near):
    data, won, pairs = preds.by_patient(), 0., 0
    for i, a in enumerate(data.items):
        for j, b in enumerate(data.items):
            if data.targets[i] == 1 and data.targets[j] == 0 and near(a, b):
                pairs += 1
                won += 1. if data.probs[i, 1] > data.probs[j, 1] else .5 if data.probs[i, 1] == data.probs[j, 1] else 0.
    return (won/pairs if pairs else np.nan), pairs


@pytest.mark.parametrize('seed', range(6))
def test_concordance_within_groups_is_what_counting_pairs_gives(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 70))
    y, p = (rng.random(2*n) < .4), rng.integers(0, 8, 2*n)/8
    y[1::2] = y[::2]
    preds = Predictions.from_arrays(y, p, patients=[f'{i//2*7 % 300:04d}' for i in range(2*n)])
    for near, options in ((lambda a, b: int(a)//50 == int(b)//50, dict(groups=lambda o: int(o)//50)), (lambda a, b: abs(int(a) - int(b)) <= 50, dict(groups=lambda o: int(o), distance=50)), (lambda a, b: True, dict(groups=lambda o: 1))):
        row, (value, pairs) = concordance_within(preds, n_resamples=200, **options).iloc[0], brute_concordance(preds, near)
        assert row.value == pytest.approx(value, nan_ok=True) and row.pairs == pairs and (np.isnan(value) or row.low <= value <= row.high)
    assert row['all pairs'] == row.pairs and row.value == pytest.approx(evaluate(preds).value['auc'])


def test_a_score_that_only_knows_the_time_has_nothing_within_it():
    rng = np.random.default_rng(0)
    time = rng.random(300)*500
    sick = rng.random(300) < time/500
    preds = Predictions.from_arrays(sick, time/500, patients=[f'{i:03d}' for i in range(300)])
    when = {f'{i:03d}': int(t//10) for i, t in enumerate(time)}
    everywhere, near = evaluate(preds).value['auc'], concordance_within(preds, when).iloc[0]
    assert everywhere > .75 and near.low < .5 < near.high and near.value < .65
    by_series = concordance_within(preds, pd.Series(when)).iloc[0]
    assert by_series.value == near.value and by_series.low == near.low


def test_the_interval_of_pairs_is_the_bootstrap_over_patients():
    rng = np.random.default_rng(1)
    y = rng.random(120) < .4
    preds = Predictions.from_arrays(y, 1/(1 + np.exp(-rng.normal(size=120) - y)), patients=[str(i) for i in range(120)])
    whole = concordance_within(preds, lambda p: 0).iloc[0]
    auc = evaluate(preds).loc['auc']
    assert abs(whole.low - auc.low) < .02 and abs(whole.high - auc.high) < .02 and 'BCa' in whole.method


def test_pairs_that_are_not_there_are_said():
    few = Predictions.from_arrays([0, 0, 1, 1], [.1, .2, .3, .4], patients=list('abcd'))
    row = concordance_within(few, dict(a=1, b=1, c=2, d=2)).iloc[0]
    assert np.isnan(row.value) and (row.low, row.high, row.pairs, row.n) == (0, 1, 0, 0) and 'no pair is near' in row.method
    assert 'too few' in concordance_within(few, dict.fromkeys('abcd', 1)).method.iloc[0]
    with pytest.raises(ControlsError, match="1 of 4 patients has no group, the first is 'd'"): concordance_within(few, dict(a=1, b=1, c=2))


# --- known truth

def marked(folder, mark, n=60, seed=0):
    "Noise of 64 pixels; sick patients carry what `mark(image)` writes, three of four times."
    rng, rows = np.random.default_rng(seed), []
    for p in range(n):
        sick = p % 2
        marks = sick and rng.random() < .75
        for i in range(2):
            image = 90 + 20*rng.normal(size=(64, 64))
            if marks: mark(image)
            rows.append(dict(path=str(folder/f'{p}-{i}.png'), patient=f'{p:04d}', label=['Healthy', 'Sick'][sick]))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(rows[-1]['path'])
    return patient_folds(pd.DataFrame(rows), 4, seed=0)


@pytest.fixture(scope='module')
def quick(): return FeatureTrainer(pretrained=False, size=64, progress=False)


def corner(image): image[1:5, 1:6] = 255
def organ(image): image[24:40, 24:40] += 60
def nothing(image): pass


def test_a_mark_in_the_corner_is_found_by_the_border_and_not_lost_by_the_masked_centre(tmp_path, quick):
    rows = run_controls(marked(tmp_path, corner), trainer=quick, controls=('border only', 'centre masked', 'centre only'), progress=False).table.loc['out-of-fold']
    assert rows.low['border only'] > .6 and rows.low['centre masked'] > .6
    assert rows.low['centre only'] < .5 and rows.auc['centre only'] < .65


def test_an_organ_is_found_by_the_model_and_by_no_border(tmp_path, quick):
    found = run_controls(marked(tmp_path, organ), trainer=quick, controls=('border only', 'centre masked', 'labels shuffled'), progress=False)
    rows = found.table.loc['out-of-fold']
    assert rows.low['model'] > .6
    for name in ('border only', 'centre masked'): assert rows.low[name] < .5 and rows.auc[name] < .6 and rows['gain low'][name] > 0
    assert .4 < rows.auc['labels shuffled by patient'] < .6 and rows.p['labels shuffled by patient'] == 1/21


def test_where_there_is_nothing_nothing_is_found(tmp_path, quick):
    found = run_controls(marked(tmp_path, nothing, 80), trainer=quick, controls=('border only', 'centre masked', 'random weights', 'labels shuffled'), progress=False)
    rows = found.table.loc['out-of-fold']
    for name in ('model', 'border only', 'centre masked', 'random weights'): assert rows.low[name] < .5 and .3 < rows.auc[name] < .65, name
    assert rows.p['labels shuffled by patient'] > .05 and .4 < rows.auc['labels shuffled by patient'] < .6


@pytest.mark.parametrize('shift', [0., 3.])
def test_a_warmer_site_is_caught_by_metadata_and_only_where_there_is_one(shift, tmp_path, quick):
    from medfast.simulate import simulate_study
    catalog = add_sharpness(add_ranges(dmr_catalog(simulate_study(tmp_path/'study', n_patients=40, n_frames=1, signal=False, site_shift=shift, seed=1, progress=False))))
    found = run_controls(patient_folds(catalog, 4, seed=0), trainer=quick, columns=['minimum', 'maximum', 'sharpness', 'bytes'], controls=('metadata',), progress=False)
    rows = found.table.loc['out-of-fold']
    if shift: assert rows.low['metadata'] > .8 and CANNOT_TELL in found.findings()[0]
    else: assert all(rows.low[o] < .5 < rows.high[o] for o in ('model', 'metadata'))


# --- real data

def test_features_masks_and_controls_do_not_load_torch():
    import subprocess
    import sys
    code = 'import sys, medfast.controls, medfast.features, medfast.masks; print(sorted({"torch", "fastai"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == '[]'


def test_the_public_matrices_are_all_read_and_give_themselves_away(dmr_ir, imagenet_weights, monkeypatch, capsys):
    import importlib.util
    monkeypatch.setenv('TORCH_HOME', str(imagenet_weights))
    spec = importlib.util.spec_from_file_location('matrices', ROOT/'bench/matrices.py')
    bench = importlib.util.module_from_spec(spec); spec.loader.exec_module(bench)
    found = bench.analyse(dmr_ir, refits=20, size=64, seeds=1)
    assert len(found['catalog']) == 121
    assert bench.counts(found['catalog']).files.to_dict() == {('blank', 'Healthy'): 71, ('blank', 'Sick'): 21, ('semicolon', 'Sick'): 29}
    rows = found['controls'].table.loc['out-of-fold']
    assert set(rows.n) == {92} and rows.auc['metadata'] > .9 and rows['gain low']['metadata'] <= 0
    assert CANNOT_TELL in found['sentence'] and found['near'].pairs['model', 'all pairs'] == 71*21 and 0 < found['near'].pairs['model', 'bins of 50 numbers'] < 200
    assert 'primary: 92 blank-separated files' in capsys.readouterr().out
