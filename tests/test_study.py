"The whole study: stopped and gone on, repeated, on changed data, from the command, and on the real matrices."
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open

from medfast import decisions, study as study_module
from medfast.catalog import CatalogError
from medfast.evaluate import OperatingPoint, Predictions, calibration, evaluate, fit_temperature, operating_point, with_temperature
from medfast.files import REGISTER, FilesError, RunFolder
from medfast.privacy import NOT_TOLD
from medfast.settings import load_settings
from medfast.simulate import simulate_study
from medfast.split import LeakageError, SplitError
from medfast.study import StudyError, StudyOptions, run_command, run_study, study_catalog


@pytest.fixture(autouse=True)
def cheap_pictures(monkeypatch):
    "Most tests read numbers; the runs of the fixtures, which are made before this, have their galleries."
    monkeypatch.setattr('medfast.study._figures', lambda *args: None)


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
    assert {'classes', 'history', 'roc-test', 'confusion-test', 'gallery-correct'} <= {o.stem for o in (whole/'figures').glob('*.png')}


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
    assert run.load_json('results.json')['other_openings'] >= 1 and 'other runs have opened it' in at_end(run)['seal']['words']
    assert 'other runs' in (run/'report.html').read_text()


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
    (dict(arch='resnet1000'), 'resnet'), (dict(profile='fast'), 'quick'), (dict(weights='good'), 'cached'), (dict(data='nowhere'), 'no such folder'),
    (dict(folds=1), '0 trains one model'), (dict(prevalence=2.), 'below 1'), (dict(controls='some'), 'metadata, quick, all'), (dict(folds=32), 'at most'), (dict(folds=50), '2 to 32')])
def test_the_command_meets_wrong_input_with_a_sentence(given, said, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MEDFAST_RUNS', str(tmp_path/'runs'))
    with pytest.raises(SystemExit) as e: run_command(**dict(dict(data=str(data)), **given))
    told = capsys.readouterr().err
    assert e.value.code == 2 and said in told and told.startswith('medfast-run: ') and told.count('\n') == 1


def test_ctrl_c_on_the_command(data, tmp_path):
    "A real process, a real signal: it says how to go on, and leaves a run that goes on."
    env = dict(os.environ, MEDFAST_EPOCHS='60', MEDFAST_IMAGE_SIZE='32', MEDFAST_BS='4', MEDFAST_RUNS=str(tmp_path/'runs'))
    heeded = 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler)'  # a job in the background inherits deafness to Ctrl-C
    code = f'{heeded}; from medfast.study import run_command; run_command(data={str(data)!r}, arch="resnet18", weights="random", run={str(tmp_path/"run")!r})'
    process = subprocess.Popen([sys.executable, '-c', code], env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    checkpoint, limit = tmp_path/'run/training-all.safetensors', time.time() + 240
    while not checkpoint.exists() and process.poll() is None and time.time() < limit: time.sleep(.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and 'goes on where it was stopped' in err, err
    assert 'Traceback' not in err
    assert json.loads((tmp_path/'run/state.json').read_text())['done'] == ['split']


def at_end(run): return run.load_json('results.json')


def test_one_model_is_what_its_parts_give_by_hand(whole, data, settings, tmp_path):
    "The options beside the settings have not moved a bit of the plain procedure."
    from medfast.loaders import augmentations, study_dls
    from medfast.models import medical_learner
    import medfast.predictions
    import medfast.resume
    catalog, counts = study_catalog(data, settings.seed)
    dls = study_dls(catalog, size=32, bs=4, augment=augmentations('thermogram'), low=settings.low, high=settings.high, seed=5)
    learn = medical_learner(dls, 'resnet18', pretrained=False, seed=5)
    with learn.no_bar(), learn.no_logging(): learn.fit_resumable(3, settings.lr, tmp_path/'a.safetensors', seed=5)
    for i, part in ((1, 'valid'), (2, 'test')):
        learn.predictions(i, folder=data).save(tmp_path/'by-hand.csv')
        assert (tmp_path/'by-hand.csv').read_bytes() == (whole/f'predictions-{part}.csv').read_bytes()


def test_too_few_patients_leave_no_operating_point_and_a_reason(whole):
    results = at_end(whole)
    assert results['operating_point']['set_on'] == 'valid'
    assert 'at least 20 are needed' in results['operating_point']['refused'] and results['at_operating_point'] is None
    assert not (whole/'operating-point.json').exists()


def test_too_few_patients_leave_the_probabilities_as_they_are(whole):
    from medfast.bundle import load_bundle
    results = at_end(whole)
    heat, bundle = results['temperature'], load_bundle(whole/'bundle')
    assert (heat['value'], heat['fitted_on'], heat['n']) == (1, None, 4) and 'at least 20 patients of each class, and there are 1 with Sick' in heat['refused']
    assert results['calibration_after'] is None and bundle.temperature is None and not bundle.calibrated


def test_a_temperature_takes_enough_of_both_classes(tmp_path):
    "Twenty patients of the smaller class, whichever it is; else neither a temperature nor one in the operating point."
    def preds(n_sick, n_healthy):
        y = np.arange(n_sick + n_healthy) < n_sick
        return Predictions.from_arrays(y, 1/(1 + np.exp(-np.random.default_rng(0).normal(2*y - 1, 1))), classes=['Healthy', 'Sick'], patients=range(len(y)), split_by='patient')
    for i, (n_sick, n_healthy, fitted, pointed) in enumerate([(19, 60, False, False), (20, 60, True, True), (60, 19, False, True), (60, 20, True, True)]):
        run, data = RunFolder(tmp_path/str(i)), preds(n_sick, n_healthy)
        data.save(run/'predictions-valid.csv')
        point, _ = study_module._point(run, StudyOptions())
        heat = study_module._temperature(data, 'valid', point)
        assert (heat['value'] == pytest.approx(fit_temperature(data)), 'refused' not in heat, point is not None) == (fitted, fitted, pointed)
        assert heat['fitted_on'] == ('valid' if fitted else None) and (not point or point.temperature == heat['value'])


def test_calibration_is_told_before_and_after_the_temperature(folded):
    results = at_end(folded)
    oof, test = (Predictions.load(folded/f'predictions-{o}.csv') for o in ('oof', 'test'))
    value = fit_temperature(oof)
    assert results['temperature'] == dict(value=pytest.approx(value), fitted_on='out-of-fold', n=15)
    before, after = calibration(test).value, calibration(with_temperature(test.by_patient(), value)).value
    for key, rows in (('calibration', before), ('calibration_after', after)):
        for metric in ('brier', 'ece', 'intercept'): assert results[key]['test'][metric]['value'] == pytest.approx(rows[metric])
    said = {part: rows['brier']['method'] for part, rows in results['calibration_after'].items()}
    assert 'fitted on these same patients' in said['out-of-fold'] and 'fitted on these patients, among others' in said['valid'] and 'fitted' not in said['test']
    assert not any('fitted' in rows['brier']['method'] for rows in results['calibration'].values())


def test_the_run_says_what_it_knows_and_no_more(whole, folded, settings):
    one, two = at_end(whole)['origin'], at_end(folded)['origin']
    assert one['hyperparameters']['weight decay'] == .01, 'that of the optimizer, where the learner has none of its own'
    assert one['seeds'] == dict(split=5, training=5) and two['seeds'] == dict(split=5, folds=5, training=[5, 6])
    assert at_end(whole)['weights'] == 'random, seed 5' and at_end(folded)['weights'] == 'random, seeds 5, 6'
    for o in (one, two):
        for key in ('sample_size', 'selection'): assert 'not known to the run' in o[key], key


@pytest.mark.parametrize('recipe, wd, found', [('fastai', None, .01), ('fastai', .3, .3), ('study', None, 0.)])
def test_the_weight_decay_is_that_of_the_optimizer(recipe, wd, found):
    import torch
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from medfast.models import RECIPES
    options = {k: v for k, v in RECIPES[recipe].items() if k != 'train_bn'} | (dict(wd=wd) if wd is not None else {})
    learn = Learner(DataLoaders([], []), torch.nn.Linear(2, 2), loss_func=torch.nn.MSELoss(), **options)
    learn.create_opt()
    if learn.wd is not None: learn.opt.set_hypers(wd=learn.wd)
    assert study_module._decay(learn) == learn.opt.hypers[-1]['wd'] == found


def test_patients_and_images_are_counted_by_part_and_class(whole):
    results, split = at_end(whole), whole.load_table('split.csv')
    rows = pd.DataFrame(results['sampling']['rows'])
    for r in rows.itertuples():
        own = split[(split.split == r.part) & (split.label == r.label)]
        assert (r.images, r.patients) == (len(own), own.patient.nunique())
    assert rows.groupby('label').share_of_patients.sum().round(9).eq(1).all()
    there = {r['part']: r['by_patient'] for r in results['sampling']['prevalence']}
    assert there['source'] == 7/20 and set(there) == {'train', 'valid', 'test', 'source'}
    assert {p: n['patients'] for p, n in results['origin']['n'].items()} == split.groupby('split').patient.nunique().to_dict()
    assert results['origin']['eligibility'][0] | dict(rule='') == dict(rule='', checked='', not_told=0, images=20, patients=20)


def test_what_the_rules_leave_out_is_counted_by_class():
    from medfast.study import _eligibility, _sampling_rows
    from medfast.catalog import select
    source = pd.DataFrame(dict(path=[f'{i}.txt' for i in range(8)], patient=list('aabbccdd'), label=['Healthy']*4 + ['Sick']*4, view=['frontal', 'left']*4, deodorant=['no']*6 + ['yes']*2))
    catalog, counts = select(source)
    rows = pd.DataFrame(_sampling_rows(catalog.assign(split='test'), source)).set_index(['part', 'label'])
    assert rows.loc[('test', 'Sick')][['images', 'share_of_images', 'share_of_patients']].tolist() == [1, .25, .5]
    assert rows.loc[('left out', 'Sick')][['images', 'patients']].tolist() == [3, 2] and rows.loc[('left out', 'Healthy'), 'images'] == 2
    assert [(o['images'], o['patients']) for o in _eligibility(source, counts)][:3] == [(8, 4), (4, 4), (3, 3)]


def test_a_count_of_images_that_tells_the_class_is_warned_of():
    from medfast.study import _count_warning
    def study(healthy, sick, n=12):
        patients = [(f'{label}{i}', label, k) for label, k in (('Healthy', healthy), ('Sick', sick)) for i in range(n)]
        return pd.DataFrame([dict(patient=p, label=label) for p, label, k in patients for _ in range(k)])
    assert _count_warning(study(4, 4)) == []
    assert 'AUC of 1.00' in _count_warning(study(4, 19))[0] and 'AUC of 0.00' in _count_warning(study(5, 2))[0]


def test_subgroups_are_told_without_dates(whole):
    groups = at_end(whole)['subgroups']
    assert {'age', 'year'} <= set(groups)
    for column, rows in groups.items():
        df = pd.DataFrame(rows)
        sizes = df[df.metric == 'auc'].set_index('group').n
        assert sizes['all'] == sizes.drop('all').sum() == 5, column


def test_groups_of_few_real_patients_have_no_numbers_in_the_results(data, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(study_module, '_kind', lambda root: 'DMR-IR')
    ask = dict(settings=settings.with_(epochs=1), run=tmp_path/'run', pretrained=False, progress=False)
    rows = lambda: pd.concat(map(pd.DataFrame, at_end(run_study(data, **ask))['subgroups'].values()))
    hidden = rows().query("method == @NOT_TOLD")
    assert len(hidden) and hidden[['value', 'low', 'high', 'n']].isna().all(axis=None)
    ask['identifying'] = True
    assert not (rows().method == NOT_TOLD).any()


PATIENT = r'(?<![\w.])(?:{})(?![\w.])'


def test_nothing_that_is_told_names_a_patient_or_a_day(whole, data, settings):
    split = whole.load_table('split.csv')
    who = re.compile(PATIENT.format('|'.join(split.patient.unique())))
    for name in ('results.json', 'settings.json', 'split.json', 'split_summary.csv', 'state.json', 'history.csv', 'report.html'):
        text = re.sub(r'base64,[^"\']*', '', (whole/name).read_text())
        assert not who.search(text), f'{name}: {who.search(text)}'
        assert not re.search(r'\d{4}-\d\d-\d\d', text), name
    told = run_study(data, settings=settings, pretrained=False, identifying=True, progress=False)
    results = at_end(told)
    assert told.path == whole.path and told.test_openings == 1
    assert results['origin']['patients']['test'] == sorted(split[split.split == 'test'].patient.unique()) and len(results['origin']['dates']) == 2
    assert results['origin']['patients']['test'][0] in (told/'report.html').read_text()
    run_study(data, settings=settings, pretrained=False, progress=False)
    assert not {'patients', 'dates'} & set(at_end(whole)['origin'])


def test_stopped_between_results_and_report_is_told_again(whole, data, settings, monkeypatch):
    "Results without dates beside a report with them do not pass as done."
    ask = dict(settings=settings, pretrained=False, progress=False)
    run_study(data, identifying=True, **ask)
    day = at_end(whole)['origin']['dates'][0]
    assert day in (whole/'report.html').read_text()
    monkeypatch.setattr(study_module, '_figures', lambda *args: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt): run_study(data, **ask)
    assert 'dates' not in at_end(whole)['origin'] and not whole.done('report')
    monkeypatch.setattr(study_module, '_figures', lambda *args: None)
    run = run_study(data, **ask)
    assert run.done('report') and day not in (run/'report.html').read_text() and run.test_openings == 1


def test_another_prevalence_is_told_without_another_look(whole, data, settings):
    before = (whole/'predictions-test.csv').read_bytes()
    run = run_study(data, settings=settings, pretrained=False, prevalence=.005, progress=False)
    results = at_end(run)
    assert run.path == whole.path and run.test_openings == 1 and (whole/'predictions-test.csv').read_bytes() == before
    assert results['at_prevalence']['test']['accuracy']['value'] == pytest.approx(evaluate(Predictions.load(run/'predictions-test.csv'), prevalence=.005).value['accuracy'])
    assert '--prevalence 0.005' in results['command'] and 'stated prevalence of 0.005' in results['at_prevalence']['test']['accuracy']['method']
    run_study(data, settings=settings, pretrained=False, progress=False)
    assert at_end(whole)['at_prevalence'] is None


def test_a_control_of_ones_own_stands_beside_the_model(whole, data, settings):
    def guess(catalog):
        rows = catalog[catalog.split == 'test']
        return {'a guess': {'test': Predictions.from_arrays((rows.label == 'Sick').to_numpy(), [.5]*len(rows), classes=['Healthy', 'Sick'], patients=rows.patient.tolist(), items=rows.path.tolist())}}
    run = run_study(data, settings=settings, pretrained=False, controls=guess, progress=False)
    first, own = at_end(run)['controls']
    assert first['name'] == 'metadata' and own['test']['auc']['value'] == .5 and 'valid' not in own
    assert own['gain']['test']['value'] == pytest.approx(at_end(run)['test']['auc']['value'] - .5)
    assert (run/'control-a-guess-test.csv').exists()


def test_quick_controls_stand_beside_the_model_without_another_look(whole, data, settings):
    run = run_study(data, settings=settings, pretrained=False, controls='quick', progress=False)
    results = at_end(run)
    names = [o['name'] for o in results['controls']]
    assert names == ['metadata', 'whole images', 'border only', 'centre masked', 'random weights', 'labels shuffled by patient']
    assert run.path == whole.path and run.test_openings == 1 and '--controls quick' in results['command']
    assert all(o['test']['auc']['n'] == 5 and ('test' in o['gain'] or 'p' in o) for o in results['controls'])
    assert len(results['controls'][-1]['refits']) == 20 and 'sharpness' in results['controls'][0]['features'] and results['control_findings']
    test = Predictions.load(whole/'predictions-test.csv')
    for o in names:
        kept = Predictions.load(run/f'control-{o.replace(" ", "-")}-test.csv')
        assert sorted(kept.items) == sorted(test.items), 'items as seen from the folder of data'


@pytest.mark.parametrize('folds', [0, 2])
def test_the_network_is_trained_again_for_its_controls_and_goes_on_when_stopped(data, settings, tmp_path, monkeypatch, folds):
    from medfast import controls, study
    for o in (controls, study): monkeypatch.setattr(o, 'MIN_REFITS', 2)
    train, seen = study._Retrain._train, []
    def stop_at_the_third(self, catalog, mask, random, seed, place, files):
        if len(seen) == 2: raise KeyboardInterrupt
        seen.append((str(mask), self._words(catalog, mask, random)))
        return train(self, catalog, mask, random, seed, place, files)
    monkeypatch.setattr(study._Retrain, '_train', stop_at_the_third)
    ask = dict(settings=settings.with_(epochs=1), run=tmp_path/'run', pretrained=False, folds=folds, controls='all', progress=False)
    with pytest.raises(KeyboardInterrupt): run_study(data, **ask)
    rest = []
    monkeypatch.setattr(study._Retrain, '_train', lambda self, *args: rest.append(self._words(*args[:3])) or train(self, *args))
    run = run_study(data, **ask)
    results = at_end(run)
    assert [o['name'] for o in results['controls'][1:]] == ['border only', 'centre masked', 'labels shuffled by patient']
    assert len(seen) + len(rest) == 4*max(folds, 1) and seen[0][1].startswith('border only') and rest[-1] == 'shuffled labels'
    part = 'out-of-fold' if folds else 'test'
    border = Predictions.load(run/f'control-border-only-{part}.csv')
    assert abs(border.probs - Predictions.load(run/f'predictions-{"oof" if folds else "test"}.csv').probs).max() > 1e-6
    assert results['controls'][1]['gain'][part]['n'] == (15 if folds else 5) and run.test_openings == 1
    assert not list((run/'controls').glob('*.safetensors'))


def test_a_training_without_mask_is_the_models_own(whole, data, settings):
    "What the controls repeat is the training of the run, to the bit."
    from medfast import study
    from medfast.catalog import dmr_catalog
    source = dmr_catalog(data)
    work = study._Study(data, source, *study._selected(source, 5), settings, StudyOptions(), False, False, whole)
    found = study._Retrain(work)(work.catalog, seed=5)
    assert (found['test'].probs == Predictions.load(whole/'predictions-test.csv').probs).all()


@pytest.fixture(scope='module')
def folded(data, settings, tmp_path_factory):
    "Two folds; an operating point is allowed on four patients of a class."
    with pytest.MonkeyPatch.context() as m:
        for o in (decisions, study_module): m.setattr(o, 'ENOUGH', 4)
        return run_study(data, settings=settings.with_(runs=tmp_path_factory.mktemp('folded')), pretrained=False, folds=2, progress=False)


def test_every_patient_of_the_development_part_is_predicted_by_a_model_without_him(folded, whole):
    split, oof = folded.load_table('split.csv'), Predictions.load(folded/'predictions-oof.csv')
    assert (split.split == whole.load_table('split.csv').split).all(), 'the seal is another one'
    own = split[split.split != 'test'].set_index('path')
    assert sorted(oof.items) == sorted(own.index) and own.groupby('patient').fold.nunique().max() == 1
    assert [int(o) for o in oof.folds] == own.fold[oof.items].tolist() and split[split.split == 'test'].fold.isna().all()
    for k in (0, 1):
        with safe_open(folded/f'training-fold-{k}-all.safetensors', 'pt') as f: assert json.loads(f.metadata()['medfast'])['seed'] == 5 + k
    valid = Predictions.load(folded/'predictions-valid.csv')
    assert sorted(valid.items) == sorted(own.index[own.split == 'valid']) and 'out-of-fold' in at_end(folded)['valid']['auc']['method']


def test_the_point_is_set_out_of_fold_and_frozen(folded):
    results, oof = at_end(folded), Predictions.load(folded/'predictions-oof.csv')
    with pytest.MonkeyPatch.context() as m:
        m.setattr(decisions, 'ENOUGH', 4)
        point = operating_point(oof, sensitivity=.95)
    assert OperatingPoint.load(folded/'operating-point.json') == point and point.n_folds == 2
    assert results['operating_point']['set_on'] == 'out-of-fold' and results['temperature']['value'] == point.temperature
    found = evaluate(Predictions.load(folded/'predictions-test.csv'), at=point)
    for metric in ('sensitivity', 'specificity'): assert results['at_operating_point']['test'][metric]['value'] == pytest.approx(found.value[metric])
    assert folded.test_openings == 1 and results['folds']['patients'] == [8, 7] and results['controls'][0]['out-of-fold']['auc']['n'] == 15


def test_stopped_between_two_folds_and_gone_on_gives_the_same_numbers(folded, data, settings, tmp_path, monkeypatch):
    from medfast import study
    develop, answer, told, openings = study._develop, study._answer, [], []
    def stop_at_the_second(o, k):
        if k: raise KeyboardInterrupt
        return develop(o, k)
    ask = dict(settings=settings, run=tmp_path/'run', pretrained=False, folds=2, progress=False)
    for o in (decisions, study): monkeypatch.setattr(o, 'ENOUGH', 4)
    monkeypatch.setattr(study, '_develop', stop_at_the_second)
    with pytest.raises(KeyboardInterrupt): run_study(data, **ask)
    stopped = RunFolder(tmp_path/'run')
    assert stopped.test_openings == 0 and not (stopped/'operating-point.json').exists()
    monkeypatch.setattr(study, '_develop', develop)
    monkeypatch.setattr(RunFolder, 'open_test', lambda *args, of=RunFolder.open_test: [openings.append((stopped/'operating-point.json').exists()), of(*args)])
    monkeypatch.setattr(study, '_answer', lambda o, k: told.append(answer(o, k)) or told[-1])
    run = run_study(data, **ask)
    assert openings == [True] and run.test_openings == 1, 'the point is frozen before the look'
    for fn in folded.path.glob('*.csv'):
        if not fn.name.startswith('history'): assert (run/fn.name).read_bytes() == fn.read_bytes(), fn.name
    mean = sum(o.probs for o in told)/2
    assert len(told) == 2 and abs(mean - Predictions.load(run/'predictions-test.csv').probs).max() < 1e-12 and abs(told[0].probs - told[1].probs).max() > 1e-6


def test_stopped_in_the_look_is_one_look(data, settings, tmp_path, monkeypatch):
    from fastai.learner import Learner
    import medfast.predictions
    predictions = Learner.predictions
    def power_cut(self, ds_idx=1, **options):
        if ds_idx == 2: raise KeyboardInterrupt
        return predictions(self, ds_idx, **options)
    monkeypatch.setattr(Learner, 'predictions', power_cut)
    ask = dict(settings=settings.with_(epochs=1), run=tmp_path/'run', pretrained=False, progress=False)
    with pytest.raises(KeyboardInterrupt): run_study(data, **ask)
    monkeypatch.setattr(Learner, 'predictions', predictions)
    results = at_end(run_study(data, **ask))
    assert (results['test_openings'], results['other_openings'], len(results['seal']['openings'])) == (1, 0, 1)


def test_a_run_begun_anew_does_not_close_the_test_part_again(data, settings, tmp_path):
    import shutil
    ask = dict(settings=settings.with_(epochs=1), run=tmp_path/'run', pretrained=False, progress=False)
    run_study(data, **ask)
    shutil.rmtree(tmp_path/'run')
    results = at_end(run_study(data, **ask))
    assert (results['test_openings'], results['other_openings'], results['seal']['others']) == (1, 1, {'run': 1})


def test_the_seal_is_that_of_the_test_part_whatever_is_validated(data, settings, tmp_path, monkeypatch):
    "Another validation part is another split and the same test; a part of the same test patients is told with its share; another folder is not known."
    ask = dict(settings=settings.with_(epochs=1), pretrained=False, progress=False)
    first = at_end(run_study(data, run=tmp_path/'runs/first', **ask))['seal']
    divide = study_module.split_catalog
    def other_valid(catalog, **options):
        split = divide(catalog, **options)
        dev = split.split != 'test'
        return split.assign(split=split.split.mask(dev, divide(catalog[dev], valid=.4, by='patient', seed=1).split))
    monkeypatch.setattr(study_module, 'split_catalog', other_valid)
    again = at_end(run_study(data, run=tmp_path/'runs/again', **ask))
    assert again['seal']['test'] == first['test'] and again['seal']['split'] != first['split'] and again['seal']['others'] == dict(first=1) and again['other_openings'] == 1
    def fewer_tested(catalog, **options):
        split = divide(catalog, **options)
        return split.assign(split=split.split.mask(split.path == split[(split.split == 'test') & (split.label == 'Healthy')].path.iloc[0], 'train'))
    monkeypatch.setattr(study_module, 'split_catalog', fewer_tested)
    part = at_end(run_study(data, run=tmp_path/'runs/part', **ask))['seal']
    assert part['others'] == {} and part['overlaps'] == dict(again=1., first=1.) and 'up to 100%' in part['words']
    monkeypatch.setattr(study_module, 'split_catalog', divide)
    far = at_end(run_study(data, run=tmp_path/'elsewhere/run', **ask))['seal']
    assert far['others'] == far['overlaps'] == {} and 'As far as the register beside this run knows, no other run has opened it' in far['words']


def test_a_damaged_register_stops_before_the_look(data, settings, tmp_path):
    (tmp_path/REGISTER).write_text('{"a": 3}')
    with pytest.raises(FilesError, match='do not write it anew'): run_study(data, settings=settings.with_(epochs=1), run=tmp_path/'run', pretrained=False, progress=False)
    assert not (tmp_path/'run/predictions-test.csv').exists() and RunFolder(tmp_path/'run').test_openings == 0


def test_folds_and_sensitivity_belong_to_the_run(whole, data, settings):
    for given, said in ((dict(folds=3), 'folds 0 instead of 3'), (dict(sensitivity=.8), 'sensitivity 0.95 instead of 0.8')):
        with pytest.raises(StudyError, match=said): run_study(data, settings=settings, run=whole.path, pretrained=False, progress=False, **given)
    with pytest.raises(SplitError, match='at most 5'): run_study(data, settings=settings, pretrained=False, folds=9, progress=False)


@pytest.mark.parametrize('given, said', [(dict(folds=1), 'folds = 1'), (dict(folds=-2), 'folds = -2'), (dict(folds=33), 'from 2 to 32'), (dict(folds=2.5), 'folds = 2.5'), (dict(folds=True), 'folds = True'), (dict(prevalence=0), 'prevalence = 0'), (dict(prevalence=1), 'below 1'),
    (dict(prevalence='rare'), "prevalence = 'rare'"), (dict(sensitivity=95), 'sensitivity = 95'), (dict(sensitivity=None), 'sensitivity = None'), (dict(controls='border'), 'metadata, quick, all')])
def test_options_that_mean_nothing_are_met_with_a_sentence(given, said):
    with pytest.raises(StudyError) as e: StudyOptions(**given)
    assert said in str(e.value)


def test_the_log_names_the_stage_and_the_end_says_what_was_found(folded, data, settings, tmp_path, capsys, monkeypatch):
    from medfast.study import _summary
    monkeypatch.delenv('IN_TEST', raising=False)
    run = run_study(data, settings=settings.with_(epochs=1), run=tmp_path/'run', pretrained=False, folds=2)
    lines = [o for o in capsys.readouterr().out.splitlines() if 'epoch' in o]
    assert [o.split(':')[0] for o in lines] == ['fold 1 of 2, all layers, epoch 1 of 1', 'fold 2 of 2, all layers, epoch 1 of 1']
    text = _summary(folded)
    for part in ('Operating point: Sick from', 'Calibration slope', 'metadata  auc', 'gain of the model', 'The test part was opened once by this run', 'As far as the register beside this run knows', 'report.html'): assert part in text, part
    assert 'Operating point: none. A sensitivity is kept on' in _summary(run) and 'too few patients for a temperature' in _summary(run)


def test_the_range_of_refits_is_not_printed_as_an_interval():
    from medfast.study import _control_lines
    row = dict(value=.5, low=None, high=None, lowest=.31, highest=.77, n=9, method='')
    shuffled = dict(name='labels shuffled by patient', features=[], refits=[.5]*20, p=1/21, test=dict(auc=row), gain={}, rival='whole images')
    line, = _control_lines(dict(controls=[shuffled]))
    assert line.endswith('auc 0.500  (range of 20 refits: 0.310 to 0.770), p = 0.048 of whole images')
    before, = _control_lines(dict(controls=[{k: v for k, v in shuffled.items() if k != 'rival'} | dict(test=dict(auc=dict(value=.5, low=.3, high=.8, n=9)))]))
    assert before.endswith('(range of 20 refits: 0.300 to 0.800), p = 0.048')


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


def test_the_bundle_of_a_run_says_what_its_predictions_say(whole, data):
    from medfast.bundle import load_bundle
    bundle, test = load_bundle(whole/'bundle'), Predictions.load(whole/'predictions-test.csv')
    results = at_end(whole)
    assert bundle.classes == test.classes and bundle.temperature is None and bundle.facts['results']['auc']['n'] == 5
    said = [bundle.probabilities(bundle.prepare(data/o))[0] for o in test.items]
    assert np.allclose(said, test.probs, atol=1e-5)


def test_the_bundle_of_folds_says_what_their_mean_said_of_each_patient(folded, data):
    from medfast.bundle import load_bundle
    bundle, test, results = load_bundle(folded/'bundle'), Predictions.load(folded/'predictions-test.csv'), at_end(folded)
    assert len(bundle.members) == 2 and bundle.point == OperatingPoint.load(folded/'operating-point.json') and bundle.temperature == bundle.point.temperature
    assert [o for o in bundle.facts if o.startswith('n_')] and bundle.facts['n_patients'] == 15 and set(bundle.split['n_patients']) == {'development', 'test'} and bundle.split['n_patients']['development'] == 15
    rows = results['at_operating_point']['test']
    assert bundle.facts['results'][f'sensitivity from {bundle.point.threshold:.3f} on']['value'] == rows['sensitivity']['value'] and any('split' in o or 'patients' in o for o in bundle.facts['limits'])
    assert bundle.facts['results']['slope']['value'] == results['calibration_after']['test']['slope']['value'] != results['calibration']['test']['slope']['value']
    at = with_temperature(test.by_patient(), bundle.temperature)
    for who,probs in zip(at.items, at.probs):
        answer = bundle.predict_patient([data/o for o,p in zip(test.items, test.patients) if p == who], who)
        assert np.allclose(list(answer.probabilities.values()), probs, atol=1e-5) and answer.decision == ('Sick' if probs[1] >= bundle.point.threshold else 'Healthy')
    counts = pd.DataFrame(results['at_operating_point']['test']).T
    assert counts.loc['sensitivity', 'n'] == (at.targets == 1).sum()


def test_the_summary_tells_the_prevalence_and_the_stand_in(folded):
    results = at_end(folded)
    assert study_module._prevalence_lines(results) == []
    row = lambda value: dict(value=value, low=0., high=1.)
    test, point = dict(ppv=row(.01), npv=row(.9)), dict(ppv=row(.036), npv=row(.999))
    at = lambda **parts: study_module._prevalence_lines(dict(prevalence=dict(asked=.005), at_prevalence=parts))
    assert at(test=test) == ['At a prevalence of 0.005:', '  PPV          0.010  [0.000, 1.000]', '  NPV          0.900  [0.000, 1.000]']
    assert at(**{'test': test, 'test at operating point': point})[:2] == ['At a prevalence of 0.005, at the operating point:', '  PPV          0.036  [0.000, 1.000]']
    control = dict(name='whole images', test=dict(auc=row(.7)), gain=dict(test=row(.1)))
    assert study_module._control_lines(dict(controls=[control])) == ['  whole images, by the stand-in  auc 0.700  [0.000, 1.000], gain of the model 0.100  [0.000, 1.000]']


def test_a_run_without_a_bundle_keeps_its_report_and_says_so(data, settings, tmp_path, monkeypatch):
    from medfast import bundle
    monkeypatch.setitem(bundle._MOST, 'model.safetensors', 1000)
    ask = dict(settings=settings.with_(epochs=1), run=tmp_path/'run', pretrained=False, progress=False)
    with pytest.raises(StudyError, match='The report is written .*report.html., the bundle is not: The weights have'): run_study(data, **ask)
    assert (tmp_path/'run/report.html').exists() and not (tmp_path/'run/bundle').exists()
    monkeypatch.undo()
    run = run_study(data, **ask)
    assert (run/'bundle').exists() and run.test_openings == 1
