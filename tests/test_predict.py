"medfast-predict: the learner's bits, what cannot be read, exit codes, tables that are whole, memory that stays flat."
import csv
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fastcore.script import parse_cli
from PIL import Image

from medfast.bundle import Answer, load_bundle, save_bundle
from medfast.calibration import with_temperature
from medfast.decisions import OperatingPoint
from medfast.images import LIMITS
from medfast.loaders import array_dls, study_dls
from medfast.models import medical_learner
from medfast.predict import _Bar, _is_table, _run, count_sources, find_images, header, predict_command, predict_files, row, _line
from test_bundle import CPU, archive, pictures, quiet, text_catalog, trained

pytestmark = [pytest.mark.filterwarnings('ignore::medfast.predictions.UntrainedWarning'), pytest.mark.filterwarnings('ignore::FutureWarning')]


@pytest.fixture(scope='module')
def home(tmp_path_factory): return tmp_path_factory.mktemp('predict')


@pytest.fixture(scope='module')
def made(home, small_study):
    "Name -> (learner, its bundle), for text, pictures and an archive."
    point = lambda dls: OperatingPoint(dls.vocab[1], tuple(dls.vocab), .45, 1.3, 'sensitivity', .95, .96, .9, 40, 90, 5, 'patient', 'a'*64)
    found = {}
    for name,dls,arch in (('text', study_dls(text_catalog(small_study), size=32, bs=4, augment='thermogram', **CPU), 'mirror_cnn'),
                          ('jpg', study_dls(pictures(home/'ward', 'RGB', '.jpg'), size=32, bs=4, **CPU), 'mirror_cnn'), ('npz', array_dls(archive(home/'organs.npz'), bs=4, **CPU), 'simple_cnn')):
        learn = trained(medical_learner(dls, arch))
        found[name] = learn, save_bundle(learn, home/f'bundle-{name}', point=point(dls) if name=='text' else None)
    return found


@pytest.fixture(scope='module')
def command(home):
    "The command as its entry point calls it, in a process of its own."
    script = home/'medfast-predict'
    script.write_text('import sys\nfrom medfast.predict import predict_command\nif __name__ == "__main__": sys.exit(predict_command())\n')
    env = {**os.environ, 'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS', '1')}
    return lambda *args: subprocess.run([sys.executable, str(script), *map(str, args)], capture_output=True, text=True, timeout=120, env=env)


@pytest.fixture
def call(capsys, monkeypatch):
    "The same arguments through the same parser, in this process: exit code, output, errors."
    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['medfast-predict', *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as e: (lambda found: predict_command(*found[0], **found[1]))(parse_cli(predict_command.__wrapped__))
        return SimpleNamespace(returncode=e.value.code, **dict(zip(('stdout', 'stderr'), capsys.readouterr())))
    return run


def table(fn): return list(csv.DictReader(open(fn, newline='', encoding='utf-8')))


@pytest.mark.parametrize('name', ['text', 'jpg', 'npz'])
def test_the_command_gives_the_learners_bits(made, command, tmp_path, name):
    learn,bundle = made[name]
    rows = learn.dls.catalogs['valid'].path.tolist()
    done = command(bundle, *(rows if name!='npz' else [rows[0].split('#')[0] + '#valid']), '--csv', tmp_path/'out.csv')
    assert done.returncode == 0, done.stderr
    found,preds = table(tmp_path/'out.csv'),quiet(learn)
    point = load_bundle(bundle).point
    wanted = with_temperature(preds, point.temperature if point else 1).probs
    assert [[float(o[f'p_{c}']) for c in preds.classes] for o in found] == wanted.tolist()
    assert [o['class'] for o in found] == [preds.classes[i] for i in wanted.argmax(1)] and {o['calibrated'] for o in found} == {str(bool(point)).lower()}
    if point: assert [o['decision'] for o in found] == [point.classes[int(p >= .45)] for p in wanted[:, 1]] and 'set by patient' in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path/'out.csv']


def test_what_cannot_be_read_is_told_and_the_rest_is_read(made, command, home, tmp_path):
    (tmp_path/'cut.jpg').write_bytes((home/'ward/00.jpg').read_bytes()[:300])
    (tmp_path/'note.txt').write_text('hello')
    done = command(made['jpg'][1], home/'ward/00.jpg', tmp_path, tmp_path/'lost.png', home/'ward/01.jpg', '--csv', tmp_path/'out.csv')
    found = table(tmp_path/'out.csv')
    assert done.returncode == 1 and [Path(o['item']).name for o in found] == ['00.jpg', 'cut.jpg', 'lost.png', '01.jpg'] and [bool(o['error']) for o in found] == [False, True, True, False]
    assert 'cut.jpg: not read. cut.jpg cannot be read as a picture' in done.stderr and 'No such file' in done.stderr
    assert '2 images read, 2 could not be read' in done.stderr and 'Left out of the folders: 1 .txt' in done.stderr and 'Traceback' not in done.stderr


def test_lines_for_a_reader(made, call, home):
    done = call(made['text'][1], made['text'][0].dls.catalogs['valid'].path.iloc[0], '--trace', '--tta', 2)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[0].startswith('image\tclass\tprobability, calibrated\tp(Sick)\tdecision: ') and lines[1].split('\t')[1] in ('Healthy', 'Sick')
    steps = [o.strip() for o in lines[2:]]
    assert steps[0].startswith('read as temperatures, ') and steps[0].endswith('°C, 480 rows x 640 columns') and steps[-1] == 'mean of the image (a fifth) and 2 augmented views' and any(o.startswith('squeezed to 32') for o in steps)
    assert 'with --tta 2, nobody has measured' in done.stderr and 'Warning' not in done.stderr and 'no medical device' not in done.stdout and 'not a medical device' in done.stderr


@pytest.mark.parametrize('args,says', [((), 'usage'), (('--nothing',), 'usage'), (('{jpg}',), 'required'), (('{home}/lost', 'a.png'), 'is no folder'), (('{home}/ward', 'a.png'), 'is no bundle'), (('{jpg}', '{home}/empty'), 'no image was found'),
    (('{jpg}', '{home}/ward/00.jpg', '--tta', '2'), 'no views'), (('{jpg}', '{home}/ward/00.jpg', '--tta', 'x'), 'invalid'), (('{jpg}', '{home}/ward/00.jpg', '--bs', '0'), 'bs = 0'), (('{jpg}', 'a.png', '--csv', '{home}/there.csv'), 'nothing is overwritten'),
    (('{jpg}', 'a.png', '--csv', '{home}/half.csv'), 'half.partial.csv is there already'), (('{jpg}', 'a.png', '--csv', '{home}/no/out.csv'), 'no folder no')])
def test_a_call_that_cannot_be_meant_ends_with_2(made, call, home, args, says):
    (home/'empty').mkdir(exist_ok=True)
    for name in ('there.csv', 'half.partial.csv'): (home/name).write_text('keep')
    done = call(*[o.format(home=home, jpg=made['jpg'][1]) for o in args])
    assert done.returncode == 2 and says in done.stderr and 'Traceback' not in done.stderr and done.stdout == ''
    assert (home/'there.csv').read_text() == (home/'half.partial.csv').read_text() == 'keep'


@pytest.mark.parametrize('how,code', [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_rows_so_far_are_kept(made, home, tmp_path, how, code):
    "Stopped in the middle: no table of that name, and whole rows in the partial one."
    np.savez(tmp_path/'many.npz', **{f'{p}_images': np.zeros((n, 28, 28), np.uint8) for p,n in dict(train=200_000, val=1, test=1).items()}, **{f'{p}_labels': np.zeros(n, int) for p,n in dict(train=200_000, val=1, test=1).items()})
    code_ = 'import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from medfast.predict import predict_command; predict_command(sys.argv[1], sys.argv[2], csv=sys.argv[3])'
    p = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code_, made['npz'][1], tmp_path/'many.npz', tmp_path/'out.csv'], stderr=subprocess.PIPE, text=True)
    part = tmp_path/'out.partial.csv'
    for _ in range(600):
        if part.exists() and part.stat().st_size > 20_000 or p.poll() is not None: break
        time.sleep(.1)
    p.send_signal(how)
    told = p.communicate(timeout=60)[1]
    assert p.returncode == code and not (tmp_path/'out.csv').exists()
    lines = part.read_text().splitlines()
    assert len(lines) > 50 and all(o.count(',') == lines[0].count(',') for o in lines[:-1])
    if how==signal.SIGINT: assert 'The rows so far are in out.partial.csv' in told and 'Traceback' not in told


def test_an_archive_is_read_whole_in_parts_and_one_by_one(made, home):
    learn,bundle = made['npz']
    for path,n in ((home/'organs.npz', 21), (f'{home}/organs.npz#test', 5), (f'{home}/organs.npz#val', 6), (f'{home}/organs.npz#test/3', 1)):
        answers = list(predict_files(load_bundle(bundle), [path]))
        assert len(answers) == n == count_sources([path]) and not any(o.error for o in answers)
    assert answers[0].item == f'{home}/organs.npz#test/3'


def test_a_damaged_part_gives_one_error_and_no_prediction(made, home, tmp_path):
    data = bytearray((home/'organs.npz').read_bytes())
    data[data.index(b'train_images.npy') + 300] ^= 1
    (tmp_path/'bad.npz').write_bytes(data)
    answers = list(predict_files(load_bundle(made['npz'][1]), [tmp_path/'bad.npz', home/'organs.npz']))
    assert [bool(o.error) for o in answers] == [True] + [False]*(6 + 5 + 21) and 'bad.npz' in answers[0].error


@pytest.mark.parametrize('make', [lambda fn: fn.write_bytes(b'PK\x03\x04 no archive'), lambda fn: np.savez(fn, x=np.zeros(3)), lambda fn: np.savez(fn, **{f'{p}_{o}': np.array([{}], dtype=object) for p in ('train', 'val', 'test') for o in ('images', 'labels')}),
    lambda fn: fn.mkdir()])
def test_archives_that_are_none_are_told(made, tmp_path, make):
    make(tmp_path/'a.npz')
    answers = list(predict_files(load_bundle(made['npz'][1]), [tmp_path/'a.npz'])) if (tmp_path/'a.npz').is_file() else []
    assert all('a.npz' in o.error for o in answers)


def test_an_image_of_a_part_that_is_too_large_to_hold(made, home, monkeypatch):
    "It is refused by the header, and the stream is still possible."
    monkeypatch.setattr('medfast.bundle.LIMITS', replace(LIMITS, part=5*784))
    bundle = load_bundle(made['npz'][1])
    one, = predict_files(bundle, [f'{home}/organs.npz#train/0'])
    assert 'organs.npz#train' in one.error and 'stream' in one.error
    assert not any(o.error for o in predict_files(bundle, [f'{home}/organs.npz#train', f'{home}/organs.npz#test/0']))


def test_memory_stays_flat(made):
    "Ten times as many images need no more memory at the peak."
    bundle = load_bundle(made['npz'][1])
    def peak(n):
        x = np.zeros((28, 28), np.uint8)
        tracemalloc.start()
        assert sum(1 for _ in bundle.predict_many(((f'{i}', x.copy()) for i in range(n)), bs=16)) == n
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found
    peak(50)
    few,many = peak(200),peak(2000)
    assert many < 1.2*few + 100_000


def test_folders_are_searched_for_their_kind(tmp_path):
    for name in ('b.PNG', 'a.txt', 'c.npz', 'sub/d.jpeg', '.hidden.png', 'e.doc'):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text('x')
    names = lambda kind: [Path(o).relative_to(tmp_path).as_posix() for o in find_images([tmp_path], kind)[0]]
    assert names('thermogram') == ['a.txt', 'b.PNG', 'sub/d.jpeg'] and names('picture') == ['b.PNG', 'c.npz', 'sub/d.jpeg']
    assert dict(find_images([tmp_path], 'picture')[1]) == {'.txt': 1, '.doc': 1}


def test_names_that_a_spreadsheet_would_run_are_disarmed(made, tmp_path):
    Image.new('RGB', (9, 9)).save(tmp_path/'=cmd().png')
    answer, = load_bundle(made['jpg'][1]).predict_many([('=cmd().png', (tmp_path/'=cmd().png').read_bytes())])
    assert row(answer, ['no', 'yes'])[0] == './=cmd().png' and len(row(answer, ['no', 'yes'])) == len(header(['no', 'yes']))
    assert not [o for o in row(answer, ['no', 'yes'], True) if str(o)[:1] in ('=', '@', '+')]


def test_hostile_names_do_not_reach_the_terminal(made, call, tmp_path):
    (tmp_path/'a\x1b[2J.png').write_bytes(b'no')
    done = call(made['jpg'][1], tmp_path)
    assert done.returncode == 1 and '\x1b' not in done.stdout + done.stderr


def test_views_from_the_command_are_those_of_the_bundle(made, call, tmp_path):
    learn,bundle = made['text']
    fn = learn.dls.catalogs['valid'].path.iloc[0]
    assert call(bundle, fn, '--tta', 3, '--csv', tmp_path/'a.csv').returncode == 0
    assert float(table(tmp_path/'a.csv')[0]['p_Sick']) == load_bundle(bundle).predict(fn, tta=3).probabilities['Sick']


def test_all_images_of_a_patient_give_one_line(made, call, home, tmp_path):
    learn,folder = made['text']
    catalog = learn.dls.catalogs['valid']
    rows = catalog.path[catalog.patient == catalog.patient.iloc[0]].astype(str).tolist()
    wanted = load_bundle(folder).predict_patient(rows, '17')
    done = call(folder, *rows, '--patient', '17')
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 2 and lines[1].split('\t')[:5] == ['17', wanted.label, f'{wanted.probability:.4f}', f'{wanted.probabilities["Sick"]:.4f}', wanted.decision] and '(mean of 2 images)' in lines[1]
    assert '2 images read' in done.stderr and 'a decision here is that of one image' not in done.stderr and '--patient NAME' in call(folder, rows[0]).stderr
    (tmp_path/'b.txt').write_text('no')
    done = call(folder, *rows, tmp_path/'b.txt', '--patient', '17', '--csv', tmp_path/'out.csv')
    row = table(tmp_path/'out.csv')[0]
    assert done.returncode == 1 and len(table(tmp_path/'out.csv')) == 1 and float(row['p_Sick']) == wanted.probabilities['Sick'] and row['notes'] == 'mean of 2 images; 1 of 3 could not be read'
    assert 'b.txt: not read' in done.stderr and '2 images read, 1 could not be read' in done.stderr
    done = call(folder, tmp_path/'b.txt', '--patient', '17')
    assert done.returncode == 1 and '0 images read, 1 could not be read' in done.stderr and len(done.stdout.splitlines()) == 1


def test_views_and_odd_names_of_a_patient(made, call, tmp_path):
    learn,folder = made['text']
    rows = [str(o) for o in learn.dls.catalogs['valid'].path.iloc[:2]]
    (tmp_path/'b\x1b[2J.txt').write_text('no')
    done = call(folder, *rows, tmp_path/'b\x1b[2J.txt', '--patient', 'a\x1b[2Jb', '--tta', 2, '--csv', tmp_path/'out.csv')
    assert done.returncode == 1 and '\x1b' not in done.stdout + done.stderr and float(table(tmp_path/'out.csv')[0]['p_Sick']) == load_bundle(folder).predict_patient(rows, tta=2).probabilities['Sick']
    assert '\x1b' not in call(folder, *rows, '--patient', 'a\x1b[2Jb').stdout


def test_the_bar_counts_images_of_a_patient_as_they_are_taken(made, capsys):
    learn,folder = made['text']
    class Counted(_Bar):
        def __call__(self, n): seen.append(n)
    seen = []
    _run(load_bundle(folder), [str(o) for o in learn.dls.catalogs['valid'].path.iloc[:3]], '17', None, dict(bs=None, tta=0, trace=False), Counted(3, True))
    assert seen == [0, 1, 2, 3]
    bar,seen = _Bar(3, True),[]
    assert list(bar.over(o for o in 'abc')) == ['a', 'b', 'c']
    bar.last = 0
    bar(3)
    assert re.findall(r'(\d) of 3 images', capsys.readouterr().err)[-1] == '3'
    taken = bar.over(seen.append(o) or o for o in 'abc')
    assert next(taken) == 'a' and seen == ['a'], 'read as it goes'


@pytest.mark.parametrize('text,is_table', [('ID,Diagnosis\n1,Sick\n', True), ('\ufeff"patient";label\n', True), ('name\tage\n', True), ('30,25;31,50\n', False), ('-1.5,2\n', False), ('nonsense\n', False), ('', False), ('nan;28.15;28.20\n', False), ('inf,1\n', False), ('T,28.1\n', False), (',,,\n', False)])
def test_a_table_beside_the_matrices_is_left_out_and_told(tmp_path, text, is_table):
    (tmp_path/'a.csv').write_text(text, encoding='utf-8')
    (tmp_path/'b.txt').write_text('ID,Diagnosis\n')
    found,left = find_images([tmp_path], 'thermogram')
    assert [Path(o).name for o in found] == ['a.csv'][:not is_table] + ['b.txt'] and left == ({'.csv with names of columns': 1} if is_table else {})
    assert find_images([tmp_path/'a.csv'], 'thermogram')[0] == [str(tmp_path/'a.csv')], 'a file that is named is read'
    assert not _is_table(tmp_path/'nowhere.csv'), 'what cannot be opened is told as an image that cannot be read'


def test_a_folder_of_the_study_is_read_without_complaint(made, call, small_study):
    done = call(made['text'][1], small_study)
    assert done.returncode == 0 and ', 0 could not be read' in done.stderr and '1 .csv with names of columns' in done.stderr


def test_all_images_of_a_patient_are_of_one_and_each_counts_once(made, call, home, small_study, tmp_path):
    folder,rows = made['text'][1],[str(o) for o in made['text'][0].dls.catalogs['valid'].path]
    own = [o for o in rows if Path(o).name[:5] == Path(rows[0]).name[:5]]
    once = call(folder, *own, '--patient', 'x')
    twice = call(folder, own[0], *own, Path(own[0]).parent/'..'/Path(own[0]).parent.name/Path(own[0]).name, '--patient', 'x')
    assert once.returncode == 0 and twice.stdout == once.stdout and once.stdout.startswith('patient\t') and f'mean of {len(own)} image' in once.stdout
    for args,says in (((folder, small_study, '--patient', 'x'), 'images of 8 patients, by their names'), ((folder, own[0], '--patient', ' '), '--patient has no name'),
                      ((made['npz'][1], home/'organs.npz', '--patient', 'x'), 'holds images of many'), ((made['npz'][1], f'{home/"organs.npz"}#test', '--patient', 'x'), 'holds images of many')):
        done = call(*args)
        assert done.returncode == 2 and says in done.stderr and done.stderr.startswith('medfast-predict: ') and done.stdout == ''
    assert call(made['npz'][1], f'{home/"organs.npz"}#test/0', f'{home/"organs.npz"}#test/1', '--patient', 'x').returncode == 0
    assert call(made['jpg'][1], home/'ward/00.jpg', home/'ward/01.jpg', '--patient', 'x').returncode == 0, 'names of pictures tell no patient'


def test_a_network_that_overflows_ends_the_command_with_a_sentence(made, call, home, tmp_path, monkeypatch):
    from medfast.bundle import Bundle
    real = Bundle._batch
    monkeypatch.setattr(Bundle, '_batch', lambda self, *a, **kw: real(self, *a, **kw)*float('nan'))
    done = call(made['jpg'][1], home/'ward/00.jpg', '--csv', tmp_path/'out.csv')
    assert done.returncode == 2 and done.stderr.startswith('medfast-predict: The network gives NaN') and 'out.partial.csv' in done.stderr and done.stderr.count('\n') == 1


def test_nothing_in_a_name_is_a_formula_or_a_control_character(made):
    answer = Answer('\t=1+1.jpg', 'no', dict(no=.9, yes=.1), trace=('=1+1.txt: read as \x1b[31mred', 'b'))
    cells = dict(zip(header(['no', 'yes'], True), row(answer, ['no', 'yes'], True)))
    assert cells['item'].startswith('./') and cells['trace'].startswith("'=") and row(Answer('\n=1', 'no', dict(no=1., yes=0.)), ['no', 'yes'])[0].startswith('./')
    assert '\x1b' not in _line(answer) and '\\x1b[31m' in _line(answer)
