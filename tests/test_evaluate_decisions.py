"Operating points that are refused, frozen, saved and applied; net benefit by hand."
import json

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import beta, norm

from medfast.decisions import OperatingPoint, OperatingPointError, decision_curve, least_share, operating_point, plot_decision_curve
from medfast.table import Predictions, PredictionsError, pool_folds


def patients(n=90, seed=0, sick=None, ties=False, **options):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3 == 0 if sick is None else np.arange(n) < sick
    p = expit(2*(rng.normal(size=n) + 1.5*y - 1))
    return Predictions.from_arrays(y, np.round(p, 1) if ties else p, **dict(classes=['Healthy', 'Sick'], patients=range(n), split_by='patient') | options)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(.05, 1), st.sampled_from(['sensitivity', 'specificity']), st.booleans())
def test_the_threshold_keeps_what_was_asked_at_the_least_cost(seed, wanted, aim, ties):
    preds = patients(seed=seed, ties=ties)
    try: point = operating_point(preds, **{aim: wanted}, temperature=False)
    except OperatingPointError as e: assert 'no threshold keeps' in str(e) and aim == 'specificity' and wanted > .5; return
    y, s = preds.targets == 1, preds.probs[:, 1]
    se, sp = (s[y] >= point.threshold).mean(), (s[~y] < point.threshold).mean()
    kept, other = (se, sp) if aim == 'sensitivity' else (sp, se)
    assert kept >= wanted - 1e-9 and point.reached == pytest.approx(kept)
    better = [((s[~y] < t).mean(), (s[y] >= t).mean()) for t in s]
    rivals = [a if aim == 'sensitivity' else b for a, b in better if (b if aim == 'sensitivity' else a) >= wanted - 1e-9]
    assert other >= max(rivals, default=0) - 1e-9


def test_a_temperature_of_two_classes_moves_the_threshold_not_the_decision():
    preds = patients()
    a, b = operating_point(preds, sensitivity=.9), operating_point(preds, sensitivity=.9, temperature=False)
    assert a.temperature != 1 and b.temperature == 1 and a.reached == b.reached
    np.testing.assert_array_equal(a.apply(preds).probs[:, 1] >= a.threshold, preds.probs[:, 1] >= b.threshold)


@pytest.mark.parametrize('sick, aim, enough', [(19, 'sensitivity', False), (20, 'sensitivity', True), (71, 'specificity', False), (70, 'specificity', True), (0, 'sensitivity', False)])
def test_nineteen_are_too_few_and_twenty_are_enough(sick, aim, enough):
    preds = patients(sick=sick)
    if enough: assert operating_point(preds, **{aim: .9}).n_of_class == 20
    else:
        n = sick if aim == 'sensitivity' else 90 - sick
        with pytest.raises(OperatingPointError, match=rf'on {n} patients .*at least 20 are needed.*12, 20 or 60 patients.*\.44, \.63 or \.82'): operating_point(preds, **{aim: .9})


def test_one_patient_is_one():
    with pytest.raises(OperatingPointError, match='kept on 1 patient with Sick; at least 20'): operating_point(patients(sick=1), sensitivity=.9)


def test_patients_are_counted_not_images():
    preds = patients(60, patients=[f'{i//4}' for i in range(60)], sick=0)
    preds.targets = (np.arange(60)//4 < 5).astype(int)
    with pytest.raises(OperatingPointError, match='on 5 patients with Sick'): operating_point(preds, sensitivity=.9)


@pytest.mark.parametrize('options, rule', [({}, 'one of the two'), (dict(sensitivity=.9, specificity=.9), 'one of the two'), (dict(sensitivity=0), 'above 0 and up to 1'), (dict(sensitivity=95), 'up to 1')])
def test_exactly_one_aim_is_wanted(options, rule):
    with pytest.raises(OperatingPointError, match=rule): operating_point(patients(), **options)


def test_one_class_only_has_no_threshold():
    with pytest.raises(OperatingPointError, match='of one class'): operating_point(patients(sick=90), sensitivity=.9)


def test_several_classes_need_a_name():
    q = np.random.default_rng(0).dirichlet([1, 1, 1], 90)
    preds = Predictions.from_arrays(np.arange(90) % 3, q, classes=list('abc'), patients=range(90))
    with pytest.raises(OperatingPointError, match='name one of a, b, c'): operating_point(preds, sensitivity=.9)
    assert operating_point(preds, sensitivity=.9, positive='b').positive == 'b'


def test_unknown_patients_are_refused():
    with pytest.raises(PredictionsError, match='patient is unknown'): operating_point(patients(patients=None), sensitivity=.9)


@pytest.mark.parametrize('k, n', [(19, 20), (57, 60), (12, 12), (1, 30)])
def test_what_a_threshold_promises_is_an_order_statistic(k, n):
    rng = np.random.default_rng(0)
    found = np.quantile(np.sort(rng.random((40_000, n)), 1)[:, k - 1], .05)
    assert least_share(k, n) == pytest.approx(beta.ppf(.05, k, n - k + 1)) and found == pytest.approx(least_share(k, n), abs=.02)


def test_of_fresh_patients_it_finds_what_it_promised_19_times_in_20():
    rng, kept = np.random.default_rng(1), 0
    for seed in range(300):
        y = np.arange(60) % 3 == 0
        s = rng.normal(size=60) + 1.5*y
        point = operating_point(Predictions.from_arrays(y, expit(s), patients=range(60)), sensitivity=.9, temperature=False)
        threshold = np.log(point.threshold/(1 - point.threshold))
        kept += norm.sf(threshold - 1.5) >= point.at_least
    assert 275 <= kept <= 297


# --- frozen

def test_it_survives_a_file_to_the_last_bit(tmp_path):
    point = operating_point(pool_folds([patients().take(np.arange(90) % 5 == k) for k in range(5)]), sensitivity=.95)
    point.save(tmp_path/'point.json')
    again = OperatingPoint.load(tmp_path/'point.json')
    assert again == point and again.n_folds == 5 and json.loads((tmp_path/'point.json').read_text())['positive'] == 'Sick'
    with pytest.raises(AttributeError): again.threshold = .1


def test_a_file_names_no_patient(tmp_path):
    point = operating_point(patients(patients=[f'0{i}77' for i in range(90)]), sensitivity=.95)
    point.save(tmp_path/'point.json')
    assert '077' not in (tmp_path/'point.json').read_text().replace(point.patients, '')


@pytest.mark.parametrize('text, rule', [('{}', 'holds no positive'), ('[]', 'holds no positive'), ('{"positive": "Sick"}', 'holds no classes')])
def test_files_that_are_no_operating_point_are_refused(tmp_path, text, rule):
    (tmp_path/'p.json').write_text(text)
    with pytest.raises(OperatingPointError, match=rule): OperatingPoint.load(tmp_path/'p.json')


def test_folds_and_order_do_not_change_it():
    a = patients()
    b = a.take(np.random.default_rng(0).permutation(90))
    assert operating_point(a, sensitivity=.9) == operating_point(b, sensitivity=.9)


def test_a_split_by_image_is_remembered():
    point = operating_point(patients(split_by='image'), sensitivity=.9)
    assert 'split by image' in point.note(patients(60, 1, patients=range(500, 560)))


# --- net benefit

@pytest.mark.parametrize('prevalence', [None, .02])
def test_net_benefit_is_the_formula(prevalence):
    preds = patients(ties=True)
    y, s = preds.targets == 1, preds.probs[:, 1]
    for t in (.05, .3, .5, .9):
        row = decision_curve(preds, thresholds=t, prevalence=prevalence).iloc[0]
        pi = y.mean() if prevalence is None else prevalence
        want = pi*(s[y] >= t).mean() - (1 - pi)*(s[~y] >= t).mean()*t/(1 - t)
        assert row.model == pytest.approx(want, abs=1e-12) and row.low <= row.model <= row.high and row.none == 0
        assert row['all'] == pytest.approx(pi - (1 - pi)*t/(1 - t), abs=1e-12)
        if prevalence is None: assert row.model == pytest.approx((y & (s >= t)).mean() - (~y & (s >= t)).mean()*t/(1 - t), abs=1e-12)


def test_treating_all_is_the_model_that_calls_everybody():
    preds = patients()
    everybody = Predictions.from_arrays(preds.targets, np.full(90, .999), classes=preds.classes, patients=range(90))
    curve = decision_curve(everybody, thresholds=[.1, .5, .9])
    np.testing.assert_allclose(curve.model, curve['all'], atol=1e-12)
    assert (curve.high > curve.low).all()


@pytest.mark.parametrize('make, options, rule', [(lambda: patients(sick=90), {}, 'are alike'), (patients, dict(thresholds=[0, .5]), 'both excluded'), (patients, dict(thresholds=1.), 'both excluded'), (patients, dict(positive='Ill'), 'no class')])
def test_decision_curves_that_cannot_be_drawn(make, options, rule):
    with pytest.raises(PredictionsError, match=rule): decision_curve(make(), **options)


def test_the_picture_has_both_policies_and_the_notes():
    ax = plot_decision_curve(patients(split_by='image'))
    plot_decision_curve(patients(seed=3), label='other', ax=ax)
    assert [o.get_text() for o in ax.get_legend().texts] == ['model', 'treat all', 'treat none', 'other'] and 'both sides' in ax.get_title()
    plt.close('all')
