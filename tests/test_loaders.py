"Batches: what a file becomes, what a seed decides, and what is refused."
import pickle
import random

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from medfast.catalog import dmr_catalog
from medfast.loaders import LoaderError, Thermogram, augmentations, folder_dls, read_image, study_dls
from medfast.settings import set_seeds
from medfast.split import LeakageError, make_folders, split_catalog
from medfast.thermogram import read_thermogram, to_image


@pytest.fixture(scope='module')
def catalog(small_study): return split_catalog(dmr_catalog(small_study), valid=.25, test=.25, seed=1)


@pytest.fixture
def pictures(tmp_path):
    "A catalog of sixteen grey pictures, eight train, four valid, four test."
    rng,rows = np.random.default_rng(0),[]
    for i in range(16):
        fn = tmp_path/f'{i:02d}.png'
        Image.fromarray(rng.integers(0, 256, (24, 32), dtype=np.uint8)).save(fn)
        rows.append(dict(path=str(fn), label=('Healthy', 'Sick')[i%2], split=('train', 'train', 'valid', 'test')[i//4]))
    return pd.DataFrame(rows)


def batches(catalog, seed=1, epochs=2, **kw):
    dls = study_dls(catalog, size=32, bs=4, seed=seed, **kw)
    set_seeds(7)
    return [b for _ in range(epochs) for b in dls.train]


def same(one, other): return len(one)==len(other) and all(torch.equal(p, q) for a,b in zip(one, other) for p,q in zip(a, b))


# a file becomes a tensor

def test_no_16_bit_picture_turns_white(tmp_path):
    temps = np.linspace(20, 40, 48*64, dtype=np.float32).reshape(48, 64)
    to_image(temps, bits=16).save(tmp_path/'a.png')
    x = read_image(tmp_path/'a.png', size=(48, 64))
    assert x.max() > .99 and x.min() < .01 and len(x.unique()) > 3000
    assert torch.allclose(x, read_image(temps, size=(48, 64)), atol=2/65535)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'I;16', 'I;16B'])
def test_every_mode_of_picture_lies_between_0_and_1(mode):
    im = Image.fromarray(np.full((8, 8), 40000, np.uint16)) if mode.startswith('I') else Image.new('L', (8, 8), 200).convert(mode)
    if mode=='I;16B': im = Image.frombytes(mode, (8, 8), np.full((8, 8), 40000, '>u2').tobytes())
    x = read_image(im, size=4)
    assert x.shape==(3, 4, 4) and .5 < x.min() and x.max() <= 1


def test_float_picture_is_degrees_or_refused(tmp_path):
    temps = np.random.default_rng(0).normal(30, 1, (48, 64)).astype(np.float32)
    Image.fromarray(temps).save(tmp_path/'t.tiff')
    assert isinstance(x := read_image(tmp_path/'t.tiff', size=16), Thermogram)
    assert torch.equal(x, read_image(temps, size=16))
    Image.fromarray(temps/40).save(tmp_path/'scaled.tiff')
    with pytest.raises(LoaderError, match=r'scaled\.tiff.*5\.\.50'): read_image(tmp_path/'scaled.tiff', size=16)


@pytest.mark.parametrize('bad', [np.nan, np.inf, 300.])
def test_array_with_one_bad_value_is_refused(bad):
    temps = np.full((8, 8), 30.)
    temps[3, 3] = bad
    with pytest.raises(LoaderError, match='the array'): read_image(temps, size=4)


def test_nothing_is_clipped_and_averages_stay_inside():
    temps = np.full((480, 640), 18., np.float32)
    temps[:, 320:] = 42
    x = read_image(temps, size=64)
    assert x.min()==pytest.approx(-.1, abs=1e-6) and x.max()==pytest.approx(1.1, abs=1e-6) and x.mean()==pytest.approx(.5, abs=1e-4)


def test_shrinking_averages_all_pixels():
    "Noise of 1 °C a pixel falls to a tenth when 75 pixels become one; picking a few of them would leave half of it."
    temps = np.random.default_rng(0).normal(30, 1, (480, 640)).astype(np.float32)
    assert float(read_image(temps, size=64).std()*20) < .2


def test_training_images_are_not_cropped(catalog):
    "The border of every training image is that of its file: fastai's Resize would crop at random."
    dls = study_dls(catalog, size=32, bs=4)
    for i in range(4):
        temps = read_thermogram(dls.train_ds.items[i]['path'])
        x = dls.train_ds[i][0][0]*20 + 20
        assert torch.equal(dls.train_ds[i][0], dls.train_ds[i][0])
        assert x[:, :2].mean()==pytest.approx(temps[:, :40].mean(), abs=.1) and x[:, -2:].mean()==pytest.approx(temps[:, -40:].mean(), abs=.1)


def test_damaged_picture_is_named(tmp_path, pictures):
    whole = (tmp_path/'03.png').read_bytes()
    (tmp_path/'03.png').write_bytes(whole[:len(whole)//2])
    with pytest.raises(LoaderError, match=r'03\.png'): read_image(tmp_path/'03.png', size=8)


def test_orientation_of_a_photograph_is_applied(tmp_path):
    im = Image.new('RGB', (20, 10))
    im.paste('white', (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x112] = 3
    im.save(tmp_path/'turned.jpg', exif=exif)
    x = read_image(tmp_path/'turned.jpg', size=(10, 20))
    assert x[:, :, 15:].mean() > .9 and x[:, :, :5].mean() < .1


# seeds

@pytest.mark.parametrize('augment', [None, 'thermogram'])
def test_same_seed_same_batches_bit_for_bit(catalog, augment):
    first = batches(catalog, augment=augment)
    random.seed(99); torch.manual_seed(99)
    assert same(first, batches(catalog, augment=augment))
    assert not same(first, batches(catalog, seed=2, augment=augment))


@pytest.mark.parametrize('cache', [True, False])
def test_workers_change_no_bit(catalog, cache):
    assert same(batches(catalog, augment='thermogram'), batches(catalog, augment='thermogram', n_workers=2, cache=cache))


def test_cache_changes_no_bit(pictures): assert same(batches(pictures), batches(pictures, cache=False))


def test_making_loaders_leaves_the_random_state_alone(pictures):
    set_seeds(5)
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    study_dls(pictures, size=16, bs=4, augment='thermogram')
    assert random.getstate()==before[0] and torch.equal(torch.get_rng_state(), before[1]) and (np.random.get_state()[1]==before[2]).all()


def test_only_training_batches_are_augmented(pictures):
    plain,aug = study_dls(pictures, size=16, bs=4),study_dls(pictures, size=16, bs=4, augment='thermogram')
    for i in (1, 2): assert torch.equal(plain[i].one_batch()[0], aug[i].one_batch()[0])
    one = aug.train.new(shuffle=False)
    assert not torch.equal(one.one_batch()[0], one.one_batch()[0])


# items and parts

def test_items_and_tables_are_in_the_same_order(catalog):
    dls = study_dls(catalog, size=16, bs=4)
    for part,dl in zip(('train', 'valid', 'test'), dls.loaders):
        assert [r['path'] for r in dl.dataset.items]==list(dls.catalogs[part].path)
        assert list(dls.catalogs[part].index)==list(range(len(dl.dataset)))
    y = torch.cat([b[1] for b in dls[2]])
    assert [dls.vocab[i] for i in y]==list(dls.catalogs['test'].label)


def test_test_images_are_not_read_before_asked_for(catalog):
    seen = set(catalog.path[catalog.split!='test'])
    read = lambda dls: set(dls.train_ds.tls[0].tfms[0].cache)
    dls = study_dls(catalog, size=16, bs=4, drop_last=False)
    list(dls.train), list(dls.valid)
    assert read(dls)==seen
    assert read(study_dls(catalog, size=16, bs=4, n_workers=2))==seen


def test_pickled_loaders_carry_no_images(pictures):
    dls = study_dls(pictures, size=64, bs=4)
    list(dls.train)
    reader = dls.train_ds.tls[0].tfms[0]
    assert reader.cache and not pickle.loads(pickle.dumps(reader)).cache


def test_rows_without_patients_work(pictures):
    pictures['patient'] = pd.array([pd.NA]*16, dtype='string')
    assert study_dls(pictures, size=16, bs=4).vocab==['Healthy', 'Sick']


def test_patient_on_two_sides_is_refused_only_where_the_split_says_by_patient(pictures):
    pictures['patient'] = pd.array(['0001']*16, dtype='string')
    pictures['split_by'] = 'image'
    study_dls(pictures, size=16, bs=4)
    pictures['split_by'] = 'patient'
    with pytest.raises(LeakageError): study_dls(pictures, size=16, bs=4)


def spoil(**cells):
    def f(c):
        for k,v in cells.items(): c.loc[0, k] = v
        return c
    return f


@pytest.mark.parametrize('harm,words', [
    (lambda c: c.drop(columns='split'), 'split_catalog'),
    (lambda c: c.drop(columns='label'), "'label'"),
    (lambda c: c[c.split!='train'], "'train'"),
    (lambda c: c[c.split!='valid'], "'valid'"),
    (spoil(split='training'), "'training'"),
    (spoil(label=None), '00.png'),
    (spoil(path='/nowhere/a.png'), 'a.png'),
    (lambda c: pd.concat([c, c[:1]]), 'more than once'),
    (lambda c: c[(c.split!='train') | (c.label=='Sick')], 'one class'),
    (lambda c: c.assign(label=c.label.where(c.split!='test', c.label.str.lower())), "'healthy'"),
], ids=lambda o: o if isinstance(o, str) else '')
def test_a_catalog_that_cannot_be_used_says_why(pictures, harm, words):
    with pytest.raises(LoaderError, match=words): study_dls(harm(pictures), size=16, bs=4)


@pytest.mark.parametrize('options,words', [(dict(size=7), 'size = 7'), (dict(size=(32, 32, 3)), 'size'), (dict(size=32.), 'size'), (dict(bs=0), 'bs = 0'),
    (dict(low=30., high=30.), 'below high'), (dict(augment='chest'), 'chest')])
def test_an_option_that_cannot_be_says_why(pictures, options, words):
    with pytest.raises(LoaderError, match=words): study_dls(pictures, **{**dict(size=16, bs=4), **options})


def test_a_folder_is_not_a_catalog(tmp_path):
    with pytest.raises(LoaderError, match='folder_dls'): study_dls(tmp_path, size=16, bs=4)


def test_text_and_pictures_do_not_mix(pictures, catalog):
    pictures.loc[0, 'path'] = catalog.path[0]
    with pytest.raises(LoaderError, match='format'): study_dls(pictures, size=16, bs=4)


def test_too_few_images_for_a_batch(pictures):
    with pytest.raises(LoaderError, match='train has 8'): study_dls(pictures, size=16, bs=9)
    assert len(study_dls(pictures, size=16, bs=9, drop_last=False).train)==1


def test_folders_give_the_same_batches(catalog, tmp_path):
    tree = make_folders(catalog, tmp_path/'tree')
    one,other = study_dls(catalog, size=16, bs=4),folder_dls(tree, size=16, bs=4)
    images = lambda dls: sorted(float(dls.valid_ds[i][0].sum()) for i in range(len(dls.valid_ds)))
    assert images(one)==images(other) and one.vocab==other.vocab


# augmentation

def test_lighting_is_linear_and_never_clips():
    light = augmentations(flip=False, max_rotate=0, max_zoom=1)[-1]
    x = Thermogram(torch.linspace(-.5, 1.5, 3*8*8).reshape(1, 3, 8, 8).repeat(200, 1, 1, 1))
    set_seeds(0)
    y = light(x, split_idx=0)
    steps = y.flatten(1).diff(dim=1)
    assert (steps.std(dim=1) < 1e-4).all() and y.min() < -.5 and y.max() > 1.5
    stretch = (y.flatten(1).amax(1) - y.flatten(1).amin(1))/2
    assert 1/1.05 - 1e-3 < stretch.min() < .97 and 1.03 < stretch.max() < 1.05 + 1e-3
    assert (y.mean((1, 2, 3)) - .5).abs().max() < .0501


def test_rotation_and_zoom_stay_in_the_study_bounds():
    affine = augmentations(max_lighting=0)[0]
    x = Thermogram(torch.zeros(400, 3, 33, 33))
    set_seeds(0)
    affine.before_call(x, split_idx=0)
    mats = affine._get_affine_mat(x) if hasattr(affine, '_get_affine_mat') else None
    if mats is None: pytest.skip('fastai keeps its matrices elsewhere')
    scale = torch.linalg.det(mats[:, :2, :2]).abs().sqrt()
    angle = torch.rad2deg(torch.asin((mats[:, 1, 0]/scale).clamp(-1, 1)))
    flipped = torch.linalg.det(mats[:, :2, :2]) < 0
    assert 1/1.1 - 1e-4 <= scale.min() and scale.max() <= 1 + 1e-4
    assert angle.abs().max() <= 10.001 and .15 < (angle.abs() < 1e-4).float().mean() < .35 and .4 < flipped.float().mean() < .6


def test_real_matrices_make_batches(dmr_ir):
    rows = sorted((dmr_ir/'txt').glob('**/*.txt'))[:8]
    c = pd.DataFrame(dict(path=[str(p) for p in rows], label=['Healthy', 'Sick']*4, split=['train']*4 + ['valid']*4))
    xb,_ = study_dls(c, size=64, bs=4, stats=None).one_batch()
    assert xb.shape==(4, 3, 64, 64) and -.5 < xb.min() and xb.max() < 1.2 and torch.isfinite(xb).all()
