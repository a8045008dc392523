"Archives of MedMNIST: damaged, foreign and hostile files are refused with a reason, and nothing is called official that is not."
import hashlib
import io
import os
import pickle
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import real_data

from medfast import archive as archive_module
from medfast.archive import (OFFICIAL, OLDER, SETS, ArchiveError, archive_name, content_ids, download_archive, is_remembered, item_name, item_path, official_sets, read_archive,
                             read_item, read_items, remembered, same_path, split_item)

N = dict(train=12, val=4, test=6)


def arrays(shape=(28, 28), n_classes=2, **changes):
    "Six arrays as MedMNIST has them; a change of None leaves one out."
    rng = np.random.default_rng(0)
    own = {f'{p}_images': rng.integers(0, 256, (n, *shape), np.uint8) for p, n in N.items()} | {f'{p}_labels': (np.arange(n)[:, None] % n_classes).astype(np.uint8) for p, n in N.items()}
    return {k: v for k, v in (own | changes).items() if v is not None}


def written(fn, save=np.savez_compressed, **kwargs):
    save(fn, **arrays(**kwargs))
    return fn


# --- what MedMNIST says

def test_twelve_sets():
    assert len(SETS) == len(official_sets()) == 12
    assert {o.task for o in SETS.values()} == {'binary-class', 'multi-class', 'ordinal-regression', 'multi-label'}
    md5 = [m for o in SETS.values() for m in {*o.md5.values(), o.older_md5}]
    assert len(md5) == len(set(md5)) == 12*4 + 3 and all(len(m) == 32 and int(m, 16) for m in md5)
    assert all(set(o.md5) == {28, 64, 128, 224} and list(o.counts) == ['train', 'valid', 'test'] for o in SETS.values())


def test_counts_of_study_003():
    assert list(SETS['organsmnist'].older_counts.values()) == [13940, 2452, 8829] and list(SETS['organsmnist'].counts.values()) == [13932, 2452, 8827]
    assert SETS['organsmnist'].classes == tuple(sorted(SETS['organsmnist'].classes)) and len(SETS['organsmnist'].classes) == 11


@pytest.mark.parametrize('name,n,classes,counts', [('breastmnist', (546, 78, 156), ('malignant', 'normal, benign'), [147, 399]), ('pneumoniamnist', (4708, 524, 624), ('normal', 'pneumonia'), [1214, 3494])])
def test_real_archives_are_official(name, n, classes, counts):
    archive = read_archive(real_data('medmnist')/f'{name}.npz')
    assert archive.release == OFFICIAL and archive.official and archive.source == f'{name} 28 px, {OFFICIAL}'
    assert (archive.task, archive.classes, archive.size, archive.shape) == ('binary-class', classes, 28, (28, 28))
    assert tuple(len(archive.labels[p]) for p in archive.labels) == n == tuple(len(archive.images[p]) for p in archive.images) == tuple(SETS[name].counts.values())
    assert np.bincount(archive.labels['train']).tolist() == counts


def test_real_archive_under_another_name(tmp_path):
    data = (real_data('medmnist')/'breastmnist.npz').read_bytes()
    (tmp_path/'download(3).npz').write_bytes(data)
    assert read_archive(tmp_path/'download(3).npz').source == f'breastmnist 28 px, {OFFICIAL}'
    with pytest.raises(ArchiveError, match='is the official file of breastmnist, not of pneumoniamnist'): read_archive(tmp_path/'download(3).npz', 'pneumoniamnist')
    with pytest.raises(ArchiveError, match='Leave classes= out'): read_archive(tmp_path/'download(3).npz', classes=['a', 'b'])
    (tmp_path/'breastmnist.npz').write_bytes(data + b'\0') # still a zip, one byte more
    assert not read_archive(tmp_path/'breastmnist.npz').official


# --- which release

def test_releases_by_checksum(tmp_path, monkeypatch):
    fn = written(tmp_path/'organsmnist.npz', n_classes=11)
    md5 = hashlib.md5(fn.read_bytes()).hexdigest()
    organs = SETS['organsmnist']
    archive = read_archive(fn)
    assert not archive.official and archive.source == 'organsmnist 28 px, unofficial copy' and archive.md5 == md5
    for told in (md5, organs.md5[28], organs.older_md5): assert told in archive.release
    monkeypatch.setitem(SETS, 'organsmnist', replace(organs, older_md5=md5))
    assert read_archive(fn).release == OLDER and read_archive(fn).official
    monkeypatch.setitem(SETS, 'organsmnist', replace(organs, md5=organs.md5 | {28: md5}))
    assert read_archive(fn).release == OFFICIAL


def test_what_a_file_says_of_itself_is_never_official(tmp_path):
    fn = written(tmp_path/'organsmnist.npz', n_classes=11, source=np.array('official (MedMNIST 3)'))
    assert read_archive(fn).release == 'no official set: official (MedMNIST 3)' and not read_archive(fn).official
    fn = written(tmp_path/'mine.npz', classes=np.array(['a', 'b']), source=np.array('simulated\nin two lines'))
    assert read_archive(fn).release == 'no official set: simulated in two lines' and read_archive(fn).classes == ('a', 'b')


def test_sizes_that_are_not_official(tmp_path):
    fn = written(tmp_path/'breastmnist.npz', shape=(32, 32))
    assert 'there is no official file of 32 px' in read_archive(fn).release and read_archive(fn).size == 32
    fn = written(tmp_path/'breastmnist_64.npz', shape=(64, 64))
    assert SETS['breastmnist'].md5[64] in read_archive(fn).release and SETS['breastmnist'].md5[28] not in read_archive(fn).release


# --- kinds of sets

def test_colour(tmp_path):
    archive = read_archive(written(tmp_path/'bloodmnist.npz', shape=(28, 28, 3), n_classes=8))
    assert archive.shape == (28, 28, 3) and archive.task == 'multi-class'
    assert read_item(item_path(archive.path, 'test', 1)).shape == (28, 28, 3)
    with pytest.raises(ArchiveError, match='has 3 channels'): read_archive(written(tmp_path/'retinamnist.npz'))


def test_ordinal(tmp_path):
    archive = read_archive(written(tmp_path/'retinamnist.npz', shape=(28, 28, 3), n_classes=5))
    assert archive.task == 'ordinal-regression' and archive.classes == tuple('01234')


def test_multi_label(tmp_path):
    labels = {f'{p}_labels': (np.arange(n*14).reshape(n, 14) % 3 == 0).astype(np.uint8) for p, n in N.items()}
    archive = read_archive(written(tmp_path/'chestmnist.npz', **labels))
    assert archive.task == 'multi-label' and archive.labels['train'].shape == (12, 14) and set(np.unique(archive.labels['train'])) == {0, 1}
    with pytest.raises(ArchiveError, match=r'it must be \(n, 14\)'): read_archive(written(tmp_path/'chestmnist.npz', **{k: v[:, :13] for k, v in labels.items()}))
    with pytest.raises(ArchiveError, match='A finding is 0 or 1'): read_archive(written(tmp_path/'chestmnist.npz', **{k: v*2 for k, v in labels.items()}))
    with pytest.raises(ArchiveError, match='has 14 columns'): read_archive(written(tmp_path/'breastmnist.npz', **labels))
    with pytest.raises(ArchiveError, match='with 3 findings|With 3 findings'): read_archive(written(tmp_path/'own.npz', **labels), classes=list('abc'))


def test_own_archive(tmp_path):
    fn = written(tmp_path/'wrists.npz', n_classes=3, shape=(20, 30))
    archive = read_archive(fn, classes=['no', 'maybe', 'yes'])
    assert (archive.name, archive.task, archive.release, archive.shape) == ('wrists', 'multi-class', 'own archive', (20, 30))
    assert read_archive(fn, 'my wrists', classes=['no', 'maybe', 'yes']).source == 'my wrists 20 px, own archive'
    with pytest.raises(ArchiveError, match=r'Give name= \(pathmnist'): read_archive(fn)
    with pytest.raises(ArchiveError, match='wristmnist is no set'): read_archive(fn, 'wristmnist')
    with pytest.raises(ArchiveError, match='labels go from 0 to 1'): read_archive(fn, classes=['no', 'yes'])
    with pytest.raises(ArchiveError, match='its classes are not those of breastmnist'): read_archive(fn, 'breastmnist', classes=['no', 'maybe', 'yes'])


@pytest.mark.parametrize('classes', [['a'], ['a', 'a'], ['a', ''], ['a', 'b|c'], ['a', 'none']])
def test_class_names_that_cannot_be(tmp_path, classes):
    with pytest.raises(ArchiveError, match='At least two different names'): read_archive(written(tmp_path/'own.npz'), classes=classes)


@pytest.mark.parametrize('labels', [np.arange(12) % 2, (np.arange(12) % 2).astype(bool)[:, None], np.arange(12).astype('<i8')[:, None] % 2])
def test_labels_of_any_whole_type(tmp_path, labels):
    assert read_archive(written(tmp_path/'breastmnist.npz', train_labels=labels)).labels['train'].tolist() == [0, 1]*6


# --- refusals

@pytest.mark.parametrize('changes,told', [
    (dict(val_images=None), 'it has no val_images'), (dict(train_labels=None, test_labels=None), 'it has no train_labels, test_labels'),
    (dict(train_images=np.zeros((12, 28, 28), np.float32)), 'train_images is float32. Images must be uint8'), (dict(train_images=np.zeros((12, 28), np.uint8)), r'train_images has the shape \(12, 28\)'),
    (dict(train_images=np.zeros((12, 28, 28, 4), np.uint8)), r'\(12, 28, 28, 4\). It must be'), (dict(train_images=np.zeros((12, 28, 28, 28), np.uint8)), 'volumes are not read here'),
    (dict(train_images=np.zeros((12, 0, 28), np.uint8)), 'It must be'), (dict(test_images=np.zeros((6, 64, 64), np.uint8)), 'images of different sizes: train_images 28 x 28'),
    (dict(val_images=np.zeros((4, 28, 28, 3), np.uint8)), 'images of different sizes'), (dict(test_labels=np.zeros((5, 1), np.uint8)), 'test_images has 6 images and test_labels 5 rows'),
    (dict(test_labels=np.zeros((6, 1))), 'test_labels is float64. Labels must be whole numbers'), (dict(test_labels=np.array(['normal']*6)), 'test_labels is <U6'),
    (dict(test_labels=np.uint8(1)), r'has the shape \(\)'), (dict(test_labels=np.zeros((6, 1, 1), np.uint8)), 'has the shape'),
    (dict(val_labels=np.array([0, 1, 2, 0])), r'val_labels\[2\] is 2 \(1 such label\).*labels go from 0 to 1'), (dict(val_labels=np.array([0, -1, 1, -1])), r'val_labels\[1\] is -1 \(2'),
    (dict(classes=np.array([1, 2])), 'classes is int64'), (dict(source=np.array(['a', 'b'])), None)])
def test_wrong_arrays(tmp_path, changes, told):
    fn = written(tmp_path/'breastmnist.npz', **changes)
    if told is None: assert not read_archive(fn).official
    else:
        with pytest.raises(ArchiveError, match=told) as e: read_archive(fn)
        assert 'breastmnist.npz' in str(e.value) and str(tmp_path) not in str(e.value)


class Bomb:
    "An object whose loading leaves a trace."
    def __init__(self, fn): self.fn = fn
    def __reduce__(self): return open, (str(self.fn), 'w')


@pytest.mark.parametrize('key', ['train_images', 'test_labels', 'classes', 'anything'])
def test_objects_are_never_loaded(tmp_path, key):
    np.savez(tmp_path/'breastmnist.npz', **arrays(**{key: np.array([Bomb(tmp_path/'ran')], dtype=object)}))
    with pytest.raises(ArchiveError, match='would run code'): read_archive(tmp_path/'breastmnist.npz')
    with pytest.raises(ArchiveError, match='would run code'): read_item(f'{tmp_path/"breastmnist.npz"}#train/0')
    assert not (tmp_path/'ran').exists()


def test_a_bare_pickle_is_never_loaded(tmp_path):
    (tmp_path/'breastmnist.npz').write_bytes(pickle.dumps(Bomb(tmp_path/'ran')))
    with pytest.raises(ArchiveError, match='cannot be read'): read_archive(tmp_path/'breastmnist.npz')
    assert not (tmp_path/'ran').exists()


def test_header_that_promises_more_than_there_is(tmp_path):
    fn = tmp_path/'breastmnist.npz'
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, dict(descr='|u1', fortran_order=False, shape=(10**12, 28, 28)))
    np.savez(fn, **arrays(train_images=None))
    with zipfile.ZipFile(fn, 'a') as z: z.writestr('train_images.npy', head.getvalue() + b'few')
    with pytest.raises(ArchiveError, match='train_images cannot be read.*3 bytes for shape'): read_archive(fn)


@pytest.mark.parametrize('data', [b'', b'PK\x03\x04', b'not a zip at all', b'PK\x05\x06' + b'\0'*18, np.lib.format.MAGIC_PREFIX + b'\1\0'])
def test_no_archive_at_all(tmp_path, data):
    (tmp_path/'breastmnist.npz').write_bytes(data)
    with pytest.raises(ArchiveError, match='breastmnist.npz'): read_archive(tmp_path/'breastmnist.npz')


def test_not_there_or_a_folder(tmp_path):
    with pytest.raises(ArchiveError, match='breastmnist.npz is not there'): read_archive(tmp_path/'breastmnist.npz')
    with pytest.raises(ArchiveError, match='cannot be read') as e: read_archive(tmp_path)
    assert str(tmp_path) not in str(e.value)


def test_other_files_in_the_zip_do_not_matter(tmp_path):
    with zipfile.ZipFile(written(tmp_path/'breastmnist.npz'), 'a') as z: z.writestr('LICENSE.txt', 'CC BY 4.0')
    assert read_archive(tmp_path/'breastmnist.npz').labels['train'].tolist() == [0, 1]*6


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_every_damage_is_an_archive_error_or_harmless(tmp_path, save):
    "Cut anywhere, or one byte changed anywhere: an error with the file's name, or exactly the same content; never other pixels."
    whole = written(tmp_path/'whole.npz', save, shape=(5, 5))
    data,content = whole.read_bytes(), {k: v.tobytes() for k, v in arrays(shape=(5, 5)).items()}
    rng,fn,refused = np.random.default_rng(1), tmp_path/'breastmnist.npz', 0
    spoilt = [data[:n] for n in rng.integers(0, len(data), 80)] + [data[:i] + bytes([data[i] ^ 1 << int(b)]) + data[i + 1:] for i, b in zip(rng.integers(0, len(data), 220), rng.integers(0, 8, 220))]
    for o in spoilt:
        fn.unlink(missing_ok=True)
        fn.write_bytes(o)
        try: archive = read_archive(fn)
        except ArchiveError as e:
            assert 'breastmnist.npz' in str(e)
            refused += 1
            continue
        for p, k in dict(train='train', valid='val', test='test').items():
            assert archive.images[p].tobytes() == content[f'{k}_images'] and archive.labels[p].astype(np.uint8).tobytes() == content[f'{k}_labels']
    assert refused > 150


# --- images

def test_items(tmp_path):
    fn = written(tmp_path/'a#b'/'breastmnist.npz') if (tmp_path/'a#b').mkdir() is None else None
    archive = read_archive(fn)
    for part in ('train', 'valid', 'test'):
        for i, image in enumerate(archive.images[part]): assert (read_item(item_path(fn, part, i)) == image).all()
    assert (read_item(f'{fn}#val/3') == archive.images['valid'][3]).all()
    read_item(f'{fn}#test/0')[:] = 7 # a copy: what is kept does not change
    assert (archive.images['test'][0] != 7).any() and not archive.images['test'].flags.writeable


@pytest.mark.parametrize('path', ['x.npz', 'x.npz#train', 'x.npz#train/', 'x.npz#dev/1', 'x.npz#train/-1', 'x.npz#train/1.5', 'x.npz#train/٣', '#train/1', 'scan#3.png'])
def test_paths_that_are_no_image_of_an_archive(path):
    assert split_item(path) is None
    with pytest.raises(ArchiveError, match='no image of an archive'): read_item(path)


def test_position_beyond_the_end(tmp_path):
    fn = written(tmp_path/'breastmnist.npz')
    for call in (lambda p: read_item(p), lambda p: read_items([item_path(fn, 'valid', 0), p]), lambda p: content_ids([p])):
        with pytest.raises(ArchiveError, match='4 images lie in valid, and no number 4'): call(item_path(fn, 'valid', 4))


def test_many_items_keep_their_order(tmp_path):
    a, b = written(tmp_path/'breastmnist.npz'), written(tmp_path/'pneumoniamnist.npz', save=np.savez)
    paths = [item_path(f, p, i) for i in (3, 0, 2) for f in (a, b) for p in ('test', 'valid', 'train')]
    both = read_items(paths)
    assert both.dtype == np.uint8 and (both == np.stack([read_item(p) for p in paths])).all() and both.flags.writeable
    with pytest.raises(ArchiveError, match='No path was given'): read_items([])


def test_contents(tmp_path):
    x = np.arange(12*9, dtype=np.uint8).reshape(12, 3, 3)
    fn = written(tmp_path/'breastmnist.npz', train_images=x, val_images=x[:4] + 200, test_images=x[:6] + np.uint8(0))
    ids = content_ids([item_path(fn, 'train', 2), item_path(fn, 'test', 2), item_path(fn, 'train', 3), item_path(fn, 'valid', 2)])
    assert ids[0] == ids[1] and len(set(ids)) == 3
    for name, text in dict(a='same', b='same', c='size', d='other length').items(): (tmp_path/name).write_text(text)
    ids = content_ids([tmp_path/o for o in 'abcd'])
    assert ids[0] == ids[1] and len(set(ids)) == 3


# --- memory

def test_a_file_is_read_once_and_again_when_it_changes(tmp_path, monkeypatch):
    fn, reads = written(tmp_path/'breastmnist.npz'), []
    load = np.load
    monkeypatch.setattr(np, 'load', lambda *a, **k: reads.append(k) or load(*a, **k))
    for _ in range(3): read_item(f'{fn}#train/1'), read_archive(fn).images['train']
    assert len(reads) == 4 and all(k == dict(allow_pickle=False) for k in reads) # three label arrays, one of images
    before = read_item(f'{fn}#train/1')
    fn.unlink()
    written(fn, train_images=np.zeros((12, 28, 28), np.uint8))
    assert before.any() and not read_item(f'{fn}#train/1').any()


def test_memory_is_bounded(tmp_path, monkeypatch):
    archive_module._OPEN.clear()
    for i in range(12): read_item(f'{written(tmp_path/f"{i}.npz")}#train/0')
    assert len(archive_module._OPEN) == 8
    monkeypatch.setitem(archive_module._MOST, 'nbytes', 30_000) # three of the training parts
    read_item(f'{tmp_path/"11.npz"}#train/0')
    assert [os.path.basename(k[0]) for k in archive_module._OPEN] == ['9.npz', '10.npz', '11.npz']


def test_threads_share_one_reading(tmp_path):
    fn, got = written(tmp_path/'breastmnist.npz'), []
    threads = [threading.Thread(target=lambda: got.append(read_item(f'{fn}#test/5'))) for _ in range(16)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(got) == 16 and all((o == got[0]).all() for o in got)


def test_reading_does_not_load_torch():
    code = 'import sys, medfast.archive, medfast.pictures; print(sorted({"torch", "fastai", "medmnist"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


# --- fetching

class Package(SimpleNamespace):
    "A module that looks like medmnist and writes what it is told to."
    def __init__(self, data, fails=None, leave=b''):
        self.calls = []
        def fetch(split, root, size, download):
            self.calls.append(dict(split=split, size=size, download=download))
            fn = os.path.join(root, archive_name('breastmnist', size))
            with open(fn, 'wb') as f: f.write(data if fails is None else leave)
            if fails: raise fails
        super().__init__(INFO=dict(breastmnist=dict(python_class='BreastMNIST')), BreastMNIST=fetch)


@pytest.fixture
def official(tmp_path, monkeypatch):
    "Bytes whose checksum counts as the official one."
    data = written(tmp_path/'source.npz').read_bytes()
    monkeypatch.setitem(SETS, 'breastmnist', replace(SETS['breastmnist'], md5={28: hashlib.md5(data).hexdigest(), 64: '0'*32}))
    return data


def test_fetched_once_and_checked(tmp_path, monkeypatch, official):
    package = Package(official)
    monkeypatch.setitem(sys.modules, 'medmnist', package)
    fn = download_archive('breastmnist', tmp_path/'new'/'folder')
    assert fn.read_bytes() == official and read_archive(fn).release == OFFICIAL
    assert download_archive('breastmnist', tmp_path/'new'/'folder') == fn and len(package.calls) == 1
    assert [o.name for o in fn.parent.iterdir()] == ['breastmnist.npz']


@pytest.mark.parametrize('package,told', [
    (Package(b'', RuntimeError('\n  Automatic download failed! Please download\n 1. ...'), b'half'), r'could not be fetched \(Automatic download failed'),
    (Package(b'', OSError('no route'), b'half'), r'\(no route\). Nothing was kept. Is this machine online'), (Package(b'', TypeError("unexpected keyword argument 'size'")), 'medmnist 3 or newer'),
    (SimpleNamespace(INFO={}), 'could not be fetched'), (Package(b'an error page'), 'did not arrive as the official file|cannot be read')])
def test_nothing_is_kept_of_what_did_not_arrive(tmp_path, monkeypatch, official, package, told):
    monkeypatch.setitem(sys.modules, 'medmnist', package)
    with pytest.raises(ArchiveError, match=told): download_archive('breastmnist', tmp_path/'dest')
    assert list((tmp_path/'dest').iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch, official):
    monkeypatch.setitem(sys.modules, 'medmnist', Package(b'', KeyboardInterrupt(), b'half'))
    with pytest.raises(KeyboardInterrupt): download_archive('breastmnist', tmp_path/'dest')
    assert list((tmp_path/'dest').iterdir()) == []


def test_the_package_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'medmnist', None)
    with pytest.raises(ArchiveError, match=r"pip install 'medfast\[medmnist\]'"): download_archive('breastmnist', tmp_path/'dest')
    assert not (tmp_path/'dest').exists()


def test_another_file_is_not_overwritten(tmp_path, monkeypatch, official):
    package = Package(official)
    monkeypatch.setitem(sys.modules, 'medmnist', package)
    (tmp_path/'breastmnist.npz').write_bytes(other := written(tmp_path/'other.npz', n_classes=1).read_bytes())
    with pytest.raises(ArchiveError, match='Nothing was changed'): download_archive('breastmnist', tmp_path)
    assert (tmp_path/'breastmnist.npz').read_bytes() == other and package.calls == []


def test_sets_and_sizes_that_are_none(tmp_path):
    with pytest.raises(ArchiveError, match='no two-dimensional set'): download_archive('organmnist3d', tmp_path)
    with pytest.raises(ArchiveError, match='28, 64, 128, 224 px'): download_archive('breastmnist', tmp_path, 32)


# --- names and spellings

def test_spellings_of_one_image_are_one_path(tmp_path, monkeypatch):
    (tmp_path/'study #2').mkdir(); (tmp_path/'link').symlink_to(tmp_path/'study #2'); (tmp_path/'study #2'/'a#1.png').write_bytes(b'')
    (tmp_path/'b.png').symlink_to(tmp_path/'study #2'/'a#1.png')
    monkeypatch.chdir(tmp_path)
    spellings = ['study #2/a#1.png', 'link/a#1.png', './link/../study #2/a#1.png', str(tmp_path/'b.png'), tmp_path/'study #2'/'a#1.png']
    assert {same_path(o) for o in spellings} == {str(tmp_path.resolve()/'study #2'/'a#1.png')}
    assert {same_path(f'{o}/s.npz#{p}') for o in ('link', 'study #2', tmp_path/'link') for p in ('val/0', 'valid/00')} == {f'{tmp_path.resolve()}/study #2/s.npz#valid/0'}
    monkeypatch.chdir(tmp_path/'link') # a relative path means another file elsewhere
    assert same_path('a.png') == str(tmp_path.resolve()/'study #2'/'a.png')


def test_names_know_an_archive_from_a_number_sign():
    assert [item_name(o) for o in ('/x#1/a.png', 'a#b.png', '/x#train/s.npz#val/07', 'C:\\x\\a.png', None)] == ['a.png', 'a#b.png', 's.npz#valid/7', 'a.png', 'None']


@pytest.mark.parametrize('classes', ['ab', 5, [None, 'a'], ['a', 'a '], ['a', ''], ['a', 'none'], ['a', 'b|c'], ['a']])
def test_class_names_that_are_none(tmp_path, classes):
    with pytest.raises(ArchiveError, match='own.npz: classes = '): read_archive(written(tmp_path/'own.npz'), classes=classes)


def test_one_class_written_as_a_row_is_refused(tmp_path):
    rows = lambda a: {f'{p}_labels': a[np.arange(len(arrays()[f'{p}_labels'])) % len(a)] for p in ('train', 'val', 'test')}
    for k in (2, 3):
        with pytest.raises(ArchiveError, match=r'look one-hot.*argmax\(axis=1\)'): read_archive(written(tmp_path/'own.npz', **rows(np.eye(k, dtype=int))), classes=list('abc'[:k]))
        assert read_archive(written(tmp_path/'own.npz', **rows(np.tri(k, dtype=int))), classes=list('abc'[:k])).task == 'multi-label'


def test_no_image_in_any_part(tmp_path):
    none = {f'{p}_{k}': v[:0] for p in ('train', 'val', 'test') for k,v in dict(images=np.zeros((1, 28, 28), np.uint8), labels=np.zeros((1, 1), int)).items()}
    with pytest.raises(ArchiveError, match='holds no image in any part'): read_archive(written(tmp_path/'own.npz', **none), classes=['a', 'b'])


def test_fortran_order_has_content_too(tmp_path):
    images = np.asfortranarray(arrays()['train_images'])
    a,b = (written(tmp_path/f'{o}.npz', train_images=x) for o,x in dict(f=images, c=np.ascontiguousarray(images)).items())
    assert content_ids([item_path(a, 'train', 1)]) == content_ids([item_path(b, 'train', 1)])


def test_what_is_no_item():
    with pytest.raises(ArchiveError, match='None is no image of an archive'): read_item(None)


def test_a_relative_path_follows_the_working_folder(tmp_path, monkeypatch):
    for name in 'ab':
        (tmp_path/name).mkdir(); monkeypatch.chdir(tmp_path/name)
        assert [same_path(o) for o in ('1.png', 'x.npz#val/01')] == [str(tmp_path.resolve()/name/'1.png'), f'{tmp_path.resolve()/name}/x.npz#valid/1']


def test_another_file_of_the_same_size_and_time_is_not_taken_for_the_one_that_is_remembered(tmp_path):
    (tmp_path/'a').write_bytes(b'one'); (tmp_path/'b').write_bytes(b'two')
    for o in 'ab': os.utime(tmp_path/o, ns=(1, 1))
    read = lambda fn: remembered('bytes of a test', fn, lambda o: o.read_bytes())
    assert read(tmp_path/'a') == b'one' and is_remembered('bytes of a test', tmp_path/'a')
    os.replace(tmp_path/'b', tmp_path/'a')
    assert not is_remembered('bytes of a test', tmp_path/'a') and read(tmp_path/'a') == b'two'


def test_grey_in_three_channels_has_the_content_of_grey(tmp_path):
    grey = arrays(classes=np.array(['a', 'b']))
    np.savez(tmp_path/'grey.npz', **grey); np.savez(tmp_path/'three.npz', **{k: np.stack([v]*3, -1) if k.endswith('images') else v for k,v in grey.items()})
    assert content_ids([item_path(tmp_path/'grey.npz', 'train', 1)]) == content_ids([item_path(tmp_path/'three.npz', 'train', 1)])
