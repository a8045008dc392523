"Metrics and intervals against independent sources; predictions that do not fit together; the way to a file and back."
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap, norm
from sklearn import metrics

from medfast import evaluate as ev
from medfast.evaluate import Predictions, PredictionsError, confusion, evaluate, paired_gain, plot_confusion_matrix, plot_history, plot_roc

CLASSES = ['Healthy', 'Sick']


def made(y, p, **kwargs):
    y = np.asarray(y)
    kwargs = {'patients': [f'{i:04d}' for i in range(len(y))], 'split_by': 'patient', **kwargs}
    return Predictions(np.stack([1 - p, p], 1), y.astype(int), CLASSES, [f'{i}.txt' for i in range(len(y))], **kwargs)


def random_preds(seed, n=60, ties=False, shift=1.):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < .4
    y[:2] = True, False
    p = 1 / (1 + np.exp(-rng.normal(size=n) - shift*(y - .5)))
    return made(y, np.round(p, 1) if ties else p)


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
    np.testing.assert_allclose(ev._roc_points(y == 1, p), [fpr, tpr], atol=1e-12)


def test_positive_class_may_be_the_first():
    preds = random_preds(0)
    a, b = evaluate(preds, n_resamples=50), evaluate(preds, positive='Healthy', n_resamples=50)
    assert a.value['sensitivity'] == b.value['specificity'] and a.value['ppv'] == b.value['npv']
    assert a.value['auc'] == pytest.approx(b.value['auc'], abs=1e-12)


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


@pytest.mark.parametrize('k, n', [(0, 1), (1, 1), (81, 263), (15, 148), (0, 20), (1, 29), (197, 200)])
def test_wilson_is_that_of_statsmodels(k, n):
    proportion = pytest.importorskip('statsmodels.stats.proportion')
    row = ev._wilson(k, n, ev._How(.95, 0, 10, 'patients'))
    np.testing.assert_allclose([row['low'], row['high']], proportion.proportion_confint(k, n, method='wilson'), atol=1e-9)


@pytest.mark.parametrize('k, n, low, high', [(81, 263, .2553, .3662), (15, 148, .0624, .1605), (0, 20, 0, .1611), (1, 29, .0061, .1718)])
def test_wilson_is_that_of_newcombe_1998(k, n, low, high):
    row = ev._wilson(k, n, ev._How(.95, 0, 10, 'patients'))
    assert (round(row['low'], 4), round(row['high'], 4)) == (low, high)


def test_delong_variance_is_its_definition():
    preds = random_preds(2, 45, ties=True)
    y, s = preds.targets == 1, preds.probs[:, 1]
    kernel = np.array([[1. if a > b else .5 if a == b else 0. for b in s[~y]] for a in s[y]])
    n1, n0 = kernel.shape
    auc = kernel.mean()
    s10 = sum((kernel[i].mean() - auc)**2 for i in range(n1)) / (n1 - 1)
    s01 = sum((kernel[:, j].mean() - auc)**2 for j in range(n0)) / (n0 - 1)
    np.testing.assert_allclose(ev._delong(y, s), [auc, s10/n1 + s01/n0], atol=1e-12)


def test_bca_is_that_of_scipy_with_a_plain_statistic():
    preds = random_preds(4, 40)
    y, p = preds.targets, preds.probs[:, 1]
    plain = lambda i: metrics.roc_auc_score(y[i.astype(int)], p[i.astype(int)])
    want = bootstrap((np.arange(40),), plain, n_resamples=300, vectorized=False, method='BCa', rng=np.random.default_rng(7)).confidence_interval
    got = evaluate(preds, seed=7, n_resamples=300).loc['auc']
    np.testing.assert_allclose([got.low, got.high], want, atol=1e-12)


def test_newcombe_limits_lie_z_standard_errors_off():
    for auc, n1, n0 in [(.85, 10, 25), (.5, 3, 9), (.99, 20, 40)]:
        for limit in ev._auc_score_limits(auc, n1, n0, .95):
            N = (n1 + n0)/2 - 1
            se = (limit*(1 - limit)*(1 + N*(1 - limit)/(2 - limit) + N*limit/(1 + limit))/(n1*n0))**.5
            assert abs(limit - auc)/se == pytest.approx(norm.ppf(.975), abs=1e-5)


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
    assert '1 classes absent' in df.method['auc'] and np.isnan(df.value['auc: c'])


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


# --- what does not fit together

@pytest.mark.parametrize('change, rule', [
    (dict(probs=[[.5, .4], [.5, .5]]), 'row 0: sums to 0.9000'),
    (dict(probs=[[.5, .5], [np.nan, .5]]), 'row 1, column 0: nan is no probability'),
    (dict(probs=[[.5, .5], [1.2, -.2]]), 'row 1, column 0: 1.2'),
    (dict(probs=[.5, .5]), 'shape'), (dict(probs=[[1.], [1.]]), 'two classes or more'), (dict(probs=np.zeros((0, 2))), 'shape'),
    (dict(targets=[0, 2]), 'targets, row 1: 2 is out of range'), (dict(targets=[0, -1]), 'out of range'),
    (dict(targets=[0., 1.]), 'whole numbers'), (dict(targets=[0]), 'probs has 2 rows'),
    (dict(classes=['a']), '1 classes are named'), (dict(classes=['a', 'a']), 'a name of its own'), (dict(classes=['false', 'true']), 'p_true'),
    (dict(items=['x']), 'items has 1 entries'), (dict(patients=['x']), 'patients has 1 entries'), (dict(split_by='luck'), "split_by = 'luck'"),
])
def test_refused_with_the_rule(change, rule):
    good = dict(probs=[[.5, .5], [.1, .9]], targets=[0, 1], classes=['a', 'b'], items=['x', 'y'])
    Predictions(**good)
    with pytest.raises(PredictionsError, match=rule.replace('.', r'\.')): Predictions(**(good | change))


def test_the_callers_arrays_stay_theirs():
    probs = np.array([[.5, .5], [.1, .9]])
    preds = Predictions(probs, [0, 1], ['a', 'b'], ['x', 'y'])
    preds.probs[0] = 0, 1
    assert probs[0, 0] == .5


@pytest.mark.parametrize('options, rule', [(dict(level='frame'), 'level'), (dict(positive='Ill'), 'Choose one of Healthy, Sick'), (dict(threshold=50), 'threshold = 50'), (dict(averages='micro'), 'averages')])
def test_options_are_checked(options, rule):
    with pytest.raises(PredictionsError, match=rule): evaluate(random_preds(0), **options)


def test_a_patient_is_the_mean_of_unequal_numbers_of_images():
    rng = np.random.default_rng(0)
    who = rng.permutation(np.repeat(np.arange(20), np.arange(20) + 1))
    preds = made(who % 2, rng.random(len(who)), patients=[f'{i:04d}' for i in who])
    women = preds.by_patient()
    want = preds.table.groupby('patient').p_Sick.mean()
    np.testing.assert_allclose(women.probs[:, 1], want[women.items], atol=1e-12)
    np.testing.assert_array_equal(women.targets, [int(o) % 2 for o in women.patients])
    np.testing.assert_array_equal(women.by_patient().probs, women.probs)


def test_partly_unknown_patients_are_refused():
    preds = random_preds(0)
    preds.patients[3] = None
    with pytest.raises(PredictionsError, match="unknown for image '3.txt'"): preds.by_patient()


def test_missing_marks_of_pandas_mean_unknown():
    preds = made(np.arange(3) % 2, np.full(3, .5), patients=pd.array(['1', pd.NA, '2'], dtype='string'))
    assert preds.patients == ['1', None, '2']
    assert made(np.arange(2), np.full(2, .5), patients=pd.array([pd.NA, pd.NA], dtype='string')).patients is None


def test_round_trip_of_hostile_names_and_all_bits(tmp_path):
    rng = np.random.default_rng(0)
    items = ['NA', 'nan', '0012', '1e5', 'a,b', 'a"b', "it's", ' lead', 'ñandú µ°', 'two\nlines', '-inf', 'None', 'x'*300, '\ttab', '<b>']
    probs = rng.dirichlet([.01, 1, 5], len(items))
    preds = Predictions(probs, np.arange(len(items)) % 3, ['NA', '1', 'p_true x'], items, ['0001', None, 'NA', *map(str, range(len(items) - 3))], 'image')
    preds.save(tmp_path/'p.csv')
    again = Predictions.load(tmp_path/'p.csv')
    np.testing.assert_array_equal(again.probs, preds.probs)
    np.testing.assert_array_equal(again.targets, preds.targets)
    assert (again.items, again.patients, again.classes, again.split_by) == (preds.items, preds.patients, preds.classes, 'image')


@pytest.mark.parametrize('spoil, rule', [
    (lambda t: t.replace('Sick', 'Ill', 3), 'has no column|none of the classes'), (lambda t: t[:len(t)//2], 'p.csv'), (lambda t: '', 'not a csv'),
    (lambda t: t.replace('p_Sick', 'q_Sick'), 'none of the classes'), (lambda t: t.splitlines()[0], 'shape')])
def test_spoilt_files_name_themselves(tmp_path, spoil, rule):
    fn = tmp_path/'p.csv'
    made(np.arange(40) % 2, np.linspace(.1, .9, 40)).save(fn)
    fn.write_text(spoil(fn.read_text()))
    with pytest.raises(PredictionsError, match=rule): Predictions.load(fn)
    with pytest.raises(PredictionsError, match='There is no file q.csv'): Predictions.load(tmp_path/'q.csv')


def test_it_shows_itself_without_folders_and_escaped():
    preds = Predictions([[.5, .5]], [0], ['<script>', 'b'], ['/home/somebody/a.txt'])
    html = preds._repr_html_()
    assert 'somebody' not in html and '<script>' not in html and 'patients unknown' in html


# --- pairs

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


# --- by hand

@pytest.mark.full
@pytest.mark.parametrize('n, prevalence, true', [(12, .36, .85), (12, .36, .95), (30, .1, .85), (60, .36, .5), (60, .36, .85), (60, .36, .95), (1200, .2, .85)])
def test_intervals_of_the_auc_cover(n, prevalence, true):
    rng, hits, runs = np.random.default_rng(0), 0, 600
    how = ev._How(.95, 0, 800, 'patients')
    for _ in range(runs):
        y = rng.random(n) < prevalence
        while not 0 < y.sum() < n: y = rng.random(n) < prevalence
        row = ev._auc_row(y, rng.normal(size=n) + 2**.5*norm.ppf(true)*y, how)
        hits += row['low'] <= true <= row['high']
    assert .92 <= hits/runs <= .99, hits/runs


@pytest.mark.full
@pytest.mark.parametrize('n, se, sp', [(12, .9, .8), (30, .95, .95), (60, .7, .9)])
def test_intervals_of_the_balanced_accuracy_cover(n, se, sp):
    rng, hits, how = np.random.default_rng(0), 0, ev._How(.95, 0, 0, 'patients')
    for _ in range(3000):
        row = ev._mean_row([ev._wilson(rng.binomial(m, p), m, how) for m, p in ((n//3, se), (n - n//3, sp))])
        hits += row['low'] <= (se + sp)/2 <= row['high']
    assert .91 <= hits/3000 <= .985, hits/3000
