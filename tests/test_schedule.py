"Schedules against their formulas for many shapes, and `suggest_lr` and `EarlyStop` where things go wrong."
import math
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.tracker import SaveModelCallback
from fastai.data.core import DataLoaders, TfmdDL
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import SGD, Adam, OptimWrapper
from fastai.torch_core import get_random_states, params, set_seed
from fastcore.foundation import L
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medfast.schedule import EarlyStop, ScheduleError, cycle_lengths


def make_learner(n=40, bs=8, drop_last=False, x=None, opt_func=partial(SGD, mom=.9), **kwargs):
    set_seed(0)
    x = torch.randn(n + 16, 4) if x is None else x
    items = list(zip(x, (x.sum(1) > 0).long()))
    dls = DataLoaders(TfmdDL(items[:n], bs=bs, shuffle=True, drop_last=drop_last, num_workers=0), TfmdDL(items[n:], bs=16, num_workers=0))
    model = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(.3), nn.Linear(8, 8)), nn.Linear(8, 2))
    learn = Learner(dls, model, CrossEntropyLossFlat(), opt_func=opt_func, splitter=lambda m: L(*m).map(params), metrics=accuracy, wd=0., **kwargs)
    return learn.remove_cb(learn.progress) if hasattr(learn, 'progress') else learn


class Rates(Callback):
    "Notes the rates of all groups that a batch was trained with."
    order,run_valid = 100,False
    def before_fit(self): self.seen = []
    def after_batch(self): self.seen.append([h['lr'] for h in self.opt.hypers])


@pytest.fixture
def learn(): return make_learner()


def formula(lr, lengths, n_iter):
    return [lr/2*(1 + math.cos(math.pi*t/(n*n_iter))) for n in lengths for t in range(n*n_iter)]


# --- cycles ---------------------------------------------------------------------------------------------------------

shapes = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)).filter(lambda s: sum(cycle_lengths(*s)) <= 30)

@settings(max_examples=25, deadline=None)
@given(shapes, st.integers(1, 3))
def test_rates_of_any_cycles_are_those_of_the_formula(shape, n_batches):
    learn,rates = make_learner(n=8*n_batches), Rates()
    with learn.no_logging(): learn.fit_cycles(shape[0], [1e-4, 1e-3, 1e-2], cycle_len=shape[1], cycle_mult=shape[2], cbs=rates)
    for group,lr in enumerate([1e-4, 1e-3, 1e-2]):
        assert [r[group] for r in rates.seen] == formula(lr, cycle_lengths(*shape), n_batches)


@pytest.mark.parametrize('n', [6, 7, 9, 10, 11])
def test_equal_cycles_that_trip_fastai_by_rounding(n):
    learn = make_learner(n=8)
    with learn.no_logging(): learn.fit_cycles(n, .01)
    assert learn.recorder.lrs == [.01]*n   # one batch a cycle: always its first


def test_the_study_recipe_is_seven_epochs_at_three_rates():
    learn,rates = make_learner(), Rates()
    learn.unfreeze()
    with learn.no_logging(): learn.fit_cycles(3, np.array([1e-4, 1e-3, 1e-2]), cycle_len=1, cycle_mult=2, cbs=rates)
    assert len(learn.recorder.values) == 7 and rates.seen[0] == [1e-4, 1e-3, 1e-2]
    assert [i for i,r in enumerate(rates.seen) if r[0] == 1e-4] == [0, 5, 15]


@pytest.mark.parametrize('opt_func', [Adam, partial(OptimWrapper, opt=torch.optim.SGD)])
def test_cycles_with_other_optimisers(opt_func):
    learn,rates = make_learner(opt_func=opt_func), Rates()
    with learn.no_logging(): learn.fit_cycles(2, slice(1e-4, 1e-2), cbs=rates)
    np.testing.assert_allclose(rates.seen[5], [1e-4, 1e-3, 1e-2])


def test_stopping_and_going_on_keeps_the_schedule():
    whole,parts = make_learner(), make_learner()
    with whole.no_logging(): whole.fit_cycles(3, .1, cycle_mult=2)
    lrs = []
    for start,stop in ((0, 2), (2, 5), (5, 7)):
        class Stop(Callback):
            def after_epoch(self):
                if self.epoch == stop - 1: raise KeyboardInterrupt
        try:
            with parts.no_logging(): parts.fit_cycles(3, .1, cycle_mult=2, start_epoch=start, cbs=Stop())
        except KeyboardInterrupt: pass
        lrs += parts.recorder.lrs
    assert lrs == whole.recorder.lrs


@pytest.mark.parametrize('args, message', [
    (dict(n_cycles=0), 'n_cycles = 0: must be a whole number from 1'), (dict(n_cycles=2.), 'n_cycles = 2.0'),
    (dict(n_cycles=1, cycle_len=0), 'cycle_len = 0'), (dict(n_cycles=1, cycle_mult=-1), 'cycle_mult = -1'),
    (dict(n_cycles=1, lr_max=0.), 'Learning rate'), (dict(n_cycles=1, lr_max=float('nan')), 'Learning rate'),
    (dict(n_cycles=1, lr_max=[.1, .2]), '2 learning rates for 3 parameter groups'), (dict(n_cycles=2, start_epoch=2), 'epochs 0 to 1'), (dict(n_cycles=2, start_epoch='a'), 'epochs 0 to 1')])
def test_what_cannot_be_a_cycle(learn, args, message):
    with pytest.raises(ScheduleError, match=message): learn.fit_cycles(**args)


# --- the picture ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('fit, n_lines', [
    (lambda o: o.fit(2, .1), 1), (lambda o: o.fit(2, slice(1e-3, .1)), 3), (lambda o: o.fit_one_cycle(2, slice(1e-3, .1)), 3),
    (lambda o: o.fit_flat_cos(2, .1), 1), (lambda o: o.fit_cycles(2, slice(1e-3, .1)), 3 + 2)])
def test_plot_schedule_draws_the_rates_that_were_used(learn, fit, n_lines):
    rates = Rates()
    learn.add_cb(rates)
    with learn.no_logging(): fit(learn)
    ax = learn.plot_schedule(momentum=True)
    assert len(ax.lines) == n_lines
    drawn = np.stack([line.get_ydata() for line in ax.lines[:3 if n_lines > 1 else 1]], 1)
    np.testing.assert_allclose(np.broadcast_to(drawn, (10, 3)), rates.seen)


def test_marks_of_cycles_do_not_outlive_them(learn):
    with learn.no_logging():
        learn.fit_cycles(2, .1)
        learn.fit(2, .1)
    assert len(learn.plot_schedule().lines) == 1


# --- suggestions ----------------------------------------------------------------------------------------------------

def everything(learn):
    "What `suggest_lr` must not touch, in a form that can be compared."
    states = get_random_states()
    opt = learn.opt and ([dict(h) for h in learn.opt.hypers], [{k: v.tolist() if torch.is_tensor(v) else v for k,v in learn.opt.state[p].items()} for p in learn.model.parameters()])
    return dict(weights=[t.tolist() for t in learn.model.state_dict().values()], modes=[m.training for m in learn.model.modules()],
        grads=[p.grad is None or p.grad.tolist() for p in learn.model.parameters()], opt=opt, python=states['random_state'],
        numpy=str(states['numpy_state']), torch=states['torch_state'].tolist(), order=[dl.rng.getstate() for dl in learn.dls.loaders],
        history=(getattr(learn.recorder, 'lrs', None), [str(o) for o in getattr(learn.recorder, 'losses', [])]), cbs=[type(cb) for cb in learn.cbs],
        own={k: v for k,v in vars(learn).items() if isinstance(v, (int, float, str, Path))}, files=sorted(os.listdir('.')))


@pytest.mark.parametrize('trained', [False, True])
def test_suggest_lr_leaves_everything_as_it_was(tmp_path, monkeypatch, trained):
    monkeypatch.chdir(tmp_path)
    learn = make_learner()
    if trained:
        learn.freeze_to(1)
        with learn.no_logging(): learn.fit(2, 1e-3)
    before = everything(learn)
    first = learn.suggest_lr()
    after = everything(learn)
    assert {k for k in before if before[k] != after[k]} == set()
    assert learn.suggest_lr().losses.tolist() == first.losses.tolist()


@pytest.mark.parametrize('trouble', [KeyboardInterrupt, RuntimeError])
def test_suggest_lr_interrupted_leaves_everything_as_it_was(tmp_path, monkeypatch, trouble):
    class Trouble(Callback):
        def after_batch(self):
            if self.train_iter == 30: raise trouble('stop')
    monkeypatch.chdir(tmp_path)
    learn = make_learner(cbs=Trouble())
    before = everything(learn)
    with pytest.raises(trouble): learn.suggest_lr()
    after = everything(learn)
    assert {k for k in before if before[k] != after[k]} == set()
    assert not hasattr(learn, 'lr_finder')


def test_training_is_the_same_with_and_without_a_suggestion():
    plain,asked = make_learner(), make_learner()
    asked.suggest_lr()
    for o in (plain, asked):
        set_seed(1)
        with o.no_logging(): o.fit(2, .1)
    assert all(torch.equal(a, b) for a,b in zip(plain.model.state_dict().values(), asked.model.state_dict().values()))


def test_suggest_lr_with_a_torch_optimiser():
    learn = make_learner(opt_func=partial(OptimWrapper, opt=torch.optim.SGD, momentum=.9))
    with learn.no_logging(): learn.fit(1, 1e-3)
    before = [v['momentum_buffer'].tolist() for v in learn.opt.opt.state.values()]
    learn.suggest_lr()
    assert [v['momentum_buffer'].tolist() for v in learn.opt.opt.state.values()] == before


def test_one_batch_an_epoch_is_enough():
    assert len(make_learner(n=8).suggest_lr(num_it=60).lrs) > 10


def test_no_batch_and_no_loss_are_told_apart():
    with pytest.raises(ScheduleError, match=r'no batch \(4 items, bs=8\)'): make_learner(n=4, drop_last=True).suggest_lr()
    with pytest.raises(ScheduleError, match='Only 0 points'): make_learner(x=torch.full((56, 4), float('nan'))).suggest_lr()
    for wrong in (49, '100', 60.):
        with pytest.raises(ScheduleError, match='num_it = .*whole number from 50'): make_learner().suggest_lr(num_it=wrong)


def test_nothing_is_suggested_where_nothing_learns():
    learn = make_learner()
    for p in learn.model.parameters(): p.requires_grad_(False)
    learn.model[2].bias.requires_grad_(True)
    learn.model[2].register_forward_hook(lambda m, i, o: o*0 + torch.arange(len(o), device=o.device)[:,None]*m.bias.sum()*0)
    with pytest.raises(ScheduleError, match='did not fall'): learn.suggest_lr()


# --- early stopping -------------------------------------------------------------------------------------------------

class Scripted(Callback):
    "Gives the metric `accuracy` the values of a script, one an epoch, and marks the weights with the epoch."
    order = 55   # after the recorder, before EarlyStop
    def __init__(self, script): self.script = script
    def after_train(self):
        with torch.no_grad(): self.learn.model[2].bias.fill_(float(self.epoch))
    def after_epoch(self): self.recorder.values[-1][2] = self.script[self.epoch]


@pytest.mark.parametrize('script, patience, min_delta, n_epochs, best', [
    ([.5, .6, .7, .8], 2, 0., 4, 3), ([.5, .6, .5, .5, .9], 2, 0., 4, 1), ([.5, .5, .5], 1, 0., 2, 0),
    ([.5, .55, .58, .9], 2, .1, 3, 0), ([.5, float('nan'), .7, .6], 2, 0., 4, 2), ([.9, .1, .1], 5, 0., 3, 0)])
def test_early_stop_follows_the_script(learn, script, patience, min_delta, n_epochs, best):
    stop = EarlyStop('accuracy', patience=patience, min_delta=min_delta)
    with learn.no_logging(): learn.fit(len(script), 1e-3, cbs=[Scripted(script), stop])
    assert (len(learn.recorder.values), stop.best_epoch) == (n_epochs, best)
    assert learn.model[2].bias.tolist() == [best, best]
    assert stop.stopped == (n_epochs - 1 - best >= patience)


def test_early_stop_can_keep_the_last_weights(learn):
    with learn.no_logging(): learn.fit(3, 1e-3, cbs=[Scripted([.9, .1, .1]), EarlyStop('accuracy', patience=2, restore=False)])
    assert learn.model[2].bias.tolist() == [2, 2]


def test_early_stop_on_a_loss_goes_down(learn):
    stop = EarlyStop(patience=1)
    class Loss(Scripted):
        def after_epoch(self): self.recorder.values[-1][1] = self.script[self.epoch]
    with learn.no_logging(): learn.fit(4, 1e-3, cbs=[Loss([.9, .5, .6, .1]), stop])
    assert (stop.best_epoch, stop.best, len(learn.recorder.values)) == (1, .5, 3)


def test_early_stop_sleeps_during_other_passes(learn):
    stop = EarlyStop('accuracy', patience=1)
    learn.add_cb(stop)
    learn.suggest_lr()
    assert stop.best_epoch is None
    with learn.no_logging(): learn.fit(3, 1e-3, cbs=Scripted([.5, .9, .1]))
    weights = learn.model[2].bias.tolist()
    learn.get_preds(); learn.validate()
    assert learn.model[2].bias.tolist() == weights == [1, 1]


def test_early_stop_with_cycles_that_go_on(learn):
    stop = EarlyStop('accuracy', patience=2)
    with learn.no_logging(): learn.fit_cycles(3, .1, cycle_mult=2, start_epoch=2, cbs=[stop])
    assert stop.best_epoch >= 2


def test_early_stop_may_remember_its_best_over_two_trainings(learn):
    stop = EarlyStop('accuracy', patience=1, reset_on_fit=False)
    for script in ([.5, .9, .1], [.7]):
        with learn.no_logging(): learn.fit(len(script), 1e-3, cbs=[Scripted(script), stop])
    assert learn.model[2].bias.tolist() == [1, 1] and stop.best == .9


def test_early_stop_says_what_it_can_see(learn):
    with pytest.raises(ScheduleError, match="cannot see 'valid_acc'.*train_loss, valid_loss, accuracy"): learn.fit(1, cbs=EarlyStop('valid_acc'))
    with pytest.raises(ScheduleError, match='patience = 0'): EarlyStop(patience=0)


@pytest.mark.parametrize('wrong', [dict(monitor=None), dict(monitor=['valid_loss']), dict(min_delta='a'), dict(min_delta=float('nan')), dict(min_delta=float('inf')), dict(min_delta=-.1),
    dict(patience=-1), dict(patience=2.5), dict(patience='5'), dict(patience=True), dict(comp='less'), dict(comp=min)], ids=str)
def test_early_stop_is_checked_when_it_is_made(wrong):
    with pytest.raises(ScheduleError, match=f'{next(iter(wrong))} = .*: must be '): EarlyStop(**wrong)


def test_early_stop_takes_numbers_of_numpy():
    stop = EarlyStop('accuracy', min_delta=np.float32(.5), patience=np.int64(2), comp=np.greater)
    assert (stop.min_delta, stop.patience)==(.5, 2) and EarlyStop(min_delta=.5).min_delta==-.5
