"The folder of a run: what is damaged is named, and what must not be lost is not told to be removed."
import json
import multiprocessing
import threading

import pytest

from medfast import simulate, split, thermogram
from medfast.files import REGISTER, FilesError, RunFolder, alone, as_command, end_command, read_json


@pytest.mark.parametrize('text', ['', '{"done": [', '{}', '[]', 'null', '{"done": [], "test_openings": 2}', '{"done": ["a"]}'])
def test_a_damaged_state_is_named_and_never_told_to_be_removed(tmp_path, text):
    run = RunFolder(tmp_path/'run')
    run.open_test('once')
    (run/'state.json').write_text(text)
    for ask in (lambda: run.test_openings, lambda: run.done('a'), lambda: run.mark('a'), lambda: run.open_test('again'), lambda: repr(RunFolder(tmp_path/'run'))):
        with pytest.raises(FilesError, match='state.json of the run run is damaged.*how often the test set was opened') as told: ask()
        assert 'Remove' not in str(told.value)
    assert (run/'state.json').read_text() == text


def test_a_folder_without_its_state_is_no_run(tmp_path):
    run = RunFolder(tmp_path/'run')
    run.save_json('a.json', {})
    (run/'state.json').unlink()
    with pytest.raises(FilesError, match='holds files that are not a run'): RunFolder(tmp_path/'run')


def look(home, name, n):
    run = RunFolder(home/name)
    for _ in range(n): run.open_test('a look', test='s')


def test_openings_by_many_at_once_are_all_counted(tmp_path):
    "Processes with runs of their own, and threads in one and the same run."
    for o in ('a', 'b', 'c'): RunFolder(tmp_path/o)
    workers = [multiprocessing.get_context('spawn').Process(target=look, args=(tmp_path, o, 15)) for o in ('a', 'b')]
    workers += [threading.Thread(target=look, args=(tmp_path, 'c', 8)) for _ in range(3)]
    for o in workers: o.start()
    for o in workers: o.join()
    register = read_json(tmp_path/REGISTER)['s']
    assert {o: register.count(o) for o in 'abc'} == dict(a=15, b=15, c=24)
    assert [RunFolder(tmp_path/o).test_openings for o in 'abc'] == [15, 15, 24]
    assert RunFolder(tmp_path/'a').other_openings('s') == dict(b=15, c=24)
    assert not [o for o in tmp_path.rglob('.*')], 'a lock or half a file is left'


def test_marks_by_many_at_once_are_all_kept(tmp_path):
    run = RunFolder(tmp_path/'run')
    threads = [threading.Thread(target=run.mark, args=(f'step {i}',)) for i in range(20)]
    for o in threads: o.start()
    for o in threads: o.join()
    assert sorted(run.state['done']) == sorted(f'step {i}' for i in range(20))


@pytest.mark.parametrize('text', ['', '{"s": [', '[]', 'null', '{"s": 3}', '{"s": [1]}', '{"s": {"a": 1}}', '{"items": ["a"]}', '{"items": {"s": 1}}', '{"items": {"s": ["a"]}, "s": ["a"]}'])
def test_a_damaged_register_is_an_error_before_the_look_and_stays(tmp_path, text):
    run = RunFolder(tmp_path/'run')
    (tmp_path/REGISTER).write_text(text)
    for ask in (lambda: run.open_test('why', test='s'), lambda: run.other_openings('s')):
        with pytest.raises(FilesError, match='test-openings.json.*is damaged.*do not write it anew'): ask()
    assert run.test_openings == 0 and (tmp_path/REGISTER).read_text() == text
    assert run.open_test('without a test part, as before') == 1


def test_other_splits_and_what_is_no_run_do_not_count(tmp_path):
    a, b = (RunFolder(tmp_path/o) for o in 'ab')
    b.open_test('why', test='another')
    for name, text in (('x', '{"test": "s", "test_openings": 7}'), ('y', 'no json'), ('z', '[1]')):
        (tmp_path/name).mkdir()
        (tmp_path/name/'state.json').write_text(text)
    assert a.other_openings('s') == {} and a.other_openings('another') == dict(b=1)


def test_neither_the_register_nor_the_run_can_be_forgotten_alone(tmp_path):
    a, b = (RunFolder(tmp_path/o) for o in 'ab')
    for o in (a, b): o.open_test('why', test='s')
    (tmp_path/REGISTER).unlink()
    assert a.other_openings('s') == dict(b=1)
    a.open_test('again', test='s')
    assert json.loads((tmp_path/REGISTER).read_text()) == dict(s=['a']) and b.other_openings('s') == dict(a=2)


def test_a_lock_that_was_left_behind_is_named(tmp_path):
    run = RunFolder(tmp_path/'run')
    (run/'.lock-state.json').touch()
    with pytest.raises(FilesError, match='remove .lock-state.json'):
        with alone(run/'state.json', seconds=.05): pass
    (run/'.lock-state.json').unlink()
    with pytest.raises(RuntimeError):
        with alone(run/'state.json'): raise RuntimeError
    assert not (run/'.lock-state.json').exists()


def test_a_run_folder_made_anew_finds_its_own_earlier_look(tmp_path):
    RunFolder(tmp_path/'a').open_test('why', test='s')
    (tmp_path/'a/state.json').unlink()
    again = RunFolder(tmp_path/'a')
    assert again.test_openings == 0 and again.other_openings('s') == dict(a=1)
    again.open_test('why', test='s')
    assert again.other_openings('s') == dict(a=1)


def test_what_was_counted_by_split_is_counted_on(tmp_path):
    "Folders and registers from before there were hashes of test parts: those of neighbours, of a removed run, and of the run itself."
    for name in ('old', 'mine'):
        (tmp_path/name).mkdir()
        (tmp_path/name/'state.json').write_text(json.dumps(dict(done=['predict'], test_openings=['why'], split='a split')))
    (tmp_path/REGISTER).write_text(json.dumps({'a split': ['old', 'mine', 'removed'], 'another': ['far']}))
    mine, new = RunFolder(tmp_path/'mine'), RunFolder(tmp_path/'new')
    assert mine.other_openings('a test', 'a split') == dict(old=1, removed=1) and mine.other_openings('a test') == {}
    new.open_test('why', test='a test', items=['00', '01'])
    assert new.other_openings('a test', 'a split') == dict(old=1, mine=1, removed=1) and mine.other_openings('a test', 'a split') == dict(new=1, old=1, removed=1)
    assert read_json(tmp_path/REGISTER)['a split'] == ['old', 'mine', 'removed'] and new.overlaps('a test', ['00', '01']) == {}


def test_a_test_part_that_overlaps_is_told_with_its_share(tmp_path):
    a, b, c = (RunFolder(tmp_path/o) for o in 'abc')
    a.open_test('why', test='A', items=['00', '01', '02', '03'])
    b.open_test('why', test='B', items=['03', '04'])
    c.open_test('why', test='C', items=['09'])
    assert (a.overlaps('A', ['00', '01', '02', '03']), b.overlaps('B', ['03', '04']), c.overlaps('C', ['09'])) == (dict(b=.25), dict(a=.5), {})
    a.open_test('another part', test='D', items=['04'])
    assert b.overlaps('B', ['03', '04']) == dict(a=.5) and a.overlaps('D', ['04']) == dict(b=1.) and a.overlaps('none', []) == {}


def test_a_mark_that_is_taken_back_leaves_the_rest(tmp_path):
    run = RunFolder(tmp_path/'run')
    for o in ('split', 'predict', 'report'): run.mark(o)
    run.open_test('why', test='s')
    run.unmark('report'); run.unmark('never marked')
    assert run.state == dict(done=['split', 'predict'], test_openings=['why'], test='s')


# --- how a command ends

COMMANDS = {'medfast-convert': (thermogram.convert_command, thermogram, 'convert_thermograms'), 'medfast-simulate': (simulate.simulate_command, simulate, '_simulate_kind'),
    'medfast-split': (split.split_command, split, '_split_folders')}


def ends(command, *args, **options):
    with pytest.raises(SystemExit) as e: command(*args, **options)
    return e.value.code


@pytest.mark.parametrize('name', COMMANDS)
@pytest.mark.parametrize('error,code,told', [(FilesError('out is a file.'), 2, '{}: out is a file.\n'), (PermissionError(13, 'Permission denied'), 2, '{}: [Errno 13] Permission denied\n'), (ValueError('odd'), 2, '{}: odd\n'),
    (KeyboardInterrupt(), 130, '\n{}: Stopped. The same command goes on where it was stopped.\n')], ids=['folder', 'disk', 'value', 'Ctrl-C'])
def test_commands_end_alike(monkeypatch, tmp_path, capsys, name, error, code, told):
    command, module, worker = COMMANDS[name]
    def fail(*args, **options): raise error
    monkeypatch.setattr(module, worker, fail)
    assert ends(command, str(tmp_path/'src'), *[str(tmp_path/'out')]*(name != 'medfast-simulate')) == code
    assert tuple(capsys.readouterr()) == ('', told.format(name))


@pytest.mark.parametrize('name', COMMANDS)
def test_a_fault_of_medfast_is_not_told_as_one_of_the_input(monkeypatch, tmp_path, name):
    command, module, worker = COMMANDS[name]
    monkeypatch.setattr(module, worker, lambda *args, **options: 1/0)
    with pytest.raises(ZeroDivisionError): command(str(tmp_path/'src'), *[str(tmp_path/'out')]*(name != 'medfast-simulate'))


def test_what_goes_well_goes_on_and_what_is_done_in_part_ends_with_1(capsys):
    with as_command('medfast-demo', str.upper): done = True
    assert done and tuple(capsys.readouterr()) == ('', '')
    assert ends(end_command, 'medfast-demo', '2 of 3 done', 1) == 1 and capsys.readouterr().err == 'medfast-demo: 2 of 3 done\n'
