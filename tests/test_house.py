"The house: README, settings, site and saved outputs say what is there."
import configparser
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(o for o in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts)
PROJECT = tomllib.loads((ROOT/'pyproject.toml').read_text())


def notebooks(folder): return sorted((ROOT/'nbs'/folder).glob('*.ipynb'))
def cells(fn): return json.loads(fn.read_text(encoding='utf-8'))['cells']
def source(cell): return ''.join(cell['source'])


def outputs(fn):
    "Everything textual that a notebook has saved."
    return '\n'.join(json.dumps({k: v for k, v in o.items() if k != 'data'} | {k: v for k, v in o.get('data', {}).items() if 'image' not in k}, ensure_ascii=False)
                     for c in cells(fn) for o in c.get('outputs', []))


def command(name):
    "The shell command that follows the marker `name` in the README."
    return re.search(rf'<!-- {name} -->\n```sh\n(.*?)\n```', (ROOT/'README.md').read_text(), re.S)[1]


def test_readme_has_two_commands_from_nothing():
    for name in ('run', 'test'): assert command(name).startswith('python -m venv .venv && .venv/bin/pip install -c constraints.txt -e ')
    assert '.venv/bin/medfast-run' in command('run')
    assert 'nbdev-test' in command('test') and 'pytest' in command('test')


def test_readme_links_lead_somewhere():
    links = re.findall(r'\]\((?!http)([^)#]+)\)', (ROOT/'README.md').read_text())
    assert len(links) > 8
    assert [o for o in links if not (ROOT/o).exists()] == []


def test_readme_names_every_command():
    text = (ROOT/'README.md').read_text()
    assert [o for o in PROJECT['project']['scripts'] if f'`{o}' not in text] == []


@pytest.mark.parametrize('name', PROJECT['project']['scripts'])
def test_commands_answer_to_help(name):
    done = subprocess.run([Path(sys.executable).parent/name, '--help'], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and 'usage:' in done.stdout, done.stderr


def test_light_modules_do_not_load_torch():
    light = 'settings files archive phantom thermogram simulate pictures catalog sides balance parts folders leaks split twins table metrics calibration decisions pairs seeds conformal plots evaluate masks features controls privacy page record checklists sections card report study'.split()
    code = f'import sys, {", ".join("medfast." + o for o in light)}; print(sorted({{"torch", "fastai"}} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_settings_file_has_only_known_knobs():
    from medfast.settings import load_settings
    for profile in ('quick', 'full'): assert load_settings(ROOT/'settings.ini', profile=profile).profile == profile
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT/'settings.ini')
    assert set(parser.sections()) == {'quick', 'full'}


def test_constraints_pin_exactly_and_hold_no_address():
    lines = [o for o in (ROOT/'constraints.txt').read_text().splitlines() if o and not o.startswith('#')]
    assert all(re.fullmatch(r'[\w.\-]+==[\w.+!]+', o) for o in lines), [o for o in lines if '==' not in o]
    names = {o.split('==')[0].lower().replace('_', '-') for o in lines}
    wanted = {re.split(r'[<>=\[ ]', o)[0].lower() for o in PROJECT['project']['dependencies'] + PROJECT['project']['optional-dependencies']['dev']}
    assert wanted <= names, wanted - names


def test_site_is_configured_once():
    assert (ROOT/'nbs/_quarto.yml').is_symlink()
    assert (ROOT/'nbs/_quarto.yml').resolve() == ROOT/'_quarto.yml'
    site = yaml.safe_load((ROOT/'_quarto.yml').read_text())
    for item in site['website']['navbar']['left']: assert (ROOT/'nbs'/item['href']).exists(), item
    for part in site['website']['sidebar']['contents']:
        pages = part if isinstance(part, str) else part['contents']
        assert list((ROOT/'nbs').glob(pages)), pages


def test_chapters_export_nothing_and_have_exercises():
    for fn in notebooks('course'):
        texts = [source(o) for o in cells(fn)]
        assert not any(re.match(r'#\|\s*export', o) for o in texts), fn.name
        solutions = [i for i, o in enumerate(texts) if o.startswith('#| solution')]
        assert solutions, f'{fn.name} has no exercise'
        for i in solutions: assert re.search(r'\b(assert|test_\w+)\b', texts[i + 1]), f'{fn.name}, cell {i}: a solution without a check'


def test_nothing_is_left_to_be_filled_in():
    left = [(fn.name, m[0]) for fn in NOTEBOOKS for c in cells(fn) if (m := re.search(r'RESULT_TABLE|TODO|FIXME|XXX', source(c)))]
    assert left == []


def test_links_between_notebooks_lead_somewhere():
    broken = [(fn.name, o) for fn in NOTEBOOKS for c in cells(fn) if c['cell_type'] == 'markdown'
              for o in re.findall(r'\]\((?!http)([^)#\s]+)', source(c)) if not (fn.parent/o).exists()]
    assert broken == []


def test_imports_stand_alone():
    "A cell that mixes imports with other code breaks the staging of the pages."
    mixed = []
    for fn in notebooks('api') + notebooks('course'):
        for c in cells(fn):
            lines = [o for o in source(c).splitlines() if o.strip() and not o.startswith('#')]
            tops = [bool(re.match(r'(import|from)\s', o)) for o in lines if not o.startswith((' ', ')'))]
            if c['cell_type'] == 'code' and any(tops) and not all(tops): mixed.append((fn.name, lines[0]))
    assert mixed == []


PRIVATE = {
    'a path of a machine': r'(?<![\w/.])/(?:home|root|work|tmp|Users|private|var|mnt)/\w',
    'a path of Windows': r'\b[A-Z]:\\\\+\w',
    'an address': r'https?://(?!docs\.|nbdev\.|github\.com|huggingface\.co|www\.|doi\.org|\w+\.readthedocs)',
    'an e-mail': r'[\w.]+@[\w-]+\.[a-z]{2,}\b',
    'a secret': r'(?i)(api[_-]?key|secret|token|password)["\']?\s*[=:]\s*["\']?\w{8,}',
    'a traceback': r'Traceback \(most recent call last\)',
}


@pytest.mark.parametrize('what', PRIVATE)
def test_saved_outputs_hold_nothing_private(what):
    found = {fn.name: m[0] for fn in NOTEBOOKS if (m := re.search(PRIVATE[what], outputs(fn)))}
    assert found == {}, f'{what} in {found}'


PLANTED = ['/home/somebody/data/x.txt', '/tmp/tmpabc/y', '/Users/somebody/z', r'C:\\Users\\somebody', 'somebody@clinic.org', 'API_KEY = "abcdefgh12"', 'http://10.0.0.1/x',
           'Traceback (most recent call last)']


@pytest.mark.parametrize('text', PLANTED)
def test_the_search_for_private_text_finds_it(text): assert any(re.search(o, text) for o in PRIVATE.values())


def test_notebooks_stay_small():
    big = {fn.name: fn.stat().st_size//1024 for fn in NOTEBOOKS if fn.stat().st_size > (400 if fn.parent.name == 'course' else 200)*1024}
    assert big == {}
