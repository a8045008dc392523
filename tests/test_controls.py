"The rival that never sees a picture: what it may look at, and what it says when it cannot."
import numpy as np
import pandas as pd
import pytest

from medfast.controls import ControlsError, metadata_control
from medfast.evaluate import evaluate


def made(n=90, shift=20, seed=0):
    rng = np.random.default_rng(seed)
    sick = np.arange(n) % 3 == 0
    return pd.DataFrame(dict(path=[f'/d/{i}.txt' for i in range(n)], patient=pd.array([f'{i:04d}' for i in rng.permutation(n)*3 + sick*(int(shift)*3 + 1)], dtype='string'),
        label=np.where(sick, 'Sick', 'Healthy'), format=np.where(rng.random(n) < .3, 'tab', 'blank'), minimum=rng.normal(21, 1, n), maximum=rng.normal(35, 1, n),
        date=pd.Timestamp('2012-01-01') + pd.to_timedelta(rng.integers(0, 900, n), 'D'),
        split=np.array(['train', 'train', 'valid', 'test', 'train'])[np.arange(n)//3 % 5], split_by='patient'))


def test_it_is_the_plain_regression_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    df = made()
    x = np.c_[df.patient.astype(int), df.minimum, df.maximum].astype(float)
    train, valid = (df.split == 'train').to_numpy(), (df.split == 'valid').to_numpy()
    mean, std = x[train].mean(0), x[train].std(0)
    one_hot = np.c_[df.format == 'blank', df.format == 'tab']
    x = np.c_[(x - mean)/std, one_hot]
    want = LogisticRegression(max_iter=2000).fit(x[train], df.label[train]).predict_proba(x[valid])
    got = metadata_control(df)['valid']
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
    with pytest.raises(ControlsError, match=rule): metadata_control(spoil(made()))
    with pytest.raises(ControlsError, match='`columns` is empty'): metadata_control(made(), columns=[])


@pytest.mark.full
def test_the_public_matrices_give_themselves_away(dmr_ir):
    from medfast.catalog import add_ranges, dmr_catalog
    from medfast.split import patient_folds
    control = metadata_control(patient_folds(add_ranges(dmr_catalog(dmr_ir)), 5, seed=0))['out-of-fold']
    assert evaluate(control).value['auc'] > .9
