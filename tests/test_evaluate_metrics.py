"Arithmetic on plain arrays, against scikit-learn, scipy, statsmodels and printed examples."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binomtest, bootstrap, mannwhitneyu, norm
from sklearn import metrics

from medfast.metrics import (How, ap_row, area, auc_row, average_precision, bayes_row, bca, brier_row, curves, delong, logit_delong_row, mean_row, newcombe_limits,
    proportion_rows, resampled_row, two_class_rows, wilson_limits, wilson_row)


@st.composite
def truth_and_scores(draw, least=4, most=60):
    "Both classes, scores with and without ties."
    n = draw(st.integers(least, most))
    y = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    y[:2] = True, False
    digits = draw(st.sampled_from([1, 2, 9]))
    return y, np.round(np.array(draw(st.lists(st.floats(0, 1), min_size=n, max_size=n))), digits)


quick = settings(max_examples=60, deadline=None)


@quick
@given(truth_and_scores())
def test_auc_and_average_precision_are_those_of_scikit_learn_and_scipy(data):
    y, s = data
    points, once = curves(y, s), np.ones(len(y))
    assert area(*points(once)) == pytest.approx(metrics.roc_auc_score(y, s), abs=1e-9)
    assert area(*points(once)) == pytest.approx(mannwhitneyu(s[y], s[~y]).statistic/(y.sum()*(~y).sum()), abs=1e-9)
    assert average_precision(*points(once)) == pytest.approx(metrics.average_precision_score(y, s), abs=1e-9)


@quick
@given(truth_and_scores(), st.floats(.001, .999))
def test_a_stated_prevalence_is_a_weight_for_scikit_learn(data, prevalence):
    y, s = data
    weight = np.where(y, prevalence/y.sum(), (1 - prevalence)/(~y).sum())
    assert ap_row(y, s, How(n_resamples=20), prevalence)['value'] == pytest.approx(metrics.average_precision_score(y, s, sample_weight=weight), abs=1e-6)
    rows, called = proportion_rows(y, s >= .5, prevalence=prevalence), s >= .5
    assert rows['accuracy']['value'] == pytest.approx(metrics.accuracy_score(y, called, sample_weight=weight), abs=1e-6)
    for name, label in (('ppv', 1), ('npv', 0)):
        want = metrics.precision_score(y, called, pos_label=label, sample_weight=weight, zero_division=np.nan)
        np.testing.assert_allclose(rows[name]['value'], want, atol=1e-6)


@quick
@given(truth_and_scores(), st.integers(0, 10**6))
def test_counts_are_resamples(data, seed):
    y, s = data
    index = np.random.default_rng(seed).integers(0, len(y), len(y))
    if len(set(y[index])) < 2: return
    counts = np.bincount(index, minlength=len(y)).astype(float)
    assert area(*curves(y, s)(counts)) == pytest.approx(metrics.roc_auc_score(y[index], s[index]), abs=1e-9)
    assert average_precision(*curves(y, s)(counts)) == pytest.approx(metrics.average_precision_score(y[index], s[index]), abs=1e-9)


@quick
@given(truth_and_scores(), st.sampled_from([None, .01, .5]))
def test_every_limit_holds_its_value_inside_the_range(data, prevalence):
    y, s = data
    for name, row in two_class_rows(y, s, s >= .5, How(n_resamples=50), prevalence).items():
        if np.isnan(row['value']): assert row['method'].startswith('none'), (name, row)
        elif not np.isnan(row['low']): assert -1e-9 <= row['low'] <= row['value'] + 1e-9 and row['value'] - 1e-9 <= row['high'] <= 1 + 1e-9, (name, row)
        else: assert name == 'brier' and row['method'].startswith('none')


@given(st.integers(0, 400), st.integers(0, 400), st.sampled_from([.8, .9, .95, .99]))
@settings(max_examples=60, deadline=None)
def test_wilson_is_that_of_statsmodels_everywhere(k, more, confidence):
    proportion = pytest.importorskip('statsmodels.stats.proportion')
    n = k + more or 1
    row = wilson_row(k, n, How(confidence))
    np.testing.assert_allclose([row['low'], row['high']], proportion.proportion_confint(k, n, 1 - confidence, 'wilson'), atol=1e-6)


@pytest.mark.parametrize('k, n, low, high', [(81, 263, .2553, .3662), (15, 148, .0624, .1605), (0, 20, 0, .1611), (1, 29, .0061, .1718)])
def test_wilson_is_that_of_newcombe_1998(k, n, low, high):
    row = wilson_row(k, n)
    assert (round(row['low'], 4), round(row['high'], 4)) == (low, high)


def test_wilson_of_arrays_is_that_of_scipy():
    k = np.arange(38)
    for confidence in (.8, .95):
        want = [binomtest(int(i), 37).proportion_ci(confidence, 'wilson') for i in k]
        np.testing.assert_allclose(np.transpose(wilson_limits(k, 37, confidence)), want, atol=1e-9)


def test_nothing_is_known_of_nobody():
    row = wilson_row(0, 0)
    assert np.isnan(row['value']) and (row['low'], row['high'], row['n']) == (0, 1, 0) and row['method'].startswith('none')


# --- AUC

# DeLong, DeLong and Clarke-Pearson 1988: albumin, total protein, K-G score, and whether surgery helped, as printed in SAS/STAT, LOGISTIC, 'Comparing ROC curves'
OVARIAN = np.array("""3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0 1.6 5.6 5 1 3.8 5.7 5 1 3.7 6.7 6 1 3.2 5.4 4 1
    3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0 2.3 4.4 6 1 4.2 7.6 4 0 4.0 6.6 6 0 3.5 5.8 6 1 3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1
    3.7 7.4 5 1 3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1 4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1 3.3 6.8 6 0 1.7 4.0 7 0 3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1
    3.5 6.2 5 1 2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1 3.3 5.7 6 1 3.7 6.9 5 1 3.6 6.6 5 1""".split(), float).reshape(-1, 4)


@pytest.mark.parametrize('column, sign, auc, se, low, high', [(0, 1, .7366, .0927, .5549, .9182), (1, 1, .6478, .1000, .4518, .8439), (2, -1, .7258, .1028, .5243, .9273)])
def test_delong_is_that_of_his_own_data(column, sign, auc, se, low, high):
    value, variance = delong(OVARIAN[:, 3] == 1, sign*OVARIAN[:, column])
    found = [value, variance**.5, *(value + norm.ppf([.025, .975])*variance**.5)]
    np.testing.assert_allclose(found, [auc, se, low, high], atol=5.1e-5)


@quick
@given(truth_and_scores())
def test_delong_is_its_definition(data):
    y, s = data
    kernel = (s[y][:, None] > s[~y]) + .5*(s[y][:, None] == s[~y])
    value, variance = delong(y, s)
    assert value == pytest.approx(kernel.mean(), abs=1e-9)
    if min(kernel.shape) < 2: assert np.isnan(variance)
    else: assert variance == pytest.approx(kernel.mean(1).var(ddof=1)/len(kernel) + kernel.mean(0).var(ddof=1)/kernel.shape[1], abs=1e-9)


def test_newcombe_limits_lie_z_standard_errors_off():
    for auc, n1, n0 in [(.85, 10, 25), (.5, 3, 9), (.99, 20, 40)]:
        for limit in newcombe_limits(auc, n1, n0):
            N = (n1 + n0)/2 - 1
            se = (limit*(1 - limit)*(1 + N*(1 - limit)/(2 - limit) + N*limit/(1 + limit))/(n1*n0))**.5
            assert abs(limit - auc)/se == pytest.approx(norm.ppf(.975), abs=1e-5)


@quick
@given(truth_and_scores(2, 25))
def test_logit_delong_has_a_width_even_at_0_and_1(data):
    y, s = data
    for scores in (s, y.astype(float), -y.astype(float), np.zeros(len(y))):
        row = logit_delong_row(y, scores)
        assert 0 <= row['low'] <= row['value'] <= row['high'] <= 1 and row['high'] - row['low'] > .01, row


@quick
@given(truth_and_scores(2, 60), st.sampled_from(['plain', 'parted', 'opposite', 'equal']))
def test_few_asks_for_the_interval_where_a_bootstrap_cannot_serve_and_nowhere_else(data, kind):
    y, s = data
    s = dict(plain=s, parted=y.astype(float), opposite=-y.astype(float), equal=np.zeros(len(y)))[kind]
    plain, asked = (auc_row(y, s, How(n_resamples=50, few=o)) for o in ('Newcombe', 'logit-DeLong'))
    if plain['method'] == 'Newcombe score': assert asked == logit_delong_row(y, s)
    else: assert asked == plain
    if len(y) < 20 or min(y.sum(), (~y).sum()) < 5 or plain['value'] in (0, 1): assert plain['method'] == 'Newcombe score'
    assert plain == auc_row(y, s, How(n_resamples=50)), 'Newcombe is the default'


def test_logit_delong_of_few_patients_keeps_the_confidence():
    y, s = np.arange(12) < 4, np.random.default_rng(0).normal(size=12)
    wide, narrow = (auc_row(y, s, How(confidence=o, few='logit-DeLong')) for o in (.95, .5))
    assert wide['low'] < narrow['low'] < narrow['high'] < wide['high']


@pytest.mark.parametrize('few', ['newcombe', 'DeLong', None, ''])
def test_an_interval_that_does_not_exist_is_refused(few):
    with pytest.raises(ValueError, match=f"few = {few!r}: .*'Newcombe' or 'logit-DeLong'"): How(few=few)


def test_bca_is_that_of_scipy_with_a_plain_statistic():
    rng = np.random.default_rng(4)
    y, s = np.arange(40) % 3 == 0, rng.normal(size=40)
    plain = lambda i: metrics.roc_auc_score(y[i.astype(int)], s[i.astype(int)])
    want = bootstrap((np.arange(40),), plain, n_resamples=300, vectorized=False, method='BCa', rng=np.random.default_rng(7)).confidence_interval
    got = auc_row(y, s, How(seed=7, n_resamples=300))
    np.testing.assert_allclose([got['low'], got['high']], want, atol=1e-12)


def test_two_way_bca_is_that_of_scipy_over_two_samples():
    values = np.random.default_rng(3).normal(size=(30, 6))
    plain = lambda i, j: values[np.ix_(i.astype(int), j.astype(int))].mean()
    want = bootstrap((np.arange(30), np.arange(6)), plain, n_resamples=200, vectorized=False, method='BCa', rng=np.random.default_rng(1)).confidence_interval
    got = bca(lambda c, d: np.einsum('bi,ij,bj->b', c, values, d)/c.sum(1)/d.sum(1), (30, 6), How(seed=1, n_resamples=200))
    np.testing.assert_allclose(got[:2], want, atol=1e-12)


def test_a_statistic_that_never_varies_has_no_bootstrap_row():
    assert resampled_row(lambda c: c.sum(-1)*0 + .7, .7, 30) is None


# --- Bayes

def test_predictive_values_are_the_textbook():
    row = bayes_row(wilson_row(97, 100), wilson_row(3, 100), .005)
    assert row['value'] == pytest.approx(.97*.005/(.97*.005 + .03*.995), abs=1e-12)


@pytest.mark.parametrize('a, b', [((30, 40), (5, 60)), ((40, 40), (1, 60)), ((3, 9), (30, 31)), ((1, 40), (59, 60))])
def test_limits_of_a_predictive_value_solve_movers_equation(a, b):
    "Donner and Zou: the limit R of p/q is where the limit of p - R q, squared and added, is 0."
    (p, l, u), (q, m, v) = [[wilson_row(*o)[k] for k in ('value', 'low', 'high')] for o in (a, b)]
    low = brentq(lambda r: p - r*q - np.hypot(p - l, r*(v - q)), 0, p/q)
    high = brentq(lambda r: p - r*q + np.hypot(u - p, r*(q - m)), p/q, 1e6)
    row = bayes_row(wilson_row(*a), wilson_row(*b), .2)
    np.testing.assert_allclose([row['low'], row['high']], [.25*low/(1 + .25*low), .25*high/(1 + .25*high)], rtol=1e-6)


@pytest.mark.parametrize('a, b, value', [((0, 40), (5, 60), 0.), ((40, 40), (0, 60), 1.), ((0, 40), (0, 60), np.nan), ((0, 0), (5, 60), np.nan)])
def test_predictive_values_at_the_edges_keep_a_width(a, b, value):
    row = bayes_row(wilson_row(*a), wilson_row(*b), .1)
    np.testing.assert_equal(row['value'], value)
    assert 0 <= row['low'] < row['high'] <= 1 and (np.isnan(value) or row['low'] <= value <= row['high'])


def test_moved_to_their_own_prevalence_nothing_moves():
    rng = np.random.default_rng(0)
    y, called = rng.random(70) < .3, rng.random(70) < .5
    a, b = proportion_rows(y, called), proportion_rows(y, called, prevalence=y.mean())
    np.testing.assert_allclose([a[o]['value'] for o in a], [b[o]['value'] for o in a], atol=1e-12)
    assert 'at the prevalence' in a['ppv']['method'] and 'at a stated prevalence of' in b['ppv']['method']


def test_average_precision_moved_to_a_rare_disease_does_not_trust_24_healthy_patients():
    y = np.arange(40) < 16
    row = ap_row(y, np.where(y, .9, .1), prevalence=.005)
    assert row['value'] == row['high'] == 1 and row['low'] < .05


def test_brier_of_equal_errors_has_no_interval_and_says_so():
    row = brier_row(np.full(30, .25))
    assert np.isnan(row['low']) and 'the same for all' in row['method']


# --- by hand

@pytest.mark.full
@pytest.mark.parametrize('n, prevalence, true', [(12, .36, .85), (12, .36, .95), (30, .1, .85), (60, .36, .5), (60, .36, .85), (60, .36, .95), (1200, .2, .85)])
def test_intervals_of_the_auc_cover(n, prevalence, true):
    rng, hits, runs = np.random.default_rng(0), 0, 600
    how = How(n_resamples=800)
    for _ in range(runs):
        y = rng.random(n) < prevalence
        while not 0 < y.sum() < n: y = rng.random(n) < prevalence
        row = auc_row(y, rng.normal(size=n) + 2**.5*norm.ppf(true)*y, how)
        hits += row['low'] <= true <= row['high']
    assert .92 <= hits/runs <= .99, hits/runs


@pytest.mark.full
@pytest.mark.parametrize('n, se, sp', [(12, .9, .8), (30, .95, .95), (60, .7, .9)])
def test_intervals_of_the_balanced_accuracy_cover(n, se, sp):
    rng, hits = np.random.default_rng(0), 0
    for _ in range(3000):
        row = mean_row([wilson_row(rng.binomial(m, p), m) for m, p in ((n//3, se), (n - n//3, sp))])
        hits += row['low'] <= (se + sp)/2 <= row['high']
    assert .91 <= hits/3000 <= .985, hits/3000


@pytest.mark.full
@pytest.mark.parametrize('n, se, sp, prevalence', [(60, .9, .8, .05), (40, .7, .95, .005), (120, .97, .97, .3)])
def test_intervals_of_predictive_values_cover(n, se, sp, prevalence):
    rng, hits, true = np.random.default_rng(0), np.zeros(2), (se*prevalence/(se*prevalence + (1 - sp)*(1 - prevalence)), sp*(1 - prevalence)/(sp*(1 - prevalence) + (1 - se)*prevalence))
    y = np.arange(n) < n*.36
    for _ in range(3000):
        rows = proportion_rows(y, rng.random(n) < np.where(y, se, 1 - sp), prevalence=prevalence)
        hits += [rows[o]['low'] <= t <= rows[o]['high'] for o, t in zip(('ppv', 'npv'), true)]
    assert (hits/3000 > .93).all() and (hits/3000 < .985).all(), hits/3000


@pytest.mark.full
@pytest.mark.parametrize('prevalence', [.005, .05, .2])
def test_intervals_of_average_precision_cover_at_another_prevalence(prevalence):
    rng, hits, runs, lift = np.random.default_rng(0), 0, 600, 1.47
    many = rng.random(1_000_000) < .36
    true = ap_row(many, rng.normal(size=len(many)) + lift*many, prevalence=prevalence)['value']
    for _ in range(runs):
        y = rng.random(60) < .36
        row = ap_row(y, rng.normal(size=60) + lift*y, prevalence=prevalence)
        hits += row['low'] <= true <= row['high']
    assert hits/runs > .93, hits/runs
