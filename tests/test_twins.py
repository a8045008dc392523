"Equal pixels in any coat, near twins of all kinds that are promised, and no strangers among them."
import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, real_data
from PIL import Image
from scipy.ndimage import gaussian_filter

from medfast import twins
from medfast.archive import item_names, item_path
from medfast.thermogram import ThermogramError
from medfast.twins import TwinError, equal_pixels, near_twins, pixel_id, plot_twins, read_pixels, twin_correlation

spec = importlib.util.spec_from_file_location('bench_twins', ROOT/'bench'/'twins.py')
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)

y,x = np.mgrid[-1:1:224j, -1:1:224j]
BODY = 90.*(np.hypot(x, y) < .95) - 50*(np.hypot((abs(x) - .42)/.3, y/.55) < 1)


def scan(seed, sigma=3.):
    "A body that all share and a texture of one's own: uint8 (224, 224)."
    own = gaussian_filter(np.random.default_rng(seed).normal(size=BODY.shape), sigma)
    return (60 + gaussian_filter(BODY, 5) + 25*own/own.std()).clip(0, 255).astype(np.uint8)


def write(fn, pixels, **options):
    Path(fn).parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(fn, **options)
    return str(fn)


def npz(fn, images):
    "An archive whose parts all hold `images`."
    labels = np.arange(len(images))[:, None] % 2
    np.savez(fn, **{f'{p}_images': images for p in ('train', 'val', 'test')}, **{f'{p}_labels': labels for p in ('train', 'val', 'test')}, classes=np.array(['a', 'b']))
    return fn


@pytest.fixture(scope='module')
def scans(tmp_path_factory):
    "Thirty scans of thirty patients as pictures."
    folder = tmp_path_factory.mktemp('scans')
    return pd.DataFrame([dict(path=write(folder/f'{i:02d}.png', scan(i)), patient=f'{i:02d}', split='train', split_by='patient') for i in range(30)]).astype(dict(patient='string'))


def with_test(scans, paths, **columns):
    "The scans in train, `paths` in test, each of a patient of its own."
    return pd.concat([scans, pd.DataFrame([dict(path=p, patient=f'new {i}', split='test', split_by='patient') for i,p in enumerate(paths)])], ignore_index=True).astype(dict(patient='string')).assign(**columns)


# --- decoded pixels

def deep(g): return Image.fromarray(g.astype(np.uint16)*257)


@pytest.mark.parametrize('ending,make,options', [
    ('png', Image.fromarray, {}), ('png', Image.fromarray, dict(compress_level=0)), ('bmp', Image.fromarray, {}), ('tif', Image.fromarray, {}), ('tiff', Image.fromarray, dict(compression='tiff_lzw')),
    ('png', lambda g: Image.fromarray(g).convert('RGB'), {}), ('bmp', lambda g: Image.fromarray(g).convert('RGB'), {}), ('png', lambda g: Image.fromarray(g).convert('RGBA'), {}),
    ('png', lambda g: Image.fromarray(g).convert('LA'), {}), ('png', lambda g: Image.fromarray(g).convert('P'), {}), ('png', deep, {}), ('tif', deep, {})])
def test_the_same_levels_in_any_coat_are_equal(tmp_path, ending, make, options):
    plain,coat = write(tmp_path/'plain.png', scan(0)), write(tmp_path/f'coat.{ending}', make(scan(0)), **options)
    np.testing.assert_array_equal(read_pixels(coat), scan(0))
    assert pixel_id(plain) == pixel_id(coat)
    assert equal_pixels([plain, coat], ['train', 'test'])[1][0] == [0, 1]


@pytest.mark.parametrize('change', [lambda g: np.where(np.arange(g.size).reshape(g.shape) == 777, g ^ 1, g), lambda g: g.T, lambda g: g[::-1], lambda g: g[:-1], lambda g: np.stack([g, g, g ^ 1], -1),
                                    lambda g: g.astype(np.uint16)*257 + 1])
def test_one_level_makes_another_image(tmp_path, change):
    assert pixel_id(write(tmp_path/'a.png', scan(0))) != pixel_id(write(tmp_path/'b.png', np.ascontiguousarray(change(scan(0)))))


def test_items_of_archives_equal_files(tmp_path):
    small = np.stack([scan(i)[::8, ::8] for i in range(3)])
    fn = npz(tmp_path/'x.npz', small)
    file = write(tmp_path/'file.png', np.stack([small[2]]*3, -1))
    n,groups = equal_pixels([item_path(fn, 'train', i) for i in range(3)] + [file], ['train']*3 + ['test'])
    assert n == 4 and groups == [[2, 3]]


def test_turned_by_the_camera_is_turned_back(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    turned = write(tmp_path/'b.png', Image.fromarray(scan(0)[:, :180]).rotate(90, expand=True), exif=exif)
    assert equal_pixels([write(tmp_path/'a.png', scan(0)[:, :180]), turned], ['train', 'test'])[1][0] == [0, 1]


def matrix(fn, temps, sep=' ', decimals=2, mark='.', end='\n'):
    fn.write_bytes(end.join(sep.join(f'{t:.{decimals}f}'.replace('.', mark) for t in row) for row in temps).encode() + end.encode())
    return str(fn)


def test_one_matrix_in_all_dialects_is_one_image(tmp_path):
    temps = np.random.default_rng(0).integers(2000, 3900, (480, 640))/100
    dialects = [dict(), dict(sep=';', decimals=5), dict(sep=';', mark=','), dict(sep='\t'), dict(sep=','), dict(end='\r\r\n')]
    paths = [matrix(tmp_path/f'{i}.txt', temps, **o) for i,o in enumerate(dialects)]
    other = temps.copy()
    other[400, 300] += .01 # the first values are the same
    paths.append(matrix(tmp_path/'other.txt', other))
    n,groups = equal_pixels(paths, ['train']*3 + ['test']*4)
    assert n == 7 and groups == [[0, 1, 2, 3, 4, 5]]


def test_what_is_no_image_is_not_counted_and_not_equal(tmp_path):
    good = [write(tmp_path/f'{i}.png', scan(0)) for i in range(2)]
    for name,data in {'note.txt': b'no numbers', 'cut.txt': b'28.19 28.20\n', 'torn.png': Path(good[0]).read_bytes()[:900], 'empty.png': b''}.items(): (tmp_path/name).write_bytes(data)
    bad = [str(tmp_path/o) for o in ('note.txt', 'cut.txt', 'torn.png', 'empty.png')]*2
    n,groups = equal_pixels(good + bad, ['train', 'test'] + ['train']*4 + ['test']*4)
    assert n == 2 and len(groups) == 1


def test_reading_errors_name_the_file(tmp_path):
    (tmp_path/'torn.png').write_bytes(Path(write(tmp_path/'a.png', scan(0))).read_bytes()[:900])
    for name in ('torn.png', 'absent.png'):
        with pytest.raises(TwinError, match=f'{name} cannot be read as a picture'): read_pixels(tmp_path/name)
        with pytest.raises(TwinError, match=name): pixel_id(tmp_path/name)
    (tmp_path/'x.txt').write_text('28.19 28.20\n')
    with pytest.raises(ThermogramError, match='x.txt'): read_pixels(tmp_path/'x.txt')


def test_a_file_is_decoded_once_until_it_is_written_again(tmp_path, monkeypatch):
    paths,read,calls = [write(tmp_path/f'{i}.png', scan(i)) for i in range(4)], twins.read_pixels, []
    monkeypatch.setattr(twins, 'read_pixels', lambda p: (calls.append(p), read(p))[1])
    sides = ['train', 'train', 'test', 'test']
    for wanted in (4, 4): assert equal_pixels(paths, sides)[0] == 4 and len(calls) == wanted
    write(paths[3], scan(0))
    os.utime(paths[3], ns=(1, 1))
    assert equal_pixels(paths, sides)[1][0] == [0, 3] and calls[4:] == [paths[3]]
    os.utime(paths[2], ns=(2, 2))
    assert equal_pixels(paths, sides, most=224*224 - 1) == (None, []) and len(calls) == 5
    assert equal_pixels(paths, sides, most=224*224)[0] == 4 and len(calls) == 6


def test_a_matrix_of_text_counts_as_ten_pictures_of_its_size(tmp_path):
    paths = [matrix(tmp_path/f'{i}.txt', np.full((480, 640), 25. + i/1e5)) for i in range(2)]
    assert equal_pixels(paths, ['train', 'test'], most=20*480*640 - 1) == (None, [])
    assert equal_pixels(paths, ['train', 'test'], most=20*480*640) == (2, [[0, 1]])


def test_the_outline_of_a_large_picture_is_taken_without_a_warning(tmp_path, monkeypatch):
    paths = [write(tmp_path/'a.png', scan(0)), write(tmp_path/'b.png', scan(1)[:210])]
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 40_000)
    with warnings.catch_warnings(action='error'): assert equal_pixels(paths, ['train', 'test']) == (2, [])


def test_only_images_that_could_be_equal_are_decoded(tmp_path, monkeypatch):
    paths = [write(tmp_path/f'{i}.png', scan(i)[:200 + i]) for i in range(4)] + [matrix(tmp_path/f'{i}.txt', np.full((480, 640), 25. + i)) for i in range(2)]
    monkeypatch.setattr(twins, 'read_pixels', lambda p: pytest.fail('read'))
    assert equal_pixels(paths, ['train', 'test']*3) == (6, [])
    assert equal_pixels([paths[0]]*2, ['train', 'train']) == (2, []) # one side is no leak


def test_names_tell_images_apart():
    assert item_names(['/d/a/1.png', '/d/b/1.png', '/d/b/2.png']) == ['a/1.png', 'b/1.png', 'b/2.png']
    assert item_names(['/d/x.npz#test/1', '/d/x.npz#train/1']) == ['x.npz#test/1', 'x.npz#train/1'] and item_names([r'C:\d\1.png']) == ['1.png']


# --- near twins

@pytest.mark.parametrize('kind', bench.COVERED)
def test_promised_copies_are_found_among_strangers(scans, tmp_path, kind):
    rng = np.random.default_rng(1)
    copies = [write(tmp_path/f'{i}.png', bench.COVERED[kind](Image.fromarray(scan(i)), rng).convert('L')) for i in range(30)]
    found = near_twins(with_test(scans, copies))
    assert sorted(found.pairs['file b']) == sorted(item_names(scans.path.tolist() + copies)[30:]) and len(found.pairs) == 30 # each once, and nothing else
    assert found.places[:, 0].tolist() == (found.places[:, 1] - 30).tolist() and set(found.pairs.patients) == {'different'}
    assert found.rates.loc['test in train', ['images', 'twins', 'rate']].tolist() == [30, 30, 1]


@pytest.mark.parametrize('kind', ['turned 3°', 'crop 4 % a side', 'flipped', 'inverted'])
def test_what_is_said_not_to_be_found_is_not_found(scans, kind):
    copy = bench.BEYOND[kind](Image.fromarray(scan(3)), np.random.default_rng(0))
    assert twin_correlation(scan(3), np.asarray(copy)) < .8


def test_the_limits_are_printed(scans):
    told = repr(near_twins(with_test(scans, [scans.path[0]]).drop_duplicates('path', keep='last')))
    for o in ('Not looked for: flips', 'turns', 'crops', 'No pair found does not mean', 'strangers', 'split by patient, patients known'): assert o in told


def test_strangers_are_not_listed(scans, tmp_path):
    found = near_twins(with_test(scans, [write(tmp_path/f'{i}.png', scan(i)) for i in range(100, 130)]))
    row = found.strangers.iloc[0]
    assert not len(found.pairs) and found.paths('test') == [] and row.pairs == 300 and row.above == 0 and row.highest < .7 and not twins._warnings(found)


def test_kinds_from_bytes_to_near(scans, tmp_path):
    bytes_,pixels,near = tmp_path/'a.png', tmp_path/'b.bmp', tmp_path/'c.jpg'
    bytes_.write_bytes(Path(scans.path[0]).read_bytes())
    write(pixels, scan(1)); write(near, scan(2), quality=80)
    found = near_twins(with_test(scans, [str(bytes_), str(pixels), str(near)]))
    assert found.pairs.set_index('file b').kind.to_dict() == {'a.png': 'same bytes', 'b.bmp': 'same pixels', 'c.jpg': 'near twin'}
    assert found.pairs.correlation.tolist()[:2] == [1, 1] and found.pairs.correlation.is_monotonic_decreasing
    assert found.paths('test') == sorted([str(bytes_), str(pixels), str(near)]) and found.paths('train') == scans.path[:3].tolist()


def test_colour_meets_grey(scans, tmp_path):
    tinted = np.stack([scan(5)*.9, scan(5)*.6, scan(5)*.4], -1).astype(np.uint8)
    assert near_twins(with_test(scans, [write(tmp_path/'tinted.png', tinted)])).pairs['file a'].tolist() == ['05.png']


@pytest.mark.parametrize('side', [28, 20, 56, 112, 448])
def test_an_archive_of_small_images_meets_the_large_ones(scans, tmp_path, side):
    small = np.stack([np.asarray(Image.fromarray(scan(i, 6.)).resize((side, side))) for i in range(8)])
    large = pd.DataFrame([dict(path=write(tmp_path/f'{i}.png', scan(i, 6.)), split='train', patient=pd.NA, split_by='official') for i in range(12)])
    fn = npz(tmp_path/'small.npz', small)
    catalog = pd.concat([large, pd.DataFrame([dict(path=item_path(fn, 'test', i), split='test', patient=pd.NA, split_by='official') for i in range(8)])], ignore_index=True)
    found = near_twins(catalog)
    assert {(o.a, o.b - 12) for o in pd.DataFrame(found.places, columns=['a', 'b']).itertuples()} == {(i, i) for i in range(8)}
    assert ('enlarged' in repr(found)) == (side < 56) and 'official split, patients unknown' in repr(found)


def test_blank_images_are_twins_only_where_they_are_equal(scans, tmp_path):
    blank = [write(tmp_path/f'{v}.png', np.full((50, 50), v, np.uint8)) for v in (0, 7, 255)]
    catalog = with_test(scans, [*blank, write(tmp_path/'again.png', np.full((50, 50), 7, np.uint8))])
    catalog.loc[catalog.path.isin(blank), 'split'] = 'train'
    found = near_twins(catalog)
    assert found.pairs[['file a', 'file b', 'kind']].values.tolist() == [['7.png', 'again.png', 'same bytes']] and np.isfinite(found.pairs.correlation).all()


@pytest.mark.parametrize('shape', [(1, 1), (1, 300), (300, 2), (3, 3)])
def test_odd_shapes_do_no_harm(scans, tmp_path, shape):
    odd = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert not len(near_twins(with_test(scans, [write(tmp_path/'odd.png', odd)])).pairs)


def test_patients_the_same_different_and_unknown(scans, tmp_path):
    copies = [write(tmp_path/f'{i}.jpg', scan(i), quality=80) for i in range(3)]
    catalog = with_test(scans, copies)
    catalog.loc[30, 'patient'],catalog.loc[31, 'patient'] = '00', pd.NA
    found = near_twins(catalog)
    assert found.pairs.set_index('file b').patients.to_dict() == {'0.jpg': 'same', '1.jpg': 'unknown', '2.jpg': 'different'} and found.unknown == 1 and 'patients of 1 unknown' in repr(found)
    assert found.strangers.index[0] == 'candidates of different patients' and found.strangers.pairs.iloc[0] == 30 - 10 - 1 # without the unknown one and the sibling
    for unknown in (catalog.drop(columns='patient'), catalog.assign(patient=pd.NA)):
        found = near_twins(unknown)
        assert len(found.pairs) == 3 and 'patients unknown' in repr(found) and found.strangers.index[0].startswith('random pairs')
    typed = near_twins(catalog.assign(patient=['00 ', *catalog.patient[1:31], ' ', *catalog.patient[32:]]))
    assert typed.pairs.patients.tolist() == near_twins(catalog).pairs.patients.tolist() and typed.unknown == 1 # blanks make neither a patient nor another one


def test_a_split_by_image_says_what_it_is(scans, tmp_path):
    found = near_twins(with_test(scans, [write(tmp_path/'a.jpg', scan(0), quality=80)], split_by='image'))
    assert 'no test of it is about new patients' in repr(found) and set(found.rates.split_by) == {'image'}
    assert 'split by image' in plot_twins(found)[0, 0].figure.get_suptitle()


def test_sides_in_the_order_of_a_study_and_folds(scans, tmp_path):
    copies = [write(tmp_path/f'{i}.jpg', scan(i), quality=80) for i in range(4)]
    catalog = with_test(scans, copies)
    catalog.loc[30:31, 'split'] = 'valid'
    found = near_twins(catalog)
    assert found.rates.twins.to_dict() == {'test in train': 2, 'test in valid': 0, 'valid in train': 2}
    folds = near_twins(catalog.assign(fold=pd.array(np.where(catalog.index < 30, catalog.index % 3, 11), dtype='Int64')), on='fold')
    assert list(folds.rates.index) == ['11 in 0', '11 in 1', '11 in 2', '2 in 0', '2 in 1', '1 in 0'] and folds.rates.twins.sum() == 4
    assert {'fold a', 'fold b'} <= set(folds.pairs) and folds.paths(11) == sorted(copies)


def test_rows_in_any_order_with_any_index_and_repetitions(scans, tmp_path):
    catalog = with_test(scans, [write(tmp_path/f'{i}.jpg', scan(i), quality=70) for i in range(5)])
    wanted = near_twins(catalog).pairs
    for other in (catalog.sample(frac=1, random_state=3), catalog.set_index(np.zeros(35, int)), pd.concat([catalog.assign(copy=0), catalog[:9].assign(copy=1)])):
        found = near_twins(other)
        pd.testing.assert_frame_equal(found.pairs.sort_values('file b', ignore_index=True)[['file a', 'file b', 'correlation']], wanted.sort_values('file b', ignore_index=True)[['file a', 'file b', 'correlation']])
        assert found.images == 35


def test_a_train_image_may_be_the_twin_of_many(scans, tmp_path):
    found = near_twins(with_test(scans, [write(tmp_path/f'{q}.jpg', scan(0), quality=q) for q in range(60, 95)]))
    assert len(found.pairs) == 35 and found.rates.twins.iloc[0] == 35 and found.paths('train') == [scans.path[0]]


def test_more_siblings_than_candidates(scans, tmp_path):
    catalog = with_test(scans, [write(tmp_path/f'{q}.jpg', scan(0), quality=q) for q in range(60, 95)])
    found = near_twins(catalog.assign(split=catalog.split.map(dict(train='test', test='train'))))
    assert len(found.pairs) == 10 and found.rates.twins.iloc[0] == 1 # the rate counts images, not pairs
    assert len(near_twins(catalog.assign(split=catalog.split.map(dict(train='test', test='train'))), n_neighbours=99).pairs) == 35


def test_options_and_catalogs_that_cannot_be(scans):
    with pytest.raises(TwinError, match="no column 'split'"): near_twins(scans.drop(columns='split'))
    with pytest.raises(TwinError, match="no column 'path'"): near_twins(scans.drop(columns='path'))
    with pytest.raises(TwinError, match='1 value in 30 images'): near_twins(scans)
    for t in (0, 1, 80, -.5):
        with pytest.raises(TwinError, match='between 0 and 1'): near_twins(scans, threshold=t)
    with pytest.raises(TwinError, match="which = 'best'"): plot_twins(near_twins(scans.assign(split=['train', 'test']*15)), which='best')


def test_details_in_a_byte_cost_no_accuracy():
    a,b = (twins._square(o) for o in (scan(0), (.7*scan(0) + .3*scan(1)).astype(np.uint8)))
    def exact(s):
        high = s.astype(float) - gaussian_filter(s.astype(float), twins.BLUR)
        return (high - high.mean())*twins._BORDER
    wanted = (exact(a)*exact(b)).sum()/np.sqrt((exact(a)**2).sum()*(exact(b)**2).sum())
    assert abs(twins._correlations(np.stack([twins._details(a), twins._details(b)]), np.array([0]), np.array([1]))[0][0] - wanted) < .005


def test_shift_is_found_with_its_direction():
    a,b = (twins._details(twins._square(o)) for o in (scan(0), np.roll(scan(0), (7, -5), (0, 1)))) # 4 and 2.9 of 128 pixels
    assert twins._correlations(np.stack([a, b]), np.array([0]), np.array([1]))[1].tolist() == [[4, -3]]


def test_sixteen_bits_of_little_contrast(scans, tmp_path):
    faint = (30000 + scan(4).astype(np.uint16))
    assert near_twins(with_test(scans, [write(tmp_path/'faint.png', faint)])).pairs['file a'].tolist() == ['04.png']


def test_pairs_are_drawn_in_order_and_without_names(scans, tmp_path):
    found = near_twins(with_test(scans, [write(tmp_path/f'secret {q}.jpg', scan(0), quality=q) for q in (10, 30, 95)]))
    titles = lambda axs: [ax.get_title() for ax in axs.flat]
    near,doubtful = titles(plot_twins(found)), titles(plot_twins(found, which='doubtful'))
    assert near[:2] == doubtful[4:] and 'secret' not in ''.join(near) and 'secret 95.jpg' in ''.join(titles(plot_twins(found, 1, names=True)))
    assert near[0].startswith('train\n') and near[1] == 'test\ndifferent patient'


def test_sibling_frames_of_simulated_patients(small_study):
    from medfast.catalog import dmr_catalog
    catalog = dmr_catalog(small_study)
    catalog = catalog.assign(split=np.where(catalog.groupby('patient').cumcount() == 0, 'train', 'test'), split_by='image')
    found = near_twins(catalog)
    assert found.pairs[found.pairs.patients == 'same']['file b'].nunique() == 8 # every sibling
    assert found.strangers.above.iloc[0] > 8 and 'cannot tell twins from images that look alike' in repr(found) # all simulated bodies share an outline


def test_no_torch():
    code = 'import sys, medfast.twins, medfast.split; print(sorted({"torch", "fastai"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == '[]'


# --- real images

@pytest.mark.filterwarnings('ignore')
def test_public_twins():
    found = bench.public_twins(real_data('medmnist').parent)
    pairs = found['radiography'].pairs.set_index('file b')
    assert pairs.loc['COVID-3142.png', ['file a', 'kind']].tolist() == ['COVID-3144.png', 'same bytes']
    assert pairs.loc['COVID-392.png', 'file a'] == 'COVID-1577.png' and len(pairs) == 2 # one X-ray with two windows
    assert found['breastmnist'].rates.twins.to_dict() == {'test in train': 57, 'test in valid': 8, 'valid in train': 30}
    assert found['pneumoniamnist'].rates.twins.to_dict() == {'test in train': 1, 'test in valid': 0, 'valid in train': 8}


@pytest.mark.full
@pytest.mark.filterwarnings('ignore')
def test_planted_leaks_among_real_radiographs():
    table,refused = bench.planted_leaks(100, bench.coronahack_catalog(real_data('coronahack')).dropna(subset='patient'))
    assert table.found.tolist() == [100]*3 and refused == 0


@pytest.mark.full
@pytest.mark.parametrize('name', ['coronahack', 'radiography'])
def test_recall_on_real_images(name):
    table = bench.altered_copies(name, bench.COVERED, 300, real_data(name).parent)
    assert (table.found >= .99).all(), table


@pytest.mark.full
@pytest.mark.parametrize('name', ['breastmnist', 'pneumoniamnist'])
def test_recall_at_28_pixels(name):
    "Compression to quality 50 and several changes at once are beyond it, and the result says so."
    table = bench.altered_copies(name, {k: f for k,f in bench.COVERED.items() if '60' not in k}, 300, real_data('medmnist').parent)
    assert (table.found.drop('JPEG quality 50') >= .99).all() and table.found['JPEG quality 50'] > .9, table


@pytest.mark.full
def test_strangers_of_real_sets():
    table = bench.all_strangers(real_data('coronahack').parent)
    assert table.above[['CoronaHack, 224 px', 'CoronaHack, 56 px', 'DMR-IR matrices']].sum() == 0 and table.rate['CoronaHack, 28 px'] < .001, table


@pytest.mark.full
def test_siblings_of_sixty_simulated_patients():
    found = bench.siblings()
    assert found['listed'] == found['test'] and found['lowest_best'] > .9
