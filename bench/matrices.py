"""The 121 public DMR-IR matrices: what a model finds in them, and what finds as much from a few numbers, without shape or place.

    MEDFAST_DATA=... TORCH_HOME=... python bench/matrices.py              # under a minute on one core, weights from the cache
    python bench/matrices.py --data /data/dmr-ir --refits 99

All matrices are read. The primary analysis takes the blank-separated files (71 Healthy, 21 Sick), out-of-fold by patient, five folds:
features of squeezenet1_1 at rest (ImageNet weights where they are cached) and a logistic regression, and on the same folds

metadata        patient number, lowest and highest temperature, sharpness, size of the file: all that varies; and the same without the number
border only     the frame of every matrix, and what is around a masked ellipse, one mask for all, trained again
random weights  the same network, untrained, with several seeds
shuffled labels dealt by patient, once for all folds and within each; the refits are asked about the labels they were dealt

The semicolon-separated files are all Sick. They stand apart: what the models of the primary analysis say of them is printed beside it,
and what happens where both formats are thrown together. The sentence at the end is decided by the interval of the paired gain.

The mask was set on the mean of all matrices, without their labels: breasts lie low in these pictures, so its middle lies low, too.
"""
import argparse
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from medfast.catalog import add_ranges, add_sharpness, dmr_catalog
from medfast.controls import concordance_within, metadata_control, run_controls
from medfast.evaluate import evaluate, paired_gain
from medfast.features import FeatureTrainer
from medfast.masks import Mask
from medfast.metrics import auc_row, wilson_row
from medfast.split import patient_folds

MASK = Mask(rows=.9, columns=.8, centre=(.6, .5))
CONTROLS = ('metadata', 'metadata without patient number', 'border only', 'centre masked', 'centre only', 'random weights', 'labels shuffled')
WIDTH = 50 # Patient numbers a bin


def number(patient): return int(patient)
def bin_of(patient): return int(patient)//WIDTH
def words(row): return f'{row["value"]:.3f} [{row["low"]:.3f}, {row["high"]:.3f}]'
def show(title, body): print(f'\n## {title}\n{body.to_string(float_format=lambda v: f"{v:.3f}", na_rep="") if hasattr(body, "to_string") else body}', flush=True)


def read_all(data):
    "The catalog of all matrices, each of them read: ranges, sharpness, bytes."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return add_sharpness(add_ranges(dmr_catalog(data), progress=False), progress=False)


def counts(catalog):
    "Files and patients by format and class."
    return catalog.groupby(['format', 'label']).agg(files=('path', 'size'), patients=('patient', 'nunique'), first=('patient', 'min'), last=('patient', 'max'))


def single_numbers(catalog):
    "AUC for Sick of one number at a time, nothing fitted; below .5 the sick have the lower values."
    sick = (catalog.label == 'Sick').to_numpy()
    columns = dict({'patient number': catalog.patient.astype(int)}, **{o: catalog[o] for o in ('minimum', 'maximum', 'mean', 'sharpness', 'bytes')})
    return pd.DataFrame({name: auc_row(sick, values.to_numpy(float)) for name,values in columns.items()}).T[['value', 'low', 'high']].astype(float)


def near_in_number(preds):
    "Concordance over all pairs, within bins of patient numbers, and of pairs that are at most as far apart as a bin is wide."
    rows = {}
    for name,o in preds.items():
        for what,row in (('all pairs', concordance_within(o, lambda p: 0)), (f'bins of {WIDTH} numbers', concordance_within(o, bin_of)), (f'at most {WIDTH} apart', concordance_within(o, number, distance=WIDTH))):
            rows[name, what] = row.iloc[0][['value', 'low', 'high', 'n', 'pairs']]
    return pd.DataFrame(rows).T


def temperatures_near(catalog):
    "The share of near pairs in which the sick patient's highest temperature is the higher one."
    sick = catalog.label == 'Sick'
    a,b = catalog[sick], catalog[~sick]
    near = abs(a.patient.astype(int).to_numpy()[:, None] - b.patient.astype(int).to_numpy()) <= WIDTH
    won = (a.maximum.to_numpy()[:, None] > b.maximum.to_numpy()) + (a.maximum.to_numpy()[:, None] == b.maximum.to_numpy())/2
    return dict(value=float(won[near].mean()), pairs=int(near.sum()), of=int(near.size))


def outside_the_picture(folds, model):
    "The metadata that no pixel tells, alone and together, and the gain of the model over them."
    rows = {}
    for columns in (['patient number'], ['bytes'], ['patient number', 'bytes']):
        preds = metadata_control(folds, columns=columns)['out-of-fold']
        gain = paired_gain(model, preds).iloc[0]
        rows[' and '.join(columns)] = evaluate(preds).loc['auc', ['value', 'low', 'high']].to_dict() | dict(gain=gain.value, **{'gain low': gain.low, 'gain high': gain.high})
    return pd.DataFrame(rows).T


def other_seeds(catalog, trainer, n=5):
    "AUC of model, metadata and untrained bodies over several divisions into folds, and over several untrained bodies on the first division."
    rows = {}
    for seed in range(n):
        folds = patient_folds(catalog, 5, seed=seed)
        preds = run_controls(folds, trainer=trainer, controls=('metadata',), progress=False).predictions
        random = run_controls(patient_folds(catalog, 5, seed=0), trainer=trainer, controls=('random weights',), seed=seed, progress=False).predictions['random weights']
        auc = lambda o: evaluate(o['out-of-fold']).value['auc']
        gain = paired_gain(preds['model']['out-of-fold'], preds['metadata']['out-of-fold']).iloc[0]
        rows[seed] = dict(model=auc(preds['model']), metadata=auc(preds['metadata']), gain=gain.value, **{'gain low': gain.low, 'gain high': gain.high}, **{'untrained body': auc(random)})
    return pd.DataFrame(rows).T.rename_axis('seed')


def apart(catalog, trainer):
    "What models of the blank-separated files say of the others, which are all Sick: share called Sick at .5."
    split = catalog.assign(split=np.where(catalog.format == 'blank', 'train', 'test'))
    found = dict(model=trainer(split)['test'], metadata=metadata_control(split, columns=['patient number', 'minimum', 'maximum', 'sharpness'])['test'])
    sick = {name: o.probs[:, o.classes.index('Sick')] for name,o in found.items()}
    return pd.DataFrame({name: wilson_row(int((p >= .5).sum()), len(p)) | dict(lowest=p.min(), median=np.median(p)) for name,p in sick.items()}).T[['value', 'low', 'high', 'n', 'lowest', 'median']]


def sentence(controls):
    "What follows, decided by the interval of the paired gain over the metadata."
    model, metadata = (controls.measures(o, 'out-of-fold')['auc'] for o in ('model', 'metadata'))
    return (f'On {model["n"]} patients the model reaches an AUC of {words(model)}, a regression on {", ".join(controls.saw["metadata"])} {words(metadata)}; '
            f'the gain is {words(controls.gain("metadata", "out-of-fold"))}. ' + controls.findings('out-of-fold')[0])


def analyse(data, refits=99, arch='squeezenet1_1', size=128, seeds=5, pretrained=None):
    "Read, compare, print; returns what was found."
    start, catalog = time.perf_counter(), read_all(data)
    show('read', f'{len(catalog)} matrices of {catalog.patient.nunique()} patients in {time.perf_counter() - start:.1f} s')
    show('files', counts(catalog))
    blank, trainer = catalog[catalog.format == 'blank'].reset_index(drop=True), FeatureTrainer(arch, size=size, pretrained=pretrained, progress=False)
    show('one number at a time, all files: AUC for Sick', single_numbers(catalog))
    show('one number at a time, blank-separated files', single_numbers(blank))
    controls = run_controls(patient_folds(blank, 5, seed=0), trainer=trainer, controls=CONTROLS, mask=MASK, n_refits=refits, progress=False)
    show(f'primary: {len(blank)} blank-separated files, out-of-fold by patient, {trainer}', controls.table.loc['out-of-fold'].drop(columns=['saw', 'method']))
    for name,r in controls.table.loc['out-of-fold'].iterrows(): print(f'  {name}: saw {r.saw}; {r.method}')
    show('metadata that no pixel tells, same folds', outside_the_picture(patient_folds(blank, 5, seed=0), controls.predictions['model']['out-of-fold']))
    near = near_in_number({o: controls.predictions[o]['out-of-fold'] for o in ('model', 'metadata', 'metadata without patient number', 'border only', 'random weights')})
    show(f'concordance near in patient number (highest temperature alone, at most {WIDTH} apart: {temperatures_near(blank)})', near)
    show('other divisions into folds; other untrained bodies on the first division', other_seeds(blank, trainer, seeds))
    if (catalog.format != 'blank').any(): show('the other files, all Sick: share called Sick by models of the blank-separated ones', apart(catalog, trainer))
    both = run_controls(patient_folds(catalog, 5, seed=0), trainer=trainer, controls=('metadata', 'border only', 'centre masked', 'random weights'), mask=MASK, progress=False)
    show(f'both formats thrown together, {len(catalog)} files', both.table.loc['out-of-fold'].drop(columns=['saw', 'method', 'lowest', 'highest', 'p']))
    show('what follows', '\n'.join([sentence(controls), *controls.findings('out-of-fold')[1:], *controls.notes]))
    return dict(catalog=catalog, controls=controls, near=near, both=both, sentence=sentence(controls))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', default=None, help='folder of the matrices; by default dmr-ir in MEDFAST_DATA')
    p.add_argument('--refits', type=int, default=99, help='trainings with shuffled labels')
    o = p.parse_args()
    home = Path(o.data or Path(os.environ.get('MEDFAST_DATA', 'data'))/'dmr-ir')
    if not home.is_dir(): raise SystemExit(f'There is no folder {home.name}. Give --data, or MEDFAST_DATA as the folder that holds dmr-ir.')
    analyse(home, o.refits)


if __name__ == '__main__': main()
