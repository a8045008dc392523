"What several test files share: real images where somebody has them, a small simulated study, predictions out of thin air."
import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def real_data(name):
    "The folder `name` of the evaluation data, or skip."
    for home in (os.environ.get('MEDFAST_DATA'), ROOT/'data'):
        if home and (Path(home)/name).is_dir(): return Path(home)/name
    pytest.skip(f'no folder {name!r} in MEDFAST_DATA or data/')


@pytest.fixture(scope='session')
def dmr_ir():
    "The public DMR-IR matrices with their table of diagnoses."
    return real_data('dmr-ir')


@pytest.fixture(scope='session')
def imagenet_weights():
    "A torch hub folder with ImageNet weights of squeezenet1_1."
    return real_data('weights')


@pytest.fixture(scope='session')
def small_study(tmp_path_factory):
    "Eight simulated patients, two frames each."
    from medfast.simulate import simulate_study
    return simulate_study(tmp_path_factory.mktemp('study'), n_patients=8, n_frames=2)


CLASSES = ['Healthy', 'Sick']


def made(y, p, **kwargs):
    "Predictions of a row a patient: truth `y`, probability `p` of Sick."
    from medfast.table import Predictions
    y = np.asarray(y)
    kwargs = {'patients': [f'{i:04d}' for i in range(len(y))], 'split_by': 'patient', **kwargs}
    return Predictions(np.stack([1 - p, p], 1), y.astype(int), CLASSES, [f'{i}.txt' for i in range(len(y))], **kwargs)


def random_preds(seed, n=60, ties=False, shift=1., **kwargs):
    "Predictions of `n` patients, two in five of them sick, some of both classes; `shift` tells how well they are told apart."
    rng = np.random.default_rng(seed)
    y = rng.random(n) < .4
    y[:2] = True, False
    p = 1 / (1 + np.exp(-rng.normal(size=n) - shift*(y - .5)))
    return made(y, np.round(p, 1) if ties else p, **kwargs)
