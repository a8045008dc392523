"bench/null.py: what it draws, that it goes on where it stopped, and that each of its bounds can fail."
import importlib.util
import sys

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT
from medfast.files import sha256
from medfast.simulate import simulate_study, study_labels
from medfast.split import LeakageError, split_catalog

sys.path.insert(0, str(ROOT/'bench'))
try:
    spec = importlib.util.spec_from_file_location('bench_null', ROOT/'bench'/'null.py')
    null = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(null)
finally: sys.path.remove(str(ROOT/'bench'))


def test_the_sick_fall_ill_as_in_a_study_of_their_own_and_the_healthy_stay(tmp_path):
    catalog = null.draw(tmp_path/'drawn', 3, 4, 2)
    before = [sha256(o) for o in catalog.path]
    own = {s: simulate_study(tmp_path/f'own{s}', n_patients=4, n_frames=2, seed=s)/'txt' for s in (6, 7)}
    sick = null.fall_ill(catalog)
    for row,ill,was in zip(catalog.itertuples(), sick, before):
        assert sha256(row.path) == sha256(next(own[row.seed].glob(f'T{row.number:04d}.*.{row.frame:02d}.txt')))
        assert (sha256(row.path) != was) == ill
    assert 0 < sick.sum() < len(catalog) and catalog.patient.nunique() == 8


def test_half_of_a_study_are_sixty_fresh_patients():
    labels = study_labels(60, 0)*2
    names = pd.DataFrame(dict(path=[f'{i}.txt' for i in range(120)], patient=[f'{i}' for i in range(120)], label=labels))
    assert split_catalog(names, valid=0, test=.5, by='patient').split.value_counts().to_dict() == dict(train=60, test=60)


@pytest.fixture(scope='module')
def quick(): return null.one_study(0, 10, 4)


def test_noise_is_learnt_by_heart_by_image_and_not_by_patient(quick):
    of = lambda truth, by, model='trees': quick[(quick.truth == truth) & (quick.split == by) & (quick.model == model)].iloc[0]
    assert len(quick) == 12 and not quick.accuracy.isna().any()
    assert of('no disease', 'image').accuracy > .85 and of('no disease', 'image').accuracy_met > .95 > of('no disease', 'image', 'logistic').accuracy
    assert of('no disease', 'patient').low <= .5 <= of('no disease', 'patient').high and of('no disease', 'patient').accuracy < of('no disease', 'image').accuracy
    assert of('disease', 'patient').auc > of('no disease', 'patient').auc


def test_fresh_patients_are_counted_as_patients_and_nobody_was_met(quick):
    fresh,mixed = quick[quick.split == 'patient'], quick[quick.split == 'image']
    assert (fresh.n == 10).all() and (fresh.met == 0).all() and fresh.auc.between(fresh.low, fresh.high).all()
    assert (mixed.met > .5).all() and mixed.auc.isna().all()


def test_a_patient_split_that_leaks_is_refused(monkeypatch, small_study):
    from medfast.catalog import dmr_catalog
    monkeypatch.setattr(null, 'split_catalog', lambda catalog, by, **kw: split_catalog(catalog, by='image', **kw))
    with pytest.raises(LeakageError): null.halved(dmr_catalog(small_study), np.random.default_rng(0).normal(size=(16, 17)), 0)


def rows(study, image=.93, auc=.5, width=.15, ill=.88):
    "What `one_study` returns, made up."
    common = dict(study=study, patients=null.PATIENTS, frames=null.FRAMES, n=60, method='BCa', met=0., accuracy_met=1., accuracy_new=.5)
    return pd.DataFrame([common | dict(truth=truth, split=by, model=model, accuracy=image if model == 'trees' else .1, auc=value if model == 'trees' else .1,
        low=value - width, high=value + width) for truth,value in (('no disease', auc), ('disease', ill)) for by in ('image', 'patient') for model in null.MODELS])


def table(n=40, **knobs): return pd.concat([rows(i, **knobs) for i in range(n)], ignore_index=True)


def test_bounds_hold_where_they_should(): assert null.judged(table()).passed.all()


@pytest.mark.parametrize('bad,which', [(dict(image=.89), 0), (dict(auc=.45), 1), (dict(auc=.55), 1), (dict(auc=.52, width=.01), 2), (dict(ill=.74), 3)])
def test_each_bound_fails_alone(bad, which): assert np.flatnonzero(~null.judged(table(**bad)).passed).tolist() == [which]


@pytest.mark.parametrize('misses,passed', [(7, True), (8, False)])
def test_thirty_three_of_forty_intervals_will_do(misses, passed):
    found = pd.concat([rows(i, auc=.48 + .04*(i % 2), width=.01 if i < misses else .2) for i in range(40)], ignore_index=True)
    assert null.judged(found).passed.iloc[2] == passed


def test_the_bench_ends_with_an_error_where_a_bound_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(null, 'one_study', None)
    table().to_csv(tmp_path/'good.csv', index=False)
    null.main(save=str(tmp_path/'good.csv'))
    assert capsys.readouterr().out.count('True') == 4
    table(image=.89).to_csv(tmp_path/'bad.csv', index=False)
    with pytest.raises(SystemExit, match='A bound does not hold'): null.main(save=str(tmp_path/'bad.csv'))
    assert 'False' in capsys.readouterr().out
    null.main(studies=3, save=str(tmp_path/'bad.csv'))
    assert 'are not applied' in capsys.readouterr().out


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    done = []
    def one_study(seed, patients, frames):
        if seed == 3 and not done.count(3): done.append(3); raise KeyboardInterrupt
        done.append(seed)
        return rows(seed).assign(patients=patients, frames=frames)
    monkeypatch.setattr(null, 'one_study', one_study)
    with pytest.raises(KeyboardInterrupt): null.all_studies(5, 60, 4, tmp_path/'s.csv')
    assert len(null.all_studies(5, 60, 4, tmp_path/'s.csv')) == 60 and done == [0, 1, 2, 3, 3, 4]
    assert len(null.all_studies(2, 20, 4, tmp_path/'s.csv')) == 24 and done[-2:] == [0, 1]
