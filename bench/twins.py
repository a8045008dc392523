"""What the leak audit finds and what it takes for twins, on real and simulated images. `MEDFAST_DATA=... python bench/twins.py [part ...]`

    python bench/twins.py                    # all parts but `speed`, about ten minutes on two cores
    python bench/twins.py planted strangers  # some of them: planted, altered, strangers, siblings, public, speed
    python bench/twins.py speed --n 50000    # time and memory of a catalog of so many images

Needs the folder of evaluation data for all parts but `siblings` and `speed`. tests/test_twins.py runs the same functions (`pytest -m full`).
"""
import argparse
import io
import os
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from medfast.catalog import coronahack_catalog, dmr_catalog, medmnist_catalog, radiography_catalog
from medfast.simulate import simulate_study
from medfast.split import LeakageError, audit_leakage, split_catalog
from medfast.twins import near_twins, read_pixels, twin_correlation

DATA = Path(os.environ.get('MEDFAST_DATA', 'data'))


# --- planted leaks of the same patient, bytes and pixels

FORMATS = {'png': dict(compress_level=1), 'bmp': {}, 'tif': {}, 'TIF': dict(compression='tiff_lzw'), 'PNG': dict(optimize=True)} # all without loss


def small_split(catalog, rng):
    "8 patients of each class with up to two images each, split by patient."
    people = catalog.drop_duplicates('patient').groupby('label').sample(8, random_state=rng).patient
    own = catalog[catalog.patient.isin(people)].sort_values('path').groupby('patient').head(2).reset_index(drop=True)
    return split_catalog(own, valid=.2, test=.2, seed=int(rng.integers(1 << 31)))


def plant(split, kind, folder, rng, number):
    "A test image becomes a leak of `kind`; returns the catalog and what the error must name."
    there,here = split[split.split == 'train'].sample(random_state=rng).iloc[0], split[split.split != 'train'].sample(random_state=rng).index[0]
    bad = split.copy()
    if kind == 'patient':
        bad.loc[here, 'patient'] = there.patient
        return bad, [there.patient]
    ending = Path(there.path).suffix if kind == 'bytes' else f'.{rng.choice(list(FORMATS))}'
    copy = folder/f'copy{number}{ending}'
    if kind == 'bytes': copy.write_bytes(Path(there.path).read_bytes())
    else:
        pixels = Image.fromarray(read_pixels(there.path))
        if rng.random() < .5: pixels = pixels.convert('RGB')
        pixels.save(copy, **FORMATS[ending[1:]])
    bad.loc[here, ['path', 'patient']] = str(copy), f'new{number}'
    return bad, [Path(there.path).name, copy.name]


def planted_leaks(n, catalog, seed=0):
    "How many of `n` planted leaks of each kind, each in a study of its own, are refused with their names, and of `n` clean studies."
    rng = np.random.default_rng(seed)
    found,refused = dict(patient=0, bytes=0, pixels=0), 0
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            split = small_split(catalog, rng)
            try: audit_leakage(split)
            except LeakageError: refused += 1
            for kind in found:
                bad,names = plant(split, kind, Path(folder), rng, i)
                try: audit_leakage(bad)
                except LeakageError as e: found[kind] += f'same {kind}' in str(e) and all(o in str(e) for o in names)
                if kind != 'patient': Path(bad.path[bad.path.str.startswith(folder)].iloc[0]).unlink()
    return pd.DataFrame(dict(planted=n, found=found)).rename_axis('leak'), refused


# --- altered copies

def jpeg(image, quality):
    data = io.BytesIO()
    image.save(data, 'jpeg', quality=quality)
    return Image.open(data)


def shifted(image, rng, share=.02, black=False):
    "Moved by a share of both sides in a random direction; what comes in repeats the border, or is black."
    pixels = np.asarray(image)
    down,right = (int(rng.choice([-1, 1]))*max(1, round(share*n)) for n in pixels.shape)
    wide = np.pad(pixels, ((max(down, 0), max(-down, 0)), (max(right, 0), max(-right, 0))), 'constant' if black else 'edge')
    top,left = max(-down, 0), max(-right, 0)
    return Image.fromarray(np.ascontiguousarray(wide[top:top + pixels.shape[0], left:left + pixels.shape[1]]))


def resized(image, share): return image.resize([max(4, round(share*n)) for n in image.size], Image.Resampling.BICUBIC)
def lighter(image, share): return image.point(lambda v: min(255, v*share))
def turned(image, degrees): return image.rotate(degrees, Image.Resampling.BILINEAR)
def cropped(image, share): return image.crop([round(share*n) for n in image.size] + [round((1 - share)*n) for n in image.size])


COVERED = {
    'JPEG quality 90': lambda i, r: jpeg(i, 90), 'JPEG quality 70': lambda i, r: jpeg(i, 70), 'JPEG quality 50': lambda i, r: jpeg(i, 50),
    'size x .9': lambda i, r: resized(i, .9), 'size x .7': lambda i, r: resized(i, .7), 'size x .5': lambda i, r: resized(i, .5),
    'brightness +20 %': lambda i, r: lighter(i, 1.2), 'brightness -20 %': lambda i, r: lighter(i, .8),
    'shift 2 %, border repeated': lambda i, r: shifted(i, r), 'shift 2 %, black': lambda i, r: shifted(i, r, black=True),
    'shift 2 %, x .7, -20 %, JPEG 60': lambda i, r: jpeg(lighter(resized(shifted(i, r), .7), .8), 60)}
BEYOND = {
    'shift 4 %': lambda i, r: shifted(i, r, .04), 'shift 5 %': lambda i, r: shifted(i, r, .05), 'shift 6 %': lambda i, r: shifted(i, r, .06), 'gamma .8': lambda i, r: i.point(lambda v: 255*(v/255)**.8),
    'histogram equalised': lambda i, r: ImageOps.equalize(i), 'size x .25': lambda i, r: resized(i, .25), 'size x .125': lambda i, r: resized(i, .125), 'turned 1°': lambda i, r: turned(i, 1), 'turned 2°': lambda i, r: turned(i, 2), 'turned 3°': lambda i, r: turned(i, 3),
    'crop 1 % a side': lambda i, r: cropped(i, .01), 'crop 2 % a side': lambda i, r: cropped(i, .02), 'crop 4 % a side': lambda i, r: cropped(i, .04),
    'flipped': lambda i, r: ImageOps.mirror(i), 'inverted': lambda i, r: ImageOps.invert(i)}


def real_paths(name, data=DATA):
    "Paths of all images of a set, in a fixed order."
    warnings.simplefilter('ignore')
    catalogs = dict(coronahack=coronahack_catalog, radiography=radiography_catalog)
    table = catalogs[name](data/name) if name in catalogs else medmnist_catalog(data/'medmnist', name)
    return sorted(table.path.astype(str))


def altered_copies(name, alterations, n=300, data=DATA, seed=0):
    """Of `n` altered copies of each kind in the test part, all images in train: the share that is listed with its own image, the
    correlations (as they are, small images not matched), and how many pairs with other images are listed."""
    rng,paths = np.random.default_rng(seed), real_paths(name, data)
    drawn = rng.choice(len(paths), min(n, len(paths)), replace=False)
    with tempfile.TemporaryDirectory() as folder:
        rows = [dict(path=p, split='train', kind='', own=p) for p in paths]
        for k,(kind,alter) in enumerate(alterations.items()):
            for i in drawn:
                copy = alter(Image.fromarray(read_pixels(paths[i])).convert('L'), rng)
                rows.append(dict(path=f'{folder}/{k}-{i}.png', split='test', kind=kind, own=paths[i]))
                copy.save(rows[-1]['path'], compress_level=1)
        table = pd.DataFrame(rows)
        found = near_twins(table, progress=False)
        pairs = pd.DataFrame(found.places, columns=['a', 'b']).assign(correlation=found.pairs.correlation.to_numpy())
        others = pairs.b[table.own.to_numpy()[pairs.a] != table.own.to_numpy()[pairs.b]]
        hits = set(pairs.b[table.own.to_numpy()[pairs.a] == table.own.to_numpy()[pairs.b]])
        own = {p: read_pixels(p) for p in {paths[i] for i in drawn}}
        copies = table[table.split == 'test'].assign(found=lambda o: o.index.isin(hits), others=lambda o: [int(n) for n in others.value_counts().reindex(o.index, fill_value=0)])
        copies['correlation'] = [twin_correlation(own[o], read_pixels(p)) for o,p in zip(copies.own, copies.path)]
    told = copies.groupby('kind', sort=False).agg(copies=('found', 'size'), found=('found', 'mean'), lowest=('correlation', 'min'), median=('correlation', 'median'), others=('others', 'sum'))
    return told


# --- strangers

def at_size(catalog, side, folder):
    "The catalog with all images reduced to `side` pixels."
    paths = []
    for i,p in enumerate(catalog.path):
        paths.append(f'{folder}/{side}-{i}.png')
        Image.fromarray(read_pixels(p)).resize((side, side), Image.Resampling.BICUBIC).save(paths[-1])
    return catalog.assign(path=paths)


def strangers(catalog, seed=0):
    "What the candidates of different patients reach, patients split into two halves: the row of `near_twins`, and the list."
    halves = np.random.default_rng(seed).permutation(catalog.patient.unique())[::2]
    found = near_twins(catalog.assign(split=np.where(catalog.patient.isin(halves), 'train', 'test'), split_by='patient'), progress=False)
    return found.strangers.reset_index(drop=True).iloc[0], found


def all_strangers(data=DATA):
    "`strangers` of the sets whose patients are known."
    warnings.simplefilter('ignore')
    corona = coronahack_catalog(data/'coronahack').dropna(subset='patient')
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        sets = {'CoronaHack, 224 px': corona} | {f'CoronaHack, {s} px': at_size(corona, s, folder) for s in (56, 28)} | {'DMR-IR matrices': dmr_catalog(data/'dmr-ir')}
        for name,catalog in sets.items():
            row,found = strangers(catalog)
            rows[name] = row.to_dict() | {'same patient': int((found.pairs.patients == 'same').sum())}
    return pd.DataFrame(rows).T.assign(rate=lambda o: o.above/o.pairs)


# --- siblings of simulated patients

def siblings(n_patients=60, n_frames=4):
    "Frames of simulated patients split by image: how many test frames have a frame of their patient in train, and how many of these are listed."
    with tempfile.TemporaryDirectory() as folder:
        catalog = split_catalog(dmr_catalog(simulate_study(folder, n_patients=n_patients, n_frames=n_frames)), valid=0, test=.25, by='image')
        found = near_twins(catalog, progress=False)
        test = catalog[(catalog.split == 'test') & catalog.patient.isin(catalog.patient[catalog.split == 'train'])]
        own = found.pairs[found.pairs.patients == 'same']
        best = own.groupby('file b').correlation.max()
        return dict(test=len(test), listed=own['file b'].nunique(), lowest_best=float(best.min()), median_best=float(best.median())) | found.strangers.iloc[0].to_dict()


# --- the two public ones

def public_twins(data=DATA):
    "The official parts of BreastMNIST and PneumoniaMNIST, and the radiography set on both sides of a random split."
    warnings.simplefilter('ignore')
    found = {name: near_twins(medmnist_catalog(data/'medmnist', name), progress=False) for name in ('breastmnist', 'pneumoniamnist')}
    catalog = radiography_catalog(data/'radiography').assign(split_by='image')
    catalog['split'] = np.where(catalog.path.str.contains('COVID-3142'), 'test', np.where(np.arange(len(catalog)) % 4 == 1, 'test', 'train'))
    catalog.loc[catalog.path.str.contains('COVID-3144'), 'split'] = 'train'
    return found | dict(radiography=near_twins(catalog, progress=False))


def positions(found, later='test', earlier='train'):
    "Positions in part `later` of an archive with a twin in `earlier`, sorted."
    own = found.pairs[(found.pairs['split b'] == later) & (found.pairs['split a'] == earlier)]
    return sorted({int(o.rpartition('/')[2]) for o in own['file b']})


# --- time and memory

def speed(n=50_000, side=64, seed=0):
    "Seconds and memory of `near_twins` on `n` made-up images in an archive, a fifth of them in test."
    from medfast import twins
    rng = np.random.default_rng(seed)
    images = np.empty((n, side, side), np.uint8)
    for i in range(0, n, 1000):
        noise = rng.normal(size=(min(1000, n - i), side, side)).astype(np.float32).cumsum(1).cumsum(2)
        noise -= noise.min((1, 2), keepdims=True)
        images[i:i + 1000] = noise*(255/noise.max((1, 2), keepdims=True))
    parts = dict(train=images[:n*7//10], val=images[n*7//10:n*8//10], test=images[n*8//10:])
    with tempfile.TemporaryDirectory() as folder:
        fn = Path(folder)/'made up.npz'
        np.savez(fn, **{f'{p}_images': o for p,o in parts.items()}, **{f'{p}_labels': np.arange(len(o))[:, None] % 2 for p,o in parts.items()}, classes=np.array(['a', 'b']))
        catalog,times = medmnist_catalog(fn), {}
        paths,sides = catalog.path.tolist(), catalog.split.to_numpy(dtype=object)
        before,start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        ids,spectra,details,_ = twins._look(paths, False); times['read'] = time.perf_counter() - start
        a,b = twins._candidates(spectra, sides, 10); times['search'] = time.perf_counter() - start - times['read']
        twins._in_batches(details, a, b); times['correlate'] = time.perf_counter() - start - times['read'] - times['search']
        audit = time.perf_counter(); audit_leakage(catalog, raises=False); times['audit of bytes and pixels'] = time.perf_counter() - audit
    whole = times['read'] + times['search'] + times['correlate']
    return pd.Series(times | {'images a second': n/whole, 'pairs': len(a), 'memory in MB': (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/1024})


def reading(data=DATA):
    "Pictures and matrices a second: decoding with the digest, and the whole look of `near_twins`."
    from medfast import archive, twins
    rows = {}
    for name,paths in dict(coronahack=real_paths('coronahack', data), radiography=real_paths('radiography', data), dmr=sorted(map(str, (data/'dmr-ir').rglob('*.txt')))).items():
        paths = paths[:300]
        archive._KNOWN.clear()
        start = time.perf_counter(); twins.equal_pixels(paths*2, ['train']*len(paths) + ['test']*len(paths), progress=False); middle = time.perf_counter()
        twins.equal_pixels(paths*2, ['train']*len(paths) + ['test']*len(paths), progress=False); again = time.perf_counter(); twins._look(paths, False)
        rows[name] = dict(images=len(paths), digest=len(paths)/(middle - start), again=len(paths)/(again - middle), look=len(paths)/(time.perf_counter() - again))
    return pd.DataFrame(rows).T


def show(title, table): print(f'\n## {title}\n{table.to_string(float_format=lambda v: f"{v:.3f}") if hasattr(table, "to_string") else table}', flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('parts', nargs='*', default=['planted', 'altered', 'strangers', 'siblings', 'public'])
    p.add_argument('--n', type=int, default=50_000, help='images for speed')
    p.add_argument('--leaks', type=int, default=1000, help='planted leaks of each kind')
    p.add_argument('--copies', type=int, default=300, help='altered copies of each kind')
    o = p.parse_args()
    if 'planted' in o.parts:
        warnings.simplefilter('ignore')
        table,refused = planted_leaks(o.leaks, coronahack_catalog(DATA/'coronahack').dropna(subset='patient'))
        show('planted leaks in studies of 16 patients of CoronaHack', table)
        print(f'{refused} of {o.leaks} clean studies refused')
    if 'altered' in o.parts:
        for name in ('coronahack', 'radiography', 'breastmnist', 'pneumoniamnist'):
            show(f'altered copies, {name}: covered', altered_copies(name, COVERED, o.copies))
            show(f'altered copies, {name}: beyond', altered_copies(name, BEYOND, o.copies))
    if 'strangers' in o.parts: show('candidates of different patients', all_strangers())
    if 'siblings' in o.parts: show('sibling frames of simulated thermograms', pd.Series(siblings()))
    if 'public' in o.parts:
        for name,found in public_twins().items():
            show(f'public: {name}', found)
            if name == 'radiography': print(found.pairs.iloc[:, :6].to_string())
            else: print('test images with a twin in train:', positions(found))
    if 'speed' in o.parts: show('images a second', reading()) if DATA.is_dir() else None; show(f'{o.n:,} images of 64 px', speed(o.n))
    print(f'\nnumpy {np.__version__}, Pillow {Image.__version__}, Python {sys.version.split()[0]}, {os.cpu_count()} cores seen')


if __name__ == '__main__': main()
