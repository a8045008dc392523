"The folder of a run: what is damaged is named, and what must not be lost is not told to be removed."
import pytest
from medfast.files import FilesError, RunFolder


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
