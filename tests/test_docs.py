"What the prose names is there: links, files, options, modules, figures that follow from others."
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from medfast.settings import load_settings
from medfast.simulate import matrix_text, simulate_frame, simulate_patient

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT/o for o in ('README.md', 'CHANGELOG.md', 'CONTRIBUTING.md')] + sorted(o for o in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts)
README = (ROOT/'README.md').read_text(encoding='utf-8')


def prose(page):
    "The text of a page; of a notebook, its markdown."
    text = page.read_text(encoding='utf-8')
    return text if page.suffix == '.md' else '\n'.join(''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type'] == 'markdown')


@pytest.mark.parametrize('page', PAGES, ids=lambda o: o.stem)
def test_links_and_files_of_the_prose_are_there(page):
    text = prose(page)
    links = [page.parent/o for o in re.findall(r'\]\((?!http)([^)#\s]+)[^)]*\)', text)]
    named = [ROOT/o for o in re.findall(r'`(?:python )?((?:bench|nbs|tests)/\w[\w/]*\.(?:py|ipynb))', text) if 'NN_' not in o]
    assert [str(o) for o in links + named if not o.exists()] == []


def test_the_first_page_links_every_module_page():
    text = prose(ROOT/'nbs/index.ipynb')
    assert [o.name for o in sorted((ROOT/'nbs/api').glob('*.ipynb')) if f'api/{o.name}' not in text] == []


def test_the_readme_links_every_chapter_once():
    assert re.findall(r'\(nbs/course/(\w+)\.ipynb\) \|', README) == sorted(o.stem for o in (ROOT/'nbs/course').glob('*.ipynb'))


@pytest.mark.parametrize('line', [o for o in README.splitlines() if o.startswith('| `medfast-')], ids=lambda o: o.split()[1])
def test_options_of_the_readme_exist(line):
    call = line.split('`')[1]
    told = subprocess.run([Path(sys.executable).parent/call.split()[0], '--help'], capture_output=True, text=True, timeout=120).stdout
    assert [o for o in re.findall(r'--[\w-]+', call) if f'{o} ' not in told] == []


def test_the_readme_tells_the_size_of_the_simulated_study():
    settings = load_settings(ROOT/'settings.ini')
    patients,size = map(int, re.search(r'\((\d+) patients, (\d+) MB\)', README).groups())
    frame = len(matrix_text(simulate_frame(simulate_patient(1, 'Healthy', seed=0), 0)))
    assert patients == settings.n_patients and abs(patients*settings.n_frames*frame/1e6 - size) < 5
