"Chapter 17 quotes figures of other chapters: they stand there, too."
import json
import re
from pathlib import Path

import pytest

COURSE = Path(__file__).resolve().parents[1]/'nbs/course'
REVISITED = '17_four_studies_revisited'


def cells(name): return json.loads((COURSE/f'{name}.ipynb').read_text(encoding='utf-8'))['cells']
def prose(name): return '\n'.join(''.join(c['source']) for c in cells(name) if c['cell_type'] == 'markdown')


def row(study):
    "The line of a study in the last table of chapter 17."
    return next(o for o in prose(REVISITED).splitlines() if o.startswith(f'| **{study}**'))


QUOTED = [('001', '06_transfer_and_features', ['.69', '.97']), ('001', '11_six_architectures', ['.49', '.70', '.65', '40']),
    ('000', '12_chest_xray_pneumonia', ['.968', '[.935, .986]', '.953', '[.937, .964]', '190', '952', '1,201']),
    ('002', '13_covid_radiography', ['.893', '.835 to .930', '.956', '180', '.8492']), ('003', '14_organs', ['.811'])]


@pytest.mark.parametrize('study, chapter, figures', QUOTED)
def test_quoted_figures_stand_in_the_chapter_that_is_named(study, chapter, figures):
    assert f'{chapter}.ipynb' in row(study)
    assert [o for o in figures if o not in row(study)] == []
    assert [o for o in figures if o not in prose(chapter) and o not in str(cells(chapter))] == []


def test_the_fall_of_the_drawn_organs_is_that_of_the_saved_table():
    "Saved by chapter 14 as a table by part: accuracy stands first."
    saved = ''.join(''.join(o['data']['text/plain']) for c in cells('14_organs') for o in c.get('outputs', []) if 'printed accuracy' in str(o.get('data')) and 'lowest seed' in ''.join(c['source']))
    found = {part: float(value) for part,value in re.findall(r'^(valid|test)\s+([\d.]+)', saved, re.M)}
    quoted = [float(o) for o in re.search(r'drawn organs, (\.\d+) in validation, (\.\d+) in the test', row('003')).groups()]
    assert [round(found[o], 2) for o in ('valid', 'test')] == quoted


@pytest.mark.parametrize('study', ['000', '001', '002', '003'])
def test_no_study_stands_beside_our_figures_without_the_words(study): assert '**not comparable**' in row(study)


def test_every_exercise_is_numbered_once_and_has_a_why():
    text = prose(REVISITED)
    n = [int(o) for o in re.findall(r'### Exercise (\d+)', text)]
    assert n == list(range(1, len(n) + 1)) and len(n) > 15
    assert text.count('Why it matters:') == len(n)
    assert sum(''.join(c['source']).startswith('#| solution') for c in cells(REVISITED)) == len(n)
