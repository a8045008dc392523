"Converting folders: killed, out of disk, two at once, hostile names, wrong input. The sources are never touched."
import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medfast.files import FilesError, sha256
from medfast.thermogram import ThermogramError, convert_thermograms, image_temps, parse_name, read_thermogram, _at_work, _unsafe

SHAPE = 24, 32


@pytest.fixture(scope='module')
def command(tmp_path_factory):
    "The command as its entry point calls it, in a process of its own."
    script = tmp_path_factory.mktemp('bin')/'medfast-convert'
    script.write_text('import sys\nfrom medfast.thermogram import convert_command\nif __name__ == "__main__": sys.exit(convert_command())\n')
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return lambda *args, cwd=None: subprocess.run([sys.executable, str(script), *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def convert(src, dest, **kwargs):
    "Small matrices, no progress bar."
    return convert_thermograms(src, dest, **{'shape': SHAPE, 'progress': False, 'n_workers': 2, **kwargs})


def make(folder, n, shape=SHAPE, seed=0):
    "A folder of `n` small matrices."
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for k in range(n):
        rows = rng.integers(2000, 3900, shape)/100
        (folder/f'T{k:04d}.1.1.S.2015-07-20.00.txt').write_text(''.join(' '.join(f'{t:.2f}' for t in r) + '\n' for r in rows))
    return folder


def tree(folder):
    "Every file below a folder with its checksum."
    return {str(o.relative_to(folder)): sha256(o) for o in sorted(Path(folder).rglob('*')) if o.is_file()}


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "Sixty sources, two of them broken, and what an undisturbed conversion makes of them."
    home = tmp_path_factory.mktemp('convert')
    src = make(home/'src', 60)
    (src/'T9998.txt').write_text('broken')
    (src/'deep').mkdir()
    (src/'deep/T9999.txt').write_text((src/'T0000.1.1.S.2015-07-20.00.txt').read_text()[:-1])
    table = convert(src, home/'whole')
    assert table.status.value_counts().to_dict() == {'converted': 60, 'refused': 2}
    return src, tree(src), tree(home/'whole')


def test_manifest_tells_everything(study, tmp_path):
    src = study[0]
    table = convert(src, tmp_path/'out').set_index('source')
    assert table.why['T9998.txt'].startswith('T9998.txt, row 1: the last row') and pd.isna(table.output['T9998.txt'])
    for name, row in table[table.status == 'converted'].iterrows():
        temps = read_thermogram(src/name, shape=SHAPE)
        image = Image.open(tmp_path/'out'/row.output)
        assert row.sha256 == sha256(src/name) and row.output_sha256 == sha256(tmp_path/'out'/row.output)
        assert (row.format, row.decimals, row.mark) == ('blank', 2, '.') and row.outside == 0
        assert abs(row.coldest - temps.min()) < .006 and abs(row.hottest - temps.max()) < .006
        assert np.abs(image_temps(image) - temps).max() < .04 and parse_name(row.output) == parse_name(name)


def test_the_number_of_threads_changes_nothing(study, tmp_path):
    for n in (1, 4):
        convert(study[0], tmp_path/str(n), n_workers=n)
        assert tree(tmp_path/str(n)) == study[2]


def test_a_changed_or_new_source_is_converted_again(study, tmp_path):
    src, out = make(tmp_path/'src', 3), tmp_path/'out'
    before = convert(src, out).set_index('source')
    names = sorted(o.name for o in src.iterdir())
    (src/names[0]).write_text((src/names[1]).read_text())
    make(src/'more', 1, seed=5)
    after = convert(src, out).set_index('source')
    assert after.output_sha256[names[0]] == before.output_sha256[names[1]] != before.output_sha256[names[0]] and len(after) == 4
    (src/names[1]).unlink()
    assert len(convert(src, out)) == 3 and (out/f'{names[1]}.png').exists()


def test_a_broken_or_missing_image_is_made_again(study, tmp_path):
    convert(study[0], tmp_path/'out')
    first, second, *_ = sorted((tmp_path/'out').glob('*.png'))
    first.write_bytes(first.read_bytes()[:-1] + b'?')
    second.unlink()
    convert(study[0], tmp_path/'out')
    assert tree(tmp_path/'out') == study[2]


# Stopped

SCRIPT = "import sys; from medfast.thermogram import convert_thermograms as c; c(sys.argv[1], sys.argv[2], shape=(24, 32), progress=False, n_workers=2)"


def start(src, dest):
    return subprocess.Popen([sys.executable, '-c', SCRIPT, str(src), str(dest)], stderr=subprocess.PIPE, env={**os.environ, 'OMP_NUM_THREADS': '1'})


def kill_and_resume(study, dest, rng):
    "Kill a converter at a random moment; True if it was in the middle of its work."
    src, sources, whole = study
    process, n, limit = start(src, dest), rng.randrange(55), time.monotonic() + 60
    while process.poll() is None and len(list(dest.glob('*.png'))) < n and time.monotonic() < limit: time.sleep(.001)
    time.sleep(rng.random()*.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = tree(dest)
    assert all(whole[k] == v for k, v in left.items() if k.endswith('.png') and not Path(k).name.startswith('.writing-'))
    convert(src, dest)
    assert tree(dest) == whole and tree(src) == sources
    return 0 < sum(k.endswith('.png') for k in left) < 60


def test_killed_and_resumed_is_like_never_killed(study, tmp_path):
    rng = random.Random(0)
    assert sum(kill_and_resume(study, tmp_path/str(k), rng) for k in range(4)) >= 1


@pytest.mark.full
def test_a_hundred_kills(study, tmp_path):
    rng = random.Random(1)
    assert sum(kill_and_resume(study, tmp_path/str(k), rng) for k in range(100)) >= 50


def test_temporaries_of_the_dead_are_swept_but_not_of_the_living(study, tmp_path):
    src, _, whole = study
    convert(src, tmp_path)
    stale = tmp_path/'.writing-abc.png'
    stale.write_bytes(b'half')
    recipe = dict(low=20., high=40., cmap=None, bits=8, study=False, ending='.png', shape=[24, 32])
    with _at_work(tmp_path, recipe):
        stale.write_bytes(b'half')
        convert(src, tmp_path)
        assert stale.exists()
    convert(src, tmp_path)
    assert tree(tmp_path) == whole


class Faulty:
    "A function that fails with `code` at its n-th call (and ever after, if `always`)."
    def __init__(self, func, n, code, always): self.func, self.n, self.code, self.always, self.calls = func, n, code, always, 0
    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == self.n or (self.always and self.calls > self.n): raise OSError(self.code, os.strerror(self.code))
        return self.func(*args, **kwargs)


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EACCES, errno.EIO])
@pytest.mark.parametrize('target', ['os.replace', 'os.fsync', 'tempfile.mkstemp', 'PIL.Image.Image.save'])
def test_trouble_with_the_disk_is_told_and_mended(study, tmp_path, monkeypatch, target, code):
    src, sources, whole = study
    for n, always in ((1, False), (40, False), (20, True)):
        dest = tmp_path/str(n)
        with monkeypatch.context() as m:
            obj, _, name = target.rpartition('.')
            faulty = Faulty(Image.Image.save if 'PIL' in target else getattr(sys.modules[obj], name), n, code, always)
            m.setattr(target, faulty if 'PIL' not in target else lambda *a, **k: faulty(*a, **k))
            with pytest.raises(FilesError, match='call again') as err: convert(src, dest)
        assert os.strerror(code) in str(err.value) and tree(src) == sources and not list(dest.rglob('.writing-*'))
        convert(src, dest)
        assert tree(dest) == whole


@pytest.mark.parametrize('code', [errno.EIO, errno.EACCES, errno.ENOENT])
def test_a_source_that_cannot_be_read_is_listed_and_tried_again(study, tmp_path, monkeypatch, code):
    src, _, whole = study
    with monkeypatch.context() as m:
        real = os.open
        m.setattr(os, 'open', lambda fn, *a, **k: Faulty(None, 1, code, True)() if str(fn).endswith('T0007.1.1.S.2015-07-20.00.txt') else real(fn, *a, **k))
        table = convert(src, tmp_path/'out').set_index('source')
    assert os.strerror(code) in table.why['T0007.1.1.S.2015-07-20.00.txt'] and (table.status == 'refused').sum() == 3
    convert(src, tmp_path/'out')
    assert tree(tmp_path/'out') == whole


def test_what_was_done_before_the_trouble_is_not_done_again(study, tmp_path, monkeypatch):
    src = study[0]
    with monkeypatch.context() as m:
        faulty = Faulty(Image.Image.save, 30, errno.ENOSPC, False)
        m.setattr(Image.Image, 'save', lambda *a, **k: faulty(*a, **k))
        with pytest.raises(FilesError): convert(src, tmp_path/'out', n_workers=1)
    again = Faulty(Image.Image.save, 0, 0, False)
    monkeypatch.setattr(Image.Image, 'save', lambda *a, **k: again(*a, **k))
    convert(src, tmp_path/'out')
    assert 25 <= 60 - again.calls <= 30


# Two at once

def two_at_once(study, dest):
    "Two converters and a reader that never meets half an image."
    src, _, whole = study
    running = [start(src, dest), start(src, dest)]
    opened = 0
    while any(o.poll() is None for o in running):
        for fn in dest.glob('[!.]*.png'):
            assert sha256(fn) == whole[fn.name]
            opened += 1
    assert [o.wait() for o in running] == [0, 0], [o.stderr.read() for o in running]
    for o in running: o.stderr.close()
    assert tree(dest) == whole
    return opened


def test_two_converters_and_a_reader(study, tmp_path):
    assert sum(two_at_once(study, tmp_path/str(k)) for k in range(2)) > 0


@pytest.mark.full
def test_two_converters_and_a_reader_twenty_times(study, tmp_path):
    assert sum(two_at_once(study, tmp_path/str(k)) for k in range(20)) > 0


# Names and folders

HOSTILE = ['..txt', '...txt', '..\\..\\x.txt', '%2e%2e%2fx.txt', 'a\nb.txt', 'a\rb.txt', 'a\tb.txt', '\x1b[2J.txt', '=1+1.txt', '+1.txt', '-rf.txt', '@x.txt', '~.txt', '$(id).txt', '`id`.txt',
           'a;b.txt', 'a,b.txt', 'a"b.txt', "a'b.txt", 'a|b.txt', 'a*b?.txt', '<b>.txt', 'mamá.txt', '乳房.txt', '\u202egnp.txt', 'a\u00a0b.txt', ' .txt', 'x' * 251 + '.txt', 'A.TXT', 'a.txt', 'a.txt.txt',
           'CON.txt', 'C:x.txt', os.fsdecode(b'\xff\xfe.txt')]


def test_hostile_names_stay_inside_and_lead_back(tmp_path):
    src, data = make(tmp_path/'src', 1), (make(tmp_path/'one', 1)/'T0000.1.1.S.2015-07-20.00.txt').read_bytes()
    for name in HOSTILE: (src/name).write_bytes(data)
    table = convert(src, tmp_path/'out')
    assert len(table) == len(HOSTILE) + 1 and table.source.is_unique
    assert {_unsafe(o) for o in table.source} == {o.name for o in src.iterdir()}
    refused = table[table.status == 'refused']
    assert {_unsafe(o) for o in refused.source} == {'..txt', '...txt', '..\\..\\x.txt', 'x'*251 + '.txt'}
    done = table[table.status == 'converted']
    assert {o.name for o in (tmp_path/'out').iterdir()} == set(done.output) | {'manifest.csv', 'conversion.json'}
    assert all(_unsafe(o.removesuffix('.png')) in os.listdir(src) for o in done.output)
    assert all(o.isprintable() and o[0] not in '=+-@' for o in table.source)
    assert sorted(o.name for o in tmp_path.iterdir()) == ['one', 'out', 'src']


def test_links_and_pipes_are_listed_not_followed(tmp_path):
    src, outside = make(tmp_path/'src', 1), make(tmp_path/'outside', 1)
    (src/'link.txt').symlink_to(outside/'T0000.1.1.S.2015-07-20.00.txt')
    (src/'dangling.txt').symlink_to(tmp_path/'nowhere')
    (src/'folder').symlink_to(outside)
    (src/'.hidden.txt').write_text('x')
    os.mkfifo(src/'pipe.txt')
    (src/'patients.xlsx').write_text('another kind of file')
    table = convert(src, tmp_path/'out').set_index('source')
    assert table.why.dropna().to_dict() == {'.hidden.txt': 'a hidden file', 'dangling.txt': 'a link that leads out of the folder or nowhere',
        'link.txt': 'a link that leads out of the folder or nowhere', 'pipe.txt': 'not a regular file'}
    assert len(table) == 5


def test_no_output_leaves_the_destination_by_a_link(tmp_path):
    src, out, elsewhere = make(tmp_path/'src'/'deep', 1).parent, tmp_path/'out', tmp_path/'elsewhere'
    make(src, 1)
    elsewhere.mkdir()
    convert(src, out)
    (out/'deep/T0000.1.1.S.2015-07-20.00.txt.png').unlink()
    (out/'deep').rmdir()
    (out/'deep').symlink_to(elsewhere)
    table = convert(src, out)
    assert table.why[1].endswith('would leave the destination by a link. Remove the link.') and list(elsewhere.iterdir()) == []


def test_foreign_folders_are_refused_untouched(tmp_path):
    src, mine = make(tmp_path/'src', 1), make(tmp_path/'mine', 2)
    (mine/'.writing-mine.txt').write_text('x')
    before = tree(mine)
    with pytest.raises(FilesError, match='not a conversion'): convert(src, mine)
    with pytest.raises(FilesError, match='not a conversion'): convert(src, src)
    assert tree(mine) == before
    (tmp_path/'file').write_text('x')
    for dest in ('file', 'file/below'):
        with pytest.raises(FilesError, match='cannot be written'): convert(src, tmp_path/dest)


def test_a_destination_keeps_its_scale(tmp_path):
    src, out = make(tmp_path/'src', 1), tmp_path/'out'
    convert(src, out)
    before = tree(out)
    for other in (dict(low=21), dict(high=39), dict(cmap='viridis'), dict(bits=16), dict(study=True), dict(ending='.jpg'), dict(shape=(1, 2))):
        with pytest.raises(FilesError, match='was made with'): convert(src, out, **other)
    for wrong in (dict(low=40), dict(bits=3), dict(cmap='x'), dict(ending='.gif'), dict(ending='.jpg', bits=16)):
        with pytest.raises(ThermogramError): convert(src, tmp_path/'new', **wrong)
    assert tree(out) == before and not (tmp_path/'new').exists()


@pytest.mark.parametrize('text', ['', 'x', 'source,status\na,b\n', '\0', '"'])
def test_a_broken_manifest_is_named(tmp_path, text):
    src, out = make(tmp_path/'src', 1), tmp_path/'out'
    convert(src, out)
    (out/'manifest.csv').write_text(text)
    with pytest.raises(FilesError, match='manifest.csv cannot be read. Remove it'): convert(src, out)
    (out/'manifest.csv').unlink()
    assert convert(src, out).status.tolist() == ['converted']


@pytest.mark.parametrize('ways', [dict(bits=16), dict(cmap='inferno'), dict(study=True), dict(study=True, ending='.jpg'), dict(ending='.jpg')])
def test_every_way_of_drawing_resumes(tmp_path, ways):
    src = make(tmp_path/'src', 2)
    table = convert(src, tmp_path/'out', **ways)
    before = tree(tmp_path/'out')
    assert convert(src, tmp_path/'out', **ways).equals(table) and tree(tmp_path/'out') == before
    image = Image.open(tmp_path/'out'/table.output[0])
    assert image.mode == {'cmap': 'RGB', 'study': 'RGB', 'bits': 'I;16', 'ending': 'L'}[next(iter(ways))] and image.size == (32, 24)


# The command

def test_the_command_and_its_exit_codes(tmp_path, command):
    src = make(tmp_path/'src', 1, (480, 640))
    done = command(src, tmp_path/'out', '--quiet')
    assert (done.returncode, done.stdout, done.stderr) == (0, '1 converted\n', '')
    assert command(src, tmp_path/'out').stdout.strip() == '1 converted', 'no bar where nobody can watch'
    (src/'T0009.txt').write_text('nan\n')
    done = command(src, tmp_path/'out', '--quiet')
    assert done.returncode == 1 and done.stdout == '' and done.stderr.startswith('medfast-convert: 1 converted, 1 refused: see manifest.csv. The first: T0009.txt, row 1')


@pytest.mark.parametrize('args, told', [('src out --low 50', 'low must be below high'), ('src out --cmap x', 'no colour map'), ('src out --bits 9', 'bits must be 8'),
    ('src out --low warm', 'warm'), ('src out --n-workers -1', 'max_workers'), ('nowhere out', 'is not a folder'), ('src out --suffix .csv', 'holds no .csv files'), ('src src', 'not a conversion'), ('src', 'required')])
def test_wrong_input_is_told_in_a_sentence(tmp_path, command, args, told):
    make(tmp_path/'src', 1)
    done = command(*args.split(), '--quiet', cwd=tmp_path)
    assert done.returncode == 2 and told in done.stderr and done.stderr.splitlines()[-1].startswith('medfast-convert: ') and 'Traceback' not in done.stderr
    assert not list(tmp_path.glob('out/*.png'))
