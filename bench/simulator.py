"""What a simulated study shows: features and nearest neighbours, split by image and by patient.

    python bench/simulator.py                                           # 120 patients, 8 frames, 3 seeds: about 2 minutes on one core
    python bench/simulator.py --n-patients 240 --n-frames 20 --n-seeds 2

No file is written. Each figure is the mean over seeds, with the smallest and the largest.
"""
import sys
import time

import numpy as np
import pandas as pd
from fastcore.script import call_parse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medfast.simulate import asymmetry_features, simulate_frame, simulate_patient, study_labels

CONFIGURATIONS = {'default': {}, 'site_shift=1.1': dict(site_shift=1.1), 'signal=False': dict(signal=False)}


def thumbnail(temps): return temps.reshape(24, 20, 32, 20).mean((1,3)).ravel()


def draw(n_patients, n_frames, seed, **knobs):
    "Features, thumbnails, labels and patient numbers of all frames of a study."
    features,thumbs,labels,patients = [], [], [], []
    for number,label in enumerate(study_labels(n_patients, seed), 1):
        patient = simulate_patient(number, label, seed=seed, **knobs)
        for i in range(n_frames):
            temps = simulate_frame(patient, i)
            features.append(asymmetry_features(temps).values)
            thumbs.append(thumbnail(temps))
        labels += [label == 'Sick']*n_frames
        patients += [number]*n_frames
    return np.array(features), np.array(thumbs), np.array(labels), np.array(patients)


def feature_auc(features, labels, patients, seed):
    "AUC by patient of a logistic regression on the features, in 5 folds of patients."
    model = make_pipeline(StandardScaler(), LogisticRegression(C=.1, max_iter=1000))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    probs = cross_val_predict(model, features, labels, groups=patients, cv=folds, method='predict_proba')[:,1]
    table = pd.DataFrame(dict(patient=patients, prob=probs, sick=labels)).groupby('patient').mean()
    return roc_auc_score(table.sick > .5, table.prob)


def neighbour_accuracy(thumbs, labels, patients, folds):
    "Share of frames whose nearest neighbour in the other folds has their label; `patients` is None for folds of images."
    found = cross_val_predict(KNeighborsClassifier(1), thumbs, labels, groups=patients, cv=folds)
    return (found == labels).mean()


def measure(n_patients, n_frames, seed, **knobs):
    features,thumbs,labels,patients = draw(n_patients, n_frames, seed, **knobs)
    folds = dict(shuffle=True, random_state=seed)
    return {'features, AUC by patient': feature_auc(features, labels, patients, seed),
        'nearest neighbour, image split': neighbour_accuracy(thumbs, labels, None, StratifiedKFold(5, **folds)),
        'nearest neighbour, patient split': neighbour_accuracy(thumbs, labels, patients, StratifiedGroupKFold(5, **folds))}


def spread(values): return f'{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})'


@call_parse
def main(
    n_patients:int=120, # Patients of a study
    n_frames:int=8,     # Frames a patient
    n_seeds:int=3,      # Studies of each configuration
    first_seed:int=0    # Seed of the first one
):
    "Print a table of what simulated studies show."
    began = time.perf_counter()
    rows = {}
    for name,knobs in CONFIGURATIONS.items():
        found = [measure(n_patients, n_frames, first_seed + i, **knobs) for i in range(n_seeds)]
        rows[name] = pd.DataFrame(found).agg(spread)
        print(f'{name}: {time.perf_counter() - began:.0f} s', file=sys.stderr)
    table = pd.DataFrame(rows).T
    print(f'{n_patients} patients, {n_frames} frames, mean of {n_seeds} seeds (smallest to largest)\n')
    print('| configuration | ' + ' | '.join(table.columns) + ' |\n|' + '---|'*(len(table.columns) + 1))
    for name,row in table.iterrows(): print(f'| {name} | ' + ' | '.join(row) + ' |')
