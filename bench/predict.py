"""A bundle and a plain fastai loop over the same files, in one run: images a second, and memory at 100 and at 1,000 images.

    python bench/predict.py                       # 1,000 pictures of 480 x 640, a resnet18 at 96 pixels, three rounds
    python bench/predict.py --n 300 --rounds 5 --text

The ways, each from the saved files to a table of probabilities, in turn within a round:
`bundle` (load_bundle, predict_files), `fastai` (DataLoaders of PILImage and Resize, learn.load, test_dl, get_preds; no worker processes)
and `fastai, 2 workers`. With --text the images are text matrices, which fastai's own opener cannot read; its item transform is then
numpy's loadtxt. Networks have random weights: time does not depend on them. Memory is the peak of a process of its own for each size.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

warnings.filterwarnings('ignore')


def pictures(folder, n, text):
    "`n` noisy thermograms of two classes: PNG on a fixed scale, or text; from the hundredth on, other names of the first ones."
    folder.mkdir()
    rng = np.random.default_rng(0)
    y,x = np.mgrid[-1:1:480j, -1:1:640j]
    for i in range(n):
        if i >= 100:
            os.link(*(folder/f'{k:04d}{".txt" if text else ".png"}' for k in (i - 100, i)))
            continue
        temps = 24 + 9*np.exp(-(x - rng.normal(0, .2))**2 - (y - rng.normal(0, .2))**2) + rng.normal(0, .15, x.shape)
        if text: (folder/f'{i:04d}.txt').write_bytes(b'\n'.join(b' '.join(b'%.2f' % t for t in row) for row in temps) + b'\n')
        else: Image.fromarray(np.rint((temps - 20)*255/20).clip(0, 255).astype(np.uint8)).save(folder/f'{i:04d}.png', compress_level=1)
    return sorted(folder.iterdir())


def saved(home, files, size, bs):
    "A bundle, and the same kind of network as fastai saves it."
    import pandas as pd
    from medfast.bundle import save_bundle
    from medfast.loaders import study_dls
    from medfast.models import medical_learner
    rows = pd.DataFrame(dict(path=list(map(str, files[:16])), label=['no', 'yes']*8, split=['train']*12 + ['valid']*4))
    save_bundle(medical_learner(study_dls(rows, size=size, bs=bs, drop_last=False, device='cpu'), 'resnet18', pretrained=False), home/'bundle')
    plain(files, size, bs).save(home/'plain')


def plain(files, size, bs):
    "What a fastai user writes."
    from fastai.vision.all import CategoryBlock, DataBlock, IndexSplitter, ImageBlock, Normalize, PILImage, Resize, ResizeMethod, imagenet_stats, resnet18, vision_learner
    opened = (lambda fn: fn) if Path(files[0]).suffix != '.txt' else lambda fn: PILImage.create(np.rint((np.loadtxt(fn) - 20)*255/20).clip(0, 255).astype(np.uint8).repeat(3).reshape(480, 640, 3))
    block = DataBlock((ImageBlock, CategoryBlock), get_x=opened, get_y=lambda fn: 'yes' if int(Path(fn).stem)%2 else 'no', splitter=IndexSplitter([0, 1]),
        item_tfms=Resize(size, method=ResizeMethod.Squish), batch_tfms=Normalize.from_stats(*imagenet_stats, cuda=False))
    return vision_learner(block.dataloaders(list(files[:16]), bs=min(bs, 8), num_workers=0, device=torch.device('cpu')), resnet18, pretrained=False)


def by_bundle(home, files, o):
    from medfast.bundle import load_bundle
    from medfast.predict import predict_files
    return np.array([list(a.probabilities.values()) for a in predict_files(load_bundle(home/'bundle'), files, bs=o.bs)])


def by_fastai(home, files, o, workers=0):
    learn = plain(files, o.size, o.bs)
    learn.load(home/'plain')
    with learn.no_bar(): return learn.get_preds(dl=learn.dls.test_dl(files, bs=o.bs, num_workers=workers))[0].numpy()


def peak(home, files, way):
    "Peak memory in MB of a process that predicts these files (Linux: `ru_maxrss` would be that of its parent)."
    code = f'''if True:
        import json, re, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import predict, argparse
        from pathlib import Path
        files = [Path(o) for o in json.load(sys.stdin)]
        predict.{way}(Path({str(home)!r}), files, argparse.Namespace(bs=64, size={SIZE[0]}))
        print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])/1024)'''
    done = subprocess.run([sys.executable, '-c', code], input=json.dumps(list(map(str, files))), capture_output=True, text=True, check=True, env={**os.environ, 'IN_TEST': '1'})
    return float(done.stdout.split()[-1])


SIZE = [96]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name,value in dict(n=1000, rounds=3, size=96, bs=64, threads=torch.get_num_threads()).items(): p.add_argument(f'--{name}', type=int, default=value)
    p.add_argument('--text', action='store_true')
    p.add_argument('--no-memory', action='store_true')
    o = p.parse_args()
    torch.set_num_threads(o.threads)
    SIZE[0] = o.size
    with tempfile.TemporaryDirectory() as tmp:
        home = Path(tmp)
        files = pictures(home/'files', o.n, o.text)
        saved(home, files, o.size, o.bs)
        ways = {'bundle': by_bundle, 'fastai': by_fastai, 'fastai, 2 workers': lambda *a: by_fastai(*a, workers=2)}
        rounds = []
        for i in range(o.rounds):
            seconds = {}
            for name,f in ways.items():
                start = time.perf_counter()
                assert f(home, files, o).shape == (len(files), 2)
                seconds[name] = time.perf_counter() - start
            rounds.append(seconds)
            print(f'round {i + 1}: ' + ', '.join(f'{k} {len(files)/s:.1f} images/s' for k,s in seconds.items()), flush=True)
        print(f'{o.n:,} {"text matrices" if o.text else "pictures"} of 480 x 640, resnet18 at {o.size} px, batches of {o.bs}, {o.threads} thread(s), {os.cpu_count()} cores; median (range) of {o.rounds} rounds')
        for k in ways:
            rate = [o.n/r[k] for r in rounds]
            ratio = [r[k]/r['bundle'] for r in rounds]
            print(f'{k:20} {np.median(rate):6.1f} ({min(rate):.1f} to {max(rate):.1f}) images a second; the bundle is {np.median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f}) times as fast')
        if o.no_memory: return
        few = max(1, o.n//10)
        for way in ('by_bundle', 'by_fastai'): print(f'peak of {way}: {peak(home, files[:few], way):.0f} MB for {few:,} images, {peak(home, files, way):.0f} MB for {o.n:,}', flush=True)


if __name__ == '__main__': main()
