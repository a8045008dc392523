"Small images in memory: batches, what a seed decides, what fastai and medfast do with them, what is refused; and augmentations."
import pickle
import random
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from fastai.learner import Learner, load_learner
from fastai.torch_core import no_random
from fastai.vision.augment import Rotate
from fastai.vision.core import TensorImage
from fasttransform import Transform
from PIL import Image
from torch import nn

import medfast.precompute
import medfast.predictions
import medfast.resume
import medfast.schedule
from medfast.arrays import ArrayDL, Arrays, Grey, Levels, fit_stats
from medfast.augment import Erase, augmentation_options, augmentations, pose_mat
from medfast.interpret import plot_cam
from medfast.loaders import LoaderError, array_dls, plot_augmentations, study_dls
from medfast.settings import set_seeds
from medfast.split import LeakageError, drop_leaks

PARTS = dict(train=40, valid=12, test=8)


def made_up(n=60, colour=False):
    "Noise, and a bright spot on the left or on the right."
    rng,y = np.random.default_rng(0), np.arange(n)%2
    x = rng.integers(0, 100, (n, 12, 12, 3) if colour else (n, 12, 12), dtype=np.uint8)
    for i,k in enumerate(y): x[i, 3:9, 1 + 6*k:5 + 6*k] += 120
    return x


@pytest.fixture
def images(): return made_up()


@pytest.fixture
def catalog():
    split = [p for p,n in PARTS.items() for _ in range(n)]
    return pd.DataFrame(dict(path=[f'array {i}' for i in range(60)], label=['left', 'right']*30, split=split))


@pytest.fixture
def archive(tmp_path, catalog, images):
    "The same as an archive, and its catalog."
    ends = dict(train=(0, 40), val=(40, 52), test=(52, 60))
    np.savez(tmp_path/'a.npz', classes=['left', 'right'], **{f'{p}_images': images[a:b] for p,(a,b) in ends.items()}, **{f'{p}_labels': np.arange(a, b)%2 for p,(a,b) in ends.items()})
    return catalog.assign(path=[f'{tmp_path/"a.npz"}#{p}/{i}' for p,(a,b) in ends.items() for i in range(b - a)])


@pytest.fixture
def pictures(tmp_path, catalog, images):
    "The same as files."
    paths = [str(tmp_path/f'{i:02d}.png') for i in range(60)]
    for p,x in zip(paths, images): Image.fromarray(x).save(p)
    return catalog.assign(path=paths)


def batches(dls, epochs=2):
    set_seeds(7)
    return [b for _ in range(epochs) for b in dls.train]


def same(one, other): return len(one)==len(other) and all(torch.equal(p, q) for a,b in zip(one, other) for p,q in zip(a, b))


def learner(dls, loss=None, n_out=2):
    set_seeds(3)
    body = nn.Sequential(nn.Conv2d(dls.n_in, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, n_out))
    learn = Learner(dls, nn.Sequential(body, head), loss or CrossEntropyLossFlat(), splitter=lambda m: [list(m[0].parameters()), list(m[1].parameters())])
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    learn.logger = lambda *args: None
    return learn


# batches

def test_a_batch_is_normalised_floats_and_class_numbers(catalog, images):
    xb,yb = array_dls(catalog, images=images, bs=8).one_batch()
    assert xb.shape==(8, 1, 12, 12) and xb.dtype==torch.float32 and yb.shape==(8,) and yb.dtype==torch.int64


def test_pixels_are_those_of_the_rows_in_all_parts(catalog, images):
    dls = array_dls(catalog, images=images, bs=7, stats=None)
    for i,(a,b) in enumerate([(0, 40), (40, 52), (52, 60)]):
        x,y = [torch.cat(o) for o in zip(*dls[i].new(shuffle=False, drop_last=False))]
        assert np.array_equal(x[:,0].numpy(), images[a:b]/np.float32(255)) and y.tolist()==[j%2 for j in range(a, b)]


def test_an_epoch_holds_every_row_once_in_a_new_order(catalog, images):
    dls = array_dls(catalog, images=images, bs=8, stats=None)
    epochs = [torch.cat([x for x,_ in dls.train]) for _ in range(2)]
    assert not torch.equal(*epochs)
    for e in epochs: assert sorted(e.sum((1, 2, 3)).tolist())==pytest.approx(sorted((images[:40].sum((1, 2))/255).tolist()), abs=1e-3)


def test_the_last_small_batch_is_dropped_in_training_only(catalog, images):
    dls = array_dls(catalog, images=images, bs=9)
    assert [len(list(dl)) for dl in dls.loaders]==[4, 2, 1]
    assert len(list(array_dls(catalog, images=images, bs=9, drop_last=False).train))==5


@pytest.mark.parametrize('augment', [None, 'chest', 'organ', 'radiography', 'thermogram'])
def test_same_seed_same_batches_bit_for_bit(catalog, images, augment):
    first = batches(array_dls(catalog, images=images, bs=8, augment=augment))
    random.seed(99); torch.manual_seed(99)
    assert same(first, batches(array_dls(catalog, images=images, bs=8, augment=augment)))
    assert not same(first, batches(array_dls(catalog, images=images, bs=8, augment=augment, seed=1)))


def test_making_loaders_leaves_the_random_state_alone(catalog, images):
    set_seeds(5)
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    array_dls(catalog, images=images, bs=8, augment='organ')
    assert random.getstate()==before[0] and torch.equal(torch.get_rng_state(), before[1]) and (np.random.get_state()[1]==before[2]).all()


def test_archive_files_and_arrays_give_the_same_batches(catalog, images, archive, pictures):
    given = batches(array_dls(catalog, images=images, bs=8))
    assert same(given, batches(array_dls(archive, bs=8))) and same(given, batches(array_dls(catalog, images=torch.tensor(images), bs=8)))
    assert same(given, batches(array_dls(catalog, images=images[..., None], bs=8)))
    files = batches(array_dls(pictures, size=12, bs=8))
    assert all(torch.allclose(a[0], b[0], atol=1e-5) and torch.equal(a[1], b[1]) for a,b in zip(given, files))


@pytest.mark.parametrize('size', [12, 9, (8, 16)])
def test_in_memory_and_from_files_the_batches_are_the_same(pictures, archive, size):
    options = dict(size=size, bs=8, stats=([.485, .456, .406], [.229, .224, .225]))
    wanted = batches(study_dls(pictures, **options))
    assert same(wanted, batches(array_dls(pictures, n_in=3, **options))) and same(wanted, batches(array_dls(archive, n_in=3, **options)))


def test_the_order_of_the_rows_in_the_catalog_is_kept(catalog, images):
    order = np.random.default_rng(1).permutation(60)
    one,other = array_dls(catalog, images=images, bs=8, stats=None), array_dls(catalog.iloc[order], images=images[order], bs=8, stats=None)
    assert sorted(map(float, torch.cat([x for x,_ in one.valid]).sum((1, 2, 3))))==pytest.approx(sorted(map(float, torch.cat([x for x,_ in other.valid]).sum((1, 2, 3)))))
    assert [r['path'] for r in other.valid_ds.items]==list(other.catalogs['valid'].path)


def test_only_training_batches_are_augmented(catalog, images):
    plain,aug = array_dls(catalog, images=images, bs=8),array_dls(catalog, images=images, bs=8, augment='organ')
    for i in (1, 2): assert torch.equal(plain[i].one_batch()[0], aug[i].one_batch()[0])
    one = aug.train.new(shuffle=False)
    assert not torch.equal(one.one_batch()[0], one.one_batch()[0])


def test_bytes_stay_bytes_in_memory_and_what_is_given_is_not_touched(catalog, images):
    before = images.copy()
    dls = array_dls(catalog, images=images, bs=8)
    assert dls.train_ds.x.dtype==torch.uint8
    images[:] = 0
    assert np.array_equal(dls.train_ds.x[:, 0].numpy(), before[:40])


def test_nothing_that_may_not_be_written_to_is_warned_of(catalog, images, archive, pictures, small_study):
    "Neither an array of the caller's, nor a table of pandas', nor an archive in memory, nor a file; copied rows included."
    from medfast.catalog import dmr_catalog
    from medfast.split import split_catalog, upsample_training
    study = upsample_training(split_catalog(dmr_catalog(small_study), valid=.25, test=.25, seed=1))
    images.flags.writeable = False
    few = [c.drop(index=range(0, 30, 2)) for c in (catalog, archive, pictures)]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for c,options in zip(map(upsample_training, few), (dict(images=images[few[0].index]), {}, dict(size=12))): array_dls(c, bs=8, **options).one_batch()
        for make in (array_dls, study_dls): make(study, size=16, bs=4).one_batch()


def test_transforms_of_a_batch_see_images_only():
    ds = Arrays(torch.tensor([[[[2]]], [[[4]]]], dtype=torch.uint8), torch.tensor([0, 1]), ['a', 'b'], ['zero', 'one'])
    x,y = ArrayDL(ds, bs=2, num_workers=0, after_batch=lambda o: o*10).one_batch()
    assert x.flatten().tolist()==[20, 40] and y.tolist()==[0, 1]
    assert ArrayDL(ds, bs=2, num_workers=0, after_batch=Levels()).new(shuffle=False).one_batch()[1].tolist()==[0, 1]


def test_the_loader_costs_little_beside_indexing():
    "A batch of 128 slices, cut out, scaled and normalised: within a few times of the bare arithmetic."
    import time
    x,n = np.random.default_rng(0).integers(0, 256, (4096, 28, 28), dtype=np.uint8), 4096
    c = pd.DataFrame(dict(path=[f'array {i}' for i in range(n + 8)], label=['a', 'b']*(n//2 + 4), split=['train']*n + ['valid']*8))
    dls = array_dls(c, images=np.concatenate([x, 255 - x[:8]]), bs=128)
    ds,((mean,),(std,)) = dls.train_ds, dls.stats
    def bare():
        for rows in torch.randperm(n).split(128): (ds.x[rows].float()/255 - mean)/std, ds.y[rows]
    def loader():
        for _ in dls.train: pass
    times = {f: [] for f in (bare, loader)}
    for _ in range(15):
        for f in times:
            start = time.process_time()
            f()
            times[f].append(time.process_time() - start)
    assert min(times[loader]) < 6*min(times[bare])


# channels and scales

def test_colour_has_three_channels_and_grey_on_request(catalog):
    images = made_up(colour=True)
    assert array_dls(catalog, images=images, bs=8).n_in==3
    grey = array_dls(catalog, images=images, bs=8, n_in=1, stats=None)
    x = grey.valid.one_batch()[0]
    assert grey.train_ds.x.dtype==torch.uint8 and np.abs(x[:, 0].numpy()*255 - images[40:48] @ [.299, .587, .114]).max() < .5001
    assert torch.equal(grey.test_dl([images[40]]).one_batch()[0][0], x[0])


def test_grey_stored_in_colour_keeps_every_bit(catalog, images):
    for x in (images, (images/255).astype(np.float32)):
        one,three = [array_dls(catalog, images=o, bs=8, n_in=1).valid.one_batch()[0] for o in (x, np.stack([x]*3, -1))]
        assert torch.equal(one, three)


def test_grey_is_spread_for_three_channels_but_kept_once(catalog, images):
    dls = array_dls(catalog, images=images, bs=8, n_in=3)
    x = dls.one_batch()[0]
    assert x.shape[1]==3 and torch.equal(x[:, 0], x[:, 2]) and dls.train_ds.x.shape[1]==1 and len(dls.stats[0])==3


def said(f):
    "What `f` gives, and its warnings."
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        return f(), [str(o.message) for o in told]


@pytest.mark.parametrize('n_in', [None, 3])
def test_a_colour_picture_outside_training_changes_no_number_of_the_training(pictures, n_in):
    before = array_dls(pictures, size=12, bs=8, n_in=n_in)
    for i,c in ((45, 'red'), (55, 'blue')): Image.new('RGB', (12, 12), c).save(pictures.path[i])
    dls,told = said(lambda: array_dls(pictures, size=12, bs=8, n_in=n_in))
    assert (dls.n_in, dls.stats)==(before.n_in, before.stats) and same(batches(before), batches(dls)) and dls.valid_ds.x.shape[1]==1
    assert len(told)==1 and told[0].startswith('2 pictures are in colour')
    assert not said(lambda: array_dls(pictures, size=12, bs=8, n_in=1))[1]


def test_one_colour_picture_in_training_makes_all_parts_colour(pictures):
    Image.new('RGB', (12, 12), 'red').save(pictures.path[5])
    dls = array_dls(pictures, size=12, bs=8)
    assert dls.n_in==3 and [dl.one_batch()[0].shape[1] for dl in dls.loaders]==[3]*3


def test_12_bits_in_16_are_warned_of_once_and_counted(tmp_path, catalog, images):
    levels = images.astype(np.uint16)*16
    files = catalog.assign(path=[str(tmp_path/f'{i:02d}.png') for i in range(60)])
    for fn,x in zip(files.path, levels): Image.fromarray(x).save(fn)
    for make in (lambda: array_dls(catalog, images=levels, bs=8), lambda: array_dls(files, size=12, bs=8)):
        told = said(make)[1]
        assert [o.partition(',')[0] for o in told]==['60 pictures are nearly black']
    told = said(lambda: list(study_dls(files, size=12, bs=8).train))[1]
    assert len(told)==1 and told[0].startswith('1 picture is nearly black')
    assert not said(lambda: array_dls(catalog, images=levels*16, bs=8))[1]


@pytest.mark.parametrize('to', [lambda x: (x*257.).astype(np.uint16), lambda x: x/255, lambda x: (x/255).astype(np.float32)], ids=['uint16', 'float64', 'float32'])
def test_levels_of_any_depth_are_one_scale(catalog, images, to):
    one,other = [array_dls(catalog, images=x, bs=8, stats=None).valid.one_batch()[0] for x in (images, to(images))]
    assert torch.allclose(one, other, atol=1e-6)


def test_thermograms_stay_degrees(small_study):
    from medfast.catalog import dmr_catalog
    from medfast.split import split_catalog
    catalog = split_catalog(dmr_catalog(small_study), valid=.25, test=.25, seed=1)
    dls = array_dls(catalog, size=24, bs=4)
    temps = dls.valid.decode(dls.valid.one_batch())[0]
    assert 15 < temps.min() and temps.max() < 45 and type(temps).__name__=='Thermogram' and dls.train_ds.x.dtype==torch.float32


@pytest.mark.parametrize('options', [dict(n_in=1), dict(n_in=3), {}])
def test_pictures_of_16_bits_keep_their_levels(tmp_path, catalog, options):
    levels = np.random.default_rng(0).integers(0, 65536, (60, 12, 12), dtype=np.uint16)
    files = catalog.assign(path=[str(tmp_path/f'{i}.png') for i in range(60)])
    for fn,x in zip(files.path, levels): Image.fromarray(x).save(fn)
    one,other = [array_dls(c, bs=8, stats=None, **options, **o).valid.one_batch()[0] for c,o in ((files, dict(size=12)), (catalog, dict(images=levels)))]
    assert torch.equal(one, other) and np.array_equal(one[:, 0].numpy(), levels[40:48]/np.float32(65535)) and len(one[0].unique()) > 100


def test_new_pictures_of_16_bits_are_read_like_those_in_memory(catalog):
    levels = np.random.default_rng(0).integers(0, 65536, (60, 12, 12), dtype=np.uint16)
    dls = array_dls(catalog, images=levels, bs=8)
    for item in (levels[41], Image.fromarray(levels[41])): assert torch.allclose(dls.test_dl([item]).one_batch()[0][0], dls.valid.one_batch()[0][1], atol=1e-6)


@pytest.mark.parametrize('colour,side,task', [(True, 224, 'multi-class'), (False, 224, 'binary-class'), (True, 28, 'ordinal-regression'), (False, 64, 'multi-label')])
def test_archives_of_every_size_colour_and_task(tmp_path, colour, side, task):
    "As MedMNIST writes them: labels (n, 1), or (n, findings) of zeros and ones; grades in their order."
    from medfast.catalog import medmnist_catalog
    rng,multi = np.random.default_rng(0), task=='multi-label'
    names = {'multi-class': ['a', 'b', 'c'], 'binary-class': ['normal', 'ill'], 'ordinal-regression': ['0', '1', '2', '3', '4'], 'multi-label': ['mass', 'effusion']}[task]
    arrays = {}
    for part,n in dict(train=20, val=6, test=5).items():
        arrays[f'{part}_images'] = rng.integers(0, 256, (n, side, side, 3) if colour else (n, side, side), dtype=np.uint8)
        arrays[f'{part}_labels'] = rng.integers(0, 2, (n, len(names))) if multi else np.arange(n)[:, None]%len(names)
    fn = tmp_path/('retinamnist.npz' if task=='ordinal-regression' else 'own.npz')
    np.savez(fn, **{} if fn.stem=='retinamnist' else dict(classes=names), **arrays)
    with warnings.catch_warnings(record=True): catalog = medmnist_catalog(fn)
    dls = array_dls(catalog, bs=4, augment='organ')
    x,y = dls[2].one_batch()
    assert set(catalog.task)=={task} and dls.multi_label==multi and sorted(names)==list(dls.vocab) and x.shape[1:]==(3 if colour else 1, side, side) and dls.train_ds.x.dtype==torch.uint8
    wanted = arrays['test_labels'][:4]
    said = [[names[j] for j in np.flatnonzero(o)] if multi else [names[o[0]]] for o in wanted]
    assert [sorted(np.atleast_1d(dls[2].dataset.decode((a, b))[1]).tolist()) for a,b in zip(x, y)]==[sorted(o) for o in said]
    means,stds = [torch.tensor(o)[:, None, None] for o in dls.stats]
    assert torch.allclose((x[0]*stds + means)*255, torch.tensor(arrays['test_images'][0].reshape(side, side, -1)).permute(2, 0, 1).float(), atol=1e-2)
    assert dls.one_batch()[0].shape==(4, *x.shape[1:])


# normalisation

def test_stats_are_exact_and_of_training_alone(catalog, images):
    dls = array_dls(catalog, images=images, bs=8, augment='organ')
    assert np.ravel(dls.stats)==pytest.approx([(images[:40]/255).mean(), (images[:40]/255).std()], abs=1e-12)
    images[40:] = 255 - np.arange(20)[:, None, None]
    assert array_dls(catalog, images=images, bs=8).stats==dls.stats


def test_stats_have_one_number_a_channel_and_do_not_depend_on_chunks():
    x = torch.tensor(made_up(colour=True)).permute(0, 3, 1, 2)
    wanted = x.numpy()/255
    for n in (1, 7, 60): assert np.array(fit_stats(x.split(n)))==pytest.approx(np.array([wanted.mean((0, 2, 3)), wanted.std((0, 2, 3))]), abs=1e-12)


def test_copies_do_not_count_in_the_stats(catalog, images):
    more = pd.concat([catalog.assign(copy=0), catalog[:4].assign(copy=1)])
    assert array_dls(more, images=images, bs=8).stats==array_dls(catalog, images=images, bs=8).stats


@pytest.mark.parametrize('stats,words', [('all', "'train'"), (([.5]*3, [.5]*3), 'one number each'), ((.5, 0), 'above 0'), ((.5,), "'train'"), (('a', 'b'), "'train'"),
    ((128, 60), 'scale 0..1'), (dict(mean=.5, std=.2), "'train'"), ((np.nan, 1), 'above 0')])
def test_stats_that_cannot_be_say_why(catalog, images, stats, words):
    with pytest.raises(LoaderError, match=words): array_dls(catalog, images=images, bs=8, stats=stats)


# copies

def test_a_copy_shares_the_memory_of_its_image(catalog, images, archive):
    for c,x in ((catalog, images), (archive, None)):
        more = pd.concat([c.assign(copy=0), c[:4].assign(copy=1)], ignore_index=True)
        dls = array_dls(more, images=x, bs=8, stats=None)
        assert len(dls.train_ds)==44 and len(dls.train_ds.x)==40
        for i in range(4): assert torch.equal(dls.train_ds[40 + i][0], dls.train_ds[i][0]) and int(dls.train_ds[40 + i][1])==i%2


def test_a_copy_may_bring_an_image_of_its_own(catalog, images):
    more = pd.concat([catalog.assign(copy=0), catalog[:1].assign(copy=1)], ignore_index=True)
    dls = array_dls(more, images=np.concatenate([images, np.full((1, 12, 12), 7, np.uint8)]), bs=8, stats=None)
    assert torch.allclose(dls.train_ds[40][0], torch.tensor(7/255))


def test_upsampled_training_is_balanced(catalog, images):
    from medfast.split import upsample_training
    few = catalog[~((catalog.split=='train') & (catalog.label=='left') & (catalog.index > 9))]
    dls = array_dls(upsample_training(few), images=images[few.index], bs=5, stats=None)
    y = torch.cat([y for _,y in dls.train])
    assert (y==0).sum()==(y==1).sum()==20


@pytest.mark.parametrize('rows,error,words', [(dict(copy=1, split='valid'), LeakageError, 'copy'), (dict(copy=0), LoaderError, 'more than once'),
    (dict(copy=1, path='elsewhere'), LeakageError, 'without their image in it'), (dict(copy=1, path='./array 0'), LoaderError, 'does not have')])
def test_a_copy_that_is_none_is_refused(catalog, images, rows, error, words):
    more = pd.concat([catalog.assign(copy=0), catalog[:1].assign(**rows)])
    with pytest.raises(error, match=words): array_dls(more, images=images, bs=8)


# several findings

@pytest.fixture
def findings(catalog): return catalog.assign(task='multi-label', label=['none', 'mass', 'effusion|mass']*20)


def test_targets_of_several_findings_are_zeros_and_ones(findings, images):
    dls = array_dls(findings, images=images, bs=8)
    y = torch.cat([y for _,y in dls.valid])
    assert dls.multi_label and list(dls.vocab)==['effusion', 'mass'] and y.dtype==torch.float32
    assert [[c for c,k in zip(dls.vocab, row) if k] for row in y.tolist()]==[[] if l=='none' else l.split('|') for l in dls.catalogs['valid'].label]


def test_several_findings_can_be_trained(findings, images):
    learn = learner(array_dls(findings, images=images, bs=8), BCEWithLogitsLossFlat())
    learn.fit(1, 1e-3)
    assert learn.get_preds()[1].shape==(12, 2)
    learn.dls.show_batch(max_n=2)


@pytest.mark.parametrize('harm,words', [(lambda c: c.assign(task=['multi-label']*59 + ['multi-class']), 'mixes'), (lambda c: c.assign(task='multi-class'), 'several names'),
    (lambda c: c.drop(columns='task'), 'several names'), (lambda c: c.assign(label=c.label.where(c.split!='test', 'nodule')), 'nodule'), (lambda c: c.assign(label='none'), 'finding'),
    (lambda c: c.assign(label=['mass|', 'effusion']*30), 'no name'), (lambda c: c.assign(label=['mass | effusion', 'mass']*30), 'no name'), (lambda c: c.assign(label=['none|mass', 'effusion']*30), 'or none'), (lambda c: c.assign(label=[0, 1]*30), 'no name')])
def test_findings_that_cannot_be_used_say_why(findings, images, harm, words):
    with pytest.raises(LoaderError, match=words): array_dls(harm(findings), images=images, bs=8)


def test_study_dls_sends_several_findings_to_array_dls(findings, pictures):
    with pytest.raises(LoaderError, match='array_dls'): study_dls(findings.assign(path=pictures.path), size=12, bs=8)


# what is refused

@pytest.mark.parametrize('harm,words', [
    (lambda x: x[:59], '59 images for 60 rows'), (lambda x: x[0], 'shape'), (lambda x: x.transpose(1, 2, 0), 'images for'), (lambda x: np.stack([x, x], -1), 'shape'),
    (lambda x: x.astype(int), 'int64'), (lambda x: x > 5, 'bool'), (lambda x: x.astype(float), 'outside 0..1'), (lambda x: np.where(x==x.max(), np.nan, x/255), 'NaN'),
    (lambda x: x/255 - .5, 'outside'), (lambda x: [*x[:59], x[0, :8]], 'differ in size'), (lambda x: x[:, :0], 'shape'), (lambda x: x.astype(str), 'type'), (lambda x: None, 'not there'),
    (lambda x: torch.tensor(x)[:, None].expand(-1, 3, -1, -1), 'channels last'), (lambda x: 'images.npz', 'is str'), (lambda x: dict(train=x), 'is dict'), (lambda x: (o for o in x), 'is generator'),
    (lambda x: np.full_like(x, 7), 'same value')],
    ids=['fewer', 'one', 'channels in front', 'two channels', 'int', 'bool', 'levels as float', 'nan', 'negative', 'sizes', 'empty', 'text', 'none', 'channels first', 'a path', 'a dict', 'a generator', 'constant'])
def test_arrays_that_cannot_be_used_say_why(catalog, images, harm, words):
    with pytest.raises(LoaderError, match=words): array_dls(catalog, images=harm(images), bs=8, leaks='warn')


@pytest.mark.parametrize('make', [lambda x: torch.tensor(x/255, requires_grad=True), lambda x: torch.tensor(x/255).bfloat16(), lambda x: [Image.fromarray(o) for o in x], np.asfortranarray, lambda x: (x/255).astype(np.float16),
    lambda x: x.astype('>u2')*257], ids=['with gradients', 'bfloat16', 'pictures', 'Fortran order', 'float16', 'big endian'])
def test_arrays_of_many_makes_are_one(catalog, images, make):
    wanted,got = [array_dls(catalog, images=x, bs=8, stats=None).valid.one_batch()[0] for x in (images, make(images))]
    assert torch.allclose(got, wanted, atol=3e-3)


def test_numbers_of_numpy_are_numbers(catalog, images):
    dls = array_dls(catalog, images=images, bs=np.int64(8), size=np.int64(16), n_in=np.int64(3), seed=np.int64(1))
    assert dls.one_batch()[0].shape==(8, 3, 16, 16)
    assert augmentations('chest', max_rotate=np.float32(5))


@pytest.mark.parametrize('options,words', [(dict(bs=0), 'bs = 0'), (dict(bs=41), 'train has 40'), (dict(size=0), 'size = 0'), (dict(n_in=2), 'n_in = 2'), (dict(augment='retina'), 'retina'),
    (dict(bs='8'), "bs = '8'"), (dict(bs=True), 'bs = True'), (dict(size=()), 'size'), (dict(size=[16]), 'size'), (dict(size=10**6), 'to 4096'), (dict(n_in=True), 'n_in = True'), (dict(seed=None), 'seed = None'),
    (dict(seed=-1), 'seed = -1'), (dict(seed=2**64), 'seed'), (dict(device='gpu'), "device = 'gpu'"), (dict(augment=True), 'augment = True'), (dict(augment=augmentations), 'list of transforms'),
    (dict(augment=['organ']), 'list of transforms'), (dict(augment=dict(max_rotate=5)), 'kind='), (dict(augment=dict(kind=['organ'])), 'Known kinds')])
def test_an_option_that_cannot_be_says_why(catalog, images, options, words):
    with pytest.raises(LoaderError, match=words): array_dls(catalog, images=images, **dict(bs=8) | options)


@pytest.mark.parametrize('harm,words', [
    (lambda c: c.drop(columns='split'), 'split_catalog'), (lambda c: c.drop(columns='label'), "'label'"), (lambda c: c[c.split!='valid'], "'valid'"),
    (lambda c: c.assign(label='left'), 'one class'), (lambda c: c.assign(label=c.label.where(c.split!='test', 'Left')), "'Left'"), (lambda c: c.to_dict(), 'DataFrame'),
    (lambda c: c.assign(path='array 0'), 'more than once'), (lambda c: None, 'DataFrame'), (lambda c: c[:0], "'train'"), (lambda c: c.assign(label=[0, 1]*30), 'label 0 is no name'), (lambda c: c.assign(label=[0, 'a']*30), 'no name'),
    (lambda c: c.assign(label=[['left'], ['right']]*30), 'no name'), (lambda c: c.assign(label=['left', 'left ']*30), "'left ' is no name"), (lambda c: c.assign(label=['', 'right']*30), 'no name'),
    (lambda c: c.assign(path=c.path.where(c.index > 0)), '1 of 60 rows have no path'), (lambda c: c.assign(split=c.split.replace('valid', 'val')), "'val'"), (lambda c: c.assign(copy='x'), 'copy = x'), (lambda c: c.assign(copy=-1), 'copy = -1'),
    (lambda c: pd.concat([c, c[['label']]], axis=1), "columns 'label'")], ids=lambda o: o if isinstance(o, str) else '')
def test_a_catalog_that_cannot_be_used_says_why(catalog, images, harm, words):
    with pytest.raises(LoaderError, match=words): array_dls(harm(catalog), images=images, bs=8)


def test_an_item_that_the_archive_does_not_have_is_named(archive):
    archive.loc[3, 'path'] = archive.path[0].replace('train/0', 'train/40')
    with pytest.raises(LoaderError, match=r'a\.npz.*no number 40'): array_dls(archive, bs=8)


@pytest.mark.parametrize('name', ['a.npz', 'a.npz#train/x', 'a.npz#training/3'])
def test_a_path_into_an_archive_says_how_it_is_written(archive, name):
    archive.loc[3, 'path'] = archive.path[0].replace('a.npz#train/0', name)
    with pytest.raises(LoaderError, match='file.npz#train/17'): array_dls(archive, bs=8)


def test_archives_of_different_sizes_do_not_mix(archive, tmp_path):
    x = np.zeros((4, 20, 20), np.uint8)
    np.savez(tmp_path/'b.npz', classes=['left', 'right'], **{f'{p}_images': x for p in ('train', 'val', 'test')}, **{f'{p}_labels': np.arange(4)%2 for p in ('train', 'val', 'test')})
    for where in (archive.index==0, archive.split=='valid'):
        paths = archive.path.mask(where, [f'{tmp_path/"b.npz"}#test/{i%4}' for i in range(60)])
        c = archive.assign(path=paths).drop_duplicates('path')
        with pytest.raises(LoaderError, match='(?i)size|shape'): array_dls(c, bs=8)


def test_archives_do_not_mix_with_files(archive, pictures):
    archive.loc[0, 'path'] = pictures.path[0]
    with pytest.raises(LoaderError, match='archives.*pictures'): array_dls(archive, bs=8, size=12)


def test_picture_files_need_a_size_and_a_damaged_one_is_named(pictures):
    with pytest.raises(LoaderError, match='size='): array_dls(pictures, bs=8)
    with open(pictures.path[55], 'wb') as f: f.write(b'no picture')
    with pytest.raises(LoaderError, match=r'55\.png'): array_dls(pictures, bs=8, size=12)


@pytest.mark.parametrize('again', ['0000', ' 0000 '])
def test_a_patient_on_two_sides_is_refused_but_for_a_split_by_image(catalog, images, again):
    catalog['patient'] = pd.array([f'{i:04d}' for i in range(59)] + [again], dtype='string')
    array_dls(catalog.assign(split_by='image'), images=images, bs=8)
    mixed = catalog.assign(split_by=['image']*59 + ['official'])
    for c in (catalog.assign(split_by='patient'), catalog, mixed, pd.concat([mixed[:30], mixed[30:].drop(columns='split_by')])):
        with pytest.raises(LeakageError, match=r'same patient on two sides: 1 \(0000\)'): array_dls(c, images=images, bs=8)


def test_a_patient_on_two_sides_of_an_official_split_is_taken_only_by_name(catalog, images):
    catalog['patient'] = pd.array([f'{i:04d}' for i in range(57)] + ['0000', '0001', None], dtype='string')
    official = catalog.assign(split_by='official')
    with pytest.raises(LeakageError, match='same patient on two sides: 2 .*leaks=.warn'): array_dls(official, images=images, bs=8)
    dls,told = said(lambda: array_dls(official, images=images, bs=8, leaks='warn'))
    assert len(told)==1 and 'same patient on two sides: 2' in told[0] and len(dls.loaders)==3


def test_equal_images_in_memory_and_in_archives_are_refused(catalog, images, archive, tmp_path):
    images[58] = images[3]
    with pytest.raises(LeakageError, match='same pixels on two sides: 1 .array 3 = array 58.'): array_dls(catalog, images=images, bs=8)
    more = pd.concat([catalog.assign(copy=0), catalog[:4].assign(copy=1)])
    for x in (images, np.concatenate([images, images[:4]])):
        with pytest.raises(LeakageError, match='array 3 = array 58'): array_dls(more, images=x, bs=8)
    arrays = dict(np.load(tmp_path/'a.npz'))
    arrays['test_images'][6] = arrays['train_images'][3]
    np.savez(tmp_path/'a.npz', **arrays)
    with pytest.raises(LeakageError, match='a.npz#train/3 = a.npz#test/6'): array_dls(archive, bs=8)
    assert len(array_dls(drop_leaks(archive), bs=8).catalogs['train'])==39


@pytest.mark.parametrize('patient', [None, '', '  ', pd.NA])
def test_a_split_by_patient_knows_its_patients(catalog, images, patient):
    some = catalog.assign(split_by='patient', patient=[f'{i:04d}' for i in range(58)] + [patient]*2)
    with pytest.raises(LeakageError, match='the patient of 2 of 60 images is unknown'): array_dls(some, images=images, bs=8)
    with pytest.raises(LeakageError, match='60 of 60'): array_dls(catalog.assign(split_by='patient'), images=images, bs=8)
    for by in ('image', 'official'): assert not said(lambda: array_dls(some.assign(split_by=by), images=images, bs=8))[1]


@pytest.mark.parametrize('spelt', ['a.npz#valid/00', './a.npz#val/0', 'b.npz#val/0'], ids=['zeros', 'a dot', 'a link'])
def test_an_image_of_an_archive_stands_once_however_it_is_spelt(archive, tmp_path, spelt):
    (tmp_path/'b.npz').symlink_to(tmp_path/'a.npz')
    archive.loc[59, 'path'] = f'{tmp_path}/{spelt}'
    with pytest.raises(LoaderError, match=r'a.npz#valid/0 is in the catalog more than once \(valid and test\)'): array_dls(archive, bs=8)


def test_arrays_without_a_path_say_that_any_name_will_do(catalog, images):
    with pytest.raises(LoaderError, match='any name that is unique'): array_dls(catalog.drop(columns='path'), images=images, bs=8)
    with pytest.raises(LoaderError, match='dmr_catalog'): array_dls(catalog.drop(columns='path'), bs=8)


class Brighter(Transform):
    def encodes(self, x:TensorImage): return x + .3


@pytest.mark.parametrize('tfm', [lambda x: x + .3, Brighter(), nn.Dropout(.5), Erase], ids=['function', 'Transform', 'module', 'class'])
def test_what_would_change_validation_images_is_no_augmentation(catalog, images, pictures, tfm):
    for make in (lambda o: array_dls(catalog, images=images, bs=8, augment=o), lambda o: study_dls(pictures, size=12, bs=8, augment=o)):
        for o in ([tfm], (*augmentations('chest'), tfm)):
            with pytest.raises(LoaderError, match='change validation and test images too'): make(o)
    for o in (Rotate(), [Rotate()], (t for t in augmentations('organ'))):
        dl = array_dls(catalog, images=images, bs=8, augment=o).train.new(shuffle=False)
        assert not torch.equal(dl.one_batch()[0], dl.one_batch()[0])


# what fastai and medfast do with them

def test_a_network_learns_the_side(catalog, images):
    learn = learner(array_dls(catalog, images=images, bs=8))
    learn.fit(15, 1e-2)
    preds = learn.predictions(2)
    assert (preds.probs.argmax(1)==preds.targets).mean()==1 and preds.items==[f'array {i}' for i in range(52, 60)]


def test_predictions_join_their_rows_in_every_part_and_with_views(catalog, images):
    learn = learner(array_dls(catalog, images=images, bs=7, augment='organ'))
    learn.fit(1, 1e-3)
    for i,part in enumerate(PARTS): assert learn.predictions(i).items==list(learn.dls.catalogs[part].path)
    one,two = learn.predictions(1), learn.predictions(1, tta=2)
    assert not np.allclose(one.probs, two.probs) and np.array_equal(two.probs, learn.predictions(1, tta=2).probs)
    assert learn.dls.valid_ds.split_idx==1


def test_views_need_an_augmentation(catalog, images):
    learn = learner(array_dls(catalog, images=images, bs=8))
    learn.fit(1, 1e-3)
    with pytest.raises(medfast.predictions.PredictionsError, match='augment'): learn.predictions(tta=4)


def test_rates_are_searched_without_a_trace(catalog, images):
    learn = learner(array_dls(catalog, images=images, bs=8))
    state = learn.dls.train.rng.getstate()
    assert 1e-6 < learn.suggest_lr(num_it=60).valley < 10 and learn.dls.train.rng.getstate()==state
    assert learn.lr_find(num_it=60, show_plot=False).valley > 0


def test_training_goes_on_where_it_was_stopped(catalog, images, tmp_path):
    make = lambda: learner(array_dls(catalog, images=images, bs=8, augment='chest'))
    whole = make().fit_resumable(3, 1e-2, tmp_path/'a.safetensors')
    from fastai.callback.core import Callback
    class Stop(Callback):
        order = 90
        def after_epoch(self):
            if self.epoch==1: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): make().fit_resumable(3, 1e-2, tmp_path/'b.safetensors', cbs=[Stop()])
    assert make().fit_resumable(3, 1e-2, tmp_path/'b.safetensors').train_loss.tolist()==whole.train_loss.tolist()


def test_features_of_a_frozen_body_can_be_kept(catalog, images):
    learn = learner(array_dls(catalog, images=images, bs=8))
    learn.train_bn = False
    learn.freeze()
    with learn.precomputed() as facts:
        learn.fit(1, 1e-3)
        assert facts.images==52 and len(learn.predictions(1))==12
    assert isinstance(learn.dls.train, ArrayDL)


def test_features_refuse_random_training_images(catalog, images):
    learn = learner(array_dls(catalog, images=images, bs=8, augment='organ'))
    learn.train_bn = False
    learn.freeze()
    with pytest.raises(medfast.precompute.PrecomputeError, match='Affine'):
        with learn.precomputed(): pass


def test_fastais_own_tta_predict_results_and_export_work(catalog, images, tmp_path):
    learn = learner(array_dls(catalog, images=images, bs=8, augment='chest'))
    learn.fit(1, 1e-3)
    assert learn.tta(n=2)[0].shape==(12, 2)
    assert learn.predict(images[0])[0] in ('left', 'right')
    learn.show_results(max_n=2)
    assert [len(dl.dataset) for dl in learn.dls.new_empty().loaders]==[0, 0, 0]


def test_an_exported_learner_carries_no_image_and_no_path(catalog, tmp_path):
    "60 images of 64 x 64 are 246 kB."
    images = np.random.default_rng(0).integers(0, 256, (60, 64, 64), dtype=np.uint8)
    learn = learner(array_dls(catalog.assign(path=[f'/secret/{i}' for i in range(60)]), images=images, bs=8))
    learn.fit(1, 1e-3)
    wanted = learn.predict(images[45])[2]
    learn.path = tmp_path
    learn.export('l.pkl')
    assert (tmp_path/'l.pkl').stat().st_size < 100_000 and b'secret' not in (tmp_path/'l.pkl').read_bytes()
    again = load_learner(tmp_path/'l.pkl')
    assert torch.allclose(again.predict(images[45])[2], wanted, atol=1e-6)
    with pytest.raises(LoaderError, match='45'): again.dls.test_dl(['/secret/45'])


def test_both_loaders_take_the_same_new_images(catalog, images, pictures):
    table = pictures[40:42]
    for dls in (array_dls(pictures, size=12, bs=8), study_dls(pictures, size=12, bs=8)):
        wanted = dls.valid.one_batch()[0][:2]
        for items in (table, list(table.path), [Path(o) for o in table.path], [row for _,row in table.iterrows()], table.to_dict('records'), table.path, images[40:42], list(torch.tensor(images[40:42]))):
            assert torch.allclose(dls.test_dl(items).one_batch()[0], wanted, atol=1e-5)
        for items in ([5], [None], [b'a']):
            with pytest.raises(LoaderError, match='is no image'): dls.test_dl(items)
        for items in (table.iloc[0], table.path.iloc[0], dict(table.iloc[0]), [], 5):
            with pytest.raises(LoaderError, match=r'as \[image\]'): dls.test_dl(items)


def test_labels_of_new_images_are_given_or_refused(pictures):
    dls = study_dls(pictures, size=12, bs=8)
    assert dls.test_dl(pictures[40:44], with_labels=True).one_batch()[1].tolist()==[0, 1, 0, 1]
    with pytest.raises(LoaderError, match='row with a label'): dls.test_dl(list(pictures.path), with_labels=True)
    with pytest.raises(LoaderError, match="part 'test'"): array_dls(pictures, size=12, bs=8).test_dl(pictures[40:44], with_labels=True)


def test_new_images_are_prepared_as_those_in_memory(catalog, images, archive, pictures):
    dls = array_dls(archive, bs=8)
    wanted = dls.valid.one_batch()[0][2]
    for item in (archive.path[42], archive.iloc[42], dict(archive.iloc[42]), images[42], Image.fromarray(images[42]), pictures.path[42], images[42]/255):
        assert torch.allclose(dls.test_dl([item]).one_batch()[0][0], wanted, atol=1e-5)
    given = array_dls(catalog, images=images, bs=8)
    assert torch.equal(given.test_dl([catalog.iloc[42]]).one_batch()[0][0], wanted)


def test_new_images_that_nobody_knows_are_named(catalog, images):
    dls = array_dls(catalog, images=images, bs=8)
    with pytest.raises(LoaderError, match='array 99'): dls.test_dl(['array 99'])
    for items in ('array 3', [], dict(path='array 3'), 5):
        with pytest.raises(LoaderError, match='Give a list'): dls.test_dl(items)
    for item in (5, None, dict(label='left')):
        with pytest.raises(LoaderError, match='is no image'): dls.test_dl([item])


def test_rows_of_a_table_are_new_images(catalog, images):
    dls = array_dls(catalog, images=images, bs=8)
    assert torch.equal(dls.test_dl(catalog[40:48]).one_batch()[0], dls.valid.one_batch()[0])


def test_loaders_can_be_pickled(catalog, images):
    dls = pickle.loads(pickle.dumps(array_dls(catalog, images=images, bs=8, augment='organ')))
    assert dls.one_batch()[0].shape==(8, 1, 12, 12)


def test_pictures_are_drawn(catalog, images):
    dls = array_dls(catalog, images=images, bs=8, augment='organ')
    dls.show_batch(max_n=2)
    plot_augmentations(dls, n=2)
    plot_augmentations(dls, catalog.iloc[45], n=2)
    plot_cam(learner(dls), catalog.iloc[45])
    with pytest.raises(LoaderError, match='augment='): plot_augmentations(array_dls(catalog, images=images, bs=8))
    with pytest.raises(LoaderError, match='images 0 to 39'): plot_augmentations(dls, 40)
    with pytest.raises(LoaderError, match='n = 0'): plot_augmentations(dls, n=0)


def test_real_pneumonia_slices_are_loaded():
    from conftest import real_data
    from medfast.catalog import medmnist_catalog
    dls = array_dls(medmnist_catalog(real_data('medmnist'), 'pneumoniamnist'), bs=128, augment='chest')
    xb,yb = dls.one_batch()
    assert [len(dl.dataset) for dl in dls.loaders]==[4708, 524, 624] and xb.shape==(128, 1, 28, 28) and list(dls.vocab)==['normal', 'pneumonia']
    assert abs(float(dls.valid.new(shuffle=False).one_batch()[0].mean())) < .5


# augmentations

KINDS = 'thermogram', 'chest', 'radiography', 'organ'


def augmented(kind, x, split_idx=0, **options):
    for t in augmentations(kind, **options): x = t(x, split_idx=split_idx)
    return x


@pytest.mark.parametrize('kind', KINDS)
def test_images_of_a_batch_change_each_in_its_own_way(kind):
    x = Grey(torch.rand(1, 1, 24, 24).repeat(8, 1, 1, 1))
    y = augmented(kind, x)
    assert y.shape==x.shape and torch.isfinite(y).all() and len({float(o.sum()) for o in y}) > 5


@pytest.mark.parametrize('kind', KINDS)
def test_no_random_makes_augmentation_repeatable(kind):
    x = Grey(torch.rand(6, 1, 24, 24))
    with no_random(3): one = augmented(kind, x)
    with no_random(3): assert torch.equal(one, augmented(kind, x))


@pytest.mark.parametrize('kind', ['chest', 'organ'])
def test_no_chest_or_organ_is_mirrored_unless_asked(kind):
    "A bright spot off the centre stays nearer to its side, and above or below."
    x = Grey(torch.zeros(400, 1, 32, 32))
    x[:, :, 8:12, 19:23] = 1
    y = augmented(kind, x, **dict(p_erase=0, p_perspective=0) if kind=='organ' else {})
    left,top = y[..., :16].sum((1, 2, 3)), y[:, :, :16].sum((1, 2, 3))
    assert (left < y[..., 16:].sum((1, 2, 3))).all() and (top > y[:, :, 16:].sum((1, 2, 3))).all()
    assert 'vflip' not in augmentation_options(kind) and ('flip' in augmentation_options(kind))==(kind=='chest')


@pytest.mark.parametrize('kind', ['chest', 'radiography'])
def test_a_mirror_asked_for_turns_one_in_two_and_never_upside_down(kind):
    x = Grey(torch.zeros(600, 1, 32, 32))
    x[:, :, 4:8, 22:26] = 1
    y = augmented(kind, x, flip=True)
    assert .42 < (y[..., :16].sum((1, 2, 3)) > y[..., 16:].sum((1, 2, 3))).float().mean() < .58
    assert (y[:, :, :16].sum((1, 2, 3)) > y[:, :, 16:].sum((1, 2, 3))).all()


def test_a_pose_moves_by_what_its_limits_say():
    "The centre of a spot moves by the shift; a spot at the border turns by the angle."
    set_seeds(0)
    mats = pose_mat(torch.empty(3000, 1, 20, 40), max_shift=(.1, .05))
    assert mats[:, 0, 2].abs().max()==pytest.approx(.2, abs=2e-3) and mats[:, 1, 2].abs().max()==pytest.approx(.1, abs=2e-3)
    assert (mats[:, :2, :2]==torch.eye(2)).all()
    angles = torch.rad2deg(torch.atan2(*pose_mat(torch.empty(3000, 1, 20, 40), max_rotate=30)[:, 0, :2].flip(1).T))
    assert 29.8 < angles.abs().max() <= 30.001 and abs(float(angles.mean())) < 1


def test_rotation_keeps_angles_on_a_picture_that_is_not_square():
    "A bar of 4 x 20 pixels keeps its area when it is turned in a picture of 40 x 80."
    x = Grey(torch.zeros(50, 1, 40, 80))
    x[:, :, 18:22, 30:50] = 1
    set_seeds(0)
    y = augmented('organ', x, p_erase=0, p_perspective=0)
    where = torch.nonzero(y[:, 0] > .5).float()
    for i in range(5):
        own = where[where[:, 0]==i][:, 1:]
        long,short = np.linalg.eigvalsh(np.cov(own.T.numpy()))[::-1]
        assert float(y[i].sum())==pytest.approx(80, rel=.05) and (long/short)**.5==pytest.approx(5, rel=.2)


def test_zoom_is_as_often_out_as_in():
    zoom = 1/torch.linalg.det(pose_mat(torch.empty(4000, 1, 8, 8), max_zoom=1.25)[:, :2, :2]).sqrt()
    assert .46 < (zoom > 1).float().mean() < .54 and zoom.max() <= 1.25 + 1e-4 and zoom.min() >= .8 - 1e-4


def test_brightness_is_linear_and_off_by_default():
    x = Grey(torch.linspace(.2, .8, 16).expand(100, 1, 16, 16).contiguous())
    still = dict(max_rotate=0, max_shift=0, max_zoom=1)
    assert torch.allclose(augmented('chest', x, **still), x, atol=1e-5)
    y = augmented('chest', x, brightness=.2, **still)
    assert y[:, 0, 0].diff().std(dim=1).max() < 1e-4 and y.min() < .1 and y.max() > .9 and (y.mean((1, 2, 3)) - .5).abs().max() < .2001


def test_erasing_covers_the_share_that_it_says_of_one_image_in_two():
    set_seeds(0)
    y = Erase()(Grey(torch.ones(3000, 3, 28, 28)), split_idx=0)
    gone = (y==0).float()
    share = gone[:, 0].mean((1, 2))
    hit = share > 0
    assert torch.equal(gone[:, 0], gone[:, 2]) and .46 < hit.float().mean() < .54
    assert share[hit].min() > .012 and share.max() < .35 and float(share[hit].mean())==pytest.approx(.175, abs=.02)


def test_what_is_erased_is_one_rectangle_inside():
    set_seeds(1)
    y = Erase(p=1., value=.5)(Grey(torch.ones(200, 1, 20, 28)), split_idx=0)
    for image in (y[:, 0]==.5).numpy():
        rows,cols = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert image.sum()==len(rows)*len(cols) and len(rows)==np.ptp(rows) + 1 and len(cols)==np.ptp(cols) + 1 and len(rows) < 20 and len(cols) < 28


@pytest.mark.parametrize('kind,options,words', [('chest', dict(vertical_flip=True), 'wrong side'), ('organ', dict(flip=True), 'front and back'), ('retina', {}, 'Known kinds'), (None, {}, 'Known kinds'), (['chest'], {}, 'Known kinds'),
    ('chest', dict(flip='no'), 'True or False'), ('chest', dict(flip=None), 'True or False'), ('chest', dict(max_rotate='7'), 'from 0 to 180'), ('chest', dict(max_rotate=float('nan')), 'max_rotate'), ('chest', dict(max_zoom=True), 'max_zoom'),
    ('chest', dict(max_zoom=.9), 'from 1'), ('chest', dict(max_rotate=-1), 'max_rotate'), ('organ', dict(p_erase=2), 'p_erase'), ('chest', dict(pad='white'), 'pad'),
    ('chest', dict(max_shift='a'), 'pair'), ('chest', dict(max_shift=(.1, 3)), 'pair')])
def test_an_augmentation_that_cannot_be_says_why(kind, options, words):
    with pytest.raises(LoaderError, match=words): augmentations(kind, **options)


def test_augmenting_organs_costs_less_than_a_training_step():
    "A batch of 128 slices: one resampling, not one an image."
    import time
    x = Grey(torch.rand(128, 1, 28, 28))
    for _ in range(3): augmented('organ', x)
    tfms = augmentations('organ')
    times = []
    for _ in range(20):
        start = time.process_time()
        y = x
        for t in tfms: y = t(y, split_idx=0)
        times.append(time.process_time() - start)
    assert min(times) < .05
