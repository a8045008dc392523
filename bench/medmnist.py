"""Two sets with published numbers: a small residual network beside a ResNet-18, both trained here in the same way.

    python bench/medmnist.py DATA pneumoniamnist --choose     the recipes on the validation part, the test part sealed
    python bench/medmnist.py DATA pneumoniamnist RUNS         the chosen recipe, three seeds; the test part is opened once and counted in RUNS
    python bench/medmnist.py DATA breastmnist RUNS --twins    again without the training images that have a near twin in the test part, beside RUNS

A recipe is chosen by its mean AUC on the validation part: 78 or 524 images cannot tell accuracies apart.
DATA holds the official npz files of 28 pixels. The split is the official one; MedMNIST does not tell patients, so intervals are by image, too narrow.
Published: ResNet-18 at 28 pixels in MedMNIST v2 (Yang et al. 2023, Scientific Data 10:41), accuracy and AUC.
"""
import argparse
import os
import tempfile
import time
from functools import partial

import numpy as np
import pandas as pd

from medfast.catalog import medmnist_catalog
from medfast.compare import compare
from medfast.loaders import array_dls
from medfast.stages import Stage
from medfast.twins import near_twins

PUBLISHED = dict(pneumoniamnist=dict(accuracy=.854, auc=.944), breastmnist=dict(accuracy=.863, auc=.901))
AFFINE = dict(kind='chest', max_rotate=10, max_shift=[.05, .05], max_zoom=1.1)
SMOOTH = dict(label_smoothing=.1)
RECIPES = {
    'no augmentation': dict(learner=SMOOTH),
    'affine': dict(loaders=dict(augment=AFFINE), learner=SMOOTH),
    'affine, mirrored': dict(loaders=dict(augment=AFFINE | dict(flip=True)), learner=SMOOTH),
    'affine, brightness': dict(loaders=dict(augment=AFFINE | dict(brightness=.15)), learner=SMOOTH),
    'affine, hard labels': dict(loaders=dict(augment=AFFINE)),
}
ANATOMY = dict(pneumoniamnist=['affine, mirrored'], breastmnist=[])  # what never occurs in a patient is not tried
LENGTH = dict(pneumoniamnist=dict(n_epoch=8, lr_max=5e-3), breastmnist=dict(n_epoch=60, lr_max=5e-3))
BATCH = dict(pneumoniamnist=128, breastmnist=32)
CHOSEN = dict(pneumoniamnist='affine, brightness', breastmnist='affine')


def stage(name, dataset, arch, recipe, **printed): return Stage(name, arch, pretrained=False, **LENGTH[dataset], **RECIPES[recipe], **printed)


def run(data, dataset, folder, stages, seeds, without=()):
    catalog = medmnist_catalog(data, dataset)
    catalog = catalog[~catalog.path.isin(without)]
    print(f'{dataset}: {catalog.source.iloc[0]}; {", ".join(f"{n} {p}" for p, n in catalog.split.value_counts(sort=False).items())}; {os.cpu_count()} cores', flush=True)
    start = time.perf_counter()
    done = compare(partial(array_dls, catalog, bs=BATCH[dataset], leaks='warn'), stages, folder, seeds=seeds)
    print(f'{time.perf_counter() - start:.0f} s of training')
    return done


def without_twins(data, dataset, folder, stages, seeds, whole):
    "Train without the training images that are near twins of test images; accuracy of both on test images with a twin in training and without, and the loss with limits over images."
    catalog = medmnist_catalog(data, dataset)
    found = near_twins(catalog[catalog.split != 'valid'], progress=False)
    own = dict(zip(catalog.path, catalog.split))
    twins = {part: {found.items[p] for pair in found.places for p in pair if own[found.items[p]] == part} for part in ('train', 'test')}
    print(f'{len(twins["test"])} of {(catalog.split == "test").sum()} test images have a near twin among {len(twins["train"])} training images')
    left = run(data, dataset, folder, stages, seeds, without=twins['train'])
    tested = {'as it comes': whole.test_once([o.name for o in stages]), 'without twins': left.test_once([o.name for o in stages])}
    rng, named, rows = np.random.default_rng(0), {o.split('/')[-1] for o in twins['test']}, []
    for name in (o.name for o in stages):
        right = {how: np.mean([o.predicted == o.targets for o in preds[name].values()], 0) for how, preds in tested.items()}
        twin = np.array([o.split('/')[-1] in named for o in next(iter(tested['as it comes'][name].values())).items])
        for group, rows_of in {'all': twin | True, 'with a twin': twin, 'without': ~twin}.items():
            loss = (right['as it comes'] - right['without twins'])[rows_of]
            drawn = loss[rng.integers(0, len(loss), (4000, len(loss)))].mean(1)
            rows.append(dict(stage=name, images=group, n=len(loss), **{how: o[rows_of].mean() for how, o in right.items()}, loss=loss.mean(), low=np.quantile(drawn, .025), high=np.quantile(drawn, .975)))
    print(pd.DataFrame(rows).set_index(['stage', 'images']).to_string())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data')
    parser.add_argument('dataset', choices=list(PUBLISHED))
    parser.add_argument('runs', nargs='?')
    parser.add_argument('--choose', action='store_true')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--twins', action='store_true')
    args = parser.parse_args()
    if bool(args.runs) == args.choose: parser.error('give either a folder for the run, or --choose')
    pd.set_option('display.width', 250, 'display.max_columns', 40, 'display.precision', 3, 'display.max_colwidth', 90)
    seeds = range(args.seeds)
    if args.choose:
        stages = [stage(name, args.dataset, 'small_resnet', name) for name in RECIPES if name not in ANATOMY[args.dataset]]
        comparison = run(args.data, args.dataset, tempfile.mkdtemp(), stages, seeds)
        print('chosen, by the AUC on the validation part:', comparison.best(metric='auc'))
        parts = ['valid']
    else:
        recipe, printed = CHOSEN[args.dataset], dict(printed=dict(test=PUBLISHED[args.dataset]))
        stages = [stage('small_resnet', args.dataset, 'small_resnet', recipe), stage('resnet18', args.dataset, 'resnet18', recipe, **printed)]
        comparison = run(args.data, args.dataset, args.runs, stages, seeds)
        comparison.test_once([o.name for o in stages])
        parts = ['valid', 'test']
        if args.twins: without_twins(args.data, args.dataset, f'{args.runs}-without-twins', stages, seeds, comparison)
    print(comparison.table.to_string())
    for part in parts: print(f'\n{part}, over images and seeds\n{comparison.intervals(part).drop(columns="method").to_string()}\n{comparison.told_apart(part)}')


if __name__ == '__main__': main()
