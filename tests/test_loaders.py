"Batches: what a file becomes, what a seed decides, and what is refused."
import os
import pickle
import random
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from medfast.catalog import dmr_catalog
from medfast.images import ImageError, Limits, check_images, decode
from medfast.loaders import LoaderError, Thermogram, array_dls, augmentations, folder_dls, read_image, study_dls
from medfast.settings import set_seeds
from medfast.split import LeakageError, drop_leaks, make_folders, split_catalog
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


@pytest.mark.parametrize('content,words', [(b'', 'unknown format'), (b'\0'*128 + b'DICM', 'save it as PNG')], ids=['empty', 'DICOM'])
def test_a_file_that_is_no_picture_says_what_to_do_and_not_where_it_lies(tmp_path, content, words):
    (tmp_path/'a.dcm').write_bytes(content)
    with pytest.raises(LoaderError, match=f'a.dcm.*{words}') as e: read_image(tmp_path/'a.dcm', size=8)
    assert str(tmp_path) not in str(e.value)


def test_a_file_of_several_pictures_is_refused(tmp_path):
    pages = [Image.new('L', (8, 8), 90 + i) for i in range(3)]
    pages[0].save(tmp_path/'a.tif', save_all=True, append_images=pages[1:])
    with pytest.raises(LoaderError, match='a.tif holds more than one picture'): read_image(tmp_path/'a.tif', size=8)
    Image.new('RGB', (8, 8)).save(tmp_path/'two.mpo', save_all=True, append_images=[Image.new('RGB', (8, 8))])
    assert read_image(tmp_path/'two.mpo', size=8).shape==(3, 8, 8)


def test_a_picture_over_the_limit_of_pixels_says_what_to_do(tmp_path, monkeypatch):
    Image.new('L', (60, 60)).save(tmp_path/'big.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    with pytest.raises(LoaderError, match='big.png has more than 2,000 pixels.*smaller, or raise PIL'): read_image(tmp_path/'big.png', size=8)
    with pytest.raises(ImageError, match='big.png has more than 2,000 pixels, and at most 500 are read. Save it smaller.$'): decode((tmp_path/'big.png').read_bytes(), 'big.png', Limits(pixels=500))


@pytest.mark.parametrize('peak,dark', [(8191, True), (8192, False)])
def test_an_eighth_of_16_bits_is_where_dark_begins_in_files_and_in_memory(tmp_path, peak, dark):
    pixels = np.full((8, 8), peak, np.uint16)
    Image.fromarray(pixels).save(tmp_path/'a.png')
    for look in (lambda: read_image(tmp_path/'a.png', size=8), lambda: check_images(pixels[None])):
        with warnings.catch_warnings(record=True, action='always') as told: look()
        assert ['nearly black' in str(o.message) for o in told] == [True]*dark


def test_the_pages_of_a_picture_are_not_counted(tmp_path, monkeypatch):
    "Counting goes through all of them: 42 s for 50,000."
    monkeypatch.setattr(TiffImageFile, 'n_frames', property(lambda self: pytest.fail('the pages are counted')))
    fn,page = tmp_path/'a.tif', Image.new('L', (8, 8))
    page.save(fn, save_all=True, append_images=[page])
    with pytest.raises(ImageError, match='a.tif holds more than one picture'): decode(fn.read_bytes(), 'a.tif')
    page.save(fn)
    assert decode(fn.read_bytes(), 'a.tif').size==(8, 8) and read_image(fn, size=8).shape==(3, 8, 8)


def test_pillow_warns_of_a_large_picture_only_where_no_limit_of_ours_decides(tmp_path, monkeypatch):
    Image.new('L', (40, 40)).save(tmp_path/'big.png')
    data = (tmp_path/'big.png').read_bytes()
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    with warnings.catch_warnings(action='error'):
        assert decode(data, 'big.png', Limits(pixels=1600)).size==(40, 40)
        with pytest.raises(ImageError, match='big.png has 40 x 40 pixels; at most 1,599 are read'): decode(data, 'big.png', Limits(pixels=1599))
    with pytest.warns(Image.DecompressionBombWarning): read_image(tmp_path/'big.png', size=8)


def test_a_file_that_changed_is_read_again(pictures):
    dls = study_dls(pictures, size=16, bs=4, stats=None)
    dls.valid.one_batch()
    for p in pictures.path: Image.new('L', (32, 24), 255).save(p)
    assert torch.equal(dls.valid.one_batch()[0], torch.ones(4, 3, 16, 16))


@pytest.mark.parametrize('item', [None, 5, dict(label='Sick'), torch.rand(8, 8), [[30.]*8]*8])
def test_what_is_no_image_says_what_is(item):
    with pytest.raises(LoaderError, match=f'{type(item).__name__} is no image'): read_image(item, size=8)


@pytest.mark.parametrize('options,words', [(dict(size=0), 'size = 0'), (dict(size='16'), 'size'), (dict(size=16, n_in=2), 'n_in = 2')])
def test_an_image_that_cannot_be_made_says_why(options, words):
    with pytest.raises(LoaderError, match=words): read_image(np.full((8, 8), 30.), **options)


def test_levels_of_16_bits_in_an_array_are_those_of_the_file(tmp_path):
    levels = np.random.default_rng(0).integers(0, 65536, (8, 8), dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path/'a.png')
    assert torch.equal(read_image(levels, size=8), read_image(tmp_path/'a.png', size=8)) and read_image(levels, size=8).max()==levels.max()/np.float32(65535)
    with pytest.raises(LoaderError, match='colour of 8 bits'): read_image(np.zeros((8, 8, 3), np.uint16), size=8)


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


def test_patient_on_two_sides_is_accepted_only_where_the_split_says_by_image(pictures):
    pictures['patient'] = pd.array(['0001']*16, dtype='string')
    study_dls(pictures.assign(split_by='image'), size=16, bs=4)
    for c in (pictures.assign(split_by='patient'), pictures, pictures.assign(split_by=['image']*15 + [None]), pictures.assign(split_by='official')):
        with pytest.raises(LeakageError, match='same patient on two sides: 1 .0001.'): study_dls(c, size=16, bs=4)
    with pytest.warns(UserWarning, match='same patient on two sides: 1 .*too good by as much'): study_dls(pictures.assign(split_by='official'), size=16, bs=4, leaks='warn')


@pytest.mark.parametrize('ending,told', [('png', 'same bytes'), ('bmp', 'same pixels')])
@pytest.mark.parametrize('by', ['patient', 'image', 'official'])
def test_an_image_on_two_sides_is_refused_however_it_was_split(pictures, tmp_path, ending, told, by):
    pictures['patient'] = pd.array([f'{i:04d}' for i in range(16)], dtype='string')
    study_dls(pictures.assign(split_by=by), size=16, bs=4)
    copy = tmp_path/f'copy.{ending}'
    if ending=='png': copy.write_bytes((tmp_path/'00.png').read_bytes())
    else: Image.open(tmp_path/'00.png').save(copy)
    pictures.loc[15, 'path'] = str(copy)
    for make in (study_dls, array_dls):
        with pytest.raises(LeakageError, match=f'{told} on two sides: 1 .00.png = copy.{ending}.. drop_leaks'): make(pictures.assign(split_by=by), size=16, bs=4)
        with pytest.warns(UserWarning, match=told): assert len(make(pictures.assign(split_by=by), size=16, bs=4, leaks='warn').loaders)==3
        with pytest.raises(ValueError, match="leaks = 'ignore'"): make(pictures, size=16, bs=4, leaks='ignore')
    clean = drop_leaks(pictures.assign(split_by=by))
    assert len(study_dls(clean, size=16, bs=4).catalogs['train'])==7 and len(clean)==15


def test_folders_of_an_official_split_are_no_exception(pictures, tmp_path):
    for o in pictures.itertuples():
        fn = tmp_path/'tree'/o.split/o.label/os.path.basename(o.path)
        fn.parent.mkdir(parents=True, exist_ok=True)
        fn.write_bytes(open(o.path, 'rb').read())
    folder_dls(tmp_path/'tree', size=16, bs=4)
    (tmp_path/'tree'/'test'/'Sick'/'again.png').write_bytes((tmp_path/'01.png').read_bytes())
    with pytest.raises(LeakageError, match='again.png = 01.png'): folder_dls(tmp_path/'tree', size=16, bs=4)
    with pytest.warns(UserWarning, match='same bytes'): folder_dls(tmp_path/'tree', size=16, bs=4, leaks='warn')


def test_a_second_look_decodes_nothing(pictures, monkeypatch):
    study_dls(pictures, size=16, bs=4)
    monkeypatch.setattr('medfast.twins.read_pixels', lambda p: pytest.fail('decoded again'))
    for seed in range(3): study_dls(pictures, size=16, bs=4, seed=seed)


@pytest.mark.parametrize('spelling', ['dot', 'relative', 'link'])
def test_a_file_stands_once_however_its_path_is_spelt(pictures, tmp_path, spelling, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'link').symlink_to(tmp_path)
    pictures.loc[15, 'path'] = dict(dot=f'{tmp_path}/./00.png', relative='00.png', link=f'{tmp_path}/link/00.png')[spelling]
    with pytest.raises(LoaderError, match='00.png is in the catalog more than once .train and test'): study_dls(pictures, size=16, bs=4)


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
    (lambda c: c.assign(label=[0, 1]*8), 'label 0 is no name'),
    (spoil(path=None), 'no path'),
    (spoil(path='/nowhere/a.npz'), 'file.npz#train/17'),
    (lambda c: c.assign(label=c.label.where(c.split!='test', c.label.str.lower())), "'healthy'"),
], ids=lambda o: o if isinstance(o, str) else '')
def test_a_catalog_that_cannot_be_used_says_why(pictures, harm, words):
    with pytest.raises(LoaderError, match=words): study_dls(harm(pictures), size=16, bs=4)


@pytest.mark.parametrize('options,words', [(dict(size=7), 'size = 7'), (dict(size=(32, 32, 3)), 'size'), (dict(size=32.), 'size'), (dict(size=None), 'size = None'), (dict(bs=0), 'bs = 0'), (dict(n_workers=-1), 'n_workers = -1'), (dict(n_workers='2'), 'n_workers'), (dict(low='20'), 'below high'),
    (dict(device='gpu'), "device = 'gpu'"), (dict(seed='a'), "seed = 'a'"), (dict(augment=3), 'augment = 3'), (dict(stats=(128, 60)), 'scale 0..1'),
    (dict(low=30., high=30.), 'below high'), (dict(augment='retina'), 'retina'), (dict(augment=dict(kind='chest', vflip=True)), 'vflip'), (dict(stats='all'), "'train'"),
    (dict(stats=([.5]*2, [.5]*2)), '1 or 3'), (dict(stats=(.5, 0.)), 'above 0'), (dict(stats=(.5, float('nan'))), 'above 0')])
def test_an_option_that_cannot_be_says_why(pictures, options, words):
    with pytest.raises(LoaderError, match=words): study_dls(pictures, **{**dict(size=16, bs=4), **options})


# normalisation

def test_stats_are_those_of_the_training_pixels_as_numpy_counts_them(pictures):
    dls = study_dls(pictures, size=(24, 32), bs=4, stats='train', augment='thermogram')
    pixels = np.stack([np.asarray(Image.open(p)) for p in pictures.path[pictures.split=='train']])/255
    assert dls.stats[0]==pytest.approx([pixels.mean()]*3, abs=1e-6) and dls.stats[1]==pytest.approx([pixels.std()]*3, abs=1e-6)


def test_stats_do_not_see_validation_or_test(pictures):
    one = study_dls(pictures, size=16, bs=4, stats='train').stats
    for i,p in pictures.path[pictures.split!='train'].items(): Image.new('L', (32, 24), 240 + i).save(p)
    assert study_dls(pictures, size=16, bs=4, stats='train').stats==one


def test_all_parts_are_normalised_by_the_same_numbers(pictures):
    raw,norm = [study_dls(pictures, size=16, bs=4, stats=s) for s in (None, 'train')]
    (mean,*_),(std,*_) = norm.stats
    for i in (1, 2): assert torch.allclose(raw[i].one_batch()[0].sub(mean).div(std), norm[i].one_batch()[0], atol=1e-5)
    assert raw.stats is None and study_dls(pictures, size=16, bs=4).stats==([.485, .456, .406], [.229, .224, .225])


def test_equal_pixels_cannot_be_normalised(pictures):
    for p in pictures.path: Image.new('L', (32, 24), 90).save(p)
    with pytest.raises(LoaderError, match='same value'): study_dls(pictures, size=16, bs=4, stats='train', leaks='warn')


def test_loaders_say_what_they_are_made_of(pictures):
    dls = study_dls(pictures, size=16, bs=4)
    assert (dls.n_in, dls.multi_label, list(dls.catalogs))==(3, False, ['train', 'valid', 'test'])


# archives and copies

def test_an_archive_gives_the_batches_of_its_pictures(pictures, tmp_path):
    arrays = {p: np.stack([np.asarray(Image.open(f)) for f in pictures.path[pictures.split==s]]) for p,s in dict(train='train', val='valid', test='test').items()}
    np.savez(tmp_path/'a.npz', classes=['Healthy', 'Sick'], **{f'{p}_images': x for p,x in arrays.items()}, **{f'{p}_labels': np.arange(len(x))%2 for p,x in arrays.items()})
    paths = [f'{tmp_path}/a.npz#{p}/{i}' for p,x in arrays.items() for i in range(len(x))]
    assert same(batches(pictures), batches(pictures.assign(path=paths)))


def test_copies_are_trained_on_and_read_once(pictures):
    more = pd.concat([pictures.assign(copy=0), pictures[:2].assign(copy=1), pictures[:2].assign(copy=2)])
    dls = study_dls(more, size=16, bs=4)
    assert len(dls.train_ds)==12 and len(list(dls.train))==3
    assert len(dls.train_ds.tls[0].tfms[0].cache)==8


@pytest.mark.parametrize('copy,split,error', [(0, 'train', LoaderError), (1, 'valid', LeakageError), (1, 'test', LeakageError)])
def test_a_copy_has_its_number_and_stays_in_training(pictures, copy, split, error):
    with pytest.raises(error): study_dls(pd.concat([pictures.assign(copy=0), pictures[:1].assign(copy=copy, split=split)]), size=16, bs=4)


def test_a_copy_whose_image_stands_in_validation_is_a_leak(pictures):
    with pytest.raises(LeakageError, match='train and valid'): study_dls(pd.concat([pictures.assign(copy=0), pictures[pictures.split=='valid'][:1].assign(copy=1, split='train')]), size=16, bs=4)


def test_bytes_are_a_picture_and_floats_are_degrees():
    assert torch.allclose(read_image(np.full((8, 8), 51, np.uint8), size=4), torch.tensor(.2)) and not isinstance(read_image(np.zeros((8, 8, 3), np.uint8), size=4), Thermogram)
    assert isinstance(read_image(np.full((8, 8), 30.), size=4), Thermogram)


@pytest.mark.parametrize('mode,n_in,wanted', [('L', None, 1), ('L', 3, 3), ('RGB', 1, 1), ('RGB', None, 3)])
def test_channels_are_those_asked_for(mode, n_in, wanted):
    assert len(read_image(Image.new(mode, (8, 8), 'red' if mode=='RGB' else 90), size=8, n_in=n_in))==wanted


def test_grey_stored_in_colour_is_grey(): assert len(read_image(Image.new('L', (8, 8), 90).convert('RGB'), size=8, n_in=None))==1


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
