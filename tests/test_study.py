"The whole study: stopped and gone on, repeated, on changed data, from the command, and on the real matrices."
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from medfast.catalog import CatalogError
from medfast.files import RunFolder
from medfast.settings import load_settings
from medfast.simulate import simulate_study
from medfast.split import LeakageError
from medfast.study import StudyError, run_command, run_study


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return simulate_study(tmp_path_factory.mktemp('data')/'twenty', n_patients=20, n_frames=1, seed=4, progress=False)


@pytest.fixture(scope='module')
def settings(tmp_path_factory):
    home = tmp_path_factory.mktemp('home')
    return load_settings(data=home/'data', runs=home/'runs', image_size=32, epochs=3, bs=4, seed=5, arch='resnet18')


@pytest.fixture(scope='module')
def whole(data, settings): return run_study(data, settings=settings, pretrained=False, progress=False)


def test_a_run_leaves_what_a_reader_needs(whole, data):
    results = whole.load_json('results.json')
    assert results['weights'].startswith('random') and results['test_openings'] == 1
    assert results['split']['by'] == 'patient'
    for part in ('valid', 'test'):
        for metric in ('accuracy', 'sensitivity', 'specificity', 'auc'):
            row = results[part][metric]
            assert row['low'] <= row['value'] <= row['high'] and row['n'] > 0
    split = whole.load_table('split.csv')
    assert split.groupby('patient').split.nunique().max() == 1
    assert not split.path.str.startswith('/').any()
    for fn in whole.path.rglob('*'):
        if fn.suffix in ('.csv', '.json', '.html'): assert str(data) not in fn.read_text(), f'{fn.name} tells where the data is kept'
    html = (whole/'report.html').read_text()
    assert str(data) not in html and not any(o in html for o in split.path)


def test_the_test_part_is_what_was_sealed(whole):
    split = whole.load_table('split.csv')
    for part in ('valid', 'test'):
        preds = pd.read_csv(whole/f'predictions-{part}.csv', comment='#')
        assert sorted(preds['item']) == sorted(split[split.split == part].path)


def test_stopped_in_training_and_gone_on_gives_the_same_numbers(data, settings, whole, monkeypatch, tmp_path):
    from medfast.resume import Checkpoint
    after_epoch = Checkpoint.after_epoch

    def pull_the_plug(self):
        after_epoch(self)
        if self.epoch == 1: raise KeyboardInterrupt
    monkeypatch.setattr(Checkpoint, 'after_epoch', pull_the_plug)
    with pytest.raises(KeyboardInterrupt): run_study(data, settings=settings, run=tmp_path/'run', pretrained=False, progress=False)
    assert not RunFolder(tmp_path/'run').done('predict')
    monkeypatch.undo()
    run = run_study(data, settings=settings, run=tmp_path/'run', pretrained=False, progress=False)
    for name in ('predictions-valid.csv', 'predictions-test.csv', 'split.csv'): assert (run/name).read_bytes() == (whole/name).read_bytes(), name
    histories = [pd.read_csv(o/'history.csv').drop(columns='time') for o in (run, whole)]
    assert histories[0].equals(histories[1]) and len(histories[0]) == 3
    assert run.test_openings == 1


def test_another_study_of_the_same_name_is_another_run(data, settings, whole, tmp_path):
    other = simulate_study(tmp_path/data.name, n_patients=20, n_frames=1, seed=9, progress=False)
    run = run_study(other, settings=settings, pretrained=False, progress=False)
    assert run.path != whole.path and run.path.parent == whole.path.parent


def test_a_second_run_on_the_same_split_is_counted(data, settings, whole):
    run = run_study(data, settings=settings.with_(epochs=1), pretrained=False, progress=False)
    assert run.load_json('results.json')['other_openings'] >= 1
    assert 'other runs on the same split' in (run/'report.html').read_text()


def test_the_command_in_the_report_repeats_the_run(whole):
    command = whole.load_json('results.json')['command']
    for part in ('MEDFAST_EPOCHS=3', 'MEDFAST_SEED=5', '--arch resnet18', '--weights random'): assert part in command, command


def test_data_that_changed_is_refused(data, settings, tmp_path):
    import shutil
    copy = tmp_path/'copy'
    shutil.copytree(data, copy)
    from medfast.resume import Checkpoint
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Checkpoint, 'before_epoch', lambda self: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt): run_study(copy, settings=settings, run=tmp_path/'run', pretrained=False, progress=False)
    fn = sorted((copy/'txt').iterdir())[0]
    text = fn.read_bytes()
    fn.write_bytes(text.replace(b'2', b'3', 1))
    with pytest.raises(StudyError, match='changed since'): run_study(copy, settings=settings, run=tmp_path/'run', pretrained=False, progress=False)
    fn.write_bytes(text)
    run_study(copy, settings=settings, run=tmp_path/'run', pretrained=False, progress=False)


def test_the_same_picture_on_two_sides_is_refused(data, settings, whole, tmp_path):
    import shutil
    copy = tmp_path/'copy'
    shutil.copytree(data, copy)
    split = whole.load_table('split.csv')
    here, there = (split[split.split == part].path.iloc[0] for part in ('train', 'test'))
    (copy/there).write_bytes((copy/here).read_bytes())
    with pytest.raises(LeakageError, match='same bytes'): run_study(copy, settings=settings, run=tmp_path/'run', pretrained=False, progress=False)


def test_a_folder_without_matrices_is_refused(tmp_path, settings):
    (tmp_path/'empty').mkdir()
    with pytest.raises(CatalogError): run_study(tmp_path/'empty', settings=settings, run=tmp_path/'run', progress=False)


@pytest.mark.parametrize('given, said', [
    (dict(arch='resnet1000'), 'resnet'), (dict(profile='fast'), 'quick'), (dict(weights='good'), 'cached'), (dict(data='nowhere'), 'no such folder')])
def test_the_command_meets_wrong_input_with_a_sentence(given, said, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MEDFAST_RUNS', str(tmp_path/'runs'))
    with pytest.raises(SystemExit) as e: run_command(**dict(dict(data=str(data)), **given))
    assert said in str(e.value) and str(e.value).startswith('medfast-run:')


def test_ctrl_c_on_the_command(data, tmp_path):
    "A real process, a real signal: it says how to go on, and leaves a run that goes on."
    env = dict(os.environ, MEDFAST_EPOCHS='60', MEDFAST_IMAGE_SIZE='32', MEDFAST_BS='4', MEDFAST_RUNS=str(tmp_path/'runs'))
    code = f'from medfast.study import run_command; run_command(data={str(data)!r}, arch="resnet18", weights="random", run={str(tmp_path/"run")!r})'
    process = subprocess.Popen([sys.executable, '-c', code], env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    checkpoint, limit = tmp_path/'run/training-all.safetensors', time.time() + 240
    while not checkpoint.exists() and process.poll() is None and time.time() < limit: time.sleep(.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode and 'goes on where it was stopped' in err, err
    assert 'Traceback' not in err
    assert json.loads((tmp_path/'run/state.json').read_text())['done'] == ['split']


@pytest.mark.full
def test_the_real_matrices(dmr_ir, imagenet_weights, tmp_path, monkeypatch):
    "All 121 are read, none is skipped; the weights, the formats and the metadata control stand in the report."
    monkeypatch.setenv('TORCH_HOME', str(imagenet_weights))
    settings = load_settings(runs=tmp_path, arch='squeezenet1_1', image_size=224, epochs=8)
    run = run_study(dmr_ir, settings=settings, progress=False)
    results = run.load_json('results.json')
    assert results['data']['n_images'] == results['data']['n_patients'] == 121
    formats = pd.DataFrame(results['data']['formats'])
    assert formats.groupby('format').images.sum().to_dict() == {'blank': 92, 'semicolon': 29}
    assert set(formats[formats.format == 'semicolon'].label) == {'Sick'}
    html = (run/'report.html').read_text()
    assert 'squeezenet1_1-b8a52dc0.pth' in html and 'semicolon' in html
    assert results['controls'][0]['test']['auc']['n'] == results['test']['auc']['n']
