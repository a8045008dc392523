"The page of a run: complete, closed to the outside, honest in its first paragraph, silent about people and machines."
import re
from html import unescape
from html.parser import HTMLParser

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from medfast import report
from medfast.evaluate import Predictions, evaluate
from medfast.files import FilesError, RunFolder
from medfast.report import CANNOT_TELL, ReportError, _hidden, write_report

CLASSES = ['Healthy', 'Sick']
FORMATS = [dict(format='blank', label='Healthy', images=71), dict(format='blank', label='Sick', images=21), dict(format='semicolon', label='Sick', images=29)]


def made(n, strength, seed, classes=CLASSES, split_by='patient', patients=True):
    rng, k = np.random.default_rng(seed), len(classes)
    y = np.arange(n) % 5 // 3 if k == 2 else np.arange(n) % k
    probs = rng.dirichlet(np.ones(k), n)*(1 - strength) + strength*np.eye(k)[y]
    ids = [f'PX{7000 + i}' for i in range(n)]
    return Predictions(probs, y, classes, [f'/home/somebody/T{i}.txt' for i in ids], ids if patients else None, split_by)


def a_run(folder, *, strength=.3, rival=.3, test=True, classes=CLASSES, controls=True, split_by='patient', patients=True, **changes):
    run, parts = RunFolder(folder), ('valid', 'test') if test else ('valid',)
    preds = {p: made(60, strength, i, classes, split_by, patients) for i,p in enumerate(parts)}
    others = {p: made(60, rival, 9 + i, classes, split_by, patients) for i,p in enumerate(parts)}
    level = 'patient' if patients else 'image'
    measured = lambda of: {p: evaluate(o, level=level, n_resamples=50).to_dict('index') for p,o in of.items()}
    for p in parts:
        preds[p].save(run/f'predictions-{p}.csv')
        others[p].save(run/f'control-metadata-{p}.csv')
    pd.DataFrame(dict(images=[240, 60], patients=[12, 3], prevalence=[.4, .4]), index=['train', 'whole']).to_csv(run/'split_summary.csv')
    run.save_table('history.csv', pd.DataFrame(dict(epoch=[0, 1], train_loss=[.7, .5], valid_loss=[.7, .6], accuracy=[.5, .7])))
    run.save_json('settings.json', dict(profile='quick', image_size=96, data='/home/somebody/data', seed=42))
    results = dict(study='Thermograms', data=dict(name='simulated', n_images=300, n_patients=15, formats=FORMATS, refused=2), split=dict(by=split_by, hash='abc123', order='split, then train'),
        arch='resnet18', weights='random, seed 42', n_parameters=1234567, recipe='Adam', seconds=12.3, test=None, test_openings=int(test), seed=42, versions=dict(torch='2.15'), command='medfast-run',
        controls=[dict(name='metadata', features=['patient number', 'format'], **measured(others))] if controls else []) | measured(preds) | changes
    run.save_json('results.json', results)
    return run


@pytest.fixture(autouse=True)
def cheap_pictures(request, monkeypatch):
    "Most tests read words: they need no drawing."
    if 'real_pictures' not in request.fixturenames: monkeypatch.setattr(report, '_drawn', lambda draw, style: ('data:image/png;base64,AAAA', 99))


@pytest.fixture
def real_pictures(): "Asked for by tests that look at the pictures themselves."


def words(fn):
    html = fn.read_text()
    return re.sub(r'\s+', ' ', unescape(re.sub(r'<style>.*?</style>|<[^>]*>', ' ', html, flags=re.S)))


class Links(HTMLParser):
    "Everything that a browser would go and fetch, tags that run code, and tags that are never closed."
    def __init__(self, html):
        super().__init__()
        self.found, self.bad, self.open = [], [], []
        self.feed(html)
    def handle_starttag(self, tag, attrs):
        self.found += [v for k,v in attrs if k in ('src', 'href', 'srcset', 'action', 'data', 'poster', 'xlink:href')]
        self.bad += [(tag, k) for k,_ in attrs if k.startswith('on')] + ([tag] if tag in ('script', 'iframe', 'object', 'embed', 'link', 'form', 'base') else [])
        if tag not in ('meta', 'img', 'source', 'br'): self.open.append(tag)
    def handle_endtag(self, tag):
        if tag not in ('meta', 'img', 'source', 'br'): assert self.open.pop() == tag, tag


def test_one_page_that_asks_nobody_for_anything(tmp_path, real_pictures):
    fn = write_report(a_run(tmp_path/'run'))
    assert fn == tmp_path/'run/report.html'
    html = fn.read_text()
    page = Links(html)
    assert page.found and all(o.startswith('data:image/png;base64,') for o in page.found) and not page.bad and not page.open
    assert 'url(' not in html and '@import' not in html and "default-src 'none'" in html and 'viewport' in html
    assert all(o in html for o in ('prefers-color-scheme:dark', '@media print'))


def test_a_path_or_a_run_give_the_same_bytes(tmp_path, real_pictures):
    run = a_run(tmp_path/'run')
    first = write_report(run).read_bytes()
    assert write_report(str(run.path)).read_bytes() == first


def test_it_holds_what_a_reader_needs(tmp_path):
    text = words(write_report(a_run(tmp_path/'run')))
    for wanted in ('60 patients of the sealed test part', '95 % interval', 'patient number and format', 'random, seed 42', 'By patient: all images', 'abc123', 'was opened once',
            '2 files were refused', '1 234 567', 'PPV', 'Brier score', 'BCa bootstrap over patients', 'Wilson', 'not a medical device', 'torch', 'predictions-test.csv', 'medfast-run', 'SHA-256'):
        assert wanted in text, wanted


def test_checksums_are_those_of_the_files(tmp_path):
    from hashlib import sha256
    run = a_run(tmp_path/'run')
    text = words(write_report(run))
    for name in ('results.json', 'predictions-valid.csv', 'history.csv'): assert sha256((run/name).read_bytes()).hexdigest() in text
    assert 'state.json' not in text and 'report.html' not in text


def test_no_patient_no_path_no_home(tmp_path):
    run = a_run(tmp_path/'run', command='medfast-run --data "/home/some body/dmr" --runs=/srv/x/runs')
    html = write_report(run).read_text()
    text = re.sub(r'base64,[^"\']*', '', html)
    assert not re.search(r'PX7\d{3}|/home|/srv|some body', text) and str(tmp_path) not in html
    assert '…/dmr' in html and '…/runs' in html


@pytest.mark.parametrize('text, safe', [('/home/somebody/x.txt', '…/x.txt'), ('~/data', '…/data'), ('~somebody/data/y', '…/y'), ('https://a.b/c', 'https://a.b/c'), (r'\\ward\who\x', '…/x'), (r'C:\Users\Ana Gil\d', '…/d'), ('file:///srv/a/b', '…/b'),
    ('--data=/srv/a', '--data=…/a'), ('1/2 and m/s', '1/2 and m/s'), ('either/or', 'either/or'), ('--data DIR', '--data DIR'), ('ImageNet: squeezenet1_1-b8a52dc0.pth', 'ImageNet: squeezenet1_1-b8a52dc0.pth')])
def test_paths_lose_their_folders(text, safe): assert _hidden(text) == safe


def test_metadata_as_good_as_the_model_is_said_in_the_first_paragraph(tmp_path):
    html = write_report(a_run(tmp_path/'run', strength=.2, rival=.3)).read_text()
    first = re.search(r'<p class="lead">.*?</p>', html).group()
    assert CANNOT_TELL in first and 'The gain of the model over it is' in first and html.index(first) < html.index('<section')


def test_a_better_model_is_not_said_to_see_disease(tmp_path):
    first = words(write_report(a_run(tmp_path/'run', strength=.6, rival=.0)))
    assert CANNOT_TELL not in first and 'need not be disease' in first


def test_metadata_better_than_the_model(tmp_path):
    assert 'The metadata do better without a single picture: ' + CANNOT_TELL in words(write_report(a_run(tmp_path/'run', strength=.0, rival=.6)))


def test_without_a_control_nothing_is_claimed(tmp_path):
    assert 'nothing shows that the model sees disease' in words(write_report(a_run(tmp_path/'run', controls=False)))


def test_the_test_part_unopened_or_opened_too_often(tmp_path):
    text = words(write_report(a_run(tmp_path/'a', test=False)))
    assert 'has not been opened: these patients also decided' in text and 'of the validation part' in text
    assert 'was opened 3 times; only the first look' in words(write_report(a_run(tmp_path/'b', test_openings=3)))


def test_a_split_by_image_is_said_first_and_everywhere(tmp_path):
    text = words(write_report(a_run(tmp_path/'run', split_by='image')))
    assert text.index('the same patient may be on both sides, so this says nothing') < text.index('Data')
    assert text.count('the same patient may be on both sides') >= 4


def test_unknown_patients_are_said(tmp_path, real_pictures):
    text = words(write_report(a_run(tmp_path/'run', patients=False, split_by='official')))
    assert '60 images, whose patients are unknown,' in text and 'patients unknown: images of one patient are not independent' in text


def test_several_classes(tmp_path, real_pictures):
    text = words(write_report(a_run(tmp_path/'run', classes=['heart', 'liver', 'lung'])))
    assert 'told 3 classes apart' in text and 'AUC: liver' in text and 'ROC curve' not in text


def test_a_format_of_one_class_is_warned_of(tmp_path):
    text = words(write_report(a_run(tmp_path/'run')))
    assert 'All 29 files of the format “semicolon” are Sick: 58% of that class' in text
    even = [dict(format=f, label=c, images=20) for f in ('blank', 'tab') for c in CLASSES]
    assert 'Whoever reads the format' not in words(write_report(a_run(tmp_path/'even', data=dict(name='x', n_images=1, n_patients=1, formats=even))))
    uneven = [dict(format=f, label=c, images=n) for f,c,n in [('blank', 'Healthy', 40), ('tab', 'Healthy', 5), ('blank', 'Sick', 5), ('tab', 'Sick', 40)]]
    assert '“tab” is unevenly spread: 89% of Sick, 11% of Healthy' in words(write_report(a_run(tmp_path/'uneven', data=dict(name='x', formats=uneven))))


def test_hostile_texts_stay_text(tmp_path, real_pictures):
    bad = '</title><script>alert(1)</script><img src=x onerror=alert(2)>"\'&$\\frac{$'
    run = a_run(tmp_path/'run', classes=['<b>ok$x_{$', 'Sick"><script>'], study=bad, arch=bad, weights=bad, recipe=bad, command=bad, versions={bad: bad},
        data=dict(name=bad, n_images=1, n_patients=1, formats=[dict(format=bad, label=bad, images=1), dict(format='b', label='c', images=2)], rules=[{bad: bad}]), split=dict(by=bad, hash=bad, order=bad))
    (run/'figures').mkdir()
    plt.figure(figsize=(1, 1)).savefig(run/'figures/a-"onload=x<script>.png')
    plt.close('all')
    page = Links(write_report(run).read_text())
    assert not page.bad and not page.open and all(o.startswith('data:image/png;base64,') for o in page.found)


def test_figures_of_the_run_are_taken_in_with_their_names(tmp_path):
    run = a_run(tmp_path/'run')
    (run/'figures').mkdir()
    for name in ('gallery-most_incorrect', 'roc-test', 'history', 'confusion'): plt.figure(figsize=(1, 1)).savefig(run/f'figures/{name}.png')
    plt.close('all')
    text = words(write_report(run))
    assert 'Gallery most incorrect' in text and 'Roc test' not in text


@pytest.mark.parametrize('name', ['settings.json', 'results.json', 'split_summary.csv', 'history.csv', 'predictions-valid.csv', 'predictions-test.csv'])
def test_a_missing_file_is_named(tmp_path, name):
    run = a_run(tmp_path/'run')
    (run/name).unlink()
    with pytest.raises(ReportError, match=re.escape(name)): write_report(run)
    assert not (run/'report.html').exists()


def test_what_is_no_run_is_said_and_left_alone(tmp_path):
    with pytest.raises(ReportError, match='There is no folder nowhere'): write_report(tmp_path/'nowhere')
    (tmp_path/'photos').mkdir()
    with pytest.raises(ReportError, match='has no settings.json, results.json'): write_report(tmp_path/'photos')
    assert not list((tmp_path/'photos').iterdir()) and not (tmp_path/'nowhere').exists()


def test_broken_results_are_named(tmp_path):
    run = a_run(tmp_path/'run')
    whole = (run/'results.json').read_text()
    (run/'results.json').write_text(whole[:100])
    with pytest.raises(FilesError, match='results.json is not JSON'): write_report(run)
    run.save_json('results.json', dict(study='x'))
    with pytest.raises(ReportError, match='no entry data, split, arch'): write_report(run)


def test_undefined_numbers_are_dashes(tmp_path):
    run = a_run(tmp_path/'run')
    results = run.load_json('results.json')
    results['test']['sensitivity'] |= dict(value=None, low=0, high=1)
    results['test']['brier'] |= dict(low=None, high=None)
    results['controls'][0]['test']['auc']['value'] = None
    run.save_json('results.json', results)
    assert 'sensitivity is – (0.00 to 1.00)' in words(write_report(run))


def test_no_figure_is_left_open(tmp_path, real_pictures):
    plt.close('all')
    write_report(a_run(tmp_path/'run'))
    assert not plt.get_fignums()
