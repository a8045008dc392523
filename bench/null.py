"""Does a split by image find a disease that is not there, and a split by patient only one that is? 40 simulated studies, through files.

    python bench/null.py                            # 40 studies, a line each: about twelve minutes on one core
    python bench/null.py --save null.csv            # the same; studies that stand in the file are not done again
    python bench/null.py --studies 3 --patients 20  # a look; the bounds are those of 40 studies of 60 + 60 and are not applied

A study is two times 60 patients, 22 of them called sick, with four frames each, written in DMR-IR's format and read back by `dmr_catalog`
and `read_thermogram`. First nobody is ill (`signal=False`: the label means nothing). Then the sick are drawn again with their disease
over their files; the healthy stay as they are. Each study is divided twice, one half to train on and one to test: by image, and by
patient (60 to train, 60 fresh ones to test). 120 patients at a time are on the disk (0.9 GB), a picture at a time in memory.

trees      200 extremely randomised trees on the 17 left-right differences of `asymmetry_features`. The bounds are for them: they can
           learn the disease from 60 patients, they can learn patients by heart, and they take a fifth of a second.
logistic   regression on the same numbers: too stiff to learn patients by heart.
neighbour  the label of the nearest training image: nothing but memory.
"""
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from fastcore.script import call_parse
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medfast.catalog import dmr_catalog
from medfast.evaluate import Predictions, evaluate
from medfast.files import write_text
from medfast.simulate import asymmetry_features, matrix_text, simulate_frame, simulate_patient, simulate_study
from medfast.split import audit_leakage, split_catalog
from medfast.thermogram import read_thermogram
from simulator import spread

STUDIES, PATIENTS, FRAMES = 40, 60, 4
MODELS = dict(trees=lambda: ExtraTreesClassifier(200, random_state=0),
    logistic=lambda: make_pipeline(StandardScaler(), LogisticRegression(C=.1, max_iter=1000)),
    neighbour=lambda: make_pipeline(StandardScaler(), KNeighborsClassifier(1)))
BOUNDS = { # Of the trees: least, most
    'no disease, by image: accuracy': (.9, 1), 'no disease, fresh patients: mean AUC': (.46, .54),
    'no disease, fresh patients: share of BCa intervals that hold .5': (33/40, 1), 'disease, fresh patients: mean AUC': (.75, 1)}


def draw(home, seed, patients=PATIENTS, frames=FRAMES):
    "A catalog of two studies in which the label means nothing; the numbers of their patients are told apart."
    parts = []
    for s in (2*seed, 2*seed + 1):
        one = dmr_catalog(simulate_study(home/f'{s}', n_patients=patients, n_frames=frames, signal=False, seed=s, n_workers=1, progress=False))
        parts.append(one.assign(patient=f'{s}-' + one.patient, number=one.patient.astype(int), seed=s))
    return pd.concat(parts, ignore_index=True)


def fall_ill(catalog):
    "Draw the sick again over their files, now with their disease; True for their rows."
    sick = catalog.label == 'Sick'
    for (seed,number),own in catalog[sick].groupby(['seed', 'number']):
        patient = simulate_patient(number, 'Sick', seed=seed)
        for o in own.itertuples(): Path(o.path).write_bytes(matrix_text(simulate_frame(patient, o.frame)))
    return sick.to_numpy()


def numbers(paths): return np.stack([asymmetry_features(read_thermogram(o)) for o in paths])


def tested(model, split, x):
    "Accuracy by image of the test part, with and without a sibling in training; by patient the AUC with its interval."
    train = (split.split == 'train').to_numpy()
    test,prob = split[~train], model.fit(x[train], split.label[train] == 'Sick').predict_proba(x[~train])[:,1]
    sick,met = (test.label == 'Sick').to_numpy(), test.patient.isin(split.patient[train]).to_numpy()
    right = (prob >= .5) == sick
    row = dict(accuracy=right.mean(), met=met.mean(), accuracy_met=right[met].mean() if met.any() else np.nan, accuracy_new=right[~met].mean() if not met.all() else np.nan)
    if met.any(): return row
    preds = Predictions.from_arrays(sick, prob, classes=['Healthy', 'Sick'], patients=test.patient, items=test.path, split_by='patient')
    return row | evaluate(preds).loc['auc', ['value', 'low', 'high', 'n', 'method']].rename(dict(value='auc')).to_dict()


def halved(catalog, x, seed):
    "One row a split and model."
    rows = []
    for by in ('image', 'patient'):
        split = split_catalog(catalog, valid=0, test=.5, by=by, seed=seed)
        if by == 'patient': audit_leakage(split)
        rows += [dict(split=by, model=name) | tested(model(), split, x) for name,model in MODELS.items()]
    return rows


def one_study(seed, patients=PATIENTS, frames=FRAMES):
    "All rows of one study: without disease and with it."
    with tempfile.TemporaryDirectory() as home:
        catalog = draw(Path(home), seed, patients, frames)
        x = numbers(catalog.path)
        found = {'no disease': halved(catalog, x, seed)}
        sick = fall_ill(catalog)
        x[sick] = numbers(catalog.path[sick])
        found['disease'] = halved(catalog, x, seed)
    return pd.DataFrame([dict(study=seed, patients=patients, frames=frames, truth=k) | row for k,rows in found.items() for row in rows])


def line(rows, seconds):
    "What one study showed, of the trees."
    of = lambda truth, by: rows[(rows.truth == truth) & (rows.split == by) & (rows.model == 'trees')].iloc[0]
    say = lambda o: f'AUC {o.auc:.3f} [{o.low:.3f}, {o.high:.3f}] of {int(o.n)} patients'
    return (f'study {rows.study.iloc[0]:2}: no disease {of("no disease", "image").accuracy:.3f} by image, {say(of("no disease", "patient"))}; '
        f'disease {of("disease", "image").accuracy:.3f} by image, {say(of("disease", "patient"))} ({seconds:.0f} s)')


def all_studies(studies, patients, frames, save=None):
    "The rows of all studies; those that stand in the file `save` are taken from there, each new one is added to it."
    table = pd.read_csv(save) if save and Path(save).exists() else pd.DataFrame(columns=['study', 'patients', 'frames'])
    for seed in range(studies):
        mine = (table.study == seed) & (table.patients == patients) & (table.frames == frames)
        if mine.any(): continue
        start = time.perf_counter()
        rows = one_study(seed, patients, frames)
        table = pd.concat([table, rows], ignore_index=True) if len(table) else rows
        if save: write_text(save, table.to_csv(index=False))
        print(line(rows, time.perf_counter() - start), flush=True)
    return table[(table.study < studies) & (table.patients == patients) & (table.frames == frames)]


def summary(table):
    "Mean, smallest and largest over the studies, by truth, split and model."
    rows = {}
    for key,own in table.groupby(['truth', 'split', 'model'], sort=False):
        fresh = key[1] == 'patient'
        rows[key] = {'accuracy by image': spread(own.accuracy), 'with a sibling in training': 'nobody has one' if fresh else f'{own.met.mean():.3f} of them: {own.accuracy_met.mean():.3f}, the others: {own.accuracy_new.mean():.3f}',
            'AUC by patient': f'{spread(own.auc)}, s.d. {own.auc.std():.3f}' if fresh else '', 'intervals that hold .5': f'{int(((own.low <= .5) & (own.high >= .5)).sum())} of {len(own)}' if fresh else ''}
    return pd.DataFrame.from_dict(rows, orient='index').rename_axis(['truth', 'split', 'model'])


def judged(table):
    "The bounds: least, most, what was found, and whether it lies between."
    of = lambda truth, by: table[(table.truth == truth) & (table.split == by) & (table.model == 'trees')]
    null = of('no disease', 'patient')
    found = [of('no disease', 'image').accuracy.mean(), null.auc.mean(), ((null.low <= .5) & (null.high >= .5)).mean(), of('disease', 'patient').auc.mean()]
    bounds = pd.DataFrame(BOUNDS.values(), index=list(BOUNDS), columns=['least', 'most']).assign(found=found)
    return bounds.assign(passed=(bounds.found >= bounds.least - 1e-12) & (bounds.found <= bounds.most))


@call_parse
def main(
    studies:int=STUDIES,  # Studies; their seeds are 0, 1, 2, ...
    patients:int=PATIENTS,# Patients to train on, and as many to test
    frames:int=FRAMES,    # Frames a patient
    save:str=None         # CSV file that keeps what was done
):
    "Print what each study shows, all together, and whether the bounds hold; ends with an error where one does not."
    table = all_studies(studies, patients, frames, save)
    print(f'\n{studies} studies of {patients} + {patients} patients, {frames} frames: mean (smallest to largest)\n')
    for o in summary(table).reset_index().itertuples(index=False): print(' | '.join(o))
    if studies < STUDIES or patients != PATIENTS: return print(f'\nThe bounds are those of {STUDIES} studies of {PATIENTS} + {PATIENTS} patients and are not applied.')
    bounds = judged(table)
    print(f'\n{bounds.round(3).to_string()}')
    if not bounds.passed.all(): sys.exit('A bound does not hold.')
