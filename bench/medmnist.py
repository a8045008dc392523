"""Two sets with published numbers: a small residual network beside a ResNet-18, both trained here in the same way.

    python bench/medmnist.py DATA pneumoniamnist --choose     the recipes on the validation part, the test part sealed
    python bench/medmnist.py DATA pneumoniamnist RUNS         the chosen recipe, three seeds; the test part is opened once and counted in RUNS
    python bench/medmnist.py DATA breastmnist RUNS --twins    again without the training images that have a near twin in the test part, and without as many others

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


def twins_of(catalog):
    "Paths of training and of test images that are near twins of each other."
    found, part = near_twins(catalog[catalog.split != 'valid'], progress=False), dict(zip(catalog.path, catalog.split))
    own = {found.items[p] for pair in found.places for p in pair}
    return [{o for o in own if part[o] == side} for side in ('train', 'test')]


def as_many_others(catalog, twins, seed=0):
    "Training images without a twin, of each class as many as there are twins."
    rows = catalog[(catalog.split == 'train')]
    n, rest = rows.label[rows.path.isin(twins)].value_counts(), rows[~rows.path.isin(twins)]
    return {o for label, k in n.items() for o in rest.path[rest.label == label].sample(k, random_state=seed)}


def loss_row(before, after, rows, rng):
    "Mean accuracy (seeds by images, 0 or 1) before and after, and the loss, with a two-way bootstrap over images and seeds."
    loss = (before - after)[:, rows]
    drawn = [loss[rng.integers(0, len(loss), len(loss))][:, rng.integers(0, loss.shape[1], loss.shape[1])].mean() for _ in range(4000)]
    return dict(n=loss.shape[1], before=before[:, rows].mean(), after=after[:, rows].mean(), loss=loss.mean(), low=np.quantile(drawn, .025), high=np.quantile(drawn, .975))


def without_twins(data, dataset, folder, stages, seeds, whole):
    "Train without the twins, then without as many others: accuracy on test images with a twin and without."
    catalog = medmnist_catalog(data, dataset)
    train, test = twins_of(catalog)
    tested = catalog[catalog.split == 'test']
    print(f'{len(test)} of {len(tested)} test images have a near twin among {len(train)} training images; of the largest class: '
        f'{(tested.label[tested.path.isin(test)] == tested.label.mode()[0]).mean():.2f} of those with one, {(tested.label[~tested.path.isin(test)] == tested.label.mode()[0]).mean():.2f} of those without')
    names, rng, rows = [o.name for o in stages], np.random.default_rng(0), []
    right = lambda comparison: {name: np.stack([o.predicted == o.targets for o in preds.values()]).astype(float) for name, preds in comparison.test_once(names).items()}
    first, twin = right(whole), tested.path.isin(test).to_numpy()
    for left_out, gone in {'twins': train, 'as many others': as_many_others(catalog, train)}.items():
        after = right(run(data, dataset, f'{folder}-without-{left_out.replace(" ", "-")}', stages, seeds, without=gone))
        for name in names:
            rows += [dict(stage=name, left_out=left_out, images=group, **loss_row(first[name], after[name], of, rng)) for group, of in {'all': twin | True, 'with a twin': twin, 'without': ~twin}.items()]
    print(pd.DataFrame(rows).set_index(['stage', 'left_out', 'images']).to_string())


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
        if args.twins: without_twins(args.data, args.dataset, args.runs, stages, seeds, comparison)
    print(comparison.table.to_string())
    for part in parts: print(f'\n{part}, over images and seeds\n{comparison.intervals(part).drop(columns="method").to_string()}\n{comparison.told_apart(part)}')


if __name__ == '__main__': main()
