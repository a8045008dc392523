"Stages and comparisons: what is stopped goes on, what is sealed stays sealed, what would mislead is refused."
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from math import isclose, log, sqrt

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, random_preds
from fastai.data.load import DataLoader
from fastai.learner import Learner
from medfast.augment import augmentations
from medfast.compare import METRICS, STUDY_ARCHITECTURES, STUDY_ORGANS, STUDY_PNEUMONIA, STUDY_RADIOGRAPHY, CompareError, Comparison, compare, plot_stages
from medfast.evaluate import SPLIT_BY_IMAGE, Predictions, evaluate, evaluate_seeds, mcnemar, paired_gain, plot_confusion_matrix, plot_history, plot_roc
from medfast.files import RunFolder
from medfast.loaders import array_dls, study_dls
from medfast.metrics import How
from medfast.precompute import PrecomputeError
from medfast.predictions import ensemble
from medfast.resume import ResumeError
from medfast.schedule import EarlyStop
from medfast.simulate import simulate_chest
from medfast.split import split_catalog, upsample_training
from medfast.stages import Stage, StageError, check_stage, cumulative, stage_loaders, train_stage
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, f1_score, log_loss, precision_score, recall_score, roc_auc_score

QUICK = dict(arch='mirror_cnn', n_epoch=2, lr_max=.01)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    "Sixty noisy pictures of three kinds: a bar left, right or in the middle; two pictures a patient."
    folder,rng,rows = tmp_path_factory.mktemp('pictures'),np.random.default_rng(0),[]
    for i in range(60):
        label = ('left', 'middle', 'right')[i//2 % 3]
        grey = rng.integers(0, 90, (24, 24), dtype=np.uint8)
        at = dict(left=2, middle=10, right=18)[label]
        grey[:, at:at + 4] += 120
        Image.fromarray(grey).save(folder/f'{i:02d}.png')
        rows.append(dict(path=str(folder/f'{i:02d}.png'), patient=f'p{i//2:02d}', label=label))
    return pd.DataFrame(rows).astype(dict(patient='string'))


@pytest.fixture(scope='module')
def by_patient(pictures): return split_catalog(pictures, valid=.3, test=.3, seed=1)


@pytest.fixture(scope='module')
def make_dls(by_patient): return partial(study_dls, by_patient, size=24, bs=8, device='cpu')


@pytest.fixture(scope='module')
def two(make_dls, tmp_path_factory):
    "Two stages and their mean, two seeds; the test part is sealed."
    run = RunFolder(tmp_path_factory.mktemp('run')/'two')
    return compare(make_dls, _two(), run, seeds=(1, 2))


def _two(): return cumulative(('slow', dict(QUICK, lr_max=1e-4)), ('fast', dict(lr_max=.02, n_epoch=4)), ('mean', dict(members=('slow', 'fast'))))
def _dies_at_third(f):
    "`f`, and Ctrl-C instead of its third call."
    calls = []
    def dies(*args):
        calls.append(args)
        if len(calls) == 3: raise KeyboardInterrupt
        return f(*args)
    return dies


def _plain(table): return table.drop(columns='seconds').to_csv()


# Stages

def test_a_stage_comes_back_from_json_as_it_was():
    stage = Stage('s', 'resnet18', 3, lr_max=slice(1e-4, 1e-2), early_stop={}, loaders=dict(augment=dict(kind='thermogram')), learner=dict(head=dict(widths=(10, 5))), printed=dict(valid=.9))
    told = json.loads(json.dumps(stage.definition))
    assert Stage('s', **told).definition == stage.definition
    assert stage.definition['lr_max'] == [1e-4, 1e-2] and stage.definition['early_stop'] == {}
    assert stage.printed == dict(valid=dict(accuracy=.9)) and 'printed' not in stage.definition


@pytest.mark.parametrize('options, what', [
    (dict(arch=None), 'arch'), (dict(n_epoch=0), 'n_epoch'), (dict(n_epoch=2.5), 'n_epoch'), (dict(lr_max=0), 'lr_max'), (dict(lr_max=(1e-4, 1e-3, 1e-2)), 'lr_max'),
    (dict(schedule='onecycle'), 'schedule'), (dict(schedule=dict(n_cycles=2)), 'schedule'), (dict(early_stop=dict(wait=3)), 'early_stop'), (dict(body='thawed'), 'body'), (dict(body=0), 'body'),
    (dict(body=True), 'body'), (dict(learner=dict(seed=3)), 'learner'), (dict(loaders=dict(seed=3)), 'loaders'), (dict(printed=dict(validation=.9)), 'printed'),
    (dict(members=('a',), of='votes'), 'of'), (dict(loaders=dict(augment=[np.zeros(3)])), 'loaders'), (dict(n_epoch=True), 'n_epoch'),
    (dict(early_stop=['monitor']), 'early_stop'), (dict(early_stop=dict(monitor='acuracy')), 'early_stop'), (dict(early_stop=dict(monitor=['accuracy'])), 'early_stop'), (dict(early_stop=dict(patience=-1)), 'early_stop'),
    (dict(early_stop=dict(patience=2.5)), 'early_stop'), (dict(early_stop=dict(min_delta='x')), 'early_stop'), (dict(early_stop=dict(min_delta=-.1)), 'early_stop'),
    (dict(n_epoch=None, schedule=dict(n_cycles=2, foo=1)), 'schedule'), (dict(n_epoch=None, schedule=dict(n_cycles=-1)), 'schedule'), (dict(n_epoch=None), 'n_epoch'),
    (dict(lr_max=float('inf')), 'lr_max'), (dict(lr_max=float('nan')), 'lr_max'), (dict(lr_max=True), 'lr_max'), (dict(lr_max=slice(None, .1)), 'lr_max'),
    (dict(printed=.9), 'printed'), (dict(printed='x'), 'printed'), (dict(printed=dict(test='x')), 'printed'), (dict(printed=dict(test=dict(acuracy=.9))), 'printed'), (dict(loaders='x'), 'loaders'), (dict(learner=['bn']), 'learner'),
    (dict(learner=dict(metrics='f1')), 'learner'), (dict(members='base'), 'members'), (dict(members=[1]), 'members'), (dict(start=3), 'start'), (dict(pretrained='yes'), 'pretrained')])
def test_what_cannot_be_trained_is_refused_by_its_name(options, what):
    with pytest.raises(StageError, match=f"'s': {what} ="): Stage('s', **{**dict(arch='resnet18', n_epoch=3), **options})


@pytest.mark.parametrize('options, what', [
    (dict(members=['a']), 'it takes no arch, n_epoch'), (dict(learner=dict(head=dict(widths=[5])), arch='simple_cnn'), 'is built whole'), (dict(learner=dict(head=dict(depth=5))), "no option 'depth'. It has widths, bn, ps, pool")])
def test_options_that_exclude_each_other_are_refused(options, what):
    with pytest.raises(StageError, match=what): Stage('s', **{**dict(arch='resnet18', n_epoch=3), **options})


@pytest.mark.parametrize('step, what', [('a', "step = 'a': give a name and a dict"), (('a', 3), 'give a name and a dict'), (('a', dict(QUICK, epochs=3)), "no option 'epochs'. Choose of arch, n_epoch"),
    (('mean', dict(members='first')), "members = 'first'"), (('mean', dict(members=['first'], arch='resnet18')), 'it takes no arch')])
def test_steps_that_cannot_be_are_refused(step, what):
    with pytest.raises(StageError, match=what): cumulative(('first', QUICK), step)


def test_what_is_no_printed_table_is_refused():
    with pytest.raises(StageError, match='printed = str: give a table by stage and part'): cumulative(('first', QUICK), printed='x')


def test_whole_numbers_of_numpy_are_numbers():
    stage = Stage('s', 'resnet18', np.int64(3), body=np.int64(1))
    assert json.loads(json.dumps(stage.definition)) == dict(arch='resnet18', n_epoch=3, body=1)


def test_epochs_follow_from_cycles(): assert Stage('s', 'resnet18', schedule=dict(n_cycles=3, cycle_mult=2)).n_epoch == 7


def test_changes_merge_and_do_not_leak_back():
    first = dict(QUICK, learner=dict(head=dict(widths=[8])), loaders=dict(stats=None))
    a,b,c = cumulative(('a', first), ('b', dict(learner=dict(head=dict(bn=True)))), ('c', dict(loaders=None, start='b')))
    assert a.learner == dict(head=dict(widths=[8])) and b.learner == dict(head=dict(widths=[8], bn=True)) == c.learner
    assert b.loaders == dict(stats=None) and c.loaders == {} and first['learner'] == dict(head=dict(widths=[8]))


def test_a_stage_after_an_ensemble_is_none():
    *_,mean,after = cumulative(('a', QUICK), ('mean', dict(members=('a', 'resnet18'))), ('after', dict(n_epoch=3)))
    assert mean.members == ('a', 'resnet18') and after.members == () and after.arch == 'mirror_cnn'


def test_a_table_without_a_common_name_is_refused():
    with pytest.raises(StageError, match='base, normalisation'): cumulative(('first', QUICK), printed=STUDY_PNEUMONIA)


@pytest.mark.parametrize('table', [STUDY_PNEUMONIA, STUDY_RADIOGRAPHY, STUDY_ORGANS])
def test_printed_tables_give_their_numbers_to_stages_of_their_names(table):
    names = list(dict.fromkeys(table.index.get_level_values('stage')))
    stages = cumulative((names[0], QUICK), *[(n, {}) for n in names[1:]], printed=table)
    told = [s.printed[p]['accuracy'] for s in stages for p in s.printed]
    assert told == table.accuracy.tolist()
    assert table.index.is_unique and table.select_dtypes('number').stack().dropna().between(0, 1).all()


# One training

@pytest.mark.parametrize('schedule', ['one_cycle', 'flat', dict(n_cycles=2, cycle_len=2, cycle_mult=2)])
@pytest.mark.parametrize('at', [1, 2, 4])
def test_a_stopped_stage_goes_on_to_the_same_bits(make_dls, tmp_path, schedule, at, monkeypatch):
    stage = Stage('s', 'mirror_cnn', 6, .02, schedule=schedule, early_stop=dict(patience=2), loaders=dict(augment='thermogram'))
    whole = train_stage(stage, stage_loaders(stage, make_dls), tmp_path/'whole.safetensors', seed=5)
    with monkeypatch.context() as m:
        m.setattr('medfast.resume.Checkpoint.before_validate', _ctrl_c(at), raising=False)
        if at < len(whole.history):
            with pytest.raises(KeyboardInterrupt): train_stage(stage, stage_loaders(stage, make_dls), tmp_path/'stopped.safetensors', seed=5)
    again = train_stage(stage, stage_loaders(stage, make_dls), tmp_path/'stopped.safetensors', seed=5)
    assert whole.facts['best_epoch'] == again.facts['best_epoch'] and whole.facts['epochs'] == again.facts['epochs']
    assert whole.facts['epochs'] in (6, whole.facts['best_epoch'] + 2)
    assert (whole.learn.predictions(1).probs == again.learn.predictions(1).probs).all()
    pd.testing.assert_frame_equal(whole.history.drop(columns='time'), again.history.drop(columns='time'), check_exact=True)


def _ctrl_c(at):
    def before_validate(self):
        if self.epoch == at: raise KeyboardInterrupt
    return before_validate


def test_another_early_stopping_does_not_go_on_in_the_same_file(make_dls, tmp_path):
    stage = Stage('s', early_stop=dict(patience=2), **QUICK)
    train_stage(stage, make_dls(), tmp_path/'s.safetensors')
    with pytest.raises(ResumeError, match="early_stop .*2.* instead of .*3"): train_stage(Stage('s', early_stop=dict(patience=3), **QUICK), make_dls(), tmp_path/'s.safetensors')
    with pytest.raises(ResumeError, match="schedule 'one_cycle' instead of 'flat'"): train_stage(Stage('s', early_stop=dict(patience=2), schedule='flat', **QUICK), make_dls(), tmp_path/'s.safetensors')


def test_a_checkpoint_from_before_there_were_schedules_goes_on(make_dls, tmp_path, monkeypatch):
    stage,fn = Stage('s', **QUICK),tmp_path/'s.safetensors'
    whole = train_stage(stage, make_dls(), tmp_path/'whole.safetensors')
    with monkeypatch.context() as m:
        m.setattr('medfast.resume.Checkpoint.before_validate', _ctrl_c(1), raising=False)
        with pytest.raises(KeyboardInterrupt): train_stage(stage, make_dls(), fn)
    with safe_open(fn, 'pt') as f: tensors,facts = {k: f.get_tensor(k) for k in f.keys()},json.loads(f.metadata()['medfast'])
    old = {k: v for k,v in facts.items() if k not in ('schedule', 'early_stop')}
    save_file(tensors, fn, metadata=dict(medfast=json.dumps(old)))
    again = train_stage(stage, make_dls(), fn)
    assert len(old) < len(facts) and (again.learn.predictions(1).probs == whole.learn.predictions(1).probs).all()


def test_a_metric_of_the_validation_part_stops(make_dls, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr('medfast.stages.EarlyStop', lambda **o: seen.append(o) or EarlyStop(**o))
    train_stage(Stage('s', early_stop=dict(monitor='accuracy', min_delta=.01), **QUICK), make_dls(), tmp_path/'s.safetensors')
    assert seen == [dict(monitor='valid_accuracy', min_delta=.01)]


def test_a_start_gives_its_weights(make_dls, tmp_path):
    first = train_stage(Stage('a', **QUICK), make_dls(), tmp_path/'a.safetensors')
    still = train_stage(Stage('b', 'mirror_cnn', 1, 1e-9, schedule='flat', body='frozen'), make_dls(), tmp_path/'b.safetensors', start=first.learn.model.state_dict())
    fresh = train_stage(Stage('c', 'mirror_cnn', 1, 1e-9, schedule='flat', body='frozen'), make_dls(), tmp_path/'c.safetensors')
    body = lambda o: next(o.learn.model[0].parameters())
    assert (body(still) == body(first)).all() and not (body(fresh) == body(first)).all()


def test_a_stage_that_goes_on_does_not_replay_the_batches_of_its_start(make_dls, tmp_path, monkeypatch):
    fits,fit = [],Learner.fit_resumable
    monkeypatch.setattr(Learner, 'fit_resumable', lambda self, *args, seed, **kwargs: fits.append(seed) or fit(self, *args, seed=seed, **kwargs))
    first = train_stage(Stage('a', **QUICK), make_dls(), tmp_path/'a.safetensors', seed=5)
    for name,start in (('b', 'a'), ('b', 'a'), ('c', 'b')):
        train_stage(Stage(name, start=start, **QUICK), make_dls(), tmp_path/f'{name}.safetensors', seed=5, start=first.learn.model.state_dict())
    assert fits[0] == 5 and fits[1] == fits[2] and len(set(fits)) == 3


@pytest.mark.parametrize('dls, what', [(None, 'dls = None'), (lambda: 1, "unexpected keyword argument 'seed'"), (lambda seed: 1, "unexpected keyword argument 'size'")])
def test_what_makes_no_loaders_is_refused(dls, what):
    with pytest.raises(StageError, match=what): stage_loaders(Stage('s', loaders=dict(size=8), **QUICK), dls)


@pytest.mark.parametrize('early_stop', [None, dict(patience=1), dict(monitor='accuracy')])
@pytest.mark.parametrize('predict', [(), (1,)])
def test_a_training_that_diverges_says_so(make_dls, tmp_path, early_stop, predict):
    stage = Stage('wild', 'simple_cnn', 2, 1e30, schedule='flat', early_stop=early_stop, learner=dict(size=24))
    for _ in range(2):
        with pytest.raises(StageError, match="'wild' diverged: its valid_loss is nan.*smaller lr_max"): train_stage(stage, make_dls(), tmp_path/'s.safetensors', predict=predict)


@pytest.mark.parametrize('other', [dict(arch='simple_cnn', learner=dict(size=24)), dict(arch='mirror_cnn', learner=dict(head=dict(widths=[8])))])
def test_a_start_of_another_network_is_refused_before_and_in_training(make_dls, tmp_path, other):
    first,stage = Stage('a', **QUICK),Stage('b', n_epoch=1, start='a', **other)
    with pytest.raises(StageError, match="'b' cannot go on from 'a', which is another network"): check_stage(stage, make_dls(), start=first)
    with pytest.raises(StageError, match="'b' cannot go on from 'a', which is another network"): train_stage(stage, make_dls(), tmp_path/'b.safetensors', start=train_stage(first, make_dls(), tmp_path/'a.safetensors').learn.model.state_dict())


def test_one_set_of_loaders_serves_no_stage_that_asks_for_others(make_dls):
    with pytest.raises(StageError, match='augment'): stage_loaders(Stage('s', loaders=dict(augment='thermogram'), **QUICK), make_dls())


# Features of a frozen body

@pytest.fixture
def passed(monkeypatch):
    "How many images passed the body, batch by batch; all stages and seeds have the same body, as if it were pretrained."
    import medfast.stages as module
    whole,seen,state = module.medical_learner,[],{}
    def counting(*args, **options):
        learn = whole(*args, **options)
        learn.model[0].load_state_dict(state.setdefault('body', {k: v.clone() for k,v in learn.model[0].state_dict().items()}))
        learn.model[0].register_forward_hook(lambda body, x, y: seen.append(len(x[0])))
        return learn
    monkeypatch.setattr(module, 'medical_learner', counting)
    return seen


HEADS = cumulative(('slow', dict(QUICK, body='features')), ('fast', dict(lr_max=.05, n_epoch=3, early_stop=dict(patience=1))), ('mean', dict(members=('slow', 'fast'))))


def test_each_image_meets_the_frozen_body_once_for_all_stages_seeds_and_sessions(passed, make_dls, by_patient, tmp_path):
    n = by_patient.split.value_counts()
    found = compare(make_dls, HEADS, tmp_path/'run', seeds=(1, 2))
    assert sum(passed) == n.train + n.valid
    found.test_once(['slow', 'fast', 'mean'])
    assert sum(passed) == len(by_patient) == n.sum()
    for seed in (3, 1): later = compare(make_dls, HEADS, tmp_path/'run', seeds=(seed,))
    for part in ('train', 'valid', 'test'): assert later.predictions('fast', part).classes == ['left', 'middle', 'right']
    assert later.learner('fast').model[1] is not None and sum(passed) == len(by_patient)


def test_a_head_trained_on_features_says_the_same_on_images(passed, make_dls, by_patient, tmp_path):
    found = compare(make_dls, HEADS, tmp_path/'run')
    found.test_once(['slow', 'fast'])
    shutil.rmtree(tmp_path/'run/features')
    learn,before = found.learner('fast'),sum(passed)
    assert before == len(by_patient)
    for i,part in enumerate(('train', 'valid', 'test')): assert np.allclose(learn.predictions(i).probs, found.predictions('fast', part).probs, atol=1e-6)
    assert sum(passed) == 2*before


def test_a_trained_head_comes_back_without_another_look_at_the_images(make_dls, tmp_path, monkeypatch):
    whole = DataLoader.__iter__
    for options in (dict(), dict(learner=dict(head=dict(widths=[8], bn=True)))):
        stage = Stage('s', 'squeezenet1_1', 1, body='features', pretrained=False, **options)
        first = train_stage(stage, make_dls(), tmp_path/f'{len(options)}.safetensors', features=tmp_path/'features')
        with monkeypatch.context() as m:
            m.setattr(DataLoader, '__iter__', lambda self: whole(self) if self.bs == 1 else 1/0) # a head of one's own is tried on one image
            again = train_stage(stage, make_dls(), tmp_path/f'{len(options)}.safetensors', features=tmp_path/'features')
        assert again.history.equals(first.history) and again.facts == first.facts and again.predictions == {}
        for a,b in zip(first.learn.model.state_dict().values(), again.learn.model.state_dict().values(), strict=True): assert (a == b).all()
        assert [type(o) for o in again.learn.model] == [type(o) for o in first.learn.model] and again.learn.dls[2] is not None


def test_a_stopped_head_goes_on_to_the_same_bits(passed, make_dls, tmp_path, monkeypatch):
    stage = Stage('s', 'mirror_cnn', 4, .05, body='features', early_stop=dict(patience=3))
    train = lambda name: train_stage(stage, make_dls(), tmp_path/f'{name}.safetensors', features=tmp_path/'features', predict=(0, 1, 2))
    whole = train('whole')
    with monkeypatch.context() as m:
        m.setattr('medfast.resume.Checkpoint.before_validate', _ctrl_c(2), raising=False)
        with pytest.raises(KeyboardInterrupt): train('stopped')
    for again in (train('stopped'), train('stopped')):
        assert [(again.predictions[i].probs == whole.predictions[i].probs).all() for i in (0, 1, 2)] == [True]*3
        assert again.facts['best_epoch'] == whole.facts['best_epoch']
    assert sum(passed) == 60


# A start, and weights

STARTED = [Stage('full', 'mirror_cnn', 2, .02, schedule='flat'), Stage('head again', 'mirror_cnn', 4, .01, body='features', start='full')]


def _bits(learn): return [v.numpy().tobytes() for v in learn.model.state_dict().values()]


def test_a_head_on_features_of_a_start_comes_back_on_its_own_body(make_dls, tmp_path):
    found = compare(make_dls, STARTED, tmp_path/'run')
    for again in (found, compare(make_dls, STARTED, tmp_path/'run')):
        learn,full = again.learner('head again'),again.learner('full')
        assert [(a == b).all() for a,b in zip(learn.model[0].state_dict().values(), full.model[0].state_dict().values())]
        assert np.allclose(learn.predictions(1).probs, found.predictions('head again').probs, atol=1e-6)
    full.model[1].load_state_dict(learn.model[1].state_dict())
    assert np.allclose(found.test_once('head again')['head again'][42].probs, full.predictions(2).probs, atol=1e-6)


def test_a_head_on_features_of_a_start_that_is_killed_goes_on_to_the_same_bits(make_dls, tmp_path, monkeypatch):
    whole = compare(make_dls, STARTED, tmp_path/'whole')
    with monkeypatch.context() as m:
        m.setattr('medfast.resume.Checkpoint.before_validate', _ctrl_c(2), raising=False)
        with pytest.raises(KeyboardInterrupt): compare(make_dls, STARTED, tmp_path/'killed')
    again = compare(make_dls, STARTED, tmp_path/'killed')
    assert again.history('head again').drop(columns='time').equals(whole.history('head again').drop(columns='time'))
    assert _bits(again.learner('head again')) == _bits(whole.learner('head again')) and _plain(again.table) == _plain(whole.table)


def test_features_of_lost_weights_are_refused(make_dls, imagenet_weights, tmp_path, monkeypatch):
    import torch
    monkeypatch.setattr(torch.hub, '_hub_dir', str(imagenet_weights/'hub'))
    stages = [Stage('f', 'squeezenet1_1', 1, body='features', learner=dict(head=dict(widths=[8]))), Stage('w', 'squeezenet1_1', 1, body='frozen')]
    found = compare(make_dls, stages, tmp_path/'run')
    assert found.trainings.weights.str.startswith('ImageNet: squeezenet1_1').all()
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path/'nothing'))
    later = compare(make_dls, stages, tmp_path/'run')
    for stage in ('f', 'w'):
        with pytest.raises(ResumeError, match=f"{stage}-seed42.safetensors is of another training: weights 'ImageNet.*' instead of 'random"): later.learner(stage)
    with pytest.raises(ResumeError, match='body'): later.test_once('f')


def test_a_stage_with_a_start_is_named_by_the_weights_it_began_with(make_dls, imagenet_weights, tmp_path, monkeypatch):
    import torch
    monkeypatch.setattr(torch.hub, '_hub_dir', str(imagenet_weights/'hub'))
    net = partial(Stage, arch='squeezenet1_1', n_epoch=1)
    found = compare(make_dls, [net('first', body='frozen'), net('tuned', pretrained=False, start='first'), net('own', pretrained=False), net('later', pretrained=False, start='own')], tmp_path/'run', seeds=(1, 2))
    told = found.trainings.weights
    assert told['tuned'] == f'{told["first"]}, by way of first' and told['own'] == 'random' and told['later'] == 'random, by way of own'
    assert found.learner('tuned', 2).weights == told['tuned'] and set(found.rows.query('stage == "later"').weights) == {f'random, seed {o}, by way of own' for o in (1, 2)}
    with pytest.raises(CompareError, match='started from different weights: tuned: ImageNet; own: random'): found.best(stages=['tuned', 'own'])
    assert found.best(stages=['first', 'tuned']) in ('first', 'tuned') and found.best(stages=['own', 'later']) in ('own', 'later')


# A comparison

def test_what_rests_is_not_trainable(make_dls, tmp_path):
    found = compare(make_dls, [Stage('all', **QUICK), Stage('head', body='frozen', **QUICK), Stage('once', body='features', **QUICK)], tmp_path/'run')
    head = sum(o.numel() for o in found.learner('all').model[1].parameters())
    assert found.trainings.trainable.tolist() == [found.trainings.parameters['all'], head, head] and found.trainings.parameters.nunique() == 1 and head < found.trainings.parameters['all']


def test_the_table_holds_means_and_the_extremes_of_the_seeds(two):
    own = two.rows.query('stage == "fast" and part == "valid"')
    row = two.table.loc[('fast', 'valid')]
    for m in METRICS: assert np.isclose(row[m], own[m].mean())
    assert [row['lowest seed'], row['highest seed'], row['outer low'], row['outer high']] == [own.accuracy.min(), own.accuracy.max(), own.low.min(), own.high.max()]
    assert two.table.index.get_level_values('part').unique().tolist() == ['train', 'valid']
    assert two.table[['outer low', 'outer high']].notna().all(axis=1).tolist() == [False, True]*3


def test_measures_are_those_of_evaluate(two):
    told = evaluate(two.predictions('fast', seed=2), averages='weighted').value
    row = two.rows.query('stage == "fast" and part == "valid" and seed == 2').iloc[0]
    for ours,theirs in dict(accuracy='accuracy', precision='precision (weighted)', recall='recall (weighted)', f1='f1 (weighted)', auc='auc').items(): assert np.isclose(row[ours], told[theirs])


FOUR = Predictions(np.array([[.1, .9], [.7, .3], [.8, .2], [.3, .7], [.6, .4], [.6, .4]]), np.array([1, 1, 0, 0, 1, 1]), ['no', 'yes'], list('abcdef'), list('AABCDD'))


def test_four_patients_by_hand():
    from medfast.compare import _measured
    told,z2 = _measured(FOUR, 'patient'), 1.959963985**2
    half = sqrt(z2)*sqrt(.25/4 + z2/64)/(1 + z2/4)
    by_hand = dict(accuracy=.5, low=.5 - half, high=.5 + half, precision=.5, recall=.5, f1=.5, auc=.5, loss=-(log(.6) + log(.8) + log(.3) + log(.4))/4, n=4, images=6) | {'accuracy by image': 1/3}
    assert {k for k,v in by_hand.items() if not isclose(told[k], v, rel_tol=1e-9)} == set() and set(told) == {*by_hand, 'never predicted'} and told['never predicted'] == ''


def test_six_images_by_hand():
    from medfast.compare import _measured
    told = _measured(FOUR, 'image')
    by_hand = dict(accuracy=1/3, precision=.25/3 + .5*2/3, recall=1/3, f1=1/3, auc=5/8, n=6, images=6)
    assert {k for k,v in by_hand.items() if not isclose(told[k], v, rel_tol=1e-9)} == set()


def test_a_class_that_is_missing_has_no_area():
    from medfast.compare import _measured
    three = Predictions(np.full((4, 3), 1/3), np.array([0, 1, 0, 1]), ['a', 'b', 'c'], list('wxyz'))
    assert _measured(three, 'image')['auc'] == .5
    one = Predictions(np.array([[.9, .1], [.2, .8]]), np.array([0, 0]), ['a', 'b'], list('xy'))
    assert np.isnan(_measured(one, 'image')['auc'])


def test_notes_tell_of_classes_that_are_absent_or_never_predicted(pictures, make_dls, tmp_path):
    catalog = split_catalog(pictures, valid=.3, test=.3, seed=1)
    catalog = catalog[(catalog.split != 'valid') | (catalog.label != 'middle')]
    found = compare(partial(study_dls, catalog, size=24, bs=8, device='cpu'), [Stage('dull', 'simple_cnn', 1, 1e-9, learner=dict(size=24))], tmp_path/'run')
    said = {found.data['classes'][i] for part in ('train', 'valid') for i in found.predictions('dull', part).by_patient().predicted}
    never = ', '.join(sorted(set(found.data['classes']) - said))
    notes = '\n'.join(found.notes)
    assert 'AUC, valid: without middle, of which there is no patient.' in notes and 'AUC, train' not in notes and 'AUC, test' not in notes
    assert never and f'counts as 0: dull ({never})' in notes and notes.count('never predicted') == 1
    assert not any('never predicted' in o or o.startswith('AUC, ') for o in compare(make_dls, [Stage('good', 'mirror_cnn', 8, .02)], tmp_path/'good').notes)


def _wilson(k, n, z=1.959963984540054):
    middle,half = (k + z*z/2)/(n + z*z), z*sqrt(k*(n - k)/n + z*z/4)/(n + z*z)
    return middle - half, middle + half


def _columns_by_sklearn(fn, by):
    "The columns of a comparison, from nothing but the csv of its predictions."
    df = pd.read_csv(fn, dtype=dict(patient=str))
    probs = df.columns[df.columns.get_loc('p_true') + 1:df.columns.get_loc('split_by')].tolist()
    if by == 'patient': df = df.groupby('patient').agg({'label': 'first'} | dict.fromkeys(probs, 'mean'))
    p,y = df[probs].to_numpy(), df.label.map({o.removeprefix('p_'): i for i,o in enumerate(probs)}).to_numpy()
    said,named = p.argmax(1), dict(average='weighted', zero_division=0)
    low,high = _wilson((said == y).sum(), len(y))
    area = roc_auc_score(y, p[:, 1]) if len(probs) == 2 else roc_auc_score(y, p, multi_class='ovr', average='macro')
    return dict(accuracy=accuracy_score(y, said), low=low, high=high, precision=precision_score(y, said, **named), recall=recall_score(y, said, **named),
        f1=f1_score(y, said, **named), auc=area, loss=log_loss(y, p, labels=range(len(probs))), n=len(y))


def _check_columns(found, by):
    for row in found.rows.to_dict('records'):
        theirs = _columns_by_sklearn(found.run/f'{row["stage"]}-seed{row["seed"]}-{row["part"]}.csv', by)
        assert {k: (row[k], v) for k,v in theirs.items() if not isclose(row[k], v, rel_tol=1e-9)} == {}


def test_columns_by_patient_are_those_of_sklearn_on_the_saved_predictions(two):
    assert two.data['level'] == 'patient' and (two.rows.images == 2*two.rows.n).all()
    _check_columns(two, 'patient')


def test_columns_by_image_are_those_of_sklearn_on_the_saved_predictions(pictures, tmp_path):
    unknown = split_catalog(pictures[pictures.label != 'middle'].assign(patient=pd.NA), valid=.3, test=.3, by='image', seed=1)
    found = compare(study_dls(unknown, size=24, bs=8, device='cpu'), [Stage('s', **QUICK)], tmp_path/'run', seeds=(1, 2))
    found.test_once('s')
    assert found.data['level'] == 'image' and len(found.rows) == 6
    _check_columns(found, 'image')


def test_every_row_names_its_seed_and_seeds_differ(two):
    assert two.rows.groupby(['stage', 'part']).seed.agg(list).map(tuple).unique().tolist() == [(1, 2)]
    assert not (two.predictions('fast', seed=1).probs == two.predictions('fast', seed=2).probs).all()
    assert two.table.seeds.unique().tolist() == [2] and 'seeds 1, 2' in repr(two)


def test_ensembles_equal_the_mean_by_hand(two, make_dls, tmp_path):
    shutil.copytree(two.run.path, tmp_path/'run')
    found = compare(make_dls, [*_two(), Stage('logits', members=('slow', 'fast'), of='logits')], tmp_path/'run', seeds=(1, 2))
    for seed in (1, 2):
        slow,fast = (pd.read_csv(tmp_path/f'run/{o}-seed{seed}-valid.csv').set_index('item').filter(regex='^p_(left|middle|right)') for o in ('slow', 'fast'))
        told = {o: found.predictions(o, seed=seed) for o in ('mean', 'logits')}
        by_hand = dict(mean=(slow + fast)/2, logits=(slow*fast)**.5)
        by_hand['logits'] = by_hand['logits'].div(by_hand['logits'].sum(axis=1), axis=0)
        for o in told: assert np.allclose(told[o].probs, by_hand[o].loc[told[o].items], rtol=1e-9, atol=0)
        assert not np.allclose(told['mean'].probs, told['logits'].probs, atol=1e-4)


def test_an_ensemble_is_the_mean_of_its_members_seed_by_seed(two):
    for seed in (1, 2):
        mean = ensemble([two.predictions(s, 'valid', seed) for s in ('slow', 'fast')])
        assert np.allclose(mean.probs, two.predictions('mean', seed=seed).probs)
    assert not (two.run/'mean-seed1.safetensors').exists()


def test_a_comparison_that_is_killed_between_and_within_trainings_ends_in_the_same_table(two, make_dls, tmp_path, monkeypatch):
    import medfast.compare as module
    with monkeypatch.context() as m:
        m.setattr(module, '_do', _dies_at_third(module._do))
        with pytest.raises(KeyboardInterrupt): compare(make_dls, _two(), tmp_path/'run', seeds=(1, 2))
    with monkeypatch.context() as m:
        m.setattr('medfast.resume.Checkpoint.before_validate', _ctrl_c(2), raising=False)
        with pytest.raises(KeyboardInterrupt): compare(make_dls, _two(), tmp_path/'run', seeds=(1, 2))
    with monkeypatch.context() as m:
        m.setattr(Learner, 'predictions', lambda learn, *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt): compare(make_dls, _two(), tmp_path/'run', seeds=(1, 2))
    assert _plain(compare(make_dls, _two(), tmp_path/'run', seeds=(1, 2)).table) == _plain(two.table)


KILLED = """
import os, sys
import pandas as pd
from functools import partial
from medfast.compare import compare
from medfast.loaders import study_dls
from medfast.resume import Checkpoint
from medfast.stages import cumulative

def die(self):
    if self.training and self.epoch == 2 and self.iter == 1: os._exit(9)
Checkpoint.before_batch = die
steps = ('slow', dict(arch='mirror_cnn', n_epoch=2, lr_max=1e-4)), ('fast', dict(lr_max=.02, n_epoch=4)), ('mean', dict(members=('slow', 'fast')))
compare(partial(study_dls, pd.read_pickle(sys.argv[1]), size=24, bs=8, device='cpu'), cumulative(*steps), sys.argv[2], seeds=(1, 2))
"""


def test_a_process_killed_in_the_middle_of_an_epoch_of_stage_2_goes_on_to_the_same_bits(two, make_dls, by_patient, tmp_path):
    by_patient.to_pickle(tmp_path/'catalog.pkl')
    done = subprocess.run([sys.executable, '-c', KILLED, tmp_path/'catalog.pkl', tmp_path/'run'], capture_output=True, text=True, timeout=300)
    assert done.returncode == 9, done.stderr
    assert RunFolder(tmp_path/'run').state['done'] == ['slow-seed1', 'slow-seed2'] and (tmp_path/'run/fast-seed1.safetensors').exists()
    again = compare(make_dls, _two(), tmp_path/'run', seeds=(1, 2))
    assert _plain(again.table) == _plain(two.table)
    for seed in (1, 2): assert (again.predictions('fast', 'train', seed).probs == two.predictions('fast', 'train', seed).probs).all()


def test_a_finished_comparison_trains_nothing(two, make_dls, monkeypatch):
    monkeypatch.setattr('medfast.compare.train_stage', None)
    assert _plain(compare(make_dls, _two(), two.run, seeds=(1, 2)).table) == _plain(two.table)


def test_seeds_and_stages_may_join(two, make_dls, tmp_path):
    first = compare(make_dls, _two()[:1], tmp_path/'run')
    more = compare(make_dls, [*_two()[:1], Stage('new', **QUICK)], tmp_path/'run', seeds=(42, 43))
    assert len(first.rows) == 2 and len(more.rows) == 8
    assert more.predictions('slow', seed=42).probs.tolist() == first.predictions('slow').probs.tolist()


def test_a_changed_stage_under_an_old_name_is_refused(two, make_dls):
    changed = [Stage('slow', 'mirror_cnn', 2, 1e-4, schedule='flat'), *_two()[1:]]
    with pytest.raises(CompareError, match="stage 'slow': schedule None instead of 'flat'"): compare(make_dls, changed, two.run, seeds=(1, 2))


@pytest.mark.parametrize('change', [dict(lr_max=2e-4), dict(body='frozen'), dict(early_stop={}), dict(loaders=dict(augment='thermogram')), dict(learner=dict(recipe='study')), dict(arch='resnet18'), dict(pretrained=False)])
def test_any_option_changed_under_an_old_name_is_refused_before_training(two, make_dls, change, monkeypatch):
    monkeypatch.setattr('medfast.compare.train_stage', None)
    slow = Stage('slow', **{**QUICK, 'lr_max': 1e-4, **change})
    with pytest.raises(CompareError, match=f"stage 'slow': {next(iter(change))} "): compare(make_dls, [slow, *_two()[1:]], two.run, seeds=(1, 2))
    with pytest.raises(CompareError, match="stage 'mean': of "): compare(make_dls, [*_two()[:2], Stage('mean', members=('slow', 'fast'), of='logits')], two.run, seeds=(1, 2))


def test_another_split_in_the_same_folder_is_refused(two, pictures):
    other = split_catalog(pictures, valid=.3, test=.3, seed=2)
    with pytest.raises(CompareError, match='split'): compare(study_dls(other, size=24, bs=8, device='cpu'), _two(), two.run, seeds=(1, 2))


@pytest.mark.parametrize('change, what', [(dict(augment='thermogram'), 'transforms '), (dict(stats=None), 'stats '), (dict(size=20), 'shape '), (dict(bs=4), 'bs '), (dict(augment=dict(kind='thermogram', max_rotate=3)), 'transforms .FixedScale, Normalize. instead of .Affine')])
def test_loaders_that_give_something_else_are_refused(two, by_patient, tmp_path, change, what):
    shutil.copytree(two.run.path, tmp_path/'run')
    with pytest.raises(CompareError, match=what): compare(partial(study_dls, by_patient, **dict(size=24, bs=8, device='cpu') | change), _two(), tmp_path/'run', seeds=(1, 2))


def test_repeated_rows_and_other_pixels_are_other_data(pictures, by_patient, tmp_path):
    few = by_patient.drop(by_patient[(by_patient.split == 'train') & (by_patient.label == 'left')].index[2:])
    own = partial(array_dls, size=24, bs=8, stats=None, device='cpu')
    compare(partial(own, few), ['mirror_cnn'], tmp_path/'run', n_epoch=1)
    with pytest.raises(CompareError, match='rows .* instead of'): compare(partial(own, upsample_training(few)), ['mirror_cnn'], tmp_path/'run', n_epoch=1)
    dark = np.random.default_rng(0).integers(0, 30, (len(few), 24, 24), dtype=np.uint8)
    with pytest.raises(CompareError, match="loaders\\(\\): valid '"): compare(partial(own, few, images=dark), ['mirror_cnn'], tmp_path/'run', n_epoch=1)


def test_of_long_descriptions_the_place_where_they_part_is_told(make_dls, by_patient, tmp_path):
    compare(make_dls(augment='thermogram'), ['mirror_cnn'], tmp_path/'run', n_epoch=1)
    with pytest.raises(CompareError, match=r'transforms .{0,60}max_deg=10.{0,160} instead of .{0,60}max_deg=3'): compare(make_dls(augment=augmentations('thermogram', max_rotate=3)), ['mirror_cnn'], tmp_path/'run', n_epoch=1)


def test_what_a_transform_drew_last_is_no_other_data(make_dls, tmp_path):
    dls = make_dls(augment='thermogram')
    first = compare(dls, ['mirror_cnn'], tmp_path/'run', n_epoch=1)
    dls.train.one_batch()
    assert _plain(compare(dls, ['mirror_cnn'], tmp_path/'run', n_epoch=1).table) == _plain(first.table)


# Damage

DAMAGE = [None, '{', '{}', '[]', 'half']


@pytest.mark.parametrize('name', ['fast-seed1.json', 'mean-seed2.json', 'fast-seed2-valid.csv', 'mean-seed1-train.csv', 'slow-seed1-history.csv'])
@pytest.mark.parametrize('damage', DAMAGE)
def test_what_is_damaged_is_written_again_from_the_finished_training(two, make_dls, tmp_path, monkeypatch, name, damage):
    shutil.copytree(two.run.path, tmp_path/'run')
    fn = tmp_path/'run'/name
    whole = fn.read_text()
    fn.unlink() if damage is None else fn.write_text('\n'.join(whole.split('\n')[:3]) + '\n' if damage == 'half' else damage)
    monkeypatch.setattr('medfast.resume.Checkpoint.before_fit', lambda self: 1/0)
    again = compare(make_dls, _two(), tmp_path/'run', seeds=(1, 2))
    assert _plain(again.table) == _plain(two.table) and fn.read_text() == whole


@pytest.mark.parametrize('text, what', [(None, 'is gone'), ('{', 'is damaged'), ('[]', 'is damaged'), ('{"data": 3}', 'is damaged'), ('{}', 'is damaged')])
def test_a_folder_that_cannot_say_what_it_holds_is_refused(two, make_dls, tmp_path, text, what):
    shutil.copytree(two.run.path, tmp_path/'run')
    fn = tmp_path/'run/comparison.json'
    fn.unlink() if text is None else fn.write_text(text)
    with pytest.raises(CompareError, match=f'comparison.json of run {what}.*put back a copy'): compare(make_dls, _two(), tmp_path/'run', seeds=(1, 2))


# Before the first training

@pytest.mark.parametrize('wrong, what', [
    (dict(arch='mirror_cn'), "No architecture 'mirror_cn'"), (dict(learner=dict(foo=1)), 'foo'), (dict(body=99), 'n = 99'), (dict(loaders=dict(scale=2)), "unexpected keyword argument 'scale'"),
    (dict(loaders=dict(augment='foo')), "No augmentations for 'foo'"), (dict(arch='simple_cnn', learner=dict(size=24), start='first'), 'another network'), (dict(loaders=dict(size=2)), 'size')])
def test_what_a_later_stage_cannot_be_appears_before_the_first_training(by_patient, tmp_path, wrong, what):
    with pytest.raises(Exception, match=what): compare(partial(study_dls, by_patient, size=24, bs=8, device='cpu'), [Stage('first', **QUICK), Stage('second', **{**QUICK, **wrong})], tmp_path/'run')
    assert {o.name for o in (tmp_path/'run').iterdir()} == {'state.json'}


def test_augmented_features_of_a_later_stage_appear_before_the_first_training(make_dls, tmp_path):
    with pytest.raises(PrecomputeError, match='augmented at random'): compare(partial(make_dls, augment='thermogram'), [Stage('first', **QUICK), Stage('second', body='features', **QUICK)], tmp_path/'run')
    assert not list((tmp_path/'run').glob('*.safetensors'))


def test_trying_the_stages_changes_no_number(two, make_dls, tmp_path, monkeypatch):
    monkeypatch.setattr('medfast.compare._try', lambda self: None)
    assert _plain(compare(make_dls, _two(), tmp_path/'run', seeds=(1, 2)).table) == _plain(two.table)


@pytest.mark.parametrize('seeds', [(), [], '42', (1.5,), -1, True, None, [2**32], 'ab'])
def test_seeds_that_are_none_are_refused(make_dls, tmp_path, seeds):
    with pytest.raises(CompareError, match='seeds = .*whole number'): compare(make_dls, _two(), tmp_path/'run', seeds=seeds)
    assert not (tmp_path/'run').exists()


@pytest.mark.parametrize('seeds', [2, 0, np.int64(3)])
def test_one_number_for_seeds_is_refused_because_it_may_mean_two_things(make_dls, tmp_path, seeds):
    ways = f'for the seed 2, seeds=range(2) for 2 seeds' if seeds == 2 else f'for the seed {seeds}'
    with pytest.raises(CompareError) as e: compare(make_dls, _two(), tmp_path/'run', seeds=seeds)
    assert f'seeds=({seeds},) {ways}' in str(e.value) and not (tmp_path/'run').exists()


@pytest.mark.parametrize('seeds, told', [([np.int64(3)], (3,)), (np.arange(2), (0, 1)), (range(2), (0, 1)), ([1, 1, 2], (1, 2))])
def test_seeds_may_be_of_numpy(make_dls, tmp_path, seeds, told):
    found = compare(make_dls, [Stage('s', 'mirror_cnn', 1)], tmp_path/'run', seeds=seeds)
    assert found.seeds == told and [type(o) for o in found.seeds] == [int]*len(told)


def test_an_ensemble_is_no_start(make_dls, tmp_path):
    with pytest.raises(CompareError, match="'next' cannot go on from 'mean': an ensemble has no weights.*slow, fast"): compare(make_dls, [*_two(), Stage('next', start='mean', **QUICK)], tmp_path/'run')


def test_stages_of_different_splits_are_refused(pictures, by_patient, tmp_path):
    def make(seed, again=False): return study_dls(split_catalog(pictures, valid=.3, test=.3, seed=2) if again else by_patient, size=24, bs=8, seed=seed, device='cpu')
    stages = cumulative(('a', dict(QUICK, n_epoch=1)), ('b', dict(loaders=dict(again=True))))
    with pytest.raises(CompareError, match="'b' sees other data"): compare(make, stages, tmp_path/'run')


@pytest.mark.parametrize('stages, what', [
    ([], 'nothing to compare'), ([Stage('a b', **QUICK), Stage('a-b', **QUICK)], 'same files'), ([Stage('A', **QUICK), Stage('a', **QUICK)], 'same files'),
    ([Stage('mean', members=('a',)), Stage('a', **QUICK)], 'does not come before'), ([Stage('b', start='a', **QUICK)], 'does not come before')])
def test_chains_that_cannot_be_are_refused(make_dls, tmp_path, stages, what):
    with pytest.raises(CompareError, match=what): compare(make_dls, stages, tmp_path/'run')
    assert not (tmp_path/'run').exists()


@pytest.mark.parametrize('change, what', [(dict(catalogs={}), 'no catalogs'), (dict(multi_label=True), 'several labels')])
def test_loaders_that_cannot_be_compared_are_refused_before_training(make_dls, tmp_path, change, what):
    dls = make_dls()
    for k,v in change.items(): setattr(dls, k, v)
    with pytest.raises(CompareError, match=what): compare(dls, ['mirror_cnn'], tmp_path/'run', n_epoch=1)
    assert not list((tmp_path/'run').glob('*.safetensors'))


@pytest.mark.parametrize('body', ['train', 'features'])
@pytest.mark.parametrize('make', [study_dls, partial(array_dls, n_in=3)])
def test_repeated_training_images_count_once(by_patient, tmp_path, make, body):
    few = by_patient.drop(by_patient[(by_patient.split == 'train') & (by_patient.label == 'left')].index[2:])
    more = upsample_training(few)
    found = compare(make(more, size=24, bs=8, device='cpu'), [Stage('s', 'mirror_cnn', 1, body=body)], tmp_path/'run')
    train = found.predictions('s', 'train')
    assert (more['copy'] > 0).sum() > 4 and train.items == few[few.split == 'train'].path.tolist()
    assert found.rows.images.tolist() == [(few.split == 'train').sum(), (few.split == 'valid').sum()]
    assert found.rows['accuracy by image'][0] == (train.predicted == train.targets).mean()


@pytest.mark.parametrize('change, level, word', [
    (lambda c: c.assign(patient=pd.NA), 'image', 'patients unknown'), (lambda c: c.assign(patient=c.patient.where(c.index != 3)), 'image', 'the patient of 1 of 60 images'),
    (lambda c: c.assign(patient=c.patient.where(c.patient != 'p01', 'p00')), 'image', 'several classes'), (lambda c: c, 'patient', 'mean probability')])
def test_the_table_says_how_it_counts(pictures, tmp_path, change, level, word):
    catalog = split_catalog(change(pictures), valid=.3, test=.3, by='image', seed=1)
    found = compare(study_dls(catalog, size=24, bs=8, device='cpu'), ['mirror_cnn'], tmp_path/'run', n_epoch=1)
    assert found.data['level'] == level and word in found.notes[0] and word in found._repr_html_()
    assert SPLIT_BY_IMAGE[1:] in found.notes[1] and SPLIT_BY_IMAGE[1:] in plot_stages(found).get_title()
    assert ('accuracy by image' in found.table) == (level == 'patient')
    assert found.table.n.iloc[0] == (len(set(found.dls.made.catalogs['train'].patient)) if level == 'patient' else len(found.dls.made.catalogs['train']))


def test_printed_numbers_of_study_001_are_for_its_classes_only(make_dls, tmp_path):
    found = compare(make_dls(), [Stage('resnet18', 'mirror_cnn', 1), 'mirror_cnn'], tmp_path/'run', n_epoch=1)
    assert 'printed accuracy' not in found.table


def test_html_shows_names_as_text(make_dls, tmp_path):
    found = compare(make_dls, [Stage('<script>', **QUICK)], tmp_path/'run')
    assert '<script>' not in found._repr_html_() and '&lt;script&gt;' in found._repr_html_()
    found.test_once()
    assert '<script>, the best' in found.notes[-1] and '<script>' not in found._repr_html_()


# Choosing and testing

def test_the_choice_never_looks_at_the_test_part(two, make_dls, tmp_path):
    found = compare(make_dls, _two()[:2], tmp_path/'run')
    found.test_once(['slow', 'fast'])
    before = found.best()
    found.rows.loc[found.rows.part == 'test', list(METRICS)] = found.rows.stage.ne(before).astype(float)
    found.rows.loc[found.rows.part == 'train', list(METRICS)] = found.rows.stage.ne(before).astype(float)
    assert found.best() == before
    for part in ('test', 'train'):
        with pytest.raises(CompareError, match=part): found.best(part=part)


def test_of_equals_the_smaller_one_and_of_losses_the_smallest(two):
    rows = two.rows.copy()
    try:
        two.rows[['accuracy', 'loss']] = .5
        assert two.best() in ('slow', 'fast')
        two.rows.loc[two.rows.stage == 'mean', 'loss'] = .4
        assert two.best(metric='loss') == 'mean'
    finally: two.rows = rows


def test_one_stage_and_one_seed_fill_one_row(make_dls, tmp_path):
    found = compare(make_dls, _two(), tmp_path/'run', seeds=(7,))
    (name, by_seed), = found.test_once('mean').items()
    (seed, preds), = by_seed.items()
    assert (name, seed, found.run.test_openings) == ('mean', 7, 1)
    assert found.table.xs('test', level='part').index.tolist() == ['mean']
    assert (found.predictions('mean', 'test').probs == preds.probs).all()
    with pytest.raises(CompareError, match='opened for other stages'): found.predictions('slow', 'test')
    with pytest.raises(CompareError, match='has been opened: mean, named before the look'): found.test_once('slow')
    later = compare(make_dls, _two(), tmp_path/'run', seeds=(7,))
    assert _plain(later.table) == _plain(found.table)
    with pytest.raises(CompareError, match='has been opened'): later.test_once(['slow', 'mean'])


@pytest.fixture(scope='module')
def opened(two, make_dls, tmp_path_factory):
    "The comparison of two stages, opened for both, the first time."
    folder = tmp_path_factory.mktemp('opened')/'run'
    shutil.copytree(two.run.path, folder)
    found = compare(make_dls, _two(), folder, seeds=(1, 2))
    return found,found.test_once(['slow', 'mean'])


def _same_found(a, b): return [(s, seed) for s in a for seed in a[s]] == [(s, seed) for s in b for seed in b[s]] and all((a[s][seed].probs == b[s][seed].probs).all() for s in a for seed in a[s])


def test_the_same_look_again_finds_the_same_and_opens_nothing(opened, make_dls, monkeypatch, recwarn):
    found,first = opened
    table = _plain(found.table)
    assert not recwarn and found.run.test_openings == 1
    monkeypatch.setattr('medfast.compare.train_stage', None)
    for chosen in (['slow', 'mean'], ['mean', 'slow']):
        with pytest.warns(UserWarning, match='opened before, for slow, mean, named before the look. This is what was found then; it is not opened again'): again = found.test_once(chosen)
        assert _same_found(again, first)
    later = compare(make_dls, _two(), found.run.path, seeds=(2, 1))
    with pytest.warns(UserWarning, match='opened before'): assert _same_found({s: dict(sorted(o.items())) for s,o in later.test_once(['slow', 'mean']).items()}, first)
    assert found.run.test_openings == 1 and _plain(found.table) == table
    with pytest.raises(CompareError, match='has been opened'): compare(make_dls, _two(), found.run.path, seeds=(1,)).test_once(['slow', 'mean'])


@pytest.mark.parametrize('damage', ['gone', 'half', 'other'])
def test_a_look_that_lost_a_file_finds_it_again_from_the_finished_training(opened, make_dls, tmp_path, monkeypatch, damage):
    found,first = opened
    shutil.copytree(found.run.path, tmp_path/'run')
    fn = tmp_path/'run/slow-seed2-test.csv'
    whole = fn.read_text()
    lines = whole.split('\n')
    if damage == 'gone': fn.unlink()
    else: fn.write_text('\n'.join(lines[:4] if damage == 'half' else lines[:1] + lines[2:]))
    monkeypatch.setattr('medfast.resume.Checkpoint.before_fit', lambda self: 1/0)
    later = compare(make_dls, _two(), tmp_path/'run', seeds=(1, 2))
    with pytest.warns(UserWarning, match='opened before'): assert _same_found(later.test_once(['slow', 'mean']), first)
    assert fn.read_text() == whole and later.run.test_openings == 1


def test_an_interrupted_look_goes_on_for_the_same_stages_only(make_dls, tmp_path, monkeypatch):
    import medfast.compare as module
    found = compare(make_dls, _two(), tmp_path/'run', seeds=(1, 2))
    with monkeypatch.context() as m:
        m.setattr(module, '_tested', _dies_at_third(module._tested))
        with pytest.raises(KeyboardInterrupt): found.test_once(['slow', 'fast'])
    assert found.run.test_openings == 1 and 'test' not in found.table.index.get_level_values('part')
    with pytest.raises(CompareError, match='sealed'): found.predictions('slow', 'test')
    with pytest.raises(CompareError, match='has been opened'): found.test_once('slow')
    again = found.test_once(['slow', 'fast'])
    assert {s: list(o) for s,o in again.items()} == dict(slow=[1, 2], fast=[1, 2])
    assert found.run.test_openings == 1


def test_test_predictions_are_those_of_the_trained_network(make_dls, tmp_path):
    found = compare(make_dls, _two()[:2], tmp_path/'run')
    preds = found.test_once('fast')['fast'][42]
    assert np.allclose(preds.probs, found.learner('fast').predictions(2).probs)
    assert set(preds.items).isdisjoint(found.predictions('fast', 'train').items)


def test_an_ensemble_meets_the_test_part_seed_by_seed_and_its_members_stay_sealed(make_dls, tmp_path):
    found = compare(make_dls, _two(), tmp_path/'run', seeds=(1, 2))
    for seed,preds in found.test_once(['mean'])['mean'].items():
        assert np.allclose(preds.probs, ensemble([found.learner(s, seed).predictions(2) for s in ('slow', 'fast')]).probs)
    with pytest.raises(CompareError, match='opened for other stages'): found.predictions('slow', 'test', 2)


def test_without_a_test_part_there_is_nothing_to_open(pictures, tmp_path):
    found = compare(study_dls(split_catalog(pictures, valid=.3, seed=1), size=24, bs=8, device='cpu'), ['mirror_cnn'], tmp_path/'run', n_epoch=1)
    with pytest.raises(CompareError, match='no test part'): found.test_once()
    assert found.notes[-1] == 'There is no test part.' and found.run.test_openings == 0


def test_names_and_seeds_that_are_not_there_are_named(two):
    with pytest.raises(CompareError, match="no stage 'fsat'. Choose one of slow, fast, mean"): two.predictions('fsat')
    with pytest.raises(CompareError, match='has 1, 2'): two.history('fast', seed=3)
    with pytest.raises(CompareError, match="metric = 'acc'"): two.best(metric='acc')
    with pytest.raises(CompareError, match="metric = 'acc'"): plot_stages(two, 'acc')


def test_the_line_shows_spread_and_dashed_printed_numbers(make_dls, tmp_path):
    stages = cumulative(('base', dict(QUICK, printed=dict(valid=.8))), ('next', dict(n_epoch=3, printed=dict(valid=.9))), ('mean', dict(members=('base', 'squeezenet1_1'), pretrained=False)))
    found = compare(make_dls, stages, tmp_path/'run', seeds=(1, 2))
    ax = plot_stages(found)
    assert [o.get_text() for o in ax.get_xticklabels()] == ['base', 'next', 'mean']
    dashed = next(o for o in ax.lines if o.get_linestyle() == '--')
    assert dashed.get_xydata().tolist() == [[0, .8], [1, .9]]
    assert [o.get_text() for o in ax.get_legend().get_texts()] == ['training', 'validation', 'validation, printed']
    assert len(plot_stages(found, stages=['squeezenet1_1', 'base']).get_xticklabels()) == 2


def test_printed_numbers_are_the_studies_own():
    assert STUDY_ARCHITECTURES.printed.to_dict() == dict(resnet18=.9625, resnet34=.975, resnet50=.975, resnet152=.975, vgg16=.9375, vgg19=.9112)
    assert STUDY_ARCHITECTURES.drop(columns='printed').to_numpy().tolist() == [[74, 6, 0, 80], [76, 4, 0, 80], [76, 4, 0, 80], [77, 3, 1, 79], [70, 10, 0, 80], [74, 6, 8, 72]]
    assert STUDY_PNEUMONIA.accuracy.tolist() == [.8288, .9061, .9429, .9388, .9459] and STUDY_PNEUMONIA.loss.tolist() == [.5011, .2127, .1492, .2127, .2654]
    assert STUDY_RADIOGRAPHY.accuracy.tolist() == [.853, .8317, .8458, .8492] and STUDY_RADIOGRAPHY.loss.tolist() == [.499, .4675, .4530, .4198]
    organs = STUDY_ORGANS.dropna()
    assert organs.xs('test', level='part').to_numpy().tolist() == [[.680, .687, .680, .679], [.685, .678, .685, .671], [.731, .728, .731, .724], [.738, .738, .738, .736], [.765, .764, .765, .758], [.811, .810, .811, .808]]
    assert organs.xs('valid', level='part').to_numpy().tolist() == [[.817, .826, .817, .814], [.836, .839, .836, .832], [.871, .897, .871, .858], [.889, .892, .889, .887], [.900, .902, .900, .900], [.924, .905, .924, .911]]
    assert organs.xs('train', level='part').to_numpy().tolist() == [[.774, .779, .774, .774], [.811, .810, .811, .802], [.961, .969, .961, .956], [.877, .878, .877, .876], [.936, .938, .936, .934], [.956, .961, .956, .952]]
    assert STUDY_ORGANS[STUDY_ORGANS.f1.isna()].accuracy.droplevel('part').to_dict() == dict(resnet50=.912, resnet101=.897, resnet152=.892)


def test_the_pictures_of_the_studies_come_from_a_comparison(two):
    assert len(plot_confusion_matrix({s: two.predictions(s) for s in ('slow', 'fast')})) == 2
    drawn = [o.get_label() for a in plot_history(two.history('fast')) for o in a.lines]
    assert len(drawn) == 4 and len(set(drawn)) >= 2
    ax = plot_roc(two.predictions('fast'), positive='left')
    area = roc_auc_score(two.predictions('fast').by_patient().targets == 0, two.predictions('fast').by_patient().probs[:, 0])
    assert f'{area:.2f} [' in ax.get_legend().get_texts()[0].get_text()
    plt.close('all')


def test_nothing_in_the_line_from_stage_to_stage_overlaps(two, make_dls, tmp_path):
    "Six stages, three seeds, printed numbers: the marks of the parts stand apart, and no text lies on another."
    shutil.copytree(two.run.path, tmp_path/'run')
    printed = dict(train=.9, valid=.8, test=.7)
    means = [Stage(o, members=('slow', 'fast'), printed=printed) for o in ('early stopping', 'batch norm + dropout', 'augmentation', 'fine-tuning')]
    found = compare(make_dls, [*_two()[:2], *means], tmp_path/'run', seeds=(1, 2, 3))
    found.test_once([s.name for s in means])
    ax = plot_stages(found)
    ax.figure.canvas.draw()
    boxes = [o.get_window_extent() for o in [*ax.get_xticklabels(), ax.title, ax.yaxis.label, *ax.get_legend().get_texts()]]
    flat = boxes[len(found.stages):]
    assert [o.get_text() for o in ax.get_xticklabels()] == list(found.stages)
    assert not any(a.overlaps(b) for i,a in enumerate(flat) for b in flat[i + 1:])
    rows = ax.collections[0].get_segments(), ax.collections[1].get_segments(), ax.collections[2].get_segments()
    assert len({round(r[-1][0][0] - 5, 2) for r in rows}) == 3
    inside = ax.figure.bbox
    assert all(inside.x0 <= b.x0 and b.x1 <= inside.x1 and inside.y0 <= b.y0 and b.y1 <= inside.y1 for b in boxes)
    plt.close('all')


# Intervals, pairs, and which stages differ

def _written(folder, preds, level='patient', weights='random', classes=('Healthy', 'Sick')):
    "A comparison whose predictions of the validation part are written by hand: name -> list, one a seed."
    run,seeds = RunFolder(folder),tuple(range(1, 1 + len(next(iter(preds.values())))))
    for name,own in preds.items():
        for seed,o in zip(seeds, own): o.save(run/f'{name}-seed{seed}-valid.csv')
    weights = weights if isinstance(weights, dict) else dict.fromkeys(preds, weights)
    rows = pd.DataFrame([dict(stage=s, seed=seed, part='valid', weights=weights[s]) for s in preds for seed in seeds])
    why = 'the mean probability of their images' if level == 'patient' else 'patients unknown'
    return Comparison(None, run, {s: Stage(s, **QUICK) for s in preds}, seeds, dict(level=level, why=why, classes=list(classes), split_by='patient', test=True, absent={}), rows)


def _reseeded(shift, seeds=(0, 1, 2), n=80):
    "The same patients for all seeds and shifts; each seed sees them with other errors."
    truth = random_preds(0, n).targets
    rng = np.random.default_rng(round(100*shift))
    own = rng.normal(size=n)
    p = [1/(1 + np.exp(-shift*(truth - .5) - own - rng.normal(size=n)*.5)) for _ in seeds]
    return [replace(random_preds(0, n), probs=np.stack([1 - o, o], 1)) for o in p]


def test_intervals_over_seeds_are_those_of_evaluate_seeds(tmp_path):
    preds = dict(weak=_reseeded(1.), strong=_reseeded(4.))
    told = _written(tmp_path/'run', preds).intervals(metrics=('auc', 'sensitivity', 'brier'), n_resamples=200)
    assert told.index.tolist() == [(s, m) for s in preds for m in ('auc', 'sensitivity', 'brier')]
    for s in preds: pd.testing.assert_frame_equal(told.loc[s][(want := evaluate_seeds(preds[s], n_resamples=200).loc[['auc', 'sensitivity', 'brier']]).columns], want, check_exact=True)
    assert (told['seed lowest'] < told.value).all() and (told.value < told['seed highest']).all() and (told.low < told['seed lowest']).all()


def test_the_interval_of_one_seed_is_that_of_evaluate(tmp_path):
    preds = dict(only=_reseeded(2., seeds=[0]))
    told = _written(tmp_path/'run', preds).intervals(n_resamples=200).loc['only']
    want = evaluate(preds['only'][0], n_resamples=200).loc[['accuracy', 'auc']]
    pd.testing.assert_frame_equal(told[want.columns], want)
    assert told.seeds.tolist() == [1, 1] and told['seed sd'].isna().all()


def test_where_images_are_counted_intervals_count_images_and_say_so(tmp_path):
    unknown = [replace(o, patients=None, split_by='image') for o in _reseeded(2.)]
    found = _written(tmp_path/'run', dict(a=unknown, b=[replace(o, patients=None, split_by='image') for o in _reseeded(1.)]), level='image')
    told = found.intervals(n_resamples=200)
    want = evaluate_seeds(_reseeded(2.), n_resamples=200)
    assert told.loc[('a', 'auc'), ['value', 'low', 'high']].tolist() == want.loc['auc', ['value', 'low', 'high']].tolist()
    for df in (told, found.paired('a', 'b', n_resamples=200)):
        assert df.method.str.contains('as if images were independent').all() and not df.method.str.contains('patients(?! unknown)').any() and df.method.str.contains(SPLIT_BY_IMAGE).any()
    assert 'As if images were independent.' in found.told_apart() and '80 images' in found.told_apart()


def test_images_that_lie_in_another_folder_are_the_same_images(tmp_path):
    def at(folder, preds): return [replace(o, patients=None, items=[f'{folder}/{i}' for i in o.items]) for o in preds]
    moved = _written(tmp_path/'moved', dict(a=at('/here/x', _reseeded(3.)), b=at('/there/y/z', _reseeded(1.))), level='image')
    still = _written(tmp_path/'still', dict(a=at('.', _reseeded(3.)), b=at('.', _reseeded(1.))), level='image')
    pd.testing.assert_frame_equal(moved.paired('a', 'b', n_resamples=100), still.paired('a', 'b', n_resamples=100))
    assert moved.told_apart(n_resamples=100) == still.told_apart(n_resamples=100)


def test_intervals_of_a_trained_comparison_and_of_its_test_part(two, make_dls, tmp_path):
    told = two.intervals()
    assert np.allclose(told.value.xs('accuracy', level='metric'), two.table.accuracy.xs('valid', level='part')) and np.allclose(told.value.xs('auc', level='metric'), two.table.auc.xs('valid', level='part'))
    assert told['seed lowest']['fast', 'accuracy'] == two.table['lowest seed']['fast', 'valid']
    with pytest.raises(CompareError, match='is sealed'): two.intervals('test')
    with pytest.raises(CompareError, match="part = 'train': choose 'valid' or 'test'"): two.intervals('train')
    with pytest.raises(CompareError, match="no 'acuracy'. Choose of"): two.intervals(metrics=['acuracy'])
    shutil.copytree(two.run.path, tmp_path/'run')
    found = compare(make_dls, _two(), tmp_path/'run', seeds=(1, 2))
    tested = found.test_once(['slow', 'fast'])
    told = found.intervals('test', stages='fast', n_resamples=200)
    assert told.loc[('fast', 'auc'), 'low'] == evaluate_seeds(tested['fast'], n_resamples=200).low['auc'] and found.intervals('test').index.get_level_values('stage').unique().tolist() == ['slow', 'fast']
    with pytest.raises(CompareError, match='opened for other stages'): found.intervals('test', stages=['mean'])
    with pytest.raises(CompareError, match='opened for other stages'): found.paired('mean', 'slow', 'test')
    assert found.paired('fast', 'slow', 'test').loc[('auc', 2), 'value'] == paired_gain(tested['fast'][2], tested['slow'][2]).value['auc gain']


def test_pairs_of_each_seed_are_those_of_mcnemar_and_paired_gain(tmp_path):
    preds = dict(weak=_reseeded(1.), strong=_reseeded(4.))
    told = _written(tmp_path/'run', preds).paired('strong', 'weak', n_resamples=200)
    assert told.index.tolist() == [(m, s) for m in ('accuracy', 'auc') for s in (1, 2, 3, 'all')]
    for seed,a,b in zip((1, 2, 3), preds['strong'], preds['weak']):
        assert told.loc[('accuracy', seed)].tolist() == mcnemar(a, b).loc['accuracy', told.columns].tolist()
        assert told.loc[('auc', seed), ['value', 'low', 'high', 'n']].tolist() == paired_gain(a, b, n_resamples=200).loc['auc gain', ['value', 'low', 'high', 'n']].tolist()
    assert told.loc[('accuracy', 'all'), 'value'] == pytest.approx(told.value['accuracy'][:3].mean()) and told.loc[('accuracy', 1), 'only_a'] > told.loc[('accuracy', 1), 'only_b']


def _student(each, confidence=.95):
    from scipy.stats import t
    return t.ppf((1 + confidence)/2, len(each) - 1)*np.std(each, ddof=1)/sqrt(len(each))


@pytest.mark.parametrize('metric', ['accuracy', 'auc'])
def test_the_gain_over_seeds_adds_the_plain_bootstrap_of_patients_and_student_over_seeds(metric):
    from medfast.compare import _gain_of, _over_seeds
    pairs = list(zip(_reseeded(3.), _reseeded(2.)))
    y = pairs[0][0].targets
    score = (lambda o, i: ((o.probs[i, 1] >= .5) == y[i]).mean()) if metric == 'accuracy' else (lambda o, i: roc_auc_score(y[i], o.probs[i, 1]))
    right = sum((a.predicted == y)*1 - (b.predicted == y) for a,b in pairs)
    areas = lambda i: np.mean([score(a, i.astype(int)) - score(b, i.astype(int)) for a,b in pairs])
    plain = areas if metric == 'auc' else lambda i: right[i.astype(int)].sum()/240
    low,high = bootstrap((np.arange(80),), plain, n_resamples=100, vectorized=False, method='BCa', rng=np.random.default_rng(0)).confidence_interval
    value,half = plain(np.arange(80)),_student([score(a, np.arange(80)) - score(b, np.arange(80)) for a,b in pairs])
    got = _over_seeds(pairs, metric, [_gain_of(o, metric, 100) for o in pairs], How(n_resamples=100))
    np.testing.assert_allclose([got['value'], got['low'], got['high']], [value, value - np.hypot(value - low, half), value + np.hypot(high - value, half)], atol=1e-12)
    assert got['n'] == 80 and got['method'] == 'BCa bootstrap over 80 patients, 100 resamples, Student t over 3 seeds, squared and added'


def test_rows_of_other_order_are_joined_by_patient():
    from medfast.compare import _gain_of, _over_seeds
    pairs = list(zip(_reseeded(3.), _reseeded(2.)))
    turned = [(a, b.take(np.arange(80)[::-1])) for a,b in pairs]
    for metric in ('accuracy', 'auc'):
        one,two = (_over_seeds(o, metric, [_gain_of(p, metric, 100) for p in o], How(n_resamples=100)) for o in (pairs, turned))
        assert one == two


def test_of_several_classes_the_gain_is_the_macro_average(two):
    told = two.paired('fast', 'slow')
    area = lambda s, seed: roc_auc_score((o := two.predictions(s, seed=seed).by_patient()).targets, o.probs, multi_class='ovr')
    assert [told.value['auc', seed] for seed in (1, 2)] == pytest.approx([area('fast', s) - area('slow', s) for s in (1, 2)])
    assert told.value['auc', 'all'] == pytest.approx(told.value['auc'][:2].mean()) and told.low['auc', 'all'] <= told.value['auc', 'all'] <= told.high['auc', 'all']


def test_few_patients_get_the_limits_within_a_seed_and_between_seeds(two):
    told = two.paired('fast', 'slow').loc['accuracy']
    each,row = told.loc[[1, 2]],told.loc['all']
    half = _student(each.value)
    assert row.low == pytest.approx(max(row.value - np.hypot((each.value - each.low).mean(), half), -1)) and row.high == pytest.approx(min(row.value + np.hypot((each.high - each.value).mean(), half), 1))
    assert row.method.startswith('mean limits of the seeds, Student t over 2 seeds') and row.n < 20


def test_stages_that_may_not_be_compared_are_refused(two, tmp_path):
    with pytest.raises(CompareError, match='compared with itself'): two.paired('fast', 'fast')
    with pytest.raises(CompareError, match='is sealed'): two.paired('fast', 'slow', 'test')
    with pytest.raises(CompareError, match="no stage 'fsat'"): two.paired('fsat', 'slow')
    mixed = _written(tmp_path/'run', dict(a=_reseeded(1.), b=_reseeded(4.), c=_reseeded(4.01)), weights=dict(a='random', b='ImageNet: x.pth', c='ImageNet: x.pth'))
    with pytest.raises(CompareError, match='started from different weights: a: random; b: ImageNet'): mixed.paired('a', 'b')
    assert 'of 1 pair of stages' in mixed.told_apart(n_resamples=200) and mixed.told_apart(n_resamples=200).endswith('Stages that started from different weights were not compared.')
    assert mixed.told_apart(stages=['a', 'b']).startswith('There are no two stages')


def test_a_sentence_tells_which_stages_can_be_told_apart(tmp_path):
    found = _written(tmp_path/'run', dict(weak=_reseeded(.5), strong=_reseeded(5.), twin=_reseeded(5.01)))
    said = found.told_apart(n_resamples=200)
    assert said.startswith('Accuracy on the validation part, 80 patients, 3 seeds: of 3 pairs of stages 2 can be told apart: ') and 'All others cannot.' in said
    for better in ('strong', 'twin'):
        row = found.paired(better, 'weak', n_resamples=200).loc[('accuracy', 'all')]
        assert f'{better} from weak (+{row.value:.3f} [{row.low:.3f}, {row.high:.3f}])' in said
    assert 'none can be told apart.' in found.told_apart(stages=['twin', 'strong'], n_resamples=200)
    one = _written(tmp_path/'one', dict(weak=_reseeded(.5)[:1], strong=_reseeded(5.)[:1]))
    row = one.paired('strong', 'weak').loc[('accuracy', 1)]
    assert one.told_apart().endswith('From other seeds the same stage may be told from itself.') and 'up to one pair in twenty' in said
    assert f'80 patients, 1 seed: of 1 pair of stages 1 can be told apart: strong from weak (+{row.value:.3f} [{row.low:.3f}, {row.high:.3f}])' in one.told_apart()


# What is shown

def test_repeated_rows_are_left_out_and_folds_are_kept():
    from medfast.compare import _once
    preds = replace(random_preds(0, 6), folds=list('aabbcc'))
    kept = _once(preds, pd.DataFrame(dict(copy=pd.array([0, 1, None, 0, 2, 0], dtype='Int64'))))
    assert kept.items == [preds.items[i] for i in (0, 2, 3, 5)] and kept.folds == list('abbc') and (kept.probs == preds.probs[[0, 2, 3, 5]]).all()


def test_print_gives_some_lines_and_repr_one(two):
    lines = str(two).split('\n')
    assert '\n' not in repr(two) and 6 <= len(lines) <= 12 and max(map(len, lines)) < 100
    row = two.table.loc[('fast', 'valid')]
    assert f'{row.accuracy:.3f} ({row["lowest seed"]:.3f} to {row["highest seed"]:.3f})' in next(o for o in lines if o.startswith('fast'))
    assert lines[0] == 'Accuracy by patient, mean (lowest to highest) of the seeds 1, 2' and lines[-1] == 'Test part: sealed.' and 'test ' not in lines[1]


def test_the_page_tells_once_what_all_rows_have_in_common(two):
    html = two._repr_html_()
    heads = re.findall('<th>([^<]*)</th>', html.split('<tbody>')[0])
    assert not {'n', 'images', 'recall', 'seeds'} & set(heads) and {'accuracy', 'outer low', 'outer high', 'lowest seed', 'precision', 'f1', 'auc', 'loss'} <= set(heads)
    n = two.table.n.groupby(level='part').first()
    assert f'n: {n.train} training, {n.valid} validation; images: {2*n.train} training' in html and 'Recall, weighted by class size, is the accuracy.' in html
    assert 'All stages: weights random' in html and '<td>random</td>' not in html and '<td>mirror_cnn</td>' in html


def test_the_notes_name_the_positive_class(pictures, tmp_path):
    catalog = split_catalog(pictures[pictures.label != 'middle'].replace(dict(label=dict(left='malignant', right='normal, benign'))), valid=.3, seed=1)
    found = compare(study_dls(catalog, size=24, bs=8, device='cpu'), ['mirror_cnn'], tmp_path/'run', n_epoch=1)
    assert 'AUC: normal, benign (the positive class, being the last) against malignant.' in '\n'.join(found.notes)
    assert evaluate(found.predictions('mirror_cnn')).method['sensitivity'].endswith('; positive: normal, benign')


def test_the_lines_of_a_log_name_the_training(make_dls, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv('IN_TEST', raising=False)
    compare(make_dls, [Stage('slow', **QUICK), Stage('head', body='features', **QUICK)], tmp_path/'run', seeds=(1, 2))
    lines = [o for o in capsys.readouterr().out.splitlines() if 'epoch' in o]
    assert [o.split(':')[0] for o in lines] == [f'{s}, seed {seed}, epoch {i} of 2' for s in ('slow', 'head') for seed in (1, 2) for i in (1, 2)]
    monkeypatch.setenv('IN_TEST', '1')
    compare(make_dls, [Stage('quiet', **QUICK)], tmp_path/'quiet')
    assert 'quiet' not in capsys.readouterr().out


def test_errors_hold_no_table_and_no_whole_checksum(two, pictures, by_patient):
    wide = pd.DataFrame(np.zeros((40, 9)))
    for wrong in (lambda: compare(by_patient, _two(), two.run), lambda: cumulative(wide), lambda: Stage('s', 'mirror_cnn', 1, loaders=dict(stats=wide)), lambda: Stage('s', wide, 1), lambda: compare(None, _two(), two.run, seeds=wide),
                  lambda: compare(study_dls(split_catalog(pictures, valid=.3, test=.3, seed=2), size=24, bs=8, device='cpu'), _two(), two.run)):
        with pytest.raises((CompareError, StageError)) as e: wrong()
        assert '\n' not in str(e.value) and len(str(e.value)) < 700 and not re.search('[0-9a-f]{16}', str(e.value))
    assert re.search("split '[0-9a-f]{12}…' instead of '[0-9a-f]{12}…'", str(e.value))


def test_the_readme_compares(tmp_path, monkeypatch, capsys):
    code = next(o for o in re.findall('```python\n(.*?)```', (ROOT/'README.md').read_text(), re.S) if 'medfast.compare' in o)
    assert 'n_epoch=8' in code
    simulate_chest(tmp_path/'CoronaHack', n_patients=60, size=64, progress=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('IN_TEST', '1')
    names = {}
    exec(code.replace('n_epoch=8', 'n_epoch=1'), names)
    result,shown = names['result'],capsys.readouterr().out
    assert result.run.test_openings == 1 and set(result.seeds) == {1, 2} and {'base', 'augmentation'} == set(result.stages)
    assert 'accuracy' in shown and f'{result.table.accuracy[result.best(), "test"]:.6f}'[:6] in shown
