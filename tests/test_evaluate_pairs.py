"Two models on the same patients, and several seeds, against scipy, statsmodels and plain resampling."
import numpy as np
import pandas as pd
import pytest
from conftest import CLASSES, made, random_preds
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap
from sklearn import metrics

from medfast.evaluate import evaluate
from medfast.metrics import How, auc_row, bca
from medfast.pairs import mcnemar, paired, paired_gain
from medfast.seeds import _statistics, evaluate_seeds
from medfast.table import Predictions, PredictionsError


# --- gain

def test_paired_gain_is_the_plain_bootstrap():
    a, b = random_preds(3, 50, shift=2.), random_preds(3, 50, shift=.5)
    y, p, q = a.targets, a.probs[:, 1], b.probs[:, 1]
    plain = lambda i: metrics.roc_auc_score(y[i.astype(int)], p[i.astype(int)]) - metrics.roc_auc_score(y[i.astype(int)], q[i.astype(int)])
    want = bootstrap((np.arange(50),), plain, n_resamples=200, vectorized=False, method='BCa', rng=np.random.default_rng(0)).confidence_interval
    got = paired_gain(a, b, n_resamples=200).loc['auc gain']
    np.testing.assert_allclose([got.low, got.high], want, atol=1e-12)


def test_pairing_goes_by_patient_not_by_row():
    a, b = random_preds(3), random_preds(3, shift=.2)
    back = Predictions(b.probs[::-1], b.targets[::-1], CLASSES, b.items[::-1], b.patients[::-1], 'patient')
    pd.testing.assert_frame_equal(paired_gain(a, b), paired_gain(a, back))


def test_pairs_that_do_not_match_are_refused():
    a = random_preds(3)
    other = Predictions(a.probs, a.targets, CLASSES, a.items, ['x', *a.patients[1:]])
    with pytest.raises(PredictionsError, match="2 patients stand in one of the two only, the first is '0000'"): paired_gain(a, other)
    with pytest.raises(PredictionsError, match='another label'): paired_gain(a, Predictions(a.probs, 1 - a.targets, CLASSES, a.items, a.patients))
    with pytest.raises(PredictionsError, match='classes differ'): paired_gain(a, Predictions(a.probs, a.targets, ['Sick', 'Healthy'], a.items, a.patients))


def test_two_perfect_models_differ_by_nothing_known_to_be_nothing():
    a = made(np.arange(30) > 14, np.linspace(0, 1, 30))
    row = paired_gain(a, a).loc['auc gain']
    assert row.value == 0 and row.low < 0 < row.high


def organs(seed, n=90, blur=.7):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    return Predictions(np.random.default_rng(seed).dirichlet(np.ones(3), n)*blur + (1 - blur)*np.eye(3)[y], y, list('abc'), range(n), range(n), 'official')


def test_the_gain_of_several_classes_is_the_macro_average_and_says_so():
    a, b = organs(1), organs(2, blur=.85)
    row = paired_gain(a, b, n_resamples=200).loc['auc gain']
    want = [metrics.roc_auc_score(o.targets, o.probs, multi_class='ovr') for o in (a, b)]
    assert row.value == pytest.approx(want[0] - want[1], abs=1e-9) and 'macro average' in row.method and row.low <= row.value <= row.high
    one = paired_gain(a, b, positive='b', n_resamples=200).loc['auc gain']
    assert one.value == pytest.approx(metrics.roc_auc_score(a.targets == 1, a.probs[:, 1]) - metrics.roc_auc_score(a.targets == 1, b.probs[:, 1]), abs=1e-9)


def test_few_patients_and_one_class_have_a_gain_of_known_ignorance():
    a, b = random_preds(3, 12), random_preds(3, 12, shift=.2)
    row = paired_gain(a, b).loc['auc gain']
    assert row.low < row.value < row.high and 'as if unpaired' in row.method
    sick = made(np.ones(30), np.linspace(.1, .9, 30))
    row = paired_gain(sick, sick).loc['auc gain']
    assert np.isnan(row.value) and (row.low, row.high) == (-1, 1)


# --- McNemar

@pytest.mark.parametrize('seed', range(6))
def test_mcnemar_is_that_of_statsmodels(seed):
    tables = pytest.importorskip('statsmodels.stats.contingency_tables')
    a, b = random_preds(seed, 70), random_preds(seed, 70, shift=.1)
    b = Predictions(np.random.default_rng(seed + 99).permutation(b.probs), a.targets, CLASSES, a.items, a.patients)
    df = mcnemar(a, b, threshold=.45)
    for name, who in dict(accuracy=slice(None), sensitivity=a.targets == 1, specificity=a.targets == 0).items():
        right = [((o.probs[:, 1] >= .45) == (o.targets == 1))[who] for o in (a, b)]
        table = [[(right[0] & right[1]).sum(), (right[0] & ~right[1]).sum()], [(~right[0] & right[1]).sum(), (~right[0] & ~right[1]).sum()]]
        row = df.loc[name]
        assert (row.only_a, row.only_b) == (table[0][1], table[1][0])
        assert row.p == pytest.approx(tables.mcnemar(table, exact=True).pvalue, abs=1e-6)
        assert row.value == pytest.approx(right[0].mean() - right[1].mean(), abs=1e-12) and row.low <= row.value <= row.high


def test_mcnemar_may_have_a_threshold_for_each_model():
    a, b = random_preds(0), random_preds(0, shift=.2)
    df = mcnemar(a, b, threshold=(.4, .6))
    want = ((a.probs[:, 1] >= .4) == a.targets).mean() - ((b.probs[:, 1] >= .6) == b.targets).mean()
    assert df.value['accuracy'] == pytest.approx(want, abs=1e-12)


def test_mcnemar_without_disagreement_shows_nothing_and_keeps_a_width():
    row = mcnemar(random_preds(0), random_preds(0)).loc['accuracy']
    assert (row.value, row.p, row.only_a) == (0, 1, 0) and row.low < 0 < row.high


def test_mcnemar_of_several_classes_is_about_the_accuracy():
    df = mcnemar(organs(1), organs(2))
    assert df.index.tolist() == ['accuracy']
    assert df.value['accuracy'] == pytest.approx((organs(1).predicted == organs(1).targets).mean() - (organs(2).predicted == organs(2).targets).mean(), abs=1e-12)


def test_mcnemar_of_one_class_says_what_is_missing():
    sick = made(np.ones(30), np.linspace(.1, .9, 30))
    assert mcnemar(sick, sick).method['specificity'].startswith('none')


@pytest.mark.full
def test_intervals_of_a_paired_difference_cover():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(2000):
        right_a = rng.random(40) < .85
        right_b = np.where(right_a, rng.random(40) < .9, rng.random(40) < .4)
        y = np.ones(40)
        row = mcnemar(made(y, right_a*.9), made(y, right_b*.9)).loc['sensitivity']
        hits += row.low <= .85 - (.85*.9 + .15*.4) <= row.high
    assert .93 <= hits/2000 <= .985, hits/2000


# --- seeds

def by_seed(n=60, seeds=4, **options):
    rng = np.random.default_rng(9)
    y = rng.random(n) < .4
    shared = rng.normal(size=n) + 1.4*y
    return [made(y, 1/(1 + np.exp(.7 - shared - .5*np.random.default_rng(i).normal(size=n))), **options) for i in range(seeds)]


def test_values_are_means_over_seeds_and_the_spread_stands_apart():
    preds = by_seed()
    df, each = evaluate_seeds(preds, n_resamples=100), pd.concat([evaluate(o, n_resamples=20).value for o in preds], axis=1)
    np.testing.assert_allclose(df.value, each.loc[df.index].mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(df['seed sd'], each.loc[df.index].std(axis=1), atol=1e-12)
    assert (df['seed lowest'] <= df.value).all() and (df.value <= df['seed highest']).all() and (df.seeds == 4).all()
    assert (df.low <= df.value).all() and (df.value <= df.high).all()


def test_two_way_limits_are_a_plain_resampling_of_patients_and_seeds():
    preds = by_seed()
    y, s = preds[0].targets, np.stack([o.probs[:, 1] for o in preds])
    plain = lambda i, j: np.mean([metrics.roc_auc_score(y[i.astype(int)], s[k][i.astype(int)]) for k in j.astype(int)])
    want = bootstrap((np.arange(60), np.arange(4)), plain, n_resamples=100, vectorized=False, method='BCa', rng=np.random.default_rng(0)).confidence_interval
    row = evaluate_seeds(preds, n_resamples=100).loc['auc']
    np.testing.assert_allclose([row.low, row.high], want, atol=1e-9)
    assert row.method == 'two-way BCa bootstrap over 60 patients and 4 seeds, 100 resamples'


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_statistics_of_counts_are_those_of_resamples(seed):
    rng = np.random.default_rng(seed)
    for preds, k in ((random_preds(seed, 30), 1), (organs(seed % 7, 40), None)):
        index = rng.integers(0, len(preds), len(preds))
        drawn = Predictions(preds.probs[index], preds.targets[index], preds.classes, range(len(index)), range(len(index)))
        if len(set(drawn.targets)) < len(preds.classes): continue
        want, counts = evaluate(drawn, n_resamples=10).value, np.bincount(index, minlength=len(preds)).astype(float)[None]
        for name, f in _statistics(preds, k, .5).items(): assert f(counts)[0] == pytest.approx(want[name], abs=1e-9), name


def test_seeds_of_few_patients_add_both_spreads():
    preds = by_seed(14)
    row, alone = evaluate_seeds(preds).loc['auc'], evaluate(preds[0]).loc['auc']
    assert 'Newcombe score within a seed, Student t over seeds' in row.method and 0 <= row.low < row.value < row.high <= 1
    assert row.high - row.low > .8*(alone.high - alone.low)


def test_seeds_of_several_classes_are_macro_averages():
    preds = [organs(i) for i in range(3)]
    df = evaluate_seeds(preds, n_resamples=100)
    assert df.index.tolist() == ['balanced accuracy', 'auc', 'average precision', 'accuracy', 'brier'] and df.method.str.contains('macro average').tolist() == [True, True, True, False, False]
    assert df.value['auc'] == pytest.approx(np.mean([metrics.roc_auc_score(o.targets, o.probs, multi_class='ovr') for o in preds]), abs=1e-9)


def test_seeds_in_another_order_of_patients_are_joined():
    preds = by_seed()
    back = preds[1].take(np.arange(60)[::-1])
    pd.testing.assert_frame_equal(evaluate_seeds(preds, n_resamples=50), evaluate_seeds([preds[0], back, *preds[2:]], n_resamples=50))


def test_one_class_only_has_seeds_without_an_auc():
    sick = made(np.ones(30), np.linspace(.1, .9, 30))
    df = evaluate_seeds([sick, sick], n_resamples=50)
    assert np.isnan(df.value['auc']) and df.method['auc'].startswith('none') and df.value['sensitivity'] > 0


@pytest.mark.parametrize('preds, n', [(by_seed, 60), (lambda: by_seed(14), 14), (lambda: [organs(i) for i in range(3)], 90)])
def test_metrics_asked_for_are_the_rows_of_all(preds, n, monkeypatch):
    import medfast.seeds as seeds
    whole, calls = evaluate_seeds(preds(), n_resamples=50), []
    monkeypatch.setattr(seeds, 'bca', lambda *args: calls.append(args) or bca(*args))
    pd.testing.assert_frame_equal(evaluate_seeds(preds(), metrics=['brier', 'auc'], n_resamples=50), whole.loc[['brier', 'auc']])
    assert len(calls) == (2 if n > 20 else 0), 'nothing else is resampled'
    with pytest.raises(PredictionsError, match="metrics: there is no 'f1'. Choose of .*brier"): evaluate_seeds(preds(), metrics=['auc', 'f1'])


def test_seeds_of_few_patients_are_evaluated_once_each(monkeypatch):
    import medfast.seeds as seeds
    rows, calls = seeds.two_class_rows, []
    monkeypatch.setattr(seeds, 'two_class_rows', lambda *args: calls.append(args) or rows(*args))
    evaluate_seeds(by_seed(14))
    assert len(calls) == 4


@pytest.mark.parametrize('few, words', [('Newcombe', 'Newcombe score'), ('logit-DeLong', 'logit-DeLong, corrected for continuity')])
def test_few_patients_may_have_either_interval_in_pairs_and_seeds(few, words):
    a, b = random_preds(3, 12), random_preds(3, 12, shift=.2)
    rows = [auc_row(o.targets == 1, o.probs[:, 1], How(few=few)) for o in (a, b)]
    gain = paired_gain(a, b, few=few).loc['auc gain']
    assert gain.low == pytest.approx(gain.value - np.hypot(rows[0]['value'] - rows[0]['low'], rows[1]['high'] - rows[1]['value']), abs=1e-12)
    assert evaluate_seeds(by_seed(14), few=few).method['auc'].startswith(f'{words} within a seed')


def test_one_patient_too_many_is_one():
    a = random_preds(3)
    with pytest.raises(PredictionsError, match='^1 patient stands in one of the two only'): paired(a, a.take(range(59)))


@pytest.mark.parametrize('preds, rule', [(lambda: by_seed()[:1], '^1 seed: two or more'), (lambda: [by_seed()[0], by_seed(40)[0]], 'stand in one of the two only'), (lambda: {}, '0 seeds')])
def test_seeds_that_do_not_belong_together_are_refused(preds, rule):
    with pytest.raises(PredictionsError, match=rule): evaluate_seeds(preds())


def test_pairs_join_by_patient_with_unequal_numbers_of_images():
    a = made(np.repeat([1, 0], 3), np.linspace(.1, .6, 6), patients=list('xxxyyy'))
    b = made([0, 1], np.array([.3, .4]), patients=list('yx'))
    left, right = paired(a, b)
    assert left.items == right.items == ['x', 'y'] and right.probs[0, 1] == .4
