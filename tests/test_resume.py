"Training that is stopped goes on to the same bits, with all that it has to remember."
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.metrics import accuracy
from medfast.predictions import is_trained
from medfast.resume import ResumeError, fit_resumable, is_finished
from medfast.schedule import EarlyStop
from medfast.settings import set_seeds
from torch import nn


def learner():
    set_seeds(1)
    x = torch.randn(96, 8)
    points = list(zip(x, (x[:, 0] + x[:, 1] > 0).long()))
    dls = DataLoaders(DataLoader(points[:64], bs=16, shuffle=True), DataLoader(points[64:], bs=32))
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(.2), nn.Linear(16, 2))
    return Learner(dls, net, loss_func=nn.CrossEntropyLoss(), metrics=accuracy)


class Note(Callback):
    "The weights after every epoch."
    def before_fit(self): self.weights = {}
    def after_epoch(self): self.weights[self.epoch] = state(self.learn)


class CtrlC(Callback):
    def __init__(self, epoch, batch=2): self.at = epoch, batch
    def before_batch(self):
        if self.training and (self.epoch, self.iter) == self.at: raise KeyboardInterrupt


def state(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def train(path, *cbs, n_epoch=12, lr=.05, **options):
    learn = learner()
    with learn.no_bar(), learn.no_logging(): history = learn.fit_resumable(n_epoch, lr, path, cbs=cbs, **options)
    return learn, history.drop(columns='time')


@pytest.mark.parametrize('monitor', ['valid_loss', 'accuracy'])
@pytest.mark.parametrize('patience', [2, 20])
def test_the_best_weights_come_back_whenever_it_was_stopped(tmp_path, patience, monitor):
    note,stop = Note(),EarlyStop(monitor, patience=patience)
    whole,history = train(tmp_path/'whole.safetensors', note, stop, schedule='flat')
    best = note.weights[stop.best_epoch]
    assert stop.best_epoch < len(history) - 1 and same(state(whole), best) and not same(best, note.weights[stop.best_epoch + 1])
    for at in range(1, len(history)):
        again = EarlyStop(monitor, patience=patience)
        with pytest.raises(KeyboardInterrupt): train(tmp_path/f'{at}.safetensors', EarlyStop(monitor, patience=patience), CtrlC(at), schedule='flat')
        resumed,rows = train(tmp_path/f'{at}.safetensors', again, schedule='flat')
        assert rows.equals(history) and again.best_epoch == stop.best_epoch and again.stopped == stop.stopped
        assert same(state(resumed), best)


def test_a_training_stopped_again_and_again_ends_in_the_same_bits(tmp_path):
    whole,history = train(tmp_path/'whole.safetensors', n_epoch=4)
    for at in range(4):
        with pytest.raises(KeyboardInterrupt): train(tmp_path/'often.safetensors', CtrlC(at, at), n_epoch=4)
        assert is_finished(tmp_path/'often.safetensors') is False
    resumed,rows = train(tmp_path/'often.safetensors', n_epoch=4)
    assert rows.equals(history) and same(state(resumed), state(whole)) and is_finished(tmp_path/'often.safetensors') is True


def test_a_finished_training_runs_no_batch(tmp_path):
    whole,history = train(tmp_path/'a.safetensors', n_epoch=2)
    again,rows = train(tmp_path/'a.safetensors', CtrlC(0, 0), n_epoch=2)
    assert rows.equals(history) and same(state(again), state(whole))


@pytest.mark.parametrize('options', [dict(seed=2), dict(lr=.01), dict(n_epoch=3), dict(schedule='flat')])
def test_another_training_is_refused_finished_or_not(tmp_path, options):
    for name,cbs in dict(done=[], stopped=[CtrlC(1)]).items():
        try: train(tmp_path/f'{name}.safetensors', *cbs, n_epoch=2)
        except KeyboardInterrupt: pass
        with pytest.raises(ResumeError, match='of another training'): train(tmp_path/f'{name}.safetensors', **{**dict(n_epoch=2), **options})


@pytest.mark.parametrize('place', [0, 12, -5])
def test_one_changed_bit_is_noticed(tmp_path, place):
    fn = tmp_path/'a.safetensors'
    train(fn, n_epoch=1)
    whole = bytearray(fn.read_bytes())
    whole[place] ^= 1
    fn.write_bytes(whole)
    with pytest.raises(ResumeError, match='Remove it'): train(fn, n_epoch=1)


def test_half_a_file_is_no_finished_training(tmp_path):
    fn = tmp_path/'a.safetensors'
    assert is_finished(fn) is False
    train(fn, n_epoch=1)
    fn.write_bytes(fn.read_bytes()[:300])
    with pytest.raises(ResumeError, match='a.safetensors cannot be read'): is_finished(fn)


def test_a_learner_loaded_from_its_checkpoint_counts_as_trained(tmp_path):
    path = tmp_path/'w.safetensors'
    assert is_trained(train(path, n_epoch=1)[0]) and not is_trained(learner())
    assert is_trained(train(path, n_epoch=1)[0])


def head(path, seed, weights='ImageNet: a.pth'):
    "The head of a body drawn from `seed`, trained or loaded, as inside `precomputed`."
    learn = learner()
    set_seeds(seed)
    learn.frozen_body,learn.weights = nn.Linear(8, 8),weights
    with learn.no_bar(), learn.no_logging(): return learn.fit_resumable(2, .05, path)


@pytest.mark.parametrize('other, what', [(dict(seed=2), "body '.*' instead of '"), (dict(seed=1, weights='random'), "weights 'ImageNet: a.pth' instead of 'random'")])
def test_a_head_is_loaded_for_the_body_and_the_weights_of_its_training_only(tmp_path, other, what):
    first = head(tmp_path/'a.safetensors', 1)
    assert head(tmp_path/'a.safetensors', 1).equals(first)
    with pytest.raises(ResumeError, match=what): head(tmp_path/'a.safetensors', **other)


def test_a_checkpoint_that_names_no_weights_is_loaded(tmp_path, monkeypatch):
    import medfast.resume as module
    whole = module._facts
    with monkeypatch.context() as m:
        m.setattr(module, '_facts', lambda *args: {k: v for k,v in whole(*args).items() if k not in ('weights', 'body')})
        first = head(tmp_path/'a.safetensors', 1)
    assert head(tmp_path/'a.safetensors', 1).equals(first)
