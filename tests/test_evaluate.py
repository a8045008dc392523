"All metrics of a model against scikit-learn; frozen thresholds, prevalence, subgroups; what stands in the pictures."
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import CLASSES, made, random_preds
from sklearn import metrics

from medfast.evaluate import (OperatingPointError, Predictions, PredictionsError, confusion, evaluate, operating_point, paired_gain, plot_confusion_matrix,
    plot_history, plot_roc, subgroups)
from medfast.plots import _roc_points



@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('ties', [False, True])
def test_values_are_those_of_scikit_learn(seed, ties):
    preds = random_preds(seed, ties=ties)
    y, p = preds.targets, preds.probs[:, 1]
    called = (p >= .4).astype(int)
    want = {'accuracy': metrics.accuracy_score(y, called), 'sensitivity': metrics.recall_score(y, called),
        'specificity': metrics.recall_score(y, called, pos_label=0), 'ppv': metrics.precision_score(y, called),
        'npv': metrics.precision_score(y, called, pos_label=0), 'balanced accuracy': metrics.balanced_accuracy_score(y, called),
        'auc': metrics.roc_auc_score(y, p), 'average precision': metrics.average_precision_score(y, p), 'brier': metrics.brier_score_loss(y, p)}
    got = evaluate(preds, threshold=.4, n_resamples=50)
    assert list(got.index) == list(want)
    np.testing.assert_allclose(got.value, list(want.values()), atol=1e-12)
    np.testing.assert_array_equal(confusion(preds, threshold=.4), metrics.confusion_matrix(y, called))
    fpr, tpr, _ = metrics.roc_curve(y, p, drop_intermediate=False)
    np.testing.assert_allclose(_roc_points(y == 1, p), [fpr, tpr], atol=1e-12)


def test_positive_class_may_be_the_first():
    preds = random_preds(0)
    a, b = evaluate(preds, n_resamples=50), evaluate(preds, positive='Healthy', n_resamples=50)
    assert a.value['sensitivity'] == b.value['specificity'] and a.value['ppv'] == b.value['npv']
    assert a.value['auc'] == pytest.approx(b.value['auc'], abs=1e-12)


@pytest.mark.parametrize('positive', ['Healthy', 'Sick'])
def test_rows_that_hold_for_one_class_say_for_which(positive):
    df = evaluate(random_preds(0), positive=positive, n_resamples=50)
    assert df.index[df.method.str.contains(f'; positive: {positive}')].tolist() == ['sensitivity', 'specificity', 'ppv', 'npv', 'average precision']
    assert df.method.str.contains('positive: ').sum() == 5


def test_of_several_classes_all_rows_hold_for_the_one_that_is_named():
    rng = np.random.default_rng(0)
    preds = Predictions.from_arrays(rng.integers(0, 3, 60), rng.dirichlet(np.ones(3), 60), classes=list('abc'), patients=range(60))
    assert evaluate(preds, positive='b', n_resamples=50).method.str.endswith('; positive: b').all()
    assert not evaluate(preds, n_resamples=50).method.str.contains('positive').any()


@pytest.mark.parametrize('averages', ['weighted', 'macro'])
def test_several_classes_against_scikit_learn(averages):
    rng = np.random.default_rng(1)
    y = rng.integers(0, 4, 90)
    probs = rng.dirichlet(np.ones(4), 90)*.7 + .3*np.eye(4)[y]
    preds = Predictions(probs, y, list('abcd'), range(90), range(90), 'official')
    got = evaluate(preds, averages=averages, n_resamples=50).value
    called = probs.argmax(1)
    want = metrics.precision_recall_fscore_support(y, called, average=averages, zero_division=0)[:3]
    np.testing.assert_allclose([got[f'{m} ({averages})'] for m in ('precision', 'recall', 'f1')], want, atol=1e-12)
    assert got['auc'] == pytest.approx(metrics.roc_auc_score(y, probs, multi_class='ovr'), abs=1e-12)
    assert got['balanced accuracy'] == pytest.approx(metrics.balanced_accuracy_score(y, called), abs=1e-12)
    assert got['brier'] == pytest.approx(metrics.brier_score_loss(y, probs, labels=range(4), scale_by_half=True), abs=1e-12)
    assert got['average precision'] == pytest.approx(metrics.average_precision_score(np.eye(4)[y], probs), abs=1e-12)


@pytest.mark.parametrize('n', [4, 12, 19, 20, 40, 1500])
def test_no_auc_has_an_interval_of_no_width_or_outside(n):
    y = np.arange(n) >= n//2
    for p in (np.linspace(0, 1, n), np.linspace(1, 0, n), np.full(n, .5), np.linspace(0, 1, n)[::-1] * y):
        row = evaluate(made(y, p), n_resamples=200).loc['auc']
        assert 0 <= row.low <= row.value <= row.high <= 1 and row.high - row.low > .002, row


def test_limits_hold_their_value_everywhere():
    for seed in range(8):
        df = evaluate(random_preds(seed, n=15 + 4*seed, shift=3.), n_resamples=200)
        assert ((df.low <= df.value + 1e-12) & (df.value <= df.high + 1e-12)).all(), df


def test_degenerate_resamples_are_left_out_and_counted():
    y = np.arange(40) < 5
    row = evaluate(made(y, np.where(y, .6, .5) - np.arange(40) % 7 / 20)).loc['auc']
    left_out = int(row.method.split(', ')[2].split()[0])
    assert 0 < left_out < 60 and np.isfinite([row.low, row.high]).all()


def test_one_class_only_gives_no_number_but_says_why():
    df = evaluate(made(np.ones(30), np.linspace(.2, .9, 30)))
    assert np.isnan(df.value[['specificity', 'auc', 'average precision', 'balanced accuracy']]).all()
    assert (df.low['auc'], df.high['auc']) == (0, 1) and df.method['auc'].startswith('none: both classes are needed')


def test_a_class_that_is_absent_is_left_out_of_the_mean_and_said():
    probs = np.full((30, 3), 1/3) + np.linspace(-.1, .1, 30)[:, None]*[1, -1, 0]
    df = evaluate(Predictions(probs, np.arange(30) % 2, list('abc'), range(30), range(30)))
    assert '1 class absent' in df.method['auc'] and np.isnan(df.value['auc: c'])


def test_same_seed_same_interval_other_seed_another():
    preds = random_preds(1)
    pd.testing.assert_frame_equal(evaluate(preds, seed=3), evaluate(preds, seed=3))
    assert evaluate(preds, seed=3).low['auc'] != evaluate(preds, seed=4).low['auc']


def test_order_of_the_rows_does_not_matter():
    preds = random_preds(1)
    order = np.random.default_rng(0).permutation(len(preds))
    shuffled = Predictions(preds.probs[order], preds.targets[order], CLASSES, np.array(preds.items)[order], np.array(preds.patients)[order], 'patient')
    np.testing.assert_allclose(evaluate(preds).value, evaluate(shuffled).value, atol=1e-12)


def test_sixty_patients_take_less_than_a_second():
    import time
    preds = random_preds(1)
    start = time.perf_counter()
    evaluate(preds)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize('options, rule', [(dict(level='frame'), 'level'), (dict(positive='Ill'), 'Choose one of Healthy, Sick'), (dict(threshold=50), 'threshold = 50'), (dict(averages='micro'), 'averages'), (dict(prevalence=0.), 'prevalence = 0.0'), (dict(prevalence=1.), 'both excluded')])
def test_options_are_checked(options, rule):
    with pytest.raises(PredictionsError, match=rule): evaluate(random_preds(0), **options)


# --- pictures

def test_pictures_say_how_it_was_split():
    preds = random_preds(0)
    preds.split_by = 'image'
    assert 'the same patient may be on both sides' in plot_roc(preds).get_title()
    assert all('the same patient' in a.get_title() for a in plot_confusion_matrix({'a': preds, 'b': preds}))
    assert 'the same patient' in confusion(preds).columns.name
    assert evaluate(preds).method.str.contains('the same patient').all() and paired_gain(preds, preds).method.str.contains('the same patient').all()
    plt.close('all')


def test_roc_marks_the_operating_point():
    preds = random_preds(0)
    df = evaluate(preds, threshold=.3)
    point = plot_roc(preds, threshold=.3).lines[1]
    np.testing.assert_allclose([point.get_xdata()[0], point.get_ydata()[0]], [1 - df.value['specificity'], df.value['sensitivity']], atol=1e-12)
    plt.close('all')


def test_history_takes_what_there_is():
    df = pd.DataFrame(dict(epoch=[0, 1], train_loss=[1., .5], valid_loss=[1., .6], accuracy=[.5, .7], train_accuracy=[.5, .8], time=['0:01', '0:01'], stage=['head', 'body']))
    assert [len(a.lines) for a in plot_history(df)] == [2, 2]
    assert [len(a.lines) for a in plot_history(df[['valid_loss']])] == [1]
    plt.close('all')


# --- one door

def test_everything_of_evaluation_is_to_be_had_from_here():
    import medfast.evaluate as door
    wanted = ('Predictions PredictionsError pool_folds SPLIT_BY SPLIT_BY_IMAGE OUT_OF_FOLD FEW evaluate subgroups confusion plot_confusion_matrix plot_roc plot_history paired_gain mcnemar '
        'evaluate_seeds calibration calibration_bins plot_calibration fit_temperature with_temperature shift_prevalence operating_point OperatingPoint OperatingPointError '
        'decision_curve plot_decision_curve conformal_sets conformal_summary ConformalError').split()
    assert [o for o in wanted if o not in door.__all__ or not hasattr(door, o)] == []


def test_it_loads_neither_torch_nor_mapie_nor_statsmodels():
    import subprocess, sys
    code = 'import sys, medfast.evaluate; print(sorted({"torch", "fastai", "mapie", "statsmodels"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


# --- several classes

def organs(n=90, seed=1):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return Predictions(rng.dirichlet(np.ones(3), n)*.7 + .3*np.eye(3)[y], y, ['heart', 'liver', 'spleen'], range(n), range(n), 'official')


def test_macro_leads_and_every_auc_names_its_averaging():
    df = evaluate(organs(), n_resamples=50)
    assert list(df.index[:3]) == ['balanced accuracy', 'auc', 'average precision'] and not any('weighted' in o for o in df.index)
    assert all('macro average' in df.method[o] for o in df.index[:3])
    assert evaluate(organs(), n_resamples=50, averages='weighted').index[-3:].tolist() == ['precision (weighted)', 'recall (weighted)', 'f1 (weighted)']


def test_one_class_against_the_rest_is_the_same_row_everywhere():
    df, one = evaluate(organs(), n_resamples=100), evaluate(organs(), positive='liver', n_resamples=100)
    assert one.value['auc'] == df.value['auc: liver'] and one.low['auc'] == df.low['auc: liver']


# --- prevalence

def test_only_what_depends_on_the_prevalence_moves():
    here, there = evaluate(random_preds(2), n_resamples=100), evaluate(random_preds(2), n_resamples=100, prevalence=.01)
    moved = ['accuracy', 'ppv', 'npv', 'average precision']
    assert all('stated prevalence of 0.01' in o for o in there.method[moved])
    pd.testing.assert_frame_equal(here.drop(moved), there.drop(moved))
    assert (there.value[['ppv', 'average precision']] < here.value[['ppv', 'average precision']]).all() and there.value['npv'] > here.value['npv']
    assert all('at the prevalence 0.' in here.method[o] for o in ('ppv', 'npv', 'average precision'))


def test_a_prevalence_of_several_classes_needs_a_name():
    with pytest.raises(PredictionsError, match='name one of heart, liver, spleen'): evaluate(organs(), prevalence=.1)
    assert evaluate(organs(), prevalence=.1, positive='liver', n_resamples=50).value['ppv'] < 1


# --- a frozen threshold

def test_a_frozen_point_is_its_temperature_and_threshold():
    point, test = operating_point(random_preds(5, 120), sensitivity=.9), random_preds(6)
    df, calibrated = evaluate(test, at=point, n_resamples=100), point.apply(test)
    by_hand = evaluate(calibrated, threshold=point.threshold, n_resamples=100)
    pd.testing.assert_frame_equal(df.drop(columns='method'), by_hand.drop(columns='method'))
    assert df.method.str.contains(f'threshold {point.threshold:.3f} after temperature {point.temperature:.2f}, frozen on 120 other patients').all()
    np.testing.assert_array_equal(confusion(test, at=point), confusion(calibrated, threshold=point.threshold))
    assert 'frozen on 120' in plot_roc(test, at=point).get_title() and 'frozen on 120' in plot_confusion_matrix(test, at=point).get_title()
    plt.close('all')


def test_measured_on_the_patients_who_set_it_is_called_no_finding():
    develop = random_preds(5, 120)
    point = operating_point(develop, sensitivity=.9)
    assert evaluate(develop, at=point, n_resamples=50).method.str.contains('set on these same patients: the sensitivity is no finding').all()
    assert evaluate(develop.take(np.random.default_rng(0).permutation(120)), at=point, n_resamples=50).method.str.contains('these same patients').all()


@pytest.mark.parametrize('options', [dict(threshold=.3), dict(positive='Healthy'), dict(level='image')])
def test_a_frozen_point_leaves_no_second_choice(options):
    point = operating_point(random_preds(5, 120), sensitivity=.9)
    for f in (evaluate, confusion, plot_roc):
        with pytest.raises(PredictionsError, match='leave `threshold`, `positive` and `level` out'): f(random_preds(6), at=point, **options)


def test_a_frozen_point_of_other_classes_is_refused():
    point = operating_point(random_preds(5, 120), sensitivity=.9)
    with pytest.raises(OperatingPointError, match='these are heart, liver, spleen'): evaluate(organs(), at=point)


def test_one_of_several_classes_may_have_a_frozen_point():
    point, test = operating_point(organs(150), specificity=.9, positive='liver'), organs(90, 2)
    df, calibrated = evaluate(test, at=point, n_resamples=50), point.apply(test)
    y, called = test.targets == 1, calibrated.probs[:, 1] >= point.threshold
    assert df.value['sensitivity'] == pytest.approx(called[y].mean()) and df.value['specificity'] == pytest.approx((~called[~y]).mean())


# --- subgroups

def grouped(n=60, frames=2, seed=0):
    "Predictions of two views a patient, and their catalog."
    rng = np.random.default_rng(seed)
    preds = random_preds(seed, n)
    who = np.repeat(np.arange(n), frames)
    p = np.clip(preds.probs[who, 1] + .05*rng.normal(size=n*frames), 0, 1)
    rows = made(preds.targets[who], p, patients=[f'{i:04d}' for i in who])
    return rows, pd.DataFrame(dict(path=rows.items, patient=pd.array(rows.patients, dtype='string'), view=['front', 'side']*n, age=np.repeat(rng.integers(25, 90, n), frames),
        date=np.repeat(pd.Timestamp('2012-01-01') + pd.to_timedelta(rng.integers(0, 900, n), 'D'), frames), site=np.repeat(['A', 'B', None]*(n//3), frames)))


@pytest.mark.parametrize('column, groups', [('site', ['all', 'A', 'B', 'unknown']), ('view', ['all', 'front', 'side'])])
def test_a_subgroup_is_evaluated_like_any_predictions(column, groups):
    preds, catalog = grouped()
    df = subgroups(preds, catalog, column, n_resamples=100)
    assert df.index.get_level_values(0).unique().tolist() == groups and df.index.names == [column, 'metric']
    for g in groups[1:]:
        rows = catalog[column].isna() if g == 'unknown' else catalog[column] == g
        want = evaluate(preds.take(rows.to_numpy()), n_resamples=100).loc[['sensitivity', 'specificity', 'auc']]
        pd.testing.assert_frame_equal(df.loc[g].drop(columns='method'), want.drop(columns='method'))


@pytest.mark.parametrize('column, options, n', [('age', {}, 3), ('date', {}, 3), ('age', dict(bins=4), 4), ('age', dict(bins=[0, 50, 120]), 2)])
def test_numbers_and_dates_become_ranges_that_hold_everybody(column, options, n):
    preds, catalog = grouped()
    df = subgroups(preds, catalog, column, metrics=['auc'], n_resamples=50, **options)
    groups = df.index.get_level_values(0)
    assert len(groups) == n + 1 and df.n.iloc[1:].sum() == df.n.iloc[0] == 60 and all(' to ' in o for o in groups[1:])
    assert list(groups[1:]) == sorted(groups[1:])


def test_patients_outside_all_ranges_are_unknown_not_lost():
    preds, catalog = grouped()
    df = subgroups(preds, catalog, 'age', metrics=['accuracy'], n_resamples=50, bins=[40, 60])
    assert 'unknown' in df.index.get_level_values(0) and df.n.iloc[1:].sum() == 60


def test_small_groups_stay_and_say_so():
    preds, catalog = grouped()
    catalog['site'] = np.where(catalog.patient < '0003', 'tiny', 'big')
    df = subgroups(preds, catalog, 'site', n_resamples=50)
    small = df.loc['tiny']
    assert small.method.str.contains('small group: 3 patients').all() and not df.loc['big'].method.str.contains('small').any()
    assert small.n['auc'] == 3


def test_a_group_of_one_is_one_patient():
    preds, catalog = grouped()
    catalog['site'] = np.where(catalog.patient == '0000', 'tiny', 'big')
    assert subgroups(preds, catalog, 'site', n_resamples=50).loc['tiny'].method.str.contains('small group: 1 patient,').all()


def test_a_reviewer_gets_logit_delong_by_one_word():
    preds, catalog = grouped()
    few = preds.take(range(12))
    asked, plain = evaluate(few, few='logit-DeLong'), evaluate(few)
    assert asked.method['auc'] == 'logit-DeLong, corrected for continuity' and plain.method['auc'] == 'Newcombe score'
    assert asked.high['auc'] - asked.low['auc'] > plain.high['auc'] - plain.low['auc']
    pd.testing.assert_frame_equal(asked.drop(index='auc'), plain.drop(index='auc'))
    catalog['site'] = np.where(catalog.patient < '0012', 'tiny', 'big')
    groups = subgroups(preds, catalog, 'site', few='logit-DeLong', n_resamples=50).xs('auc', level='metric')
    assert groups.method['tiny'].startswith('logit-DeLong') and groups.method['big'].startswith('BCa') and groups.low['tiny'] == evaluate(preds.take(np.array(preds.patients) < '0012'), few='logit-DeLong').low['auc']
    legend = plot_roc(few, few='logit-DeLong').get_legend().texts[0].get_text()
    assert f'[{asked.low["auc"]:.2f}, {asked.high["auc"]:.2f}]' in legend
    with pytest.raises(ValueError, match="few = 'DeLong'"): evaluate(few, few='DeLong')


def test_a_join_by_patient_where_paths_differ():
    preds, catalog = grouped()
    moved = catalog.assign(path=['elsewhere/' + o for o in catalog.path])
    pd.testing.assert_frame_equal(subgroups(preds, catalog, 'site', n_resamples=50), subgroups(preds, moved, 'site', n_resamples=50))
    with pytest.raises(PredictionsError, match="several values of 'view'"): subgroups(preds, moved, 'view')


@pytest.mark.parametrize('change, column, options, rule', [(lambda c: c, 'ages', {}, "no column 'ages'; it has path"), (lambda c: c[['age']], 'age', {}, 'Neither the images nor the patients'),
    (lambda c: c, 'view', dict(bins=2), 'only numbers and dates'), (lambda c: c, 'view', dict(metrics=['f2']), "there is no 'f2'")])
def test_subgroups_that_cannot_be_made_say_why(change, column, options, rule):
    preds, catalog = grouped()
    with pytest.raises(PredictionsError, match=rule): subgroups(preds, change(catalog), column, **options)


def test_subgroups_need_patients():
    preds, catalog = grouped()
    preds.patients = None
    with pytest.raises(PredictionsError, match='The patient is unknown'): subgroups(preds, catalog, 'site')


def test_subgroups_of_several_classes_and_of_a_frozen_point():
    test = organs()
    catalog = pd.DataFrame(dict(path=test.items, site=['A', 'B']*45))
    df = subgroups(test, catalog, 'site', n_resamples=50)
    assert df.loc['A'].index.tolist() == ['balanced accuracy', 'auc']
    point = operating_point(organs(150, 4), specificity=.9, positive='liver')
    at = subgroups(test, catalog, 'site', at=point, n_resamples=50)
    assert at.value[('all', 'sensitivity')] == evaluate(test, at=point, n_resamples=50).value['sensitivity']


@pytest.mark.parametrize('level', ['patient', 'image'])
def test_counts_speak_of_no_interval_and_curves_do(level):
    preds = random_preds(0, split_by='image')
    twice = preds.take(np.repeat(np.arange(60), 2))
    title = plot_confusion_matrix(twice, level=level).get_title()
    assert 'interval' not in title and 'narrow' not in title and 'the same patient may be on both sides' in title
    assert ('images of one patient are not independent' in title) == (level == 'image')
    assert ('the interval is too narrow' in plot_roc(twice, level=level).get_title()) == (level == 'image')
    plt.close('all')


@pytest.mark.parametrize('c', [2, 4, 7, 8, 11, 15])
def test_the_numbers_of_a_confusion_matrix_fit_their_cells_and_can_be_read(c):
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(c), 240)
    preds = Predictions.from_arrays(y, .2/c + .8*np.eye(c)[np.where(rng.random(len(y)) < .6, y, rng.integers(0, c, len(y)))], classes=[f'a long name {k}' for k in range(c)], patients=range(len(y)))
    ax = plot_confusion_matrix(preds)
    ax.figure.canvas.draw()
    cell = ax.get_window_extent().width/c
    assert max(o.get_window_extent().width for o in ax.texts) < .95*cell and max(o.get_window_extent().height for o in ax.texts) < .95*cell
    assert min(o.get_fontsize() for o in ax.texts) >= 10
    plt.close('all')
