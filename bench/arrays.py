"""An epoch on small grey arrays, three ways in turn, several times: seconds and ratios within one run.

    python bench/arrays.py                     # 13,940 arrays of 28 x 28 as in study 003, five rounds
    python bench/arrays.py --n 4000 --rounds 3

The ways: a bare torch loop over the same tensors, `array_dls` under a fastai Learner, and a DataBlock of the same arrays through
PIL. All train study 003's first network (106,239 numbers) on 11 classes in shuffled batches of 128, and validate it on a sixth
as many arrays. Bytes become floats and are normalised in every batch; the loss is cross entropy; nobody computes metrics or
draws bars. The Learner has fastai's Adam, the bare loop torch's, both with rate .001 and no weight decay.
"""
import argparse
import sys
from functools import partial

import numpy as np
import pandas as pd
import torch
from clock import spread, timed
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import IndexSplitter, Normalize
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import OptimWrapper
from fastai.torch_core import set_seed
from fastai.vision.core import PILImageBW
from fastai.vision.data import ImageBlock
from torch import nn
from torch.nn import functional as F

from medfast.loaders import array_dls

CLASSES = [f'class {i:02d}' for i in range(11)]
STATS = [.5], [.29]


def made_up(o):
    "Noise with a bright square whose place tells the class: arrays (n, 28, 28) of bytes, and a catalog."
    rng,n = np.random.default_rng(0), o.n + o.n//6
    images,y = rng.integers(0, 128, (n, 28, 28), dtype=np.uint8), rng.integers(0, 11, n)
    for i,k in enumerate(y): images[i, 2 + 6*(k//4):8 + 6*(k//4), 2 + 6*(k%4):8 + 6*(k%4)] += 100
    split = np.where(np.arange(n) < o.n, 'train', 'valid')
    return images, pd.DataFrame(dict(path=[f'array {i}' for i in range(n)], label=[CLASSES[k] for k in y], split=split))


def network():
    "Study 003's first network, always from the same weights."
    set_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(body, nn.Sequential(nn.Flatten(), nn.Linear(784, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 11)))


class Bare:
    "The loop that anybody would write, over the tensors of `array_dls`."
    def __init__(self, sets, o):
        self.train,self.valid,self.bs,self.device = *((ds.x, ds.y) for ds in sets), o.bs, o.device
        self.model = network().to(o.device)
        self.opt = torch.optim.Adam(self.model.parameters(), 1e-3)

    def batch(self, part, rows):
        x,y = (t[rows].to(self.device) for t in part)
        return (x.float()/255 - STATS[0][0])/STATS[1][0], y

    def epoch(self):
        self.model.train()
        order = torch.randperm(len(self.train[0]))
        for i in range(0, len(order) - self.bs + 1, self.bs):
            x,y = self.batch(self.train, order[i:i + self.bs])
            F.cross_entropy(self.model(x), y).backward()
            self.opt.step()
            self.opt.zero_grad()
        self.model.eval()
        with torch.no_grad():
            return sum(F.cross_entropy(self.model(x), y, reduction='sum').item() for x,y in (self.batch(self.valid, slice(i, i + self.bs)) for i in range(0, len(self.valid[0]), self.bs)))/len(self.valid[0])


def learner(dls, o, **options):
    "A fastai Learner without bars, tables and metrics."
    learn = Learner(dls, network(), CrossEntropyLossFlat(), lr=1e-3, wd=0., **options)
    learn.logger = lambda *args: None
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    return learn


def epoch_of(learn):
    "One epoch with a constant rate; the optimiser goes on. Gives the validation loss."
    learn.fit(1, 1e-3)
    return learn.recorder.values[-1][-1]


def block_dls(images, catalog, o):
    "What a fastai user writes: an array becomes a PIL image, a tensor, an item of a batch."
    valid = np.flatnonzero(catalog.split == 'valid')
    labels = catalog.label.tolist()
    block = DataBlock((ImageBlock(PILImageBW), CategoryBlock), get_x=lambda i: images[i], get_y=lambda i: labels[i],
        splitter=IndexSplitter(valid), batch_tfms=Normalize.from_stats(*STATS, cuda=o.device != 'cpu'))
    return block.dataloaders(list(range(len(images))), bs=o.bs, num_workers=o.workers, device=torch.device(o.device))


def ways(o):
    "Name and epoch of each way."
    images,catalog = made_up(o)
    dls = array_dls(catalog, images=images, bs=o.bs, stats=STATS, device=torch.device(o.device))
    bare = Bare([dl.dataset for dl in dls.loaders], o)
    arrays,block = learner(dls, o), learner(block_dls(images, catalog, o), o)
    torch_adam = learner(dls, o, opt_func=partial(OptimWrapper, opt=torch.optim.Adam))
    return dict(bare=bare.epoch, array_dls=partial(epoch_of, arrays), torch_adam=partial(epoch_of, torch_adam), DataBlock=partial(epoch_of, block))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name,value in dict(n=13940, bs=128, epochs=1, rounds=5, workers=0, threads=torch.get_num_threads()).items(): p.add_argument(f'--{name}', type=int, default=value)
    p.add_argument('--device', default='cpu')
    o = p.parse_args()
    torch.set_num_threads(o.threads)
    todo = ways(o)
    rounds = []
    for i in range(o.rounds + 1):  # the first one warms up
        rounds.append({k: [timed(f, o.device) for _ in range(o.epochs)] for k,f in todo.items()})
        sys.stdout.write(('warm-up: ' if i == 0 else f'round {i}: ') + ', '.join(f'{k} {np.mean([t for t,_,_ in ts]):.2f} s' for k,ts in rounds[-1].items()) + '\n')
        sys.stdout.flush()
    print(f'\n{o.n:,} arrays of 28 x 28, batches of {o.bs}, {o.threads} thread(s), {o.device}; median (range) of {o.rounds} rounds of {o.epochs} epoch(s)')
    for at,clock in enumerate(('wall', 'processor')):
        times = {k: [np.mean([t[at] for t in r[k]]) for r in rounds[1:]] for k in todo}
        for k in todo: print(f'{clock:>9} seconds an epoch, {k:26}', spread(times[k]))
        for a,b in (('array_dls', 'bare'), ('torch_adam', 'bare'), ('DataBlock', 'array_dls')):
            print(f'{clock:>9} ratio, {f"{a} to {b}":35}', spread([x/y for x,y in zip(times[a], times[b])]))
    print('\nvalidation loss at the end: ' + ', '.join(f'{k} {ts[-1][-1]:.4f}' for k,ts in rounds[-1].items()))
    print('torch_adam is array_dls under a Learner with the optimiser of the bare loop')


if __name__ == '__main__': main()
