"The predictions table: what does not fit together, the way to a file and back, folds that are remembered."
import numpy as np
import pandas as pd
import pytest
from conftest import made, random_preds

from medfast.evaluate import confusion, evaluate, paired_gain, plot_confusion_matrix, plot_roc, subgroups
from medfast.table import OUT_OF_FOLD, Predictions, PredictionsError, join_folds, notes_of, pool_folds



@pytest.mark.parametrize('change, rule', [
    (dict(probs=[[.5, .4], [.5, .5]]), 'row 0: sums to 0.9000'),
    (dict(probs=[[.5, .5], [np.nan, .5]]), 'row 1, column 0: nan is no probability'),
    (dict(probs=[[.5, .5], [1.2, -.2]]), 'row 1, column 0: 1.2'),
    (dict(probs=[.5, .5]), 'shape'), (dict(probs=[[1.], [1.]]), 'two classes or more'), (dict(probs=np.zeros((0, 2))), 'shape'),
    (dict(targets=[0, 2]), 'targets, row 1: 2 is out of range'), (dict(targets=[0, -1]), 'out of range'),
    (dict(targets=[0., 1.]), 'whole numbers'), (dict(targets=[0]), 'probs has 2 rows'),
    (dict(classes=['a']), '1 classes are named'), (dict(classes=['a', 'a']), 'a name of its own'), (dict(classes=['false', 'true']), 'p_true'),
    (dict(items=['x']), 'items has 1 entries'), (dict(patients=['x']), 'patients has 1 entries'), (dict(split_by='luck'), "split_by = 'luck'"), (dict(folds=['1']), 'folds has 1 entries'), (dict(folds=['1', None]), 'folds, row 1: no fold'),
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
    preds = Predictions([[.5, .5]], [0], ['<script>', 'b'], ['somebody/a.txt'])
    html = preds._repr_html_()
    assert 'somebody' not in html and '<script>' not in html and 'patients unknown' in html


# --- arrays

def test_arrays_of_scikit_learn_are_enough():
    p = np.array([.2, .9, .4])
    a, b = Predictions.from_arrays([False, True, True], p, patients=range(3)), Predictions.from_arrays(np.array([0, 1, 1]), np.stack([1 - p, p], 1), patients=['0', '1', '2'])
    np.testing.assert_array_equal(a.probs, b.probs)
    assert (a.targets.tolist(), a.patients, a.classes) == (b.targets.tolist(), b.patients, ['0', '1'])


@pytest.mark.parametrize('targets, probs, rule', [([0, 1], [.2, np.nan], 'nan is no probability'), ([0, 1], [.2, 1.4], '1.4'), ([0, 1], [.2], 'targets has the shape'),
    ([0, 1], [[.2, .2], [.5, .5]], 'sums to 0.4'), ([0., 1.], [.2, .3], 'whole numbers'), ([0, 2], [.2, .3], 'out of range'), ([], [], 'shape'), ([[0, 1]], [.2, .3], 'shape')])
def test_arrays_that_do_not_fit_are_refused(targets, probs, rule):
    with pytest.raises(PredictionsError, match=rule): Predictions.from_arrays(targets, probs)


def test_patients_of_arrays_are_unknown_unless_named():
    with pytest.raises(PredictionsError, match="Choose level='image' by name"): evaluate(Predictions.from_arrays([0, 1], [.2, .3]))


# --- folds

def in_folds(n=60, k=5, **kwargs):
    preds = random_preds(0, n, **kwargs)
    return [preds.take(np.arange(n) % k == i) for i in range(k)]


def test_out_of_fold_words_stand_beside_every_number_and_in_every_picture():
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    from medfast.calibration import calibration, plot_calibration
    from medfast.decisions import decision_curve, plot_decision_curve
    from medfast.pairs import mcnemar
    from medfast.seeds import evaluate_seeds
    preds, words = pool_folds(in_folds()), 'conditional on these training sets, too narrow'
    catalog = pd.DataFrame(dict(path=preds.items, view=['front', 'side']*30))
    tables = [evaluate(preds, n_resamples=50), paired_gain(preds, preds), mcnemar(preds, preds), evaluate_seeds([preds, preds], n_resamples=50), calibration(preds, n_resamples=50), decision_curve(preds), subgroups(preds, catalog, 'view')]
    assert all(o.method.str.contains(words).all() for o in tables)
    axes = [plot_roc(preds), plot_calibration(preds), plot_decision_curve(preds)]
    assert all(words in o.get_title() for o in axes)
    counts = plot_confusion_matrix(preds).get_title()
    assert counts.endswith('out-of-fold: conditional on these training sets') and confusion(preds).columns.name.endswith('these training sets')
    assert not any(evaluate(in_folds()[0]).method.str.contains(words))
    plt.close('all')


def test_folds_survive_file_patients_parts_and_ensembles(tmp_path):
    preds = pool_folds(in_folds())
    preds.save(tmp_path/'p.csv')
    again = Predictions.load(tmp_path/'p.csv')
    assert again.folds == preds.folds and again.by_patient().folds == preds.folds and again.take([3, 40]).folds == [preds.folds[3], preds.folds[40]]
    assert pd.read_csv(tmp_path/'p.csv').columns[-1] == 'fold' and 'out-of-fold' in repr(again)


def test_files_without_folds_are_read_as_before(tmp_path):
    random_preds(0).save(tmp_path/'p.csv')
    assert 'fold' not in pd.read_csv(tmp_path/'p.csv') and Predictions.load(tmp_path/'p.csv').folds is None


def test_a_patient_predicted_in_several_folds_keeps_them_all():
    preds = made(np.ones(4), np.full(4, .5), patients=['a', 'b', 'a', 'b'], split_by='image', folds=['1', '2', '0', '2'])
    assert preds.by_patient().folds == ['0+1', '2']


def test_ensembles_join_folds_by_item():
    a = pool_folds(in_folds())
    order = np.random.default_rng(0).permutation(60)
    b = a.take(order)
    b.folds = ['x']*60
    from medfast.predictions import ensemble
    both = ensemble([a, b])
    assert both.folds == [f'{o}+x' for o in a.folds] and OUT_OF_FOLD in notes_of(both, 'patient')
    assert ensemble([in_folds()[0]]*2).folds is None
    assert join_folds([None, None]) is None


@pytest.mark.parametrize('parts, rule', [(lambda f: f[:1], '^1 fold: two or more'), (lambda f: [f[0], f[0]], 'stands in fold 0 and in fold 1'),
    (lambda f: [f[0], Predictions(f[1].probs, f[1].targets, ['a', 'b'], f[1].items, f[1].patients, 'patient')], 'Fold 1 has the classes a, b')])
def test_folds_that_do_not_belong_together_are_refused(parts, rule):
    with pytest.raises(PredictionsError, match=rule): pool_folds(parts(in_folds()))


def test_a_patient_in_two_folds_is_refused_unless_the_split_was_by_image():
    a, b = [made(np.ones(1), np.full(1, .5), patients=['p'], split_by='patient') for _ in range(2)]
    b.items = ['other.txt']
    with pytest.raises(PredictionsError, match="Patient 'p' stands in fold 0 and in fold 1"): pool_folds([a, b])
    for o in (a, b): o.split_by = 'image'
    assert pool_folds([a, b]).split_by == 'image'


def test_pooled_rows_are_the_rows_of_the_folds():
    whole, pooled = random_preds(0), pool_folds(in_folds())
    order = [whole.items.index(o) for o in pooled.items]
    np.testing.assert_array_equal(pooled.probs, whole.probs[order])
    assert pooled.patients == [whole.patients[i] for i in order] and sorted(order) == list(range(60))
