"Calibration against statsmodels and scikit-learn; temperature; another prevalence; what has no slope."
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn import metrics
from sklearn.calibration import calibration_curve

from medfast.calibration import (NEAR, TEMPERATURES, calibration, calibration_bins, calibration_error, fit_temperature, intercept_row, perfect_errors, plot_calibration,
    shift_prevalence, slope_row, with_temperature)
from medfast.table import Predictions, PredictionsError


def overlapping(seed, n=60, slope=.6, level=.3):
    "Truth and probabilities that are off in slope and level."
    rng = np.random.default_rng(seed)
    x = rng.normal(-.4, 1.5, n)
    return rng.random(n) < expit(level + slope*x), expit(x)


def preds_of(y, p, **options): return Predictions.from_arrays(y, p, **dict(classes=['Healthy', 'Sick'], patients=range(len(y)), split_by='patient') | options)


@pytest.mark.parametrize('seed', range(20))
def test_slope_and_intercept_are_those_of_statsmodels(seed):
    sm = pytest.importorskip('statsmodels.api')
    y, p = overlapping(seed)
    x = logit(p)
    full = sm.GLM(y.astype(float), sm.add_constant(x), family=sm.families.Binomial()).fit(tol=1e-14)
    offset = sm.GLM(y.astype(float), np.ones((len(y), 1)), family=sm.families.Binomial(), offset=x).fit(tol=1e-14)
    assert slope_row(y, p)['value'] == pytest.approx(full.params[1], abs=1e-6)
    assert intercept_row(y, p)['value'] == pytest.approx(offset.params[0], abs=1e-6)


@pytest.mark.parametrize('seed', range(6))
def test_limits_lie_where_statsmodels_likelihood_has_fallen(seed):
    sm = pytest.importorskip('statsmodels.api')
    y, p = overlapping(seed)
    x = logit(p)
    def llf(design, offset): return sm.GLM(y.astype(float), design, family=sm.families.Binomial(), offset=offset).fit(tol=1e-14).llf
    one, top = np.ones((len(y), 1)), llf(sm.add_constant(x), 0*x)
    for limit in ('low', 'high'):
        assert 2*(top - llf(one, slope_row(y, p)[limit]*x)) == pytest.approx(3.841459, abs=1e-5)
    row = intercept_row(y, p)
    def at(a): return (y*(a + x) - np.logaddexp(0, a + x)).sum()
    for limit in ('low', 'high'): assert 2*(at(row['value']) - at(row[limit])) == pytest.approx(3.841459, abs=1e-6)


@pytest.mark.parametrize('seed', range(5))
def test_bins_and_brier_are_those_of_scikit_learn(seed):
    y, p = overlapping(seed, 73)
    p = np.round(p, 2) if seed % 2 else p
    bins = calibration_bins(preds_of(y, p))
    np.testing.assert_allclose([bins.observed, bins.predicted], calibration_curve(y, p, n_bins=5, strategy='quantile'), atol=1e-9)
    assert bins.n.sum() == 73 and (bins.low <= bins.observed).all() and (bins.observed <= bins.high).all() and (bins.method == 'Wilson').all()
    assert calibration(preds_of(y, p), n_resamples=20).value['brier'] == pytest.approx(metrics.brier_score_loss(y, p), abs=1e-9)
    want = (bins.n*(bins.predicted - bins.observed).abs()).sum()/73
    assert calibration_error(y, p) == pytest.approx(want, abs=1e-9)


def test_perfect_errors_are_those_of_drawn_outcomes():
    p = np.random.default_rng(0).random(40)
    rng = np.random.default_rng(5)
    want = [calibration_error(rng.random((40, 1))[:, 0] > 1 - p, p) for _ in range(30)]
    np.testing.assert_allclose(perfect_errors(np.stack([1 - p, p], 1), [1], n_draws=30, seed=5), want, atol=1e-12)


def test_a_perfect_model_lies_in_its_own_range_19_times_in_20():
    rng, hits = np.random.default_rng(0), 0
    for seed in range(60):
        p = rng.beta(1, 2, 60)
        rows = calibration(preds_of(rng.random(60) < p, p), n_resamples=10, seed=seed).loc
        hits += rows['ece of a perfect model', 'low'] <= rows['ece', 'value'] <= rows['ece of a perfect model', 'high']
    assert 51 <= hits <= 60


def test_the_error_of_several_classes_is_their_mean():
    rng = np.random.default_rng(0)
    q = rng.dirichlet([1, 1, 1], 80)
    y = np.array([rng.choice(3, p=o) for o in q])
    df = calibration(Predictions.from_arrays(y, q, classes=list('abc'), patients=range(80)), n_resamples=20)
    assert df.value['ece'] == pytest.approx(np.mean([df.value[f'ece: {o}'] for o in 'abc'])) and 'macro average' in df.method['ece']
    assert df.value['slope: b'] == slope_row(y == 1, q[:, 1])['value']


# --- edges

@pytest.mark.parametrize('y, p, why', [
    (np.arange(30) > 14, np.linspace(.1, .9, 30), 'do not overlap'), (np.arange(30) > 14, np.linspace(.9, .1, 30), 'do not overlap'),
    (np.arange(30) > 14, np.full(30, .4), 'do not overlap'), (np.ones(30, bool), np.linspace(.1, .9, 30), 'both classes'), (np.arange(2) > 0, np.array([.2, .3]), 'do not overlap')])
def test_what_has_no_slope_says_why(y, p, why):
    row = slope_row(y, p)
    assert np.isnan(row['value']) and why in row['method']
    assert len(calibration(preds_of(y, p), n_resamples=10)) == 5


def test_probabilities_of_0_and_1_are_moved_and_counted():
    y, p = overlapping(0)
    p[:3] = 0, 1, 1
    row = slope_row(y, p)
    assert np.isfinite([row['value'], row['low'], row['high']]).all() and f'3 probabilities moved to {NEAR:g}' in row['method']


def test_few_patients_and_ties_have_limits():
    y, p = overlapping(3, 12)
    for s in (p, np.round(p, 1)):
        row = intercept_row(y, s)
        assert row['low'] < row['value'] < row['high']


def test_pictures_show_bins_notes_and_patients():
    y, p = overlapping(1)
    preds = preds_of(y, p, split_by='image')
    ax = plot_calibration(preds)
    assert 'the same patient may be on both sides' in ax.get_title() and f'{y.sum()} of 60 patients' in ax.get_title()
    ticks = [o for o in ax.lines if o.get_marker() == '|']
    assert sum(len(o.get_xdata()) for o in ticks) == 60
    with pytest.raises(PredictionsError, match='name one of'): plot_calibration(Predictions.from_arrays([0, 1, 2], np.eye(3), patients=range(3)))
    plt.close('all')


# --- temperature

@pytest.mark.parametrize('seed, n_classes', [(0, 2), (1, 2), (2, 3), (3, 5)])
def test_temperature_is_that_of_scikit_learn(seed, n_classes):
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    from medfast.conformal import _given
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(80, n_classes))
    q = np.exp(z)/np.exp(z).sum(1, keepdims=True)
    y = np.array([rng.choice(n_classes, p=o) for o in q])
    y[:n_classes] = range(n_classes)
    sharp = q**2.5/(q**2.5).sum(1, keepdims=True)
    preds = Predictions.from_arrays(y, sharp, patients=range(80))
    other = CalibratedClassifierCV(FrozenEstimator(_given(n_classes)), method='temperature').fit(sharp, y)
    np.testing.assert_allclose(with_temperature(preds, fit_temperature(preds)).probs, other.predict_proba(sharp), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(.2, 5))
def test_temperature_undoes_itself_and_keeps_the_order(seed, t):
    y, p = overlapping(seed, 40)
    preds = preds_of(y, p)
    hot = with_temperature(preds, t)
    np.testing.assert_allclose(with_temperature(hot, 1/t).probs, preds.probs, atol=1e-9)
    assert (np.argsort(hot.probs[:, 1], kind='stable') == np.argsort(p, kind='stable')).all()
    best = fit_temperature(preds)
    if TEMPERATURES[0] < best < TEMPERATURES[1] and TEMPERATURES[0] < best/t < TEMPERATURES[1]: assert fit_temperature(hot) == pytest.approx(best/t, rel=1e-6)


def test_temperature_has_the_best_likelihood():
    y, p = overlapping(2)
    preds = preds_of(y, p)
    loss = lambda t: metrics.log_loss(y, with_temperature(preds, t).probs[:, 1])
    best = fit_temperature(preds)
    assert loss(best) < min(loss(best*1.05), loss(best/1.05))


@pytest.mark.parametrize('p, limit', [(np.linspace(.1, .9, 30), .05), (np.linspace(.9, .1, 30), 20.)])
def test_temperature_stops_where_nothing_holds_it(p, limit):
    assert fit_temperature(preds_of(np.arange(30) > 14, p)) == limit


def test_temperature_of_sure_zeros_stays_finite():
    preds = preds_of(np.arange(30) % 2, np.where(np.arange(30) % 3, 1., 0.))
    assert np.isfinite(with_temperature(preds, fit_temperature(preds)).probs).all()


@pytest.mark.parametrize('t', [0, -1, np.nan])
def test_a_temperature_is_above_0(t):
    with pytest.raises(PredictionsError, match='above 0'): with_temperature(preds_of([True, False], [.2, .3]), t)


# --- prevalence

def test_a_shift_is_bayes_rule_and_undoes_itself():
    y, p = overlapping(0)
    preds = preds_of(y, p)
    moved = shift_prevalence(preds, .05, of=.4)
    np.testing.assert_allclose(moved.probs[:, 1]/moved.probs[:, 0], p/(1 - p)*(.05/.95)/(.4/.6), rtol=1e-9)
    np.testing.assert_allclose(shift_prevalence(moved, .4, of=.05).probs, preds.probs, atol=1e-9)
    np.testing.assert_allclose(shift_prevalence(preds, y.mean()).probs, preds.probs, atol=1e-9)


def test_a_shift_of_one_of_several_classes_keeps_the_others_in_proportion():
    q = np.random.default_rng(0).dirichlet([1, 1, 1], 20)
    preds = Predictions.from_arrays(np.arange(20) % 3, q, classes=list('abc'), patients=range(20))
    moved = shift_prevalence(preds, .1, of=1/3, positive='b').probs
    np.testing.assert_allclose(moved[:, 0]/moved[:, 2], q[:, 0]/q[:, 2], rtol=1e-9)
    with pytest.raises(PredictionsError, match='name one of a, b, c'): shift_prevalence(preds, .1)


@pytest.mark.parametrize('options', [dict(to=0.), dict(to=1.), dict(to=.5, of=0.), dict(to=5)])
def test_a_prevalence_lies_between_0_and_1(options):
    with pytest.raises(PredictionsError, match='both excluded'): shift_prevalence(preds_of([True, False], [.2, .3]), **options)
