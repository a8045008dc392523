"After a split by image every table and every picture of a result says so; what is new has to say so too."
import ast
import re
from functools import cached_property

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, random_preds
from matplotlib.text import Text
from PIL import Image

WORDS = 'split by image'


# --- what there is

def modules():
    "Syntax tree and lines of every module."
    texts = {fn.stem: fn.read_text(encoding='utf-8') for fn in sorted((ROOT/'medfast').glob('*.py')) if not fn.stem.startswith('_')}
    return {name: (ast.parse(text), text.splitlines()) for name,text in texts.items()}


def frames(trees):
    "Names of what is a table or a picture as an annotation: pandas' own, and classes made of them."
    return ['DataFrame', 'Series', 'Axes', *[o.name for t,_ in trees.values() for o in ast.walk(t) if isinstance(o, ast.ClassDef) and any('DataFrame' in ast.unparse(b) for b in o.bases)]]


def owner_of(f, cls):
    "The class of a method, written inside it or patched into it; None of a function."
    patched = any('patch' in ast.unparse(o) for o in f.decorator_list)
    return cls or (ast.unparse(f.args.args[0].annotation) if patched and f.args.args and f.args.args[0].annotation else None)


def shows(f, lines, kinds):
    "Does it return a table, draw, or print a thing, by its annotation, its name, or what is said of its return?"
    if re.fullmatch('(plot|show)(_.*)?|__repr__|__str__|_repr_html_', f.name): return True
    if f.name.startswith('_'): return False
    if f.returns: return re.search('|'.join(kinds), ast.unparse(f.returns)) is not None
    said = lines[f.body[0].lineno - 2] if f.body[0].lineno > f.lineno else ''
    return re.search(r'#.*(\b[Aa]xes\b|\b(One|A) row\b|\bDataFrame\b)', said) is not None


def found_in(trees):
    "'module.name' or 'module.Class.name' of all that shows something."
    kinds = frames(trees)
    return {'.'.join(filter(None, [name, owner_of(f, cls), f.name])) for name,(tree,lines) in trees.items()
            for cls,body in [(None, tree.body), *[(o.name, o.body) for o in tree.body if isinstance(o, ast.ClassDef) and not o.name.startswith('_')]]
            for f in body if isinstance(f, ast.FunctionDef) and shows(f, lines, kinds)}


# --- one small study, split either way

class Study:
    "Predictions, loaders, a training and a comparison of two dozen pictures, split by `by`; made when asked for."
    def __init__(self, by, folder): self.by, self.folder = by, folder

    @cached_property
    def preds(self): return random_preds(0, split_by=self.by)

    @cached_property
    def pictures(self):
        from medfast.split import split_catalog
        rng, rows = np.random.default_rng(0), []
        for i in range(24):
            fn = self.folder/f'{i:02d}.png'
            Image.fromarray(rng.integers(0, 256, (24, 24), np.uint8)).save(fn)
            rows.append(dict(path=str(fn), patient=f'p{i//2:02d}', label=['left', 'right'][i//2 % 2]))
        return split_catalog(pd.DataFrame(rows).astype(dict(patient='string')), valid=.3, test=.3, by=self.by, seed=1)

    @cached_property
    def shown(self):
        "Predictions whose items are pictures."
        from medfast.table import Predictions
        return Predictions.from_arrays([0, 1, 0, 1], [.2, .9, .7, .4], items=self.pictures.path[:4], patients=range(4), split_by=self.by)

    @cached_property
    def learn(self):
        from medfast.loaders import study_dls
        from medfast.models import medical_learner
        return medical_learner(study_dls(self.pictures, size=24, bs=4, device='cpu'), 'mirror_cnn')

    @cached_property
    def resumed(self):
        import medfast.resume  # patches fit_resumable into Learner
        return self.learn.fit_resumable(1, .01, self.folder/'training.safetensors')

    @cached_property
    def history(self):
        self.learn.fit(1, .01)
        return self.learn.history

    @cached_property
    def comparison(self):
        from medfast.compare import compare
        return compare(self.learn.dls, ['mirror_cnn', 'small_resnet'], self.folder/'run', n_epoch=1)

    @cached_property
    def controls(self):
        from medfast.controls import Controls
        preds = {o: {'valid': random_preds(0, shift=2. - i, split_by=self.by)} for i,o in enumerate(['model', 'metadata', 'labels shuffled by patient'])}
        return Controls(preds, {o: ['numbers'] for o in preds}, {'valid': [.4, .5, .6]})

    @cached_property
    def point(self):
        from medfast.decisions import operating_point
        return operating_point(random_preds(0, 90, split_by=self.by), sensitivity=.9)

    @cached_property
    def sets(self):
        pytest.importorskip('mapie')
        from medfast.conformal import conformal_sets
        return conformal_sets(self.preds.take(range(40)), self.preds.take(range(40, 60)))

    @cached_property
    def record(self):
        from medfast.record import made_up_run, read_run
        return read_run(made_up_run(self.folder/'made-up', by=self.by))

    @cached_property
    def catalog(self): return pd.DataFrame(dict(path=self.preds.items, view=['front', 'side']*30))

    @cached_property
    def audit(self):
        from medfast.leaks import audit_leakage
        return audit_leakage(self.pictures, raises=False)

    @cached_property
    def twins(self):
        from medfast.twins import near_twins
        copies = self.pictures.assign(path=[self.pictures.path[0]]*2 + list(self.pictures.path[2:]), split=['train', 'test'] + list(self.pictures.split[2:]))
        return near_twins(copies)


CASES = {
    'calibration.calibration': lambda f, o: f(o.preds, n_resamples=20),
    'calibration.calibration_bins': lambda f, o: f(o.preds),
    'calibration.plot_calibration': lambda f, o: f(o.preds),
    'checklists.checklist': lambda f, o: f(o.record, 'CLAIM 2024'),
    'compare.Comparison.__str__': lambda f, o: str(o.comparison),
    'compare.Comparison._repr_html_': lambda f, o: o.comparison._repr_html_(),
    'compare.Comparison.history': lambda f, o: o.comparison.history('mirror_cnn'),
    'compare.Comparison.intervals': lambda f, o: o.comparison.intervals(n_resamples=20),
    'compare.Comparison.paired': lambda f, o: o.comparison.paired('mirror_cnn', 'small_resnet', n_resamples=20),
    'compare.Comparison.table': lambda f, o: o.comparison.table,
    'compare.plot_stages': lambda f, o: f(o.comparison),
    'conformal.conformal_sets': lambda f, o: o.sets,
    'conformal.conformal_summary': lambda f, o: f(o.sets),
    'controls.Controls.__repr__': lambda f, o: repr(o.controls),
    'controls.Controls._repr_html_': lambda f, o: o.controls._repr_html_(),
    'controls.Controls.table': lambda f, o: o.controls.table,
    'controls.concordance_within': lambda f, o: f(o.preds, lambda p: int(p)//30, n_resamples=20),
    'controls.plot_controls': lambda f, o: f(o.controls),
    'decisions.OperatingPoint.__str__': lambda f, o: str(o.point),
    'decisions.decision_curve': lambda f, o: f(o.preds),
    'decisions.plot_decision_curve': lambda f, o: f(o.preds),
    'evaluate.evaluate': lambda f, o: f(o.preds, n_resamples=20),
    'evaluate.subgroups': lambda f, o: f(o.preds, o.catalog, 'view', n_resamples=20),
    'interpret.most_confused': lambda f, o: f(o.preds),
    'interpret.pick': lambda f, o: f(o.preds, 'most correct'),
    'interpret.plot_cam': lambda f, o: f(o.learn, o.pictures.path[0], layer=o.learn.model[0][1]),
    'interpret.plot_gallery': lambda f, o: f(o.shown, 'most correct'),
    'interpret.plot_top_losses': lambda f, o: f(o.shown),
    'interpret.top_losses': lambda f, o: f(o.preds),
    'leaks.LeakTable.__repr__': lambda f, o: repr(o.audit),
    'leaks.LeakTable._repr_html_': lambda f, o: o.audit._repr_html_(),
    'leaks.audit_leakage': lambda f, o: o.audit,
    'models.Learner.history': lambda f, o: o.history,
    'pairs.mcnemar': lambda f, o: f(o.preds, o.preds),
    'pairs.paired_gain': lambda f, o: f(o.preds, o.preds, n_resamples=20),
    'parts.split_summary': lambda f, o: f(o.pictures),
    'plots.confusion': lambda f, o: f(o.preds),
    'plots.plot_confusion_matrix': lambda f, o: f(o.preds),
    'plots.plot_history': lambda f, o: f(o.history),
    'plots.plot_roc': lambda f, o: f(o.preds),
    'resume.Learner.fit_resumable': lambda f, o: o.resumed,
    'seeds.evaluate_seeds': lambda f, o: f([o.preds, o.preds], n_resamples=20),
    'table.Predictions.__repr__': lambda f, o: repr(o.preds),
    'table.Predictions._repr_html_': lambda f, o: o.preds._repr_html_(),
    'table.Predictions.table': lambda f, o: o.preds.table,
    'table.labelled': lambda f, o: f(pd.DataFrame(dict(a=[1])), o.by),
    'twins.Twins.__repr__': lambda f, o: repr(o.twins),
    'twins.plot_twins': lambda f, o: f(o.twins),
}

NOT_A_RESULT = {
    'of images or patients before any split': '''archive.Archive.__repr__ archive.official_sets balance.images_per_patient catalog.catalog_report catalog.dmr_catalog catalog.folder_catalog
        catalog.plot_ages catalog.plot_classes catalog.plot_samples catalog.read_patients pictures.coronahack_catalog pictures.medmnist_catalog pictures.missing_images
        pictures.radiography_catalog pictures.read_csv pictures.same_images pictures.size_report simulate.Patient.__repr__ simulate.asymmetry_features phantom.Drawing.__repr__
        thermogram.ThermogramError.__str__ thermogram.convert_thermograms''',
    'single images as they are read, augmented or masked': '''arrays.Grey.show images.Thermogram.show interpret.show_item loaders.plot_augmentations masks.Mask.__str__ masks.Mask._repr_html_
        masks.plot_masks''',
    'of a network, its training plan or its costs': '''bundle.Bundle.__repr__ compare.Comparison.trainings features.FeatureTrainer.__repr__ models.block_table networks.count_parameters networks.layer_table
        schedule.Learner.plot_schedule stages.Stage.__repr__''',
    'losses of training batches only': 'schedule.LRSuggestion.__repr__ schedule.LRSuggestion.plot',
    'names a thing without a number measured on it': 'compare.Comparison.__repr__ controls.MetadataControl.__repr__ files.RunFolder.__repr__ record.Record.__repr__ settings.Settings.__repr__',
    'a part of the page of a report, whose sections carry the label (test_report)': 'page.plot_uri',
}
SILENT = {name for names in NOT_A_RESULT.values() for name in names.split()}


# --- do they say so?

def words_of(shown):
    "All that a reader sees: every text of a figure; of a table its head and cells, each cell with the name of its column."
    if isinstance(shown, str): return shown
    if isinstance(shown, pd.DataFrame):
        cells = ' '.join(f'{c} {v}'.replace('_', ' ') for c in shown for v in shown[c])
        return f'{shown.columns.name} {cells}'
    figure = np.ravel(shown)[0].figure
    return ' '.join(o.get_text().replace('\n', ' ') for o in figure.findobj(Text))


def named(name):
    "The function of a case; None of a method or property, which the case reaches by its object."
    import importlib
    module, *rest = name.split('.')
    return getattr(importlib.import_module(f'medfast.{module}'), rest[0]) if len(rest) == 1 else None


@pytest.fixture(scope='module')
def studies(tmp_path_factory): return {by: Study(by, tmp_path_factory.mktemp(by)) for by in ('image', 'patient')}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')


def test_whatever_shows_something_is_asked_here():
    found = found_in(modules())
    assert found - set(CASES) - SILENT == set(), 'new tables or pictures: give each a case, or say in NOT_A_RESULT why it needs none'
    assert (set(CASES) | SILENT) - found == set() and not set(CASES) & SILENT, 'no longer there, or named twice'


@pytest.mark.parametrize('name', CASES)
def test_it_says_so_after_a_split_by_image_and_then_only(name, studies):
    shown = {by: CASES[name](named(name), studies[by]) for by in ('image', 'patient')}
    if isinstance(shown['image'], pd.DataFrame) and 'method' in shown['image']: assert shown['image'].method.str.contains(WORDS).all(), 'every number says so'
    by_image, by_patient = map(words_of, shown.values())
    assert re.search(WORDS, by_image, re.I), by_image
    assert not re.search(WORDS, by_patient, re.I), by_patient


@pytest.mark.parametrize('text', ['def plot_x(preds): pass', 'def x(preds)->pd.DataFrame: pass', 'def x(preds)->Mine: pass', 'def x(\n    preds # Given\n):         # The axes\n    "Draw."\n    pass',
    'def x(\n    preds # Given\n):   # One row a patient\n    "Count."\n    pass', 'class X:\n    def __repr__(self): pass', '@patch\ndef show(self:X): pass', '@patch(as_prop=True)\ndef x(self:X)->pd.Series: pass'])
def test_a_new_table_or_picture_is_noticed(text):
    trees = {'new': (ast.parse(text), text.splitlines()), 'mine': (ast.parse('class Mine(pd.DataFrame): pass'), ['class Mine(pd.DataFrame): pass'])}
    assert len(found_in(trees)) == 1


@pytest.mark.parametrize('name', ['table.Predictions.table', 'interpret.pick', 'interpret.top_losses', 'interpret.most_confused', 'models.Learner.history', 'compare.Comparison.table'])
def test_tables_without_a_column_for_words_have_them_over_their_columns(name, studies):
    from medfast.table import SPLIT_BY_IMAGE
    assert [CASES[name](named(name), studies[by]).columns.name for by in ('image', 'patient')] == [SPLIT_BY_IMAGE, None]


def test_a_training_that_is_over_says_so_when_it_is_read_again(studies):
    first = studies['image'].resumed
    again = studies['image'].learn.fit_resumable(1, .01, studies['image'].folder/'training.safetensors')
    assert again.columns.name == first.columns.name is not None


def test_histories_of_several_parts_keep_the_words(studies):
    history = studies['image'].history
    joined = pd.concat([history.assign(part='first'), history.assign(part='second')], ignore_index=True)
    assert joined.drop(columns='part').columns.name == history.columns.name
