"Conformal sets against the definition, and what is refused."
import sys

import numpy as np
import pytest

from medfast.conformal import ConformalError, conformal_sets, conformal_summary
from medfast.table import Predictions, PredictionsError


def organs(n, seed, first=0, n_classes=3, **options):
    rng = np.random.default_rng(seed)
    q = rng.dirichlet(np.ones(n_classes), n)
    y = np.array([rng.choice(n_classes, p=o) for o in .7*q + .3/n_classes])
    return Predictions.from_arrays(y, q, classes=list('abcde')[:n_classes], patients=range(first, first + n), **options)


@pytest.mark.parametrize('n_classes, confidence', [(2, .8), (3, .9), (5, .95)])
def test_lac_sets_are_the_definition(n_classes, confidence):
    pytest.importorskip('mapie')
    develop, new = organs(120, 0, n_classes=n_classes), organs(80, 1, 1000, n_classes=n_classes)
    sets = conformal_sets(develop, new, confidence=confidence)
    scores = np.sort(1 - develop.probs[np.arange(120), develop.targets])
    limit = scores[int(np.ceil(121*confidence)) - 1]
    want = 1 - new.probs <= limit + 1e-12
    assert [' | '.join(np.array(new.classes)[o]) for o in want] == sets.set.tolist()
    assert sets['size'].tolist() == want.sum(1).tolist() and sets.holds.tolist() == want[np.arange(80), new.targets].tolist()


@pytest.mark.parametrize('score', ['lac', 'aps'])
def test_new_patients_are_held_as_often_as_promised(score):
    pytest.importorskip('mapie')
    shares = [conformal_sets(organs(100, i), organs(200, 1000 + i, 5000), score=score).holds.mean() for i in range(30)]
    assert .88 <= np.mean(shares) <= (.93 if score == 'lac' else .99)


def test_the_summary_counts_every_class():
    pytest.importorskip('mapie')
    sets = conformal_sets(organs(100, 0), organs(150, 1, 1000, folds=np.arange(150) % 3))
    table = conformal_summary(sets)
    assert table.index.tolist() == ['all', 'a', 'b', 'c'] and table.n['all'] == 150 == table.n[1:].sum()
    assert table.value['all'] == pytest.approx(sets.holds.mean()) and table.method.str.contains('too narrow').all()


@pytest.mark.parametrize('develop, new, options, rule', [
    (lambda: organs(100, 0), lambda: organs(50, 1), {}, '50 patients stand in both parts'),
    (lambda: organs(15, 0), lambda: organs(50, 1, 900), dict(confidence=.95), '15 patients to set a confidence of 0.95 on; at least'),
    (lambda: organs(100, 0), lambda: organs(50, 1, 900), dict(confidence=1.), 'between 0 and 1'),
    (lambda: organs(100, 0), lambda: organs(50, 1, 900), dict(score='best'), "choose 'lac' or 'aps'"),
    (lambda: organs(100, 0), lambda: organs(50, 1, 900, 4), {}, 'The classes differ'),
    (lambda: organs(100, 0).take(organs(100, 0).targets < 2), lambda: organs(50, 1, 900), {}, 'No patient to set the sets on has c')])
def test_promises_that_cannot_be_kept_are_refused(develop, new, options, rule):
    with pytest.raises(ConformalError, match=rule): conformal_sets(develop(), new(), **options)


def test_images_without_patients_are_refused():
    with pytest.raises(PredictionsError, match='patient is unknown'): conformal_sets(Predictions.from_arrays([0, 1], [.2, .3]), organs(50, 1))


def test_nothing_to_count():
    import pandas as pd
    with pytest.raises(ConformalError, match='no sets'): conformal_summary(pd.DataFrame(dict(holds=[], size=[], label=[], method=[])))


def test_without_mapie_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mapie.classification', None)
    with pytest.raises(ImportError, match=r"pip install 'medfast\[conformal\]'"): conformal_sets(organs(100, 0), organs(50, 1, 900))
