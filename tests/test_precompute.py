"Features against the images they come from: the same bits, never stale, and everything back in its place whatever happens."
import random
from functools import partial

import numpy as np
import pytest
import torch
from fastai.callback.training import BnFreeze
from fastai.callback.data import WeightedDL
from fastai.interpret import ClassificationInterpretation
from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import SGD
from fastai.torch_core import TensorCategory, TensorImage, get_random_states, params, set_seed
from fastai.vision.augment import Flip, Resize, ResizeMethod
from fastai.vision.learner import create_head
from fastcore.foundation import L
from torch import nn

import medfast.schedule
from medfast.precompute import PrecomputeError, check_features, tensor_digest


class Images:
    "A data set of made-up images with a table behind them, whose items know who they are."
    vocab,c = ['Healthy', 'Sick'], 2
    def __init__(self, n, seed, size=16):
        g = torch.Generator().manual_seed(seed)
        self.x,self.y = torch.randn(n, 3, size, size, generator=g), torch.arange(n) % 2
        self.items = [dict(path=f'{i:04d}.txt') for i in range(n)]
    def __len__(self): return len(self.items)
    def __getitem__(self, i): return TensorImage(self.x[i]), TensorCategory(self.y[i])


def body(wide=8):
    conv = lambda i,o: [nn.Conv2d(i, o, 3, stride=2, padding=1), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*conv(3, wide), *conv(wide, 16))


def make_learner(dls=None, ps=0., head=None, seed=0, bs=8, shuffle=True, drop_last=True, tfms=None, dl_type=TfmdDL, **kwargs):
    set_seed(seed)
    train,valid = Images(28, 1), Images(18, 2)
    dls = dls or DataLoaders(dl_type(train, bs=bs, shuffle=shuffle, drop_last=drop_last, num_workers=0, after_batch=tfms),
        TfmdDL(valid, bs=bs, num_workers=0), TfmdDL(Images(6, 3), bs=bs, num_workers=0))
    model = nn.Sequential(body(), head() if head else create_head(16, 2, ps=ps))
    learn = Learner(dls, model, CrossEntropyLossFlat(), opt_func=partial(SGD, mom=.9), wd=0., metrics=accuracy, train_bn=False, cbs=BnFreeze,
        splitter=lambda m: L(m[0][:3], m[0][3:], m[1:]).map(params), **kwargs)
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    learn.logger = lambda *a: None
    learn.freeze()
    return learn


@pytest.fixture
def learn(): return make_learner()


def same(a, b): return all(torch.equal(p, q) for p,q in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True))


# --- the same bits --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('options', [dict(shuffle=False), dict(), dict(ps=.5), dict(drop_last=False), dict(head=lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 2))),
    dict(head=lambda: nn.Sequential(nn.Conv2d(16, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))), dict(dl_type=partial(WeightedDL, wgts=np.arange(28)))], ids=['in order', 'shuffled', 'dropout', 'last batch', 'flat head', 'maps', 'weighted'])
@pytest.mark.parametrize('fit', [lambda o: o.fit(2, .05), lambda o: o.fit_one_cycle(2, .05), lambda o: o.fit_cycles(2, .05, cycle_mult=2)], ids=['fit', 'one_cycle', 'cycles'])
def test_training_on_features_and_on_images_is_bit_equal(options, fit):
    plain,quick = make_learner(**options), make_learner(**options)
    set_seed(5)
    fit(plain)
    set_seed(5)
    with quick.precomputed(): fit(quick)
    assert same(plain, quick)
    np.testing.assert_array_equal(plain.recorder.losses, quick.recorder.losses)
    assert [list(v) for v in plain.recorder.values] == [list(v) for v in quick.recorder.values]
    assert plain.dls.train.rng.getstate() == quick.dls.train.rng.getstate()


def test_training_goes_on_outside_as_if_nothing_had_been_replaced():
    plain,quick = make_learner(ps=.5), make_learner(ps=.5)
    set_seed(5)
    plain.fit(1, .05); plain.opt.clear_state(); plain.unfreeze(); plain.fit(1, 1e-3)
    set_seed(5)
    with quick.precomputed(): quick.fit(1, .05)
    quick.unfreeze(); quick.fit(1, 1e-3)
    assert same(plain, quick)


@pytest.mark.parametrize('ds_idx', [0, 1])
def test_head_inside_and_network_outside_say_the_same(learn, ds_idx):
    with learn.precomputed():
        learn.fit(1, .05)
        inside,losses = learn.get_preds(ds_idx), learn.validate()
    outside = learn.get_preds(ds_idx)
    assert torch.equal(inside[0], outside[0]) and torch.equal(inside[1], outside[1]) and list(losses) == list(learn.validate())


def test_batch_norm_of_the_body_does_not_move(learn):
    learn.remove_cb(BnFreeze)
    before = [b.clone() for b in learn.model[0].buffers()]
    with learn.precomputed(): learn.fit(2, .05)
    assert all(torch.equal(a, b) for a,b in zip(before, learn.model[0].buffers()))


def test_suggest_lr_inside_changes_nothing(learn):
    other = make_learner()
    set_seed(5)
    with learn.precomputed():
        learn.suggest_lr()
        learn.fit(1, .05)
    set_seed(5)
    with other.precomputed(): other.fit(1, .05)
    assert same(learn, other)


def test_lr_find_of_fastai_works_inside(learn, tmp_path):
    learn.path = tmp_path
    with learn.precomputed(): assert learn.lr_find(show_plot=False).valley > 0


def test_items_and_classes_can_be_asked_for_inside(learn):
    with learn.precomputed():
        assert learn.dls.vocab == ['Healthy', 'Sick'] and learn.dls.valid_ds.items[3]['path'] == '0003.txt'
        matrix = ClassificationInterpretation.from_learner(learn)
        assert len(matrix.losses) == 18


# --- everything back ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('trouble', [None, ValueError, KeyboardInterrupt])
def test_leaving_puts_everything_back(learn, trouble):
    before = [getattr(learn, k) for k in ('model', 'dls', 'splitter', 'path', 'loss_func')]
    cls,own,opt,grads = type(learn), set(vars(learn)), learn.opt, [p.requires_grad for p in learn.model.parameters()]
    learn.model.train()
    try:
        with learn.precomputed():
            learn.fit(1, .05)
            if trouble: raise trouble('inside')
    except (ValueError, KeyboardInterrupt) as e: assert type(e) is trouble
    assert all(a is b for a,b in zip(before, [getattr(learn, k) for k in ('model', 'dls', 'splitter', 'path', 'loss_func')]))
    assert type(learn) is cls and own <= set(vars(learn)) and grads == [p.requires_grad for p in learn.model.parameters()]
    assert learn.opt is not opt and len(learn.opt.param_lists) == 3 and learn.opt.frozen_idx == 2
    assert not any('grad_avg' in s for s in learn.opt.state.values())


def test_interrupted_while_features_are_computed(learn):
    model,dls = learn.model,learn.dls
    def stop(*args): raise KeyboardInterrupt
    handle = learn.model[0][3].register_forward_hook(stop)
    modes = [m.training for m in model.modules()]
    with pytest.raises(KeyboardInterrupt):
        with learn.precomputed(): pass
    assert learn.model is model and learn.dls is dls and type(learn) is Learner and modes == [m.training for m in model.modules()]
    handle.remove()


def test_a_learner_without_optimiser_stays_without():
    learn = make_learner()
    learn.opt = None
    with learn.precomputed(): learn.fit(1, .05)
    assert learn.opt is None


def test_entering_and_leaving_draws_no_random_number(learn):
    set_seed(3)
    before,order = str(get_random_states()), learn.dls.train.rng.getstate()
    with learn.precomputed(): pass
    assert str(get_random_states()) == before and learn.dls.train.rng.getstate() == order


# --- refused --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('call', [lambda o: o.tta(), lambda o: o.predict(o.dls.valid_ds[0]), lambda o: o.show_results(), lambda o: o.unfreeze(),
    lambda o: o.freeze_to(1), lambda o: o.freeze_to(0), lambda o: o.fine_tune(1), lambda o: o.save('x'), lambda o: o.load('x'), lambda o: o.export('x'),
    lambda o: o.dls.test_dl([1]), lambda o: o.dls.show_batch(), lambda o: o.get_preds(2), lambda o: o.validate(2), lambda o: o.get_preds(dl=o.image_dl),
    lambda o: o.validate(dl=o.image_dl), lambda o: ClassificationInterpretation.from_learner(o).plot_top_losses(2), lambda o: o.precomputed()])
def test_what_needs_images_says_so(learn, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn.image_dl = learn.dls.valid
    with learn.precomputed():
        with pytest.raises(PrecomputeError, match='leave the block first'): call(learn)
    assert not list(tmp_path.iterdir())
    assert learn.freeze() is None


@pytest.mark.parametrize('train_bn, advice', [(True, True), (False, False)])
def test_an_unfrozen_body_is_refused_and_the_advice_helps(train_bn, advice):
    learn = make_learner()
    learn.train_bn = train_bn
    learn.create_opt()
    learn.freeze() if train_bn else learn.unfreeze()
    with pytest.raises(PrecomputeError, match='parameters of the body would learn'):
        with learn.precomputed(): pass
    learn.train_bn = False; learn.create_opt(); learn.freeze()   # as the message says
    with learn.precomputed(): learn.fit(1, .05)


def test_a_network_of_one_piece_is_refused(learn):
    learn.model = nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.Linear(4, 2))
    with pytest.raises(PrecomputeError, match='not nn.Sequential'):
        with learn.precomputed(): pass


def images_of_pixels():
    from PIL import Image
    return [Image.fromarray((np.random.default_rng(i).random((40, 30, 3))*255).astype('uint8')) for i in range(20)]


@pytest.mark.parametrize('resize, message', [(Resize(16), r'random \(Resize\)'), (Resize(16, ResizeMethod.Squish), None)])
def test_the_random_crop_of_resize_is_found(resize, message):
    from fastai.vision.core import PILImage, ToTensor
    from fastai.data.transforms import IntToFloatTensor
    images = images_of_pixels()
    ds = Datasets(list(range(20)), [[lambda i: PILImage(images[i])], [lambda i: TensorCategory(i % 2)]], splits=[range(12), range(12, 20)])
    dls = ds.dataloaders(bs=4, after_item=[resize, ToTensor()], after_batch=[IntToFloatTensor()], num_workers=0)
    learn = make_learner(dls)
    if message is None:
        with learn.precomputed(): return learn.fit(1, .05)
    with pytest.raises(PrecomputeError, match=message):
        with learn.precomputed(): pass


def test_augmentation_asks_for_views_and_views_for_augmentation(learn):
    with pytest.raises(PrecomputeError, match=r'augmented at random \(Flip\).*views=4'):
        with make_learner(tfms=Flip()).precomputed(): pass
    with make_learner(tfms=Flip(p=0.)).precomputed(): pass
    for views in (0, 1.5, -1):
        with pytest.raises(PrecomputeError, match='must be a whole number'):
            with learn.precomputed(views=views): pass


# --- views ----------------------------------------------------------------------------------------------------------

def brighter(x:TensorImage): return x + torch.rand(len(x), 1, 1, 1).to(x.device)


def test_views_differ_are_all_drawn_and_the_same_seed_gives_the_same():
    def train(seed):
        learn = make_learner(tfms=brighter)
        set_seed(7)
        with learn.precomputed(views=3, seed=seed) as kept:
            ds = learn.dls.train_ds
            learn.fit(2, .05)
        return learn, kept, ds
    a,kept,ds = train(1)
    assert kept.views == 3 and kept.computed == 3*4 + 3 and not torch.equal(ds.views[0], ds.views[1])
    rng = random.Random(0)
    drawn = {tuple(ds.take([5], rng)[0][0].tolist()) for _ in range(50)}
    assert drawn == {tuple(v[5].tolist()) for v in ds.views}
    assert same(a, train(1)[0]) and not same(a, train(2)[0])


def test_training_batches_mix_the_views_and_predictions_keep_to_the_first():
    learn = make_learner(tfms=brighter, drop_last=False)
    with learn.precomputed(views=3):
        views,seen = learn.dls.train_ds.views, torch.cat([b[0] for b in learn.dls.train])
        assert {v for v in range(3) for x in seen if (views[v] == x).all(1).any()} == {0, 1, 2}
        learn.model.eval()
        with torch.no_grad(): assert torch.equal(learn.get_preds(0)[0], torch.cat([learn.model(x) for x in views[0].split(8)]).softmax(1))


# --- never stale ----------------------------------------------------------------------------------------------------

def counts(learn, **kwargs):
    with learn.precomputed(**kwargs) as kept: return kept.computed, kept.reused


def test_changes_that_must_be_noticed(learn):
    assert counts(learn) == (7, 0) and counts(learn) == (0, 7)
    learn.dls.train_ds.x[0, 0, 0, 0] += 1e-6             # one pixel of one image
    assert counts(learn) == (1, 6)
    x = learn.dls.train_ds.x
    x[:] = x.flip(0).clone()                             # the order
    assert counts(learn)[0] >= 4
    learn.dls.train_ds.x = x[:, :, :8, :8].contiguous()  # the size
    assert counts(learn) == (4, 3)
    learn.model[0][1].running_var[0] += 1e-6             # a running statistic
    assert counts(learn) == (7, 0)
    with torch.no_grad(): learn.model[0][0].bias[0] += 1e-6
    assert counts(learn) == (7, 0)
    learn.model[0][0].stride = (1, 1)                    # the structure
    assert counts(learn) == (7, 0)


def test_other_images_of_the_same_number_are_not_mixed_up(tmp_path):
    a,b = make_learner(), make_learner()
    b.dls.train_ds.x = Images(28, 77).x
    assert counts(a, folder=tmp_path) == (7, 0) and counts(b, folder=tmp_path) == (4, 3)
    with b.precomputed(folder=tmp_path): kept = b.dls.train_ds.views[0]
    with torch.no_grad(): wanted = nn.Sequential(b.model[0], b.model[1][:2]).eval()(b.dls.train_ds.x[:8])
    assert torch.equal(kept[:8], wanted)


def test_labels_are_read_anew(learn):
    with learn.precomputed(): pass
    learn.dls.train_ds.y = 1 - learn.dls.train_ds.y
    with learn.precomputed() as kept: assert kept.computed == 0 and learn.get_preds(0)[1].tolist() == [1, 0]*14


def test_files_changed_on_the_disk_are_noticed(small_study):
    from medfast.catalog import dmr_catalog
    from medfast.loaders import study_dls
    from medfast.models import medical_learner
    from medfast.split import split_catalog
    catalog = split_catalog(dmr_catalog(small_study), valid=.25)
    def learner(size=32, **kwargs):
        dls = study_dls(catalog, size=size, bs=4, device='cpu', **kwargs)
        learn = medical_learner(dls, 'squeezenet1_1', pretrained=False, recipe='study', freeze=True)
        return learn.remove_cb(learn.progress) if hasattr(learn, 'progress') else learn
    learn = learner()
    computed,_ = counts(learn)
    assert computed == 4 and counts(learn) == (0, 4)
    for changed in (learner(size=24), learner(low=15.), learner(stats=None)):
        changed.model = learn.model
        learn.dls = changed.dls
        assert counts(learn) == (4, 0)
    with pytest.raises(PrecomputeError, match='augmented at random'): counts(learner(augment='thermogram'))
    with learner(augment='thermogram').precomputed(views=2) as kept: assert kept.views == 2


# --- on the disk ----------------------------------------------------------------------------------------------------

def test_a_folder_serves_another_learner_and_an_interrupted_one(tmp_path):
    first = make_learner()
    seen = []
    def stop(*args):
        seen.append(1)
        if len(seen) == 4: raise KeyboardInterrupt
    handle = first.model[0][3].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt): counts(first, folder=tmp_path)
    assert len(list(tmp_path.rglob('*.safetensors'))) == 3 and not list(tmp_path.rglob('.writing*'))
    handle.remove()
    assert counts(make_learner(), folder=tmp_path) == (4, 3)
    quick,plain = make_learner(), make_learner()
    with quick.precomputed(folder=tmp_path) as kept: quick.fit(1, .05)
    plain.fit(1, .05)
    assert kept.computed == 0 and same(quick, plain)


@pytest.mark.parametrize('damage', [lambda f: f.write_bytes(f.read_bytes()[:-5]), lambda f: f.write_bytes(b''), lambda f: f.write_bytes(b'no tensors'),
    lambda f: f.write_bytes(f.read_bytes()[:-1] + bytes([f.read_bytes()[-1] ^ 1])), lambda f: f.write_bytes(next(o for o in f.parent.iterdir() if o != f).read_bytes())])
def test_damaged_files_are_named_and_never_used(tmp_path, damage):
    counts(make_learner(), folder=tmp_path)
    fn = sorted(tmp_path.rglob('*.safetensors'))[0]
    damage(fn)
    with pytest.raises(PrecomputeError, match=f'{fn.name} .* damaged'): counts(make_learner(), folder=tmp_path)
    fn.unlink()
    assert counts(make_learner(), folder=tmp_path) == (1, 6)


def test_memory_goes_with_the_learner():
    import gc
    import weakref
    from medfast.precompute import _memory
    learn = make_learner()
    counts(learn)
    gone,n = weakref.ref(learn), len(_memory)
    del learn
    gc.collect()
    assert gone() is None and len(_memory) < n


def test_the_body_of_the_features_is_known_inside_only(learn):
    body = learn.model[0]
    with learn.precomputed(): assert learn.frozen_body is body
    assert 'frozen_body' not in vars(learn)


def test_check_features_refuses_what_the_block_would_and_computes_nothing(learn):
    handle = learn.model[0].register_forward_hook(lambda *a: 1/0)
    check_features(learn)
    handle.remove()
    with pytest.raises(PrecomputeError, match='augmented at random'): check_features(make_learner(tfms=Flip()))
    learn.unfreeze()
    with pytest.raises(PrecomputeError, match='would learn'): check_features(learn)


def test_a_digest_tells_bytes_shape_type_order_and_names_apart():
    x = torch.arange(6, dtype=torch.float32)
    others = [x, x.view(2, 3), x.view(3, 2), x.flip(0), x.view(torch.int32), x[:5], x.bool(), torch.tensor(1.)]
    assert len({tensor_digest(o) for o in others} | {tensor_digest('a', x), tensor_digest('b', x), tensor_digest(x, x)}) == len(others) + 3
    assert tensor_digest(x) == tensor_digest(x.clone()) == tensor_digest(x.expand(2, 6)[0]) and len(tensor_digest(x)) == 64
