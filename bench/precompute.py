"""Fifteen epochs on the head of a frozen resnet18, three ways in turn, several times: seconds and ratios within one run.

    python bench/precompute.py                      # 96 images of 224 pixels, three rounds: minutes
    python bench/precompute.py --images 32 --size 96 --epochs 3

The ways: fastai's default (batch norm of the frozen body learns), batch norm at rest (train_bn=False and BnFreeze), and features
computed once (`learn.precomputed`, the computation included). The last two must end in heads that are equal bit for bit.
"""
import argparse

import torch
from clock import spread, timed
from fastai.callback.training import BnFreeze
from fastai.data.core import DataLoaders, TfmdDL
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import TensorCategory, TensorImage, set_seed
from fastai.vision.learner import _resnet_split, create_vision_model
from torchvision.models import resnet18

import medfast.precompute  # gives every learner the method precomputed


def learner(o, train_bn):
    "A frozen resnet18 with random weights on made-up images, a quarter of them for validation."
    set_seed(0)
    items = [(TensorImage(torch.rand(3, o.size, o.size)), TensorCategory(torch.tensor(i % 2))) for i in range(o.images)]
    n = o.images*3//4
    dls = DataLoaders(TfmdDL(items[:n], bs=o.bs, num_workers=0), TfmdDL(items[n:], bs=o.bs, num_workers=0), device=o.device)
    model = create_vision_model(resnet18, 2, pretrained=False, ps=0.)
    learn = Learner(dls, model, CrossEntropyLossFlat(), splitter=_resnet_split, train_bn=train_bn, cbs=None if train_bn else BnFreeze)
    learn.logger = lambda *args: None
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    learn.freeze()
    return learn


def features_once(learn, epochs):
    with learn.precomputed(): learn.fit(epochs, 1e-3)


def same_head(a, b): return all(torch.equal(p, q) for p,q in zip(a.model[1].state_dict().values(), b.model[1].state_dict().values()))


def one_round(o):
    "Seconds (wall, processor) of the three ways, and whether the last two end in equal heads."
    plain,rest,quick = learner(o, True), learner(o, False), learner(o, False)
    times = dict(default=timed(lambda: plain.fit(o.epochs, 1e-3), o.device), at_rest=timed(lambda: rest.fit(o.epochs, 1e-3), o.device),
        features=timed(lambda: features_once(quick, o.epochs), o.device))
    return times, same_head(rest, quick)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name,value in dict(images=96, size=224, bs=16, epochs=15, rounds=3, threads=torch.get_num_threads()).items(): p.add_argument(f'--{name}', type=int, default=value)
    p.add_argument('--device', default='cpu')
    o = p.parse_args()
    torch.set_num_threads(o.threads)
    rounds = []
    for i in range(o.rounds):
        rounds.append(one_round(o))
        print(f'round {i + 1}: ' + ', '.join(f'{k} {w:.1f} s' for k,(w,*_) in rounds[-1][0].items()) + f', heads equal: {rounds[-1][1]}', flush=True)
    print(f'\nresnet18, {o.images} images of {o.size} px, batches of {o.bs}, {o.epochs} epochs, {o.threads} thread(s), {o.device}; median (range) of {o.rounds} rounds')
    for i,clock in enumerate(('wall', 'processor')):
        for k in rounds[0][0]: print(f'{clock:>9} seconds, {k:9}', spread([t[k][i] for t,_ in rounds]))
        for k in ('default', 'at_rest'): print(f'{clock:>9} ratio, {k} to features', spread([t[k][i]/t['features'][i] for t,_ in rounds]))


if __name__ == '__main__': main()
