"What several test files share: real images where somebody has them, and a small simulated study."
import os
from pathlib import Path

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
