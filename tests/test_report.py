"The page and the card of a run: complete, closed to the outside, honest in the first paragraph, silent about people and machines."
import re
from html import unescape
from html.parser import HTMLParser

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml

from medfast import page
from medfast.card import fenced, plain, to_yaml, write_card
from medfast.checklists import AUTHOR, CHECKLISTS, FILLED, NOT_APPLICABLE, checklist
from medfast.controls import BORDER_NOTE, CANNOT_TELL, verdict
from medfast.evaluate import Predictions, evaluate
from medfast.files import FilesError, RunFolder
from medfast.privacy import NOT_TOLD, hide_groups, hide_names, hide_paths, private_names, scrub
from medfast.record import ReportError, first_words, made_up_run, read_run
from medfast.report import write_report

CLASSES = ['Healthy', 'Sick']
FORMATS = [dict(format='blank', label='Healthy', images=71), dict(format='blank', label='Sick', images=21), dict(format='semicolon', label='Sick', images=29)]


def made(n, strength, seed, classes=CLASSES, split_by='patient', patients=True):
    rng, k = np.random.default_rng(seed), len(classes)
    y = np.arange(n) % 5 // 3 if k == 2 else np.arange(n) % k
    probs = rng.dirichlet(np.ones(k), n)*(1 - strength) + strength*np.eye(k)[y]
    ids = [f'PX{7000 + i}' for i in range(n)]
    return Predictions(probs, y, classes, [f'/home/somebody/T{i}.txt' for i in ids], ids if patients else None, split_by)


def a_run(folder, *, strength=.3, rival=.3, test=True, classes=CLASSES, controls=True, split_by='patient', patients=True, **changes):
    "A run as medfast wrote them before there were calibration, sampling and checklists."
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
    if 'real_pictures' not in request.fixturenames: monkeypatch.setattr(page, 'drawn', lambda draw, style: ('data:image/png;base64,AAAA', 99))


@pytest.fixture
def real_pictures(): "Asked for by tests that look at the pictures themselves."


@pytest.fixture(scope='module')
def whole(tmp_path_factory): return made_up_run(tmp_path_factory.mktemp('whole')/'run')


@pytest.fixture(scope='module')
def older(tmp_path_factory): return a_run(tmp_path_factory.mktemp('older')/'run')


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "A function that runs a real study of twenty simulated patients within seconds, its figures left out."
    from medfast.simulate import simulate_study
    from medfast.study import run_study
    from medfast.settings import load_settings
    home = tmp_path_factory.mktemp('study')
    data = simulate_study(home/'data', n_patients=20, n_frames=1, seed=4, progress=False)
    settings = load_settings(data=home/'x', runs=home/'runs', image_size=32, epochs=1, bs=4, seed=5, arch='resnet18')
    def run(**options):
        with pytest.MonkeyPatch.context() as m:
            for o in ('medfast.controls', 'medfast.study'): m.setattr(f'{o}.MIN_REFITS', 2)
            m.setattr('medfast.study._figures', lambda *args: None)
            m.setattr(page, 'drawn', lambda draw, style: ('data:image/png;base64,AAAA', 99))
            return run_study(data, settings=settings, pretrained=False, progress=False, **options)
    return run


@pytest.fixture(scope='module')
def quick(study): return study(controls='quick')


@pytest.fixture(scope='module')
def folded(study): return study(folds=2, controls='all')


def text_of(html): return re.sub(r'\s+', ' ', unescape(re.sub(r'<style>.*?</style>|<[^>]*>', ' ', html, flags=re.S)))
def words(fn): return text_of(fn.read_text())
def sections(fn): return {key: text_of(part) for key,part in re.findall(r'<section id="([\w-]+)"(.*?)</section>', fn.read_text(), re.S)}
def front(fn): return yaml.safe_load(fn.read_text().split('\n---\n')[0].removeprefix('---\n'))


class Links(HTMLParser):
    "Everything that a browser would go and fetch, tags that run code, and tags that are never closed."
    def __init__(self, html):
        super().__init__()
        self.found, self.bad, self.open, self.alts = [], [], [], []
        self.feed(html)
    def handle_starttag(self, tag, attrs):
        self.found += [v for k,v in attrs if k in ('src', 'href', 'srcset', 'action', 'data', 'poster', 'xlink:href') and not (k == 'href' and re.fullmatch(r'#[a-z-]+', v))]
        self.bad += [(tag, k) for k,_ in attrs if k.startswith('on')] + ([tag] if tag in ('script', 'iframe', 'object', 'embed', 'link', 'form', 'base') else [])
        if tag == 'img': self.alts.append(dict(attrs).get('alt'))
        if tag not in ('meta', 'img', 'source', 'br'): self.open.append(tag)
    def handle_endtag(self, tag):
        if tag not in ('meta', 'img', 'source', 'br'): assert self.open.pop() == tag, tag


def test_one_page_that_asks_nobody_for_anything_and_leaves_no_figure_open(tmp_path, whole, real_pictures):
    plt.close('all')
    fn = write_report(copied(whole, tmp_path/'run'))
    assert fn == tmp_path/'run/report.html' and not plt.get_fignums()
    html = fn.read_text()
    parsed = Links(html)
    assert parsed.found and all(o.startswith('data:image/') for o in parsed.found) and not parsed.bad and not parsed.open
    assert all(parsed.alts) and len(set(parsed.alts)) == len(parsed.alts)
    assert 'url(' not in html and '@import' not in html and "default-src 'none'" in html and 'viewport' in html and '<html lang="en">' in html
    assert all(o in html for o in ('prefers-color-scheme:dark', '@media print')) and len(html) < 600_000


def test_a_plot_is_drawn_to_the_same_bytes(whole, real_pictures):
    from medfast.plots import plot_roc
    one, two = (page.drawn(lambda: plot_roc(read_run(whole).main), page.DARK) for _ in range(2))
    assert one == two and len(one[0]) > 1000


def test_a_path_or_a_run_give_the_same_bytes(tmp_path):
    run = a_run(tmp_path/'run')
    first = write_report(run).read_bytes()
    assert write_report(str(run.path)).read_bytes() == first
    card = write_card(run).read_bytes()
    assert write_card(str(run.path)).read_bytes() == card and write_report(run).read_bytes() == first


def test_it_holds_what_a_reader_needs(older):
    text = words(write_report(older))
    for wanted in ('60 patients of the sealed test part', '95 % interval', 'patient number and format', 'random, seed 42', 'By patient: all images', 'abc123', 'was opened once by this run',
            '2 files were refused', '1 234 567', 'PPV', 'Brier score', 'BCa bootstrap over patients', 'Wilson', 'not a medical device', 'torch', 'predictions-test.csv', 'medfast-run', 'SHA-256'):
        assert wanted in text, wanted


KEYS = ['data', 'split', 'training', 'results', 'operating-point', 'predictive', 'calibration', 'decisions', 'controls', 'subgroups', 'pictures', 'checklists', 'limits', 'repeat']


def test_every_section_stands_with_what_was_planted(whole):
    found = sections(write_report(whole))
    assert list(found) == KEYS
    r = whole.load_json('results.json')
    two = lambda row: f'{row["value"]:.2f} {row["low"]:.2f} – {row["high"]:.2f}'.replace('-', '−')
    point = r['operating_point']
    planted = {'data': ['Drawn by the simulator', 'Ages are missing for 3 patients', 'frontal', 'Share of its patients', 'Prevalence of Sick', '2012 to 2016'],
        'split': ['0f3a91c2', 'Same patient 240 0', 'Same bytes 240 0', *r['audit_limits'], 'As far as the register beside this run knows', '7c1d'], 'training': ['Optimizer Adam', 'cpu, 2 threads', 'rotation, zoom'],
        'results': [two(r['test']['auc']), two(r['controls'][0]['test']['auc']), two(r['valid']['brier'])],
        'operating-point': [f'Sick from {point["threshold"]:.3f} on', 'Set on the validation part and frozen', two(r['at_operating_point']['test']['sensitivity'])],
        'predictive': ['38% of the test part', 'As in screening', f'{r["at_prevalence"]["test"]["ppv"]["value"]:.3f}'],
        'calibration': [two(r['calibration']['test']['slope']), f'a perfect model of this size shows {r["calibration_after"]["test"]["ece of a perfect model"]["low"]:.3f} to', 'temperature of 0.80 was fitted on 96 patients of the validation part'],
        'decisions': ['Treat all', 'Net benefit'], 'controls': ['Border only border only, 80 % of the sides hidden', two(r['controls'][2]['gain']['test']), 'Metadata no shape and no place: patient number and format (of the pixels: minimum and sharpness)', *r['control_findings'], 'Gain over metadata and Gain over border only: BCa bootstrap'],
        'subgroups': ['By age', '30 to 45', two(next(o for o in r['subgroups']['age'] if o['group'] == '62 to 79' and o['metric'] == 'auc'))], 'pictures': ['kept no pictures'],
        'checklists': ['CLAIM 2024: filled from the run:', 'TRIPOD+AI: filled from the run:'], 'limits': ['One data set, one split, one training', 'has not been shown to see anything else'], 'repeat': ['medfast-run --arch resnet18', 'operating-point.json']}
    assert [(key, o) for key,texts in planted.items() for o in texts if o not in found[key]] == []


def test_an_older_run_is_told_what_it_lacks(tmp_path):
    found = sections(write_report(a_run(tmp_path/'run', controls=False)))
    assert list(found) == KEYS
    lacks = {'data': 'Sampling fractions were not recorded', 'split': 'recorded no leak audit', 'operating-point': 'No operating point was set', 'predictive': 'No other prevalence was stated', 'calibration': 'were not recorded',
        'controls': 'No control was computed', 'subgroups': 'No subgroups were computed', 'pictures': 'kept no pictures'}
    assert [key for key,o in lacks.items() if o not in found[key]] == []


@pytest.mark.parametrize('key', ['origin', 'sampling', 'audit', 'subgroups', 'folds', 'calibration', 'operating_point', 'at_operating_point', 'temperature', 'at_prevalence', 'prevalence', 'controls', 'seed', 'versions', 'n_parameters'])
@pytest.mark.parametrize('how', ['absent', 'null'])
def test_any_entry_may_be_absent_or_null(tmp_path, whole, key, how):
    run = copied(whole, tmp_path/'run', **{key: None})
    if how == 'absent': run.save_json('results.json', {k: v for k,v in run.load_json('results.json').items() if k != key})
    assert list(sections(write_report(run))) == KEYS and front(write_card(run))['library_name'] == 'fastai'


def test_a_refused_operating_point_says_why(tmp_path):
    run = made_up_run(tmp_path/'run', operating_point=dict(set_on='valid', aim='sensitivity', wanted=.95, refused='A sensitivity is kept on 14 patients with Sick'), at_operating_point=None)
    assert 'With Sick called from a probability of .5 on, as no threshold could be frozen, its sensitivity' in words(write_report(run))
    text = sections(write_report(run))['operating-point']
    assert 'No threshold was frozen on the validation part: A sensitivity is kept on 14 patients with Sick' in text
    assert 'No threshold was frozen' in write_card(run).read_text()


def test_found_leaks_and_small_groups_are_marked(tmp_path):
    rows = [dict(group=g, metric='auc', value=.7, low=.4, high=.9, n=n, method='logit-DeLong' + '; small group: 9 with Sick'*(n < 20)) for g,n in (('all', 60), ('old', 9))]
    found = sections(write_report(made_up_run(tmp_path/'run', audit=[dict(check='same patient', checked=240, found=2)], subgroups=dict(age=rows))))
    assert '2 were found on two sides' in found['split'] and 'Nothing was found' not in found['split']
    assert 'old * 9' in found['subgroups'] and 'all * ' not in found['subgroups'] and '* small group' in found['subgroups']


def test_out_of_fold_predictions_have_their_own_column(tmp_path, whole):
    run = copied(whole, tmp_path/'run')
    oof = Predictions.load(run/'predictions-valid.csv')
    oof.folds = [str(i % 3) for i in range(len(oof))]
    oof.save(run/'predictions-oof.csv')
    results = run.load_json('results.json') | {'out-of-fold': evaluate(oof, n_resamples=50).to_dict('index'), 'folds': dict(n=3, seed=42, patients=[32]*3, images=[32]*3, positive=[12]*3, model='mean of the probabilities of 3 models')}
    run.save_json('results.json', results)
    found = sections(write_report(run))
    assert 'Out of fold: model' in found['results'] and '3 folds by patient, seed 42; mean of the probabilities of 3 models' in found['split'] and 'Out-of-fold intervals' in found['limits']
    assert [o['dataset']['split'] for o in front(write_card(run))['model-index'][0]['results']] == ['test', 'out-of-fold', 'validation']
    (run/'predictions-oof.csv').unlink()
    with pytest.raises(ReportError, match='predictions-oof.csv is missing'): write_report(run)


def test_checksums_are_those_of_the_files(tmp_path):
    from hashlib import sha256
    run = a_run(tmp_path/'run')
    write_card(run)
    text = words(write_report(run))
    for name in ('results.json', 'predictions-valid.csv', 'history.csv'): assert sha256((run/name).read_bytes()).hexdigest() in text
    assert 'state.json' not in text and 'report.html' not in text and 'model-card.md' not in text


def test_no_patient_no_path_no_home(tmp_path):
    run = a_run(tmp_path/'run', command='medfast-run --data "/home/some body/dmr" --runs=/srv/x/runs')
    html = write_report(run).read_text()
    text = re.sub(r'base64,[^"\']*', '', html)
    assert not re.search(r'PX7\d{3}|/home|/srv|some body', text) and str(tmp_path) not in html
    assert '…/dmr' in html and '…/runs' in html


@pytest.mark.parametrize('text, safe', [('/home/somebody/x.txt', '…/x.txt'), ('~/data', '…/data'), ('~somebody/data/y', '…/y'), ('https://a.b/c', 'https://a.b/c'), (r'\\ward\who\x', '…/x'), (r'C:\Users\Ana Gil\d', '…/d'), ('file:///srv/a/b', '…/b'),
    ('--data=/srv/a', '--data=…/a'), ('1/2 and m/s', '1/2 and m/s'), ('either/or', 'either/or'), ('--data DIR', '--data DIR'), ('ImageNet: squeezenet1_1-b8a52dc0.pth', 'ImageNet: squeezenet1_1-b8a52dc0.pth')])
def test_paths_lose_their_folders(text, safe): assert hide_paths(text) == scrub(text) == safe


PLANTED = ['patient 1961.02.03', '1961_02_03', '1961:02:03', '3-Feb-1961', '03.02.61', '3-Feb-61', '3 de fevereiro de 1961', 'Feb. 3rd, 1961', 'patients 4711 and 4712', 'ID 4711', "Patient '4711'", 'ANA GIL', 'ana-gil', 'px7001', '/home/anagil/dmr/x', r'C:\Users\anagil\x', r'\\ward\anagil\x', 'file:///home/anagil/x', '~anagil/data', 'ana.gil@clinic.org', 'hf_abcdefgh12345678', 'ghp_abcdefgh12345678', 'API_KEY = "anagil1234"', 'password: anagil',
    'https://anagil:pw@host.org/x', 'http://10.1.2.3/anagil', '1.2.840.113619.2.55.3.604688.12', 'patient no. 4711', 'MRN 4711', 'PX7001', 'PX7059.txt', 'Ana Gil', '0815', '1961-02-03', '03.02.1961', '3 Feb 1961', 'February 3, 1961', '19610203', '1961/2/3']
LEAK = r'(?i)anagil|ana[ .-]gil|471[12]|03\.02\.61|feb-|1961[-/._:]0|feb\. 3|fevereiro|hf_abc|ghp_abc|10\.1\.2\.3|113619|4711|PX7\d{3}|\b0815\b|1961[-/]|\.1961|feb\w* \d|feb 1961|19610203'


def copied(run, folder, **changes):
    "The same run in another folder, with other entries in results.json."
    other = RunFolder(folder)
    for fn in run.path.glob('*.*'):
        if fn.name != 'state.json' and fn.suffix in ('.csv', '.json'): (other/fn.name).write_bytes(fn.read_bytes())
    other.save_json('results.json', run.load_json('results.json') | changes)
    return other


def planted_run(run, folder, plant):
    "A run with something planted in every text that it has, and in the names of its files where a file can be called so."
    data = dict(name=plant, n_images=240, n_patients=240, formats=[dict(format=plant, label='Healthy', images=9), dict(format='b', label='Sick', images=9)], rules=[dict(rule=plant)])
    run = copied(run, folder, command=f'medfast-run {plant}', data=data)
    deep = lambda o: {k: deep(v) for k,v in o.items()} if isinstance(o, dict) else [deep(v) for v in o] if isinstance(o, list) else f'{o} {plant}' if isinstance(o, str) else o
    r = run.load_json('results.json')
    for key in ('origin', 'sampling', 'recipe', 'weights', 'versions', 'temperature', 'prevalence'): r[key] = deep(r[key])
    r['audit'] = [dict(check='same patient', checked=1, found=0, first=plant)]
    r['subgroups'] = {plant: [dict(o, group=plant) for o in r['subgroups']['age']]}
    r['controls'][0]['features'].append(plant)
    r['controls'][1]['features'] = [plant]
    r['control_findings'].append(plant)
    r['audit_limits'].append(plant)
    r['controls'][-1]['test']['auc']['rival'] = plant
    r['temperature']['refused'] = plant
    r['operating_point']['words'] += f' {plant}'
    r['seal'] = dict(openings=[plant], others={plant: 1})
    r['test']['auc']['method'] += f' {plant}'
    run.save_json('results.json', r)
    run.save_table('split.csv', pd.DataFrame(dict(path=['a/0815.txt', 'a/b.txt'], patient=['0815', 'Ana Gil'], label=['Sick', 'Healthy'])))
    (run/'figures').mkdir()
    name = 'x' if re.search(r'[/\\:"]', plant) else plant
    plt.figure(figsize=(1, 1)).savefig(run/f'figures/gallery {name}.png', metadata=dict(Title=plant, Author='Ana Gil'), pil_kwargs=dict(icc_profile=b'Ana Gil'))
    plt.close('all')
    (run/f'{name}.txt').write_text('x')
    return run


@pytest.mark.parametrize('plant', PLANTED)
def test_nothing_planted_leaves_the_house(tmp_path, whole, plant):
    assert re.search(LEAK, plant), 'the search itself must find it'
    run = planted_run(whole, tmp_path/'run', plant)
    for fn in (write_report(run), write_card(run)):
        text = re.sub(r'base64,[^"\']*', '', unescape(fn.read_text()))
        assert not (m := re.search(LEAK, text)), f'{m[0]} in {fn.name}: …{text[max(0, m.start() - 60):m.end() + 20]}…'


def test_what_was_asked_for_by_name_is_shown(tmp_path, whole):
    run = planted_run(whole, tmp_path/'run', 'PX7001')
    r = run.load_json('results.json')
    r['origin'] |= dict(dates=['2012-03-04', '2016-01-02'], patients=dict(test=['PX7001', 'PX8002']))
    run.save_json('results.json', r)
    shy, open_ = (words(write_report(run, identifying=o)) for o in (False, True))
    assert 'Patients, test part PX7001, PX8002' in open_ and 'PX8002' not in shy
    assert 'PX7001' in open_ and '2012-03-04' in open_ and 'PX7001' not in shy and '2012-03-04' not in shy
    assert 'PX7001' in write_card(run, identifying=True).read_text() and 'PX7001' not in write_card(run).read_text()


@pytest.mark.parametrize('text, safe', [('2013.05.14', '2013'), ('2013_05_14', '2013'), ('2013:05:14 10:11', '2013 10:11'), ('14-May-2013', '2013'), ('14.05.13', '…'), ('05/14/13', '…'), ('14 de maio de 2013', '2013'), ('14 de MAIO de 2013', '2013'), ('May 3rd, 2013', '2013'),
    ('patients 312 and 340', 'patients …'), ('patients 12, 13 and 0014 left', 'patients … left'), ('ID 0312', 'ID …'), ("Patient '1234'", "Patient '…'"), ('MARIA SILVA', '…'), ('Maria  Silva, maria_silva.png', '…, ….png'), ('Annamaria Silva', 'Annamaria Silva')])
def test_what_names_a_person_goes(text, safe): assert scrub(text, frozenset(['Maria Silva'])) == safe


@pytest.mark.parametrize('text', ['labels dealt by patient 2000 times', 'split 80/10/10, 60/20/20', '2.15.13', '20 patients 5 of them ill', 'over patients 2000 resamples', 'patients of 2013', 'in May 2013', '20 marked 2012', '12 of 340', 'medfast 0.10.1', '1 to 2013'])
def test_what_names_nobody_stays(text): assert scrub(text, frozenset(['Maria Silva'])) == text


def test_ten_thousand_names_cost_no_more_than_ten():
    import time
    names, text = frozenset(f'Somebody No{i} of {i}' for i in range(20_000)), 'sensitivity of the model by patient, 95 % interval '*20
    assert hide_names('somebody no7 of 7 and so on', names) == '… and so on'
    start = time.process_time()
    for _ in range(50): assert hide_names(text, names) == text
    assert time.process_time() - start < 1


def test_secrets_and_paths_go_even_then(tmp_path, whole):
    text = words(write_report(planted_run(whole, tmp_path/'run', 'token=anagil12 /home/anagil/x ana.gil@clinic.org'), identifying=True))
    assert not re.search('anagil|clinic', text)


def test_text_of_a_picture_file_is_not_passed_on(tmp_path, whole):
    import base64
    html = write_report(planted_run(whole, tmp_path/'run', 'Ana Gil')).read_text()
    assert not [o for o in re.findall(r'base64,([^"]+)', html) if b'Ana Gil' in base64.b64decode(o)]


def test_words_and_numbers_of_every_day_stay():
    names = private_names(pd.DataFrame(dict(patient=['17', '0012', 'Sick', 'PX1'], path=['train/a.png', 'x/17.png', 'y/PX1-left.png', None])), public=['Sick'])
    assert names == {'0012', 'PX1', 'PX1-left', 'PX1-left.png'}
    for same in ('Sick from 0.5 on', '17 of 20 patients', 'train, then test', 'resnet18, 96 pixels', 'fastai 2.8.7, torch 2.15.0', 'seed 42', 'BCa bootstrap over patients, 2000 resamples', 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4'):
        assert scrub(same, names) == same


def test_metadata_as_good_as_the_model_is_said_in_the_first_paragraph(tmp_path):
    html = write_report(a_run(tmp_path/'run', strength=.2, rival=.3)).read_text()
    first = re.search(r'<p class="lead">.*?</p>', html).group()
    assert CANNOT_TELL in first and 'The gain of the model over it is' in first and html.index(first) < html.index('<section')


@pytest.mark.parametrize('low, high, holds', [(-.1, .2, True), (0, .2, True), (0., 0., True), (-.2, 0, True), (-.2, -.1, True), (1e-9, .2, False), (.1, .2, False)])
def test_an_interval_that_holds_0_decides(tmp_path, older, low, high, holds):
    gain = dict(value=(low + high)/2, low=low, high=high, n=60, method='BCa')
    assert (CANNOT_TELL in verdict(gain)) == holds
    run = copied(older, tmp_path/'run')
    results = run.load_json('results.json')
    results['controls'][0]['gain'] = dict(test=gain)
    run.save_json('results.json', results)
    html, card = write_report(run).read_text(), write_card(run).read_text()
    assert (CANNOT_TELL in re.search(r'<p class="lead">.*?</p>', html).group()) == holds == (CANNOT_TELL in card)
    assert ('class="first doubt"' in html) == holds


@pytest.mark.parametrize('gain', [None, {}, dict(value=.1, low=None, high=.2), dict(value=.1, low=float('nan'), high=.2), dict(value=.1, low=.05, high=None)])
def test_a_gain_without_limits_shows_nothing(gain): assert 'nothing shows that the model sees disease' in verdict(gain)


def test_a_better_model_is_not_said_to_see_disease(tmp_path):
    first = words(write_report(a_run(tmp_path/'run', strength=.6, rival=.0)))
    assert CANNOT_TELL not in first and 'need not be disease' in first


def test_metadata_better_than_the_model(tmp_path):
    assert 'The metadata do better than the model: ' + CANNOT_TELL in words(write_report(a_run(tmp_path/'run', strength=.0, rival=.6)))


def test_without_a_metadata_control_nothing_is_claimed(tmp_path, whole):
    assert 'nothing shows that the model sees disease' in words(write_report(a_run(tmp_path/'run', controls=False)))
    run = copied(whole, tmp_path/'other', controls=whole.load_json('results.json')['controls'][1:])
    text = words(write_report(run))
    assert 'nothing shows that the model sees disease' in text and 'A regression that sees' not in text


def test_the_metadata_decide_wherever_they_stand_among_the_controls(tmp_path, whole):
    run = copied(whole, tmp_path/'run')
    first = read_run(run).rows
    results = run.load_json('results.json')
    run.save_json('results.json', results | dict(controls=results['controls'][::-1]))
    html = write_report(run).read_text()
    assert CANNOT_TELL in re.search(r'<p class="lead">.*?</p>', html).group() and first == read_run(run).rows
    assert 'Test: metadata alone' in html and 'Test: border only alone' not in html and 'border only alone' not in html[:html.index('<nav')]


def test_shuffled_labels_have_a_range_a_rival_and_no_gain(tmp_path, whole):
    row = whole.load_json('results.json')['controls'][-1]['test']['auc']
    assert row['low'] is None and row['lowest'] < row['value'] < row['highest'] and row['rival'] == 'whole images'
    low, high = f'{row["lowest"]:.2f}', f'{row["highest"]:.2f}'
    text, card = sections(write_report(whole))['controls'], write_card(whole).read_text()
    assert f'p = {row["p"]:.3f} of “whole images”, the training that was repeated, not of the model {row["value"]:.2f} range of 20 refits {low} – {high} –' in text
    assert f'| {row["value"]:.2f} (range of 20 refits {low} to {high}) | – |' in card
    results = whole.load_json('results.json')
    for o in results['controls'][-1:]: o['test']['auc']['rival'] = 'model'
    assert f'p = {row["p"]:.3f} of the model {row["value"]:.2f}' in sections(write_report(copied(whole, tmp_path/'run', controls=results['controls'])))['controls']


def test_refits_are_dots_and_no_interval(whole):
    from medfast.sections import _forest
    record = read_run(whole)
    lines = _forest(record, record.results['controls'], 'test').lines
    plt.close('all')
    wide = [o for o in lines if o.get_linewidth() == 5]
    assert len(wide) == 4 and [len(o.get_xdata()) for o in lines if o.get_color() == 'grey' and o.get_marker() == 'o'] == [20]


def shape(o):
    "Keys, all the way down; of a list those of its first."
    return {k: shape(v) for k,v in o.items()} if isinstance(o, dict) else [shape(o[0])] if isinstance(o, list) and o else None


def test_a_made_up_run_has_the_form_of_a_real_one(whole, quick):
    made, real = whole.load_json('results.json'), quick.load_json('results.json')
    assert set(real) - set(made) <= {'recipe', 'seconds', 'n_parameters'} and set(made) <= set(real)
    own = {o['name']: shape({k: v for k,v in o.items() if k not in ('valid', 'test')} | {p: dict(auc=o[p]['auc']) for p in ('valid', 'test')}) for o in real['controls']}
    for o in made['controls']: assert shape({k: v for k,v in o.items() if k not in ('valid', 'test')} | {p: dict(auc=o[p]['auc']) for p in ('valid', 'test')}) == own[o['name']], o['name']
    for key in ('audit', 'audit_limits', 'control_findings', 'calibration', 'sampling'): assert shape(made[key]) == shape(real[key]), key
    assert set(made['temperature']) <= set(real['temperature']) and set(made['origin']) <= set(real['origin']) and set(made['seal']) <= set(real['seal']) and set(made['options']) == set(real['options'])


def test_a_real_run_with_quick_controls_is_told(quick):
    r, found, card = quick.load_json('results.json'), sections(quick/'report.html'), text_of((quick/'model-card.md').read_text())
    said = ' '.join(o for o,_ in first_words(read_run(quick)))
    positive = round(sum(o['positive'] for p,o in r['origin']['n'].items() if p == 'test'))
    assert f'On the 5 patients of the sealed test part, {positive} of them Sick, resnet18' in said and f'on 5 patients, {positive} of them Sick. So few allow no paired interval' in said
    assert 'sees no shape and no place, only' in said and 'of the pixels: minimum, maximum and sharpness' in said and 'single picture' not in said
    assert [o for o in r['control_findings'] if re.sub(r'\s+', ' ', o) not in found['controls']] == [] and BORDER_NOTE in card and 'for the stand-in (whole images), not for the model' in found['controls'] + card
    assert [o for o in r['audit_limits'] if o not in found['split'] or o not in card] == [] and r['audit_limits']
    for name in ('Whole images', 'Border only', 'Centre masked', 'Random weights', 'Labels shuffled by patient'): assert name in found['controls']
    assert 'range of 2 refits' in found['controls'] and 'range of 2 refits' in card and 'as if unpaired' in found['controls'] and 'of “whole images”' in found['controls']
    assert 'out of fold' not in found['controls'] and 'No temperature was fitted' in found['calibration'] + 'No temperature was fitted'*('refused' not in r['temperature'])


def test_controls_that_were_trained_again_by_fold_stand_in_a_table_of_their_own(folded):
    r, found, card = folded.load_json('results.json'), sections(folded/'report.html'), (folded/'model-card.md').read_text()
    first, _, second = found['controls'].partition('AUC by patient, development part, out of fold; the model has')
    assert 'Metadata' in first and second
    for o in r['controls'][1:]:
        auc = o['out-of-fold']['auc']
        assert 'test' not in o and f'{o["name"].capitalize()} ' in second and f'{auc["value"]:.2f}' in second and f'{auc["value"]:.2f} (' in card and o['name'] in card, o['name']
        assert o['name'].capitalize() not in first
    assert 'Metadata' in second and 'p = ' in second and 'of the model' in second and 'development part, out of fold' in card
    assert '2 trainings that share most of their patients' in found['limits'] and 'one training' not in found['limits']


def test_a_real_run_names_patients_only_where_that_was_asked_for(study, folded):
    split = folded.load_table('split.csv')
    who = sorted(split[split.split == 'test'].patient.unique())
    assert 'Patients, test part' not in sections(folded/'report.html')['split']
    told = study(folds=2, controls='all', identifying=True)
    assert told.path == folded.path and f'Patients, test part {", ".join(who)}' in sections(told/'report.html')['split']
    study(folds=2, controls='all')
    assert 'Patients, test part' not in sections(folded/'report.html')['split']


def test_seeds_and_decay_of_a_real_run_are_those_that_count(folded):
    items = checklist(read_run(folded), 'CLAIM 2024').set_index('number').text
    assert items['24'] == 'random, seeds 5, 6' and 'weight decay 0.01' in items['25'] and 'None' not in items['25']


def test_who_else_has_seen_the_test_part_is_said(tmp_path, whole):
    seal = whole.load_json('results.json')['seal']
    text = words(write_report(copied(whole, tmp_path/'a', seal=seal | dict(overlaps={'x': .4}, words='As the register knows: 40 %.'))))
    assert 'test parts with some of the same images, up to 40% of these' in text and 'As the register knows: 40 %.' in text
    older = {k: v for k,v in seal.items() if k != 'words'}
    assert 'by no other, as far as the register beside this run knows' in words(write_report(copied(whole, tmp_path/'b', seal=older)))
    assert 'other runs on the same split have opened it 1 more time, so' in words(write_report(copied(whole, tmp_path/'c', seal=older, other_openings=1)))


def test_a_refused_temperature_is_told_once_and_never_used(tmp_path, whole):
    why = 'A temperature is fitted on 4 patients with Sick; at least 20 are needed.'
    run = copied(whole, tmp_path/'run', temperature=dict(value=1., fitted_on=None, n=11, refused=why))
    found, card = sections(write_report(run)), write_card(run).read_text()
    assert f'No temperature was fitted: {why}' in found['calibration'] and f'No temperature was fitted: {why}' in card
    assert not re.search('After the temperature|after the temperature|A temperature of', found['calibration'] + found['decisions'] + card)


@pytest.mark.parametrize('fitted, part, own', [('valid', 'test', False), ('valid', 'valid', True), ('out-of-fold', 'valid', True), ('out-of-fold', 'test', False)])
def test_a_temperature_shown_on_its_own_patients_is_said_to_flatter(tmp_path, whole, fitted, part, own):
    run = copied(whole, tmp_path/'run', temperature=dict(value=.8, fitted_on=fitted, n=96), **(dict(test=None, test_openings=0) if part == 'valid' else {}))
    assert ('the very patients below' in sections(write_report(run))['calibration']) == own


def test_a_result_that_chance_explains_is_no_success(tmp_path, whole):
    row = whole.load_json('results.json')['test']
    for low, high, said in ((.36, .87, 'holds .5, which is chance'), (.5, .9, 'holds .5'), (.2, .4, 'lies below .5, which is worse than chance'), (.51, .9, None)):
        first = first_words(read_run(copied(whole, tmp_path/f'{low}', test=row | dict(auc=row['auc'] | dict(low=low, high=high)))))[0][0]
        assert 'told' not in first and ('; the interval' in first) == bool(said) and (said or '') in first


def test_a_sensitivity_stands_with_its_threshold(tmp_path, whole):
    r = whole.load_json('results.json')
    r['at_operating_point']['test']['sensitivity'] |= dict(value=.97, low=.9)
    whole = copied(whole, tmp_path/'frozen', **r)
    at, half = (f'{o["sensitivity"]["value"]:.2f} ({o["sensitivity"]["low"]:.2f}' for o in (r['at_operating_point']['test'], r['test']))
    cut, first = f'Sick from {r["operating_point"]["threshold"]:.3f} on', first_words(read_run(whole))[0][0]
    assert at != half and f'At the frozen threshold, {cut}, its sensitivity is {at}' in first and half not in first
    plain = copied(whole, tmp_path/'run', at_operating_point=None, operating_point=None)
    first, html = first_words(read_run(plain))[0][0], write_report(plain).read_text()
    assert f'With Sick called from a probability of .5 on, its sensitivity is {half}' in first
    assert html[:html.index('<nav')].count('from a probability of .5 on</div>') == 3 and write_report(whole).read_text().count(f'from {r["operating_point"]["threshold"]:.3f} on, frozen</div>') >= 2


def test_single_patients_of_real_data_are_not_told(tmp_path, whole):
    rows = [dict(group=g, metric=m, value=v, low=.1, high=.9, n=n, method='Wilson') for g,ns in (('all', (60, 25)), ('a', (30, 3)), ('b', (14, 11)), ('c', (40, 11))) for (m,v),n in zip((('accuracy', .61), ('sensitivity', .37)), ns)]
    real = whole.load_json('results.json')['origin'] | dict(kind='DMR-IR')
    shy = sections(write_report(copied(whole, tmp_path/'a', subgroups=dict(age=rows), origin=real)))['subgroups']
    assert 'a † – – –' in shy and 'b † – – –' in shy and 'c 40 0.61' in shy and 'all 60 0.61' in shy and 'not told: fewer than 5 patients' in shy
    for o in (copied(whole, tmp_path/'b', subgroups=dict(age=rows)), copied(whole, tmp_path/'c', subgroups=dict(age=rows), origin=real)):
        text = sections(write_report(o, identifying=o.path.name == 'c'))['subgroups']
        assert 'a 30 0.61' in text and '†' not in text
    assert '†' in sections(write_report(copied(whole, tmp_path/'d', subgroups=dict(age=rows), origin=None)))['subgroups'], 'unknown data are taken for real ones'


def test_results_that_lost_small_groups_when_they_were_written_are_told_as_those_that_lose_them_when_read(tmp_path, whole):
    rows = [dict(group=g, metric='auc', value=.61, low=.1, high=.9, n=n, method='Wilson') for g,n in (('all', 60), ('a', 3), ('b', 14), ('c', 40))]
    real = dict(subgroups=dict(age=rows), origin=whole.load_json('results.json')['origin'] | dict(kind='DMR-IR'))
    written = hide_groups(real)
    assert [(o['value'], o['low'], o['high'], o['n']) for o in written['subgroups']['age']] == [(.61, .1, .9, 60), (None,)*4, (None,)*4, (.61, .1, .9, 40)]
    assert written['origin'] == real['origin'] and real['subgroups']['age'] is rows and rows[1]['n'] == 3, 'what is given stays as it is'
    early, late = (read_run(copied(whole, tmp_path/name, **o)) for name,o in (('early', written), ('late', real)))
    assert early.results['subgroups'] == late.results['subgroups'] == written['subgroups']
    assert 'a † – –' in sections(write_report(early.folder, identifying=True))['subgroups'], 'what is not there cannot be told'
    assert read_run(late.folder, identifying=True).results['subgroups']['age'][1]['n'] == 3


def test_groups_are_hidden_column_by_column_and_none_where_all_are_large():
    rows = lambda **sizes: [dict(group=g, metric='auc', value=.6, low=.1, high=.9, n=n, method='Wilson') for g,n in sizes.items()]
    told = hide_groups(dict(subgroups=dict(age=rows(all=60, young=5, old=55), view=rows(all=60, front=4, side=4, back=52), kind=rows(all=3, only=3))))['subgroups']
    hidden = {column: [o['group'] for o in own if o['n'] is None] for column,own in told.items()}
    assert hidden == dict(age=[], view=['front', 'side'], kind=['only'])
    assert hide_groups({}) == {} and hide_groups(dict(subgroups=None)) == dict(subgroups=None)


def test_the_test_part_unopened_or_opened_too_often(tmp_path):
    text = words(write_report(a_run(tmp_path/'a', test=False)))
    assert 'has not been opened: these patients also decided' in text and 'of the validation part' in text
    assert 'was opened 3 times; only the first look' in words(write_report(a_run(tmp_path/'b', test_openings=3)))
    for n, said in ((2, '2 times'), (1, '1 time')): assert f'Other runs have opened the same test part {said}, so' in words(write_report(a_run(tmp_path/f'c{n}', other_openings=n)))


@pytest.mark.parametrize('where', ['results', 'predictions'])
def test_a_split_by_image_is_said_first_and_everywhere(tmp_path, where):
    run = made_up_run(tmp_path/'run', by='image')
    if where == 'predictions': run.save_json('results.json', run.load_json('results.json') | dict(split=dict(by='unknown')))
    (run/'figures').mkdir()
    plt.figure(figsize=(1, 1)).savefig(run/'figures/gallery.png')
    plt.close('all')
    html = write_report(run).read_text()
    assert 'the same patient may be on both sides, so this says nothing' in re.search(r'<p class="lead">.*?</p>', html).group()
    assert [k for k,o in sections(run/'report.html').items() if 'split by image: the same patient may be on both sides' not in o] == ['limits', 'repeat']
    captions = re.findall('<figcaption>(.*?)</figcaption>', html)
    assert len(captions) > 7 and all('split by image' in o for o in captions) and all('split by image' in o for o in Links(html).alts)
    card = write_card(run)
    assert card.read_text().count('*split by image') == 4 and all('split by image' in m['name'] for o in front(card)['model-index'][0]['results'] for m in o['metrics'])


def test_unknown_patients_are_said(tmp_path, real_pictures):
    run = made_up_run(tmp_path/'run', known=False, by='official')
    text = words(write_report(run))
    assert '144 images, whose patients are unknown, of the sealed test part' in text and 'Patients are unknown: images of one patient count as if they were several' in text
    assert 'by image' in front(write_card(run))['model-index'][0]['results'][0]['metrics'][0]['name']


@pytest.mark.parametrize('test', [True, False])
def test_several_classes(tmp_path, test, request):
    if test: request.getfixturevalue('real_pictures')
    run = made_up_run(tmp_path/'run', classes=('heart', 'liver', 'lung'), test=test)
    text = words(write_report(run))
    assert 'the mean over 3 classes, each against the rest' in text and 'AUC: liver' in text and 'ROC curve' not in text and 'Calibration slope: lung' in text and 'Net benefit sets one class against the rest' in text
    assert 'roc_auc' in front(write_card(run))['metrics']


def test_a_format_of_one_class_is_warned_of(tmp_path):
    text = words(write_report(a_run(tmp_path/'run')))
    assert 'All 29 files of the format “semicolon” are Sick: 58% of that class' in text
    even = [dict(format=f, label=c, images=20) for f in ('blank', 'tab') for c in CLASSES]
    assert 'Whoever reads the format' not in words(write_report(a_run(tmp_path/'even', data=dict(name='x', n_images=1, n_patients=1, formats=even))))
    uneven = [dict(format=f, label=c, images=n) for f,c,n in [('blank', 'Healthy', 40), ('tab', 'Healthy', 5), ('blank', 'Sick', 5), ('tab', 'Sick', 40)]]
    assert '“tab” is unevenly spread: 89% of Sick, 11% of Healthy' in words(write_report(a_run(tmp_path/'uneven', data=dict(name='x', formats=uneven))))


HOSTILE = '</title><script>alert(1)</script><img src=x onerror=alert(2)>"\'&$\\frac{$\n---\nlicense: mit'


def test_hostile_texts_stay_text(tmp_path, real_pictures):
    run = a_run(tmp_path/'run', classes=['<b>ok$x_{$', 'Sick"><script>'], study=HOSTILE, arch=HOSTILE, weights=HOSTILE, recipe=HOSTILE, command=HOSTILE, versions={HOSTILE: HOSTILE},
        data=dict(name=HOSTILE, n_images=1, n_patients=1, formats=[dict(format=HOSTILE, label=HOSTILE, images=1), dict(format='b', label='c', images=2)], rules=[{HOSTILE: HOSTILE}]), split=dict(by=HOSTILE, hash=HOSTILE, order=HOSTILE))
    (run/'figures').mkdir()
    plt.figure(figsize=(1, 1)).savefig(run/'figures/a-"onload=x<script>.png')
    plt.close('all')
    parsed = Links(write_report(run).read_text())
    assert not parsed.bad and not parsed.open and all(o.startswith('data:image/') for o in parsed.found)
    card = write_card(run)
    outside = re.sub(r'(?ms)^(`{3,})\n.*?^\1$', '', card.read_text())
    assert '<' not in outside and front(card)['license'] == 'unknown' and front(card)['model-index'][0]['results'][0]['dataset']['name'] == scrub(HOSTILE)


def test_hostile_new_entries_stay_text(tmp_path, whole):
    run = planted_run(whole, tmp_path/'run', HOSTILE.replace('/', ''))
    parsed = Links(write_report(run).read_text())
    assert not parsed.bad and not parsed.open
    assert '<script' not in re.sub(r'(?ms)^(`{3,})\n.*?^\1$', '', write_card(run).read_text())


def test_figures_of_the_run_are_taken_in_with_their_names(tmp_path):
    run = a_run(tmp_path/'run')
    (run/'figures').mkdir()
    for name in ('gallery-most_incorrect-Sick', 'roc-test', 'history', 'confusion'): plt.figure(figsize=(1, 1)).savefig(run/f'figures/{name}.png')
    plt.close('all')
    text = words(write_report(run))
    assert 'Gallery most incorrect Sick' in text and 'Roc test' not in text


@pytest.mark.parametrize('name', ['settings.json', 'results.json', 'split_summary.csv', 'history.csv', 'predictions-valid.csv', 'predictions-test.csv'])
@pytest.mark.parametrize('write', [write_report, write_card])
def test_a_missing_file_is_named(tmp_path, name, write):
    run = a_run(tmp_path/'run')
    (run/name).unlink()
    with pytest.raises(ReportError, match=re.escape(name)): write(run)
    assert not (run/'report.html').exists() and not (run/'model-card.md').exists()


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
    assert 'recall' not in [m['type'] for m in front(write_card(run))['model-index'][0]['results'][0]['metrics']]


def test_the_lists_are_complete():
    assert [o[0] for o in CHECKLISTS['CLAIM 2024']] == list(range(1, 45))
    letters = dict.fromkeys(range(1, 28), '') | {3: 'abc', 5: 'ab', 6: 'abc', 8: 'abc', 9: 'abc', 12: 'abcdefg', 18: 'abcdef', 20: 'abc', 23: 'ab', 27: 'abc'}
    assert [o[0] for o in CHECKLISTS['TRIPOD+AI']] == [f'{n}{o}' for n,own in letters.items() for o in own or ['']]


@pytest.mark.parametrize('name', CHECKLISTS)
def test_an_item_is_filled_only_where_the_run_tells(tmp_path, whole, name):
    full, bare = checklist(read_run(whole), name), checklist(read_run(a_run(tmp_path/'run')), name)
    for items in (full, bare):
        assert set(items.status) <= {FILLED, AUTHOR, NOT_APPLICABLE} and items[items.status != AUTHOR].text.str.len().gt(3).all()
        assert not items.text.str.contains(r'None|nan\b|\{|\}', regex=True).any()
    assert set(bare[bare.status == FILLED].number) < set(full[full.status == FILLED].number)
    unknown = dict(zip(CHECKLISTS, (['7', '8', '9', '10', '12', '27', '30', '31', '35'], ['5b', '6b', '7', '11', '12b', '13', '16', '20a'])))[name]
    assert set(bare[bare.number.isin(unknown)].status) == {AUTHOR}
    people = dict(zip(CHECKLISTS, ([1, 2, 3, 4, 5, 6, 15, 21, 26, 33, 36, 39, 40, 41, 42, 43, 44], ['1', '2', '3a', '3b', '3c', '4', '9b', '10', '12d', '14', '18a', '18b', '18c', '18d', '18e', '18f', '19', '20b', '20c', '22', '23b', '25', '26', '27a', '27b', '27c'])))[name]
    assert set(full[full.number.isin(map(str, people))].status) == {AUTHOR}


def test_real_patients_are_not_waved_away(tmp_path, whole):
    results = whole.load_json('results.json')
    real = made_up_run(tmp_path/'run', origin=results['origin'] | dict(kind='DMR-IR'))
    claim, simulated = (checklist(read_run(o), 'CLAIM 2024').set_index('number').status for o in (real, whole))
    assert set(simulated[['11', '13', '16', '17', '18', '34']]) == {NOT_APPLICABLE} and set(claim[['11', '13', '14', '16', '17', '18', '34']]) == {AUTHOR}


def test_counts_of_the_lists_are_those_of_their_rows(whole):
    html = write_report(whole).read_text()
    for name,n in (('CLAIM 2024', 44), ('TRIPOD+AI', 52)):
        title,body = re.search(rf'<summary>{re.escape(name)}: (.*?)</summary>(.*?)</details>', html, re.S).groups()
        counts = [body.count(f'<td>{o.capitalize()}</td>') for o in (FILLED, AUTHOR, NOT_APPLICABLE)]
        assert [int(o) for o in re.findall(r': (\d+)', title)] == counts and sum(counts) == n == int(re.search(r'of (\d+)', title)[1])


def test_the_card_is_what_the_hub_reads(whole):
    head, r = front(write_card(whole, license='cc-by-4.0')), whole.load_json('results.json')
    assert {k: head[k] for k in ('license', 'library_name', 'pipeline_tag')} == dict(license='cc-by-4.0', library_name='fastai', pipeline_tag='image-classification')
    assert set(head) == {'license', 'library_name', 'pipeline_tag', 'tags', 'datasets', 'metrics', 'model-index'} and 'medfast' in head['tags'] and head['datasets'] == ['simulated']
    test, valid = head['model-index'][0]['results']
    assert (test['task']['type'], test['dataset']['split'], valid['dataset']['split']) == ('image-classification', 'test', 'validation')
    got = {o['type']: o['value'] for o in test['metrics']}
    assert got['roc_auc'] == round(r['test']['auc']['value'], 4) and got['recall'] == round(r['test']['sensitivity']['value'], 4) and set(got) <= set(head['metrics'])


def test_the_hubs_own_reader_takes_the_card(whole):
    hub = pytest.importorskip('huggingface_hub')
    card = hub.ModelCard.load(write_card(whole))
    results = card.data.eval_results
    assert card.data.library_name == 'fastai' and len(results) > 10 and {o.dataset_split for o in results} == {'test', 'validation'} and all(0 <= o.metric_value <= 1 for o in results)


def test_card_and_report_tell_the_same_numbers(whole):
    card, text = write_card(whole).read_text(), words(write_report(whole))
    for row in whole.load_json('results.json')['test'].values():
        low, high = f'{row["low"]:.2f}', f'{row["high"]:.2f}'
        assert f'{row["value"]:.2f} ({low} to {high})' in card and f'{row["value"]:.2f} {low} – {high}' in text


def test_any_text_comes_back_from_the_front_matter():
    rng = np.random.default_rng(0)
    letters = [*'ab:#-\'"\\\n\t {}[]&*!|>%@`,?=~<\x00\x07\x7f\x85\xa0\u2028\u2029\ufeffñ中😀', 'null', 'no', '1.5', '2012-01-01', '---', '...']
    for _ in range(400):
        texts = [''.join(rng.choice(letters, rng.integers(0, 9))) for _ in range(4)]
        obj = {texts[0].join('ab').encode().hex(): texts, 'deep': [dict(a=dict(b=texts[1:]), c=[]), {'x': 1.5, 'y': None, 'z': True}], 'empty': {}}
        assert yaml.safe_load(to_yaml(obj)) == obj


def test_markdown_of_a_text_is_that_text():
    assert plain('a_b *c* `d` [e](f) <g> | #h\n# i') == r'a_b \*c\* \`d\` \[e\](f) &lt;g&gt; \| #h # i'
    assert plain('# x') == r'\# x' and fenced('a\n```\nb').split('\n')[0] == '````'


def test_every_table_is_headed_and_every_number_readable(whole):
    html = write_report(whole).read_text()
    for t in re.findall('<table.*?</table>', html, re.S):
        columns = len(re.findall(r'<t[hd][ >]', re.search('<thead>.*?</thead>', t, re.S)[0]))
        assert '<caption>' in t and all(len(re.findall(r'<t[hd][ >]', o)) == columns for o in re.findall('<tr>.*?</tr>', t, re.S))
    assert not re.search(r'\bnan\b|>None<|Infinity', html)


def test_a_long_title_is_not_cut_off(tmp_path, real_pictures):
    from medfast.plots import plot_confusion_matrix
    preds, kept = read_run(made_up_run(tmp_path/'run', by='image')).main, []
    page.drawn(lambda: kept.append(plot_confusion_matrix({'Test': preds})) or kept[-1], page.LIGHT)
    fig = kept[0][0].figure
    fig.canvas.draw()
    box = fig.axes[0].title.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= fig.bbox.width and 'split by image' in fig.axes[0].get_title().replace('\n', ' ')


def test_a_group_with_few_patients_of_one_class_is_hidden_too():
    rows = [dict(group=g, metric=m, value=.5, low=0., high=1., n=n, method='x') for g,ns in dict(a=(3, 40, 43), b=(12, 10, 22), c=(15, 10, 25), d=(15, 11, 26)).items() for m,n in zip(('sensitivity', 'specificity', 'auc'), ns)]
    found = hide_groups(dict(origin=dict(kind='DMR-IR'), subgroups=dict(age=rows)))['subgroups']['age']
    hidden = {o['group'] for o in found if o['value'] is None}
    assert hidden == {'a', 'b'} and {o['method'] for o in found if o['group'] in hidden} == {NOT_TOLD}
