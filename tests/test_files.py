"The folder of a run: what is damaged is named, and what must not be lost is not told to be removed."
import json
import multiprocessing
import threading

import pytest

from medfast.files import REGISTER, FilesError, RunFolder, alone, read_json


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
    for _ in range(n): run.open_test('a look', split='s')


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


@pytest.mark.parametrize('text', ['', '{"s": [', '[]', 'null', '{"s": 3}', '{"s": [1]}', '{"s": {"a": 1}}'])
def test_a_damaged_register_is_an_error_before_the_look_and_stays(tmp_path, text):
    run = RunFolder(tmp_path/'run')
    (tmp_path/REGISTER).write_text(text)
    for ask in (lambda: run.open_test('why', split='s'), lambda: run.other_openings('s')):
        with pytest.raises(FilesError, match='test-openings.json.*is damaged.*do not write it anew'): ask()
    assert run.test_openings == 0 and (tmp_path/REGISTER).read_text() == text
    assert run.open_test('without a split, as before') == 1


def test_other_splits_and_what_is_no_run_do_not_count(tmp_path):
    a, b = (RunFolder(tmp_path/o) for o in 'ab')
    b.open_test('why', split='another')
    for name, text in (('x', '{"split": "s", "test_openings": 7}'), ('y', 'no json'), ('z', '[1]')):
        (tmp_path/name).mkdir()
        (tmp_path/name/'state.json').write_text(text)
    assert a.other_openings('s') == {} and a.other_openings('another') == dict(b=1)


def test_neither_the_register_nor_the_run_can_be_forgotten_alone(tmp_path):
    a, b = (RunFolder(tmp_path/o) for o in 'ab')
    for o in (a, b): o.open_test('why', split='s')
    (tmp_path/REGISTER).unlink()
    assert a.other_openings('s') == dict(b=1)
    a.open_test('again', split='s')
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
    RunFolder(tmp_path/'a').open_test('why', split='s')
    (tmp_path/'a/state.json').unlink()
    again = RunFolder(tmp_path/'a')
    assert again.test_openings == 0 and again.other_openings('s') == dict(a=1)
    again.open_test('why', split='s')
    assert again.other_openings('s') == dict(a=1)
