"What the simulator promises over many studies, and what happens to its folder when something goes wrong."
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medfast import simulate
from medfast.files import list_files, read_json, sha256
from medfast.settings import Settings
from medfast.simulate import (CLASSES, FILE_SIZE, SimulationError, asymmetry_features, embedded_study, matrix_text, simulate_frame,
    simulate_frames, simulate_patient, simulate_study, skin_rise, study_labels)
from medfast.thermogram import parse_name, read_thermogram

RISE = { # Peak rise in °C and full width at half maximum in mm, by diameter and clearance in mm
    10: {3: (1.76, 18), 5: (1.20, 22), 10: (.54, 30), 15: (.28, 37), 20: (.15, 43), 25: (.09, 49)},
    15: {3: (1.91, 22), 5: (1.34, 25), 10: (.60, 32), 15: (.30, 39), 20: (.15, 45), 25: (.08, 50)},
    20: {3: (2.26, 25), 5: (1.64, 28), 10: (.77, 35), 15: (.38, 41), 20: (.20, 47), 25: (.10, 52)},
    25: {3: (2.52, 27), 5: (1.81, 31), 10: (.90, 37), 15: (.45, 43), 20: (.23, 48), 25: (.12, 53)}}


def checksums(folder): return {o.relative_to(folder).as_posix(): sha256(o) for o in list_files(folder)}


def features(seed, n, frame=3, **knobs):
    "A row of features and a label a patient, without files."
    labels = study_labels(n, seed)
    rows = [asymmetry_features(simulate_frame(simulate_patient(i, o, seed=seed, **knobs), frame)) for i,o in enumerate(labels, 1)]
    return np.array(rows), np.array(labels) == 'Sick'


def fresh_auc(seed, n, **knobs):
    "AUC of a logistic regression on `n` patients, measured on `n` others."
    (x,y),(newx,newy) = features(2*seed, n, **knobs), features(2*seed + 1, n, **knobs)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=.1, max_iter=1000)).fit(x, y)
    return roc_auc_score(newy, model.predict_proba(newx)[:,1])


# --- physics

@pytest.mark.parametrize('diameter', RISE)
def test_rise_and_width_by_depth(diameter):
    peaks = []
    for clearance,(peak,width) in RISE[diameter].items():
        r,rise = skin_rise(diameter, clearance)
        half = 2*np.interp(-rise[0]/2, -rise, r)
        assert rise[0] == pytest.approx(peak, rel=.04, abs=.02), clearance
        assert half == pytest.approx(width, abs=3.5), clearance
        peaks.append(rise[0])
    assert (np.diff(peaks) < 0).all()


# --- what studies show

def test_signal_is_there_and_only_where_it_is_planted():
    default,null = fresh_auc(0, 40), fresh_auc(0, 40, signal=False)
    assert default > .75 and null < .72 and default - null > .15


@pytest.mark.full
def test_null_studies_are_null():
    assert .46 <= np.mean([fresh_auc(s, 60, signal=False) for s in range(40)]) <= .54


@pytest.mark.full
def test_default_studies_can_be_learnt():
    aucs = [fresh_auc(s, 120) for s in range(4)]
    assert np.mean(aucs) >= .75 and min(aucs) > .7


def test_frames_of_a_patient_are_nearly_one_picture():
    same,other = [], []
    chests = [simulate_frames(simulate_patient(i, CLASSES[i%2]), 20)[::4,160:400:4,120:520:4].reshape(5, -1) for i in range(1, 11)]
    for i,o in enumerate(chests): same += list(np.corrcoef(o)[np.triu_indices(5, 1)])
    for i,o in enumerate(chests[1:]): other.append(np.corrcoef(o[0], chests[i][0])[0,1])
    assert .93 <= np.median(same) <= .99
    assert np.median(other) < np.median(same) - .1


@pytest.mark.parametrize('knobs', [dict(signal=False), dict(site_shift=1.1), dict(marker='Sick')])
def test_a_knob_changes_nothing_of_the_healthy(knobs):
    plain,turned = simulate_patient(3, 'Healthy', seed=1), simulate_patient(3, 'Healthy', seed=1, **knobs)
    assert np.array_equal(simulate_frame(plain), simulate_frame(turned))


def test_tumour_is_where_the_truth_says():
    for i in range(1, 9):
        sick,healthy = (simulate_patient(i, o, seed=7) for o in ('Sick', 'Healthy'))
        row,col = np.unravel_index(np.argmax(sick.scene - healthy.scene), sick.scene.shape)
        assert ('left' if col > sick.scene.shape[1]/2 else 'right') == sick.truth['side'], i
        assert (sick.scene - healthy.scene).max() > sick.truth['rise_c']*.8, i


def test_marker_is_a_cold_square_of_one_class():
    sick = simulate_frame(simulate_patient(2, 'Sick', marker='Sick'), static=True)
    assert sick[405:420,315:325].mean() < 25 < simulate_frame(simulate_patient(2, 'Sick'), static=True)[405:420,315:325].mean()


@pytest.mark.parametrize('n,sick', [(2, 1), (3, 1), (4, 1), (8, 3), (60, 22), (216, 78)])
def test_prevalence_is_counted(n, sick):
    assert all(study_labels(n, seed).count('Sick') == sick for seed in range(3))
    assert n < 5 or study_labels(n, 0) != study_labels(n, 1)


def test_features_do_not_know_left_from_right():
    temps = simulate_frame(simulate_patient(2, 'Sick'))
    assert np.allclose(asymmetry_features(temps), asymmetry_features(temps[:,::-1]), atol=.12)


# --- files

def test_same_seed_same_bytes_whatever_the_threads(tmp_path):
    knobs = dict(n_patients=5, n_frames=2, static=('frontal', 'left 90°'))
    one,two = (simulate_study(tmp_path/str(n), n_workers=n, seed=3, **knobs) for n in (1, 2))
    assert checksums(one) == checksums(two)
    assert checksums(one)['patients.xlsx'] != checksums(simulate_study(tmp_path/'other', seed=4, **knobs))['patients.xlsx']


def test_files_are_dmr_ir(tmp_path):
    study = simulate_study(tmp_path/'s', n_patients=3, n_frames=2, static=('right 45°',))
    files = list_files(study/'txt')
    names = [parse_name(o) for o in files]
    assert len(files) == 9 and {o.patient for o in names} == {'0001', '0002', '0003'}
    assert sorted((o.view, o.kind, o.frame) for o in names[:3]) == [('frontal', 'dynamic', 0), ('frontal', 'dynamic', 1), ('right 45°', 'static', 0)]
    temps = np.loadtxt(files[0])
    assert temps.shape == (480, 640) and files[0].read_text().count('\n') == 480 and files[0].stat().st_size == FILE_SIZE
    assert np.array_equal(temps.astype(np.float32), read_thermogram(files[0]))
    table = pd.read_excel(study/'patients.xlsx')
    assert table.shape == (3, 23) and list(table)[:10] == simulate.STUDY_COLUMNS
    assert table.Diagnosis.tolist() == study_labels(3) == pd.read_csv(study/'truth.csv').label.tolist()
    assert {o.date for o in names} == set(table.Date.dt.date)


def test_the_table_does_not_hold_the_time_of_writing(tmp_path):
    study = simulate_study(tmp_path/'s', n_patients=2, n_frames=1)
    with zipfile.ZipFile(study/'patients.xlsx') as z:
        assert {o.date_time[:3] for o in z.infolist()} == {(2015, 7, 20)}
        assert set(re.findall(rb'\d{4}-\d\d-\d\dT', z.read('docProps/core.xml'))) == {b'2015-07-20T'}


def test_text_of_extreme_values():
    temps = np.full((480, 640), 10., np.float32)
    temps[0,0],temps[-1,-1] = 99.99, 36.345
    assert np.allclose(np.loadtxt(bytes(matrix_text(temps)).decode().splitlines()), temps, atol=.0051)
    for bad in (9.99, 100., -3., np.nan, np.inf):
        temps[5,5] = bad
        with warnings.catch_warnings(), pytest.raises(ValueError, match='10 to 99.99'):
            warnings.simplefilter('error')
            matrix_text(temps)


def test_goes_on_after_a_kill(tmp_path):
    knobs = 'n_patients=8, n_frames=5, seed=2'
    child = subprocess.Popen([sys.executable, '-c', f'from medfast.simulate import simulate_study; simulate_study({str(tmp_path/"s")!r}, {knobs})'],
        stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while len(list((tmp_path/'s/txt').glob('T*'))) < 5 and time.monotonic() < end: time.sleep(.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    before = {o.name: o.stat().st_mtime_ns for o in (tmp_path/'s/txt').glob('T*')}
    assert 5 <= len(before) < 40 and not read_json(tmp_path/'s/simulation.json')['complete']
    study = simulate_study(tmp_path/'s', n_patients=8, n_frames=5, seed=2)
    assert {k: (study/'txt'/k).stat().st_mtime_ns for k in before} == before
    assert checksums(study) == checksums(simulate_study(tmp_path/'whole', n_patients=8, n_frames=5, seed=2))


def test_a_cut_file_is_written_again(tmp_path):
    study = simulate_study(tmp_path/'s', n_patients=2, n_frames=1)
    before,fn = checksums(study), list_files(study/'txt')[0]
    fn.write_bytes(fn.read_bytes()[:1000])
    (study/'truth.csv').unlink()
    assert checksums(simulate_study(study, n_patients=2, n_frames=1)) == before


@pytest.mark.parametrize('other', [dict(n_patients=4), dict(n_frames=2), dict(seed=1), dict(signal=False), dict(site_shift=1.1),
    dict(marker='Sick'), dict(views=('left 45°',)), dict(static=('frontal',))])
def test_other_parameters_are_refused(tmp_path_factory, other):
    dest = tmp_path_factory.getbasetemp()/'refused'
    simulate_study(dest, n_patients=3, n_frames=1)
    before = checksums(dest)
    with pytest.raises(SimulationError, match=f'{next(iter(other))} is .* there'): simulate_study(dest, **{**dict(n_patients=3, n_frames=1), **other})
    assert checksums(dest) == before


def test_a_folder_of_others_is_refused(tmp_path):
    (tmp_path/'thesis.docx').write_text('years of work')
    with pytest.raises(SimulationError, match='holds files that are not a simulated study'): simulate_study(tmp_path, n_patients=2)
    assert [o.name for o in tmp_path.iterdir()] == ['thesis.docx']


@pytest.mark.parametrize('bad', [dict(n_patients=1), dict(n_patients=10_000), dict(n_frames=0), dict(n_frames=101), dict(seed=-1),
    dict(site_shift=float('nan')), dict(site_shift=20.), dict(marker='sick'), dict(views=('top',)), dict(static=('top',))])
def test_bad_knobs_leave_no_folder(tmp_path, bad):
    with pytest.raises(SimulationError, match=next(iter(bad)) if 'top' not in str(bad) else 'no view'): simulate_study(tmp_path/'s', **bad)
    assert not (tmp_path/'s').exists()


def test_a_full_disk_is_told_before_work(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate.shutil, 'disk_usage', lambda _: type('', (), dict(free=1e6)))
    with pytest.raises(SimulationError, match='need 0.1 GB more'): simulate_study(tmp_path/'s', n_patients=9)
    assert not (tmp_path/'s/txt').exists()


def test_an_error_in_a_thread_comes_out_and_stops_the_rest(tmp_path, monkeypatch):
    calls = []
    def broken(*args, **kwargs):
        calls.append(1)
        raise OSError('disk is gone')
    monkeypatch.setattr(simulate, 'matrix_text', broken)
    with pytest.raises(OSError, match='disk is gone'): simulate_study(tmp_path/'s', n_patients=60, n_frames=1)
    assert len(calls) < 30 and not read_json(tmp_path/'s/simulation.json')['complete']


def _embedded(data): return embedded_study(Settings(simulated=data, n_patients=4, n_frames=2))


def test_two_processes_may_want_the_embedded_study_at_once(tmp_path):
    with multiprocessing.get_context('spawn').Pool(2) as pool: first,second = pool.map(_embedded, [tmp_path, tmp_path])
    assert first == second and read_json(first/'simulation.json')['complete']
    assert not [o for o in first.rglob('.writing-*')]
    assert checksums(first) == checksums(simulate_study(tmp_path/'alone', n_patients=4, n_frames=2, seed=42))
