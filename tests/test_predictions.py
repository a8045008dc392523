"One pass: rows that stay with their files, views that are really drawn, and nothing disturbed by looking."
import random
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import CancelFitException, Callback
from fastai.callback.schedule import lr_find  # noqa: F401  (patches Learner)
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from fastai.torch_core import TensorImage, no_random
from fastai.vision.augment import FlipItem, Resize, ResizeMethod, aug_transforms
from fastai.vision.data import ImageDataLoaders
from fasttransform import Transform
from PIL import Image
from torch import nn

from medfast.catalog import dmr_catalog
from medfast.evaluate import Predictions, PredictionsError
from medfast.loaders import array_dls, study_dls
from medfast.models import medical_learner
from medfast.precompute import Precomputed  # noqa: F401  (patches Learner)
from medfast.predictions import KeepSnapshots, UntrainedWarning, _rows, ensemble, is_trained
from medfast.schedule import ScheduleError
from medfast.settings import set_seeds
from medfast.split import split_catalog, upsample_training

pytestmark = pytest.mark.filterwarnings('ignore::medfast.predictions.UntrainedWarning')


@pytest.fixture(scope='module')
def catalog(small_study): return split_catalog(dmr_catalog(small_study), valid=.25, test=.25, seed=1)


def network(n_out=2, norm=True):
    "A body that sees places, and a head, with batch norm or without."
    body = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU())
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), *([nn.BatchNorm1d(32)] if norm else []), nn.Dropout(.3), nn.Linear(32, n_out)]
    return nn.Sequential(body, nn.Sequential(*head))


def learner(catalog, augment='thermogram', bs=3, norm=True, path=None, **kw):
    dls = study_dls(catalog, size=24, bs=bs, augment=augment, **kw)
    set_seeds(3)
    learn = Learner(dls, network(norm=norm), CrossEntropyLossFlat(), path=path)
    learn.remove_cb(learn.progress) if hasattr(learn, 'progress') else None
    learn.logger = lambda *_: None
    return learn


@pytest.fixture
def learn(catalog, tmp_path): return learner(catalog, path=tmp_path)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    "Plain fastai: twelve pictures in class folders, wider than high."
    home,rng = tmp_path_factory.mktemp('pictures'),np.random.default_rng(0)
    for i in range(12):
        fn = home/('train', 'train', 'valid')[i//4]/('cat', 'dog')[i%2]/f'{i:02d}.png'
        fn.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)).save(fn)
    return home


def plain(home, *item_tfms, batch_tfms=None):
    dls = ImageDataLoaders.from_folder(home, item_tfms=list(item_tfms), batch_tfms=batch_tfms, bs=3, num_workers=0)
    set_seeds(3)
    learn = Learner(dls, network(), CrossEntropyLossFlat())
    learn.remove_cb(learn.progress) if hasattr(learn, 'progress') else None
    return learn


# rows stay with their files

@pytest.mark.parametrize('part', [0, 1, 2])
def test_every_row_is_there_once_and_in_the_order_of_the_catalog(learn, part):
    rows = learn.dls.catalogs[['train', 'valid', 'test'][part]]
    preds = learn.predictions(part)
    assert preds.items==rows.path.tolist() and preds.patients==rows.patient.tolist()
    assert [preds.classes[t] for t in preds.targets]==rows.label.tolist()
    assert preds.split_by=='patient'


@pytest.mark.parametrize('part', [0, 1])
def test_a_row_holds_the_probabilities_of_its_own_file(learn, part):
    learn.fit(1, 1e-2)
    preds = learn.predictions(part)
    for i,item in enumerate(preds.items):
        x = learn.dls.test_dl([item], num_workers=0).one_batch()[0]
        with torch.no_grad(): p = learn.model.eval()(x).softmax(1)[0]
        assert np.allclose(preds.probs[i], p, atol=1e-5), item


def test_a_catalog_changed_after_the_loaders_is_found(learn):
    rows = learn.dls.catalogs['valid']
    learn.dls.catalogs['valid'] = rows.sort_values('label', ascending=rows.label[0]!='Healthy').reset_index(drop=True)
    with pytest.raises(PredictionsError, match='Row 0, T.*the catalog'): learn.predictions()


def test_a_part_that_is_not_there(catalog):
    with pytest.raises(PredictionsError, match='0 train, 1 valid, 2 test'): learner(catalog[catalog.split!='test']).predictions(2)


def test_split_by_image_and_unknown_patients_are_told(catalog):
    catalog = split_catalog(catalog.drop(columns=['split', 'split_by']), valid=.5, by='image', seed=1)
    assert learner(catalog).predictions().split_by=='image'
    assert learner(catalog.drop(columns=['patient', 'split_by'])).predictions().patients is None
    mixed = catalog.assign(split_by=['patient']*3 + ['image']*(len(catalog) - 3))
    assert _rows(SimpleNamespace(catalogs={'valid': mixed}), 0)[3]=='image', 'an image that was kept apart by patient mends nothing'


def test_items_relative_to_a_folder(learn, small_study, tmp_path):
    assert all(o.startswith('txt/T0') for o in learn.predictions(folder=small_study).items)
    with pytest.raises(PredictionsError, match='does not lie inside'): learn.predictions(folder=tmp_path)


def repeated(catalog):
    "The catalog with its first two training rows of the smaller class, each two more times."
    rows = catalog[catalog.split=='train']
    few = rows[rows.label==rows.label.value_counts().idxmin()].head(2)
    return pd.concat([catalog.assign(copy=0), few.assign(copy=1), few.assign(copy=2)], ignore_index=True).astype(dict(copy='Int64'))


def test_repeated_rows_have_names_of_their_own_and_equal_probabilities(catalog):
    learn = learner(repeated(catalog))
    preds = learn.predictions(0)
    twins = [(i, preds.items.index(o.split(' (copy')[0])) for i,o in enumerate(preds.items) if ' (copy' in o]
    assert len(set(preds.items))==len(preds)==len(learn.dls.train_ds) and len(twins)==4
    assert all(np.allclose(preds.probs[i], preds.probs[j], atol=1e-6) and preds.patients[i]==preds.patients[j] for i,j in twins)
    assert ensemble([preds, preds]).items==preds.items and not any('copy' in o for o in learn.predictions().items)


def test_repeated_rows_relative_to_a_folder(catalog, small_study):
    names = learner(repeated(catalog)).predictions(0, folder=small_study).items
    assert names[-1].startswith('txt/T0') and names[-1].endswith('.txt (copy 2)')


def test_upsampling_makes_such_rows(catalog):
    few = catalog[~((catalog.split=='train') & (catalog.label=='Sick')).cumsum().between(2, 99) | (catalog.split!='train') | (catalog.label!='Sick')]
    up = upsample_training(few)
    preds = learner(up).predictions(0)
    assert len(set(preds.items))==len(preds)==(up.split=='train').sum() > (few.split=='train').sum()
    assert sum(' (copy' in o for o in preds.items)==(up['copy'] > 0).sum()


# plain fastai

def test_plain_fastai_loaders(pictures):
    learn = plain(pictures, Resize(24, ResizeMethod.Squish))
    preds = learn.predictions(0)
    assert preds.items==[str(o) for o in learn.dls.train_ds.items] and len(preds)==8
    assert (preds.patients, preds.split_by, preds.classes)==(None, 'unknown', ['cat', 'dog'])


def test_plain_fastai_loaders_of_a_table(pictures):
    df = pd.DataFrame([dict(path=str(o.relative_to(pictures)), label=o.parent.name, valid=o.parts[-3]=='valid') for o in sorted(pictures.rglob('*.png'))])
    dls = ImageDataLoaders.from_df(df, pictures, fn_col='path', label_col='label', valid_col='valid', item_tfms=Resize(24), bs=3, num_workers=0)
    learn = Learner(dls, network(), CrossEntropyLossFlat())
    with learn.no_bar(): assert learn.predictions().items==df.path[df.valid].tolist()


def test_training_images_are_not_augmented(pictures):
    learn = plain(pictures, Resize(24), batch_tfms=aug_transforms())
    assert np.array_equal(learn.predictions(0).probs, learn.predictions(0, seed=7).probs)
    straight = learn.dls.test_dl(learn.dls.train_ds.items, num_workers=0)
    assert np.allclose(learn.predictions(0).probs, learn.get_preds(dl=straight)[0], atol=1e-6)


# test-time augmentation

class Brighter(Transform):
    "A view that is always the same, and not the image."
    split_idx,order = 0,50
    def encodes(self, x:TensorImage): return x + .3


@pytest.mark.parametrize('n,beta', [(4, .2), (4, .25), (2, 1/3), (1, 0.), (3, 1.)])
def test_beta_means_what_fastai_means(pictures, n, beta):
    learn = plain(pictures, Resize(24, ResizeMethod.Squish), batch_tfms=[Brighter()])
    wanted = learn.tta(n=n, beta=beta)[0]
    assert np.allclose(learn.predictions(tta=n, beta=beta).probs, wanted, atol=1e-6)
    assert beta==1 or not np.allclose(learn.predictions().probs, wanted, rtol=0, atol=1e-7)


def test_the_mean_of_five_is_exact(learn):
    learn.fit(1, 1e-2)
    once = learn.predictions(tta=4)
    dl = learn.dls[1].new(shuffle=False)
    with no_random(42):
        learn.dls[1].new(shuffle=False)
        views = [learn.get_preds(dl=dl)[0].double().numpy()]
        with dl.dataset.set_split_idx(0): views += [learn.get_preds(dl=dl)[0].double().numpy() for _ in range(4)]
    assert all(abs(v - views[0]).max() > 1e-6 for v in views[1:])
    assert abs(once.probs - np.mean(views, 0)).max() < .02 and np.allclose(once.probs.sum(1), 1, atol=1e-6)


def test_a_seed_gives_the_same_views_whatever_was_drawn_before(learn):
    one = learn.predictions(tta=2)
    random.random(), torch.rand(3), np.random.rand()
    assert np.array_equal(one.probs, learn.predictions(tta=2).probs)
    assert not np.array_equal(one.probs, learn.predictions(tta=2, seed=1).probs)


@pytest.mark.parametrize('tfms', [[], [Resize(24, ResizeMethod.Squish)], [Resize(24, ResizeMethod.Squish), FlipItem(0.)]])
def test_no_augmentation_no_views(pictures, tfms):
    learn = plain(pictures, *(tfms or [Resize(24, ResizeMethod.Squish)]))
    with pytest.raises(PredictionsError, match='average equal views'): learn.predictions(tta=4)


@pytest.mark.parametrize('tfms', [[Resize(24)], [Resize(24, ResizeMethod.Squish), FlipItem(.5)]])
def test_random_crops_and_flips_are_views(pictures, tfms):
    learn = plain(pictures, *tfms)
    assert not np.array_equal(learn.predictions(tta=4).probs, learn.predictions().probs)


@pytest.mark.parametrize('tta,beta', [(-1, .2), (2.5, .2), (4, 1.2), (4, -.1)])
def test_views_that_cannot_be_averaged(learn, tta, beta):
    with pytest.raises(PredictionsError, match='weight of the image'): learn.predictions(tta=tta, beta=beta)


# nothing is disturbed

@pytest.mark.parametrize('tta', [0, 2])
def test_random_states_are_left_as_they_were(learn, tta):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    learn.predictions(tta=tta)
    assert before==(random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_looking_between_two_epochs_does_not_change_the_training(catalog):
    weights = []
    for look in (False, True):
        learn = learner(catalog)
        learn.fit(1, 1e-2)
        if look: learn.predictions(0, tta=2), learn.predictions(2)
        learn.fit(1, 1e-2)
        weights.append(nn.utils.parameters_to_vector(learn.model.parameters()))
    assert torch.equal(*weights)


def test_the_recorder_survives(learn):
    learn.fit(2, 1e-2)
    rec = learn.recorder
    before = [list(getattr(rec, o)) for o in ('lrs', 'losses', 'values', 'iters')]
    learn.predictions(tta=1)
    assert before==[list(getattr(rec, o)) for o in ('lrs', 'losses', 'values', 'iters')] and len(before[0])==2*len(learn.dls.train)


def test_the_split_of_the_dataset_comes_back_after_an_error(learn):
    learn.loss_func = nn.MultiMarginLoss()
    with pytest.raises(PredictionsError, match='MultiMarginLoss gives no probabilities'): learn.predictions(0)
    assert learn.dls[0].dataset.split_idx==0


# probabilities

def test_torchs_own_loss_gets_its_softmax(learn):
    wanted = learn.predictions().probs
    learn.loss_func = nn.CrossEntropyLoss()
    assert np.allclose(learn.predictions().probs, wanted, atol=1e-6)


def test_one_sigmoid_becomes_two_columns(catalog):
    learn = learner(catalog)
    learn.model[1][-1],learn.loss_func = nn.Linear(32, 1),BCEWithLogitsLossFlat()
    preds = learn.predictions()
    assert preds.probs.shape==(len(learn.dls.catalogs['valid']), 2) and np.allclose(preds.probs.sum(1), 1)
    assert np.allclose(preds.probs[:,1], learn.get_preds()[0].ravel(), atol=1e-6)


def test_a_diverged_model_is_named(learn):
    learn.model[1][-1].weight.data.fill_(float('nan'))
    with pytest.raises(PredictionsError, match='diverged'): learn.predictions()


def test_points_have_positions_for_names():
    points = [(torch.randn(4), torch.tensor(i%2)) for i in range(10)]
    dls = DataLoaders(DataLoader(points, bs=4, shuffle=True), DataLoader(points, bs=4))
    learn = Learner(dls, nn.Linear(4, 2), CrossEntropyLossFlat())
    with learn.no_bar(): preds = learn.predictions()
    assert preds.items[3]=='item 3' and preds.classes==['0', '1'] and preds.targets.tolist()==[i%2 for i in range(10)]


def test_probabilities_are_those_of_the_logits_in_float64(learn):
    "Also where float32 would say exactly 0 and 1."
    learn.model[1][-1].weight.data *= 3e3
    logits = learn.get_preds(act=lambda o: o)[0].double()
    probs = learn.predictions().probs
    assert np.abs(logits[:,0] - logits[:,1]).max() > 120 and (probs > 0).all()
    assert np.allclose(np.log(probs), logits.log_softmax(1), rtol=1e-9, atol=1e-9)


# several labels an image

def several_labels(n=24):
    "Images that are bright above, below, both or neither, with a table that says so."
    rng = torch.Generator().manual_seed(0)
    y = torch.rand(n, 2, generator=rng).round()
    x = torch.randn(n, 1, 8, 8, generator=rng)*.1
    x[:,0,:4],x[:,0,4:] = x[:,0,:4] + y[:,:1,None],x[:,0,4:] + y[:,1:,None]
    dls = DataLoaders(*[DataLoader(list(zip(x, y)), bs=8, shuffle=o, num_workers=0) for o in (True, False)])
    dls.vocab,dls.n_in,dls.multi_label = ['above', 'below'],1,True
    label = ['|'.join(name for name,there in zip(dls.vocab, t) if there) or 'none' for t in y]
    table = pd.DataFrame(dict(path=[f'set.npz#train/{i}' for i in range(n)], label=label, patient=[str(i//2) for i in range(n)], split_by='official'))
    dls.catalogs = dict(train=table, valid=table)
    return dls


def finder(**kw):
    learn = medical_learner(several_labels(**kw), 'simple_cnn', size=8)
    learn.fit(15, 1e-2)
    return learn


def test_a_table_for_every_label():
    learn = finder()
    found = learn.predictions_by_label()
    out,y = learn.get_preds()
    assert list(found)==['above', 'below'] and found['below'].classes==['no', 'below']
    for k,preds in enumerate(found.values()):
        assert np.allclose(preds.probs[:,1], out[:,k], atol=1e-6) and preds.targets.tolist()==y[:,k].int().tolist()
        assert (preds.items, preds.patients, preds.split_by)==(learn.dls.catalogs['valid'].path.tolist(), learn.dls.catalogs['valid'].patient.tolist(), 'official')
        assert (preds.predicted==preds.targets).mean() > .9


def test_arrays_with_several_labels():
    rng,names = np.random.default_rng(0),['above', 'below']
    y = rng.integers(0, 2, (32, 2))
    images = rng.integers(0, 60, (32, 8, 8), dtype=np.uint8)
    images[:,:4] += (y[:,:1,None]*190).astype(np.uint8)
    images[:,4:] += (y[:,1:,None]*190).astype(np.uint8)
    label = ['|'.join(n for n,there in zip(names, t) if there) or 'none' for t in y]
    rows = pd.DataFrame(dict(path=[f'set.npz#train/{i}' for i in range(32)], label=label, task='multi-label', split=['train']*16 + ['valid']*16))
    learn = medical_learner(array_dls(rows, images=images, bs=8, device='cpu'), 'simple_cnn', size=8)
    learn.fit(15, 1e-2)
    found = learn.predictions_by_label(0)
    assert list(found)==names and all((p.predicted==y[:16,k]).mean() > .9 for k,p in enumerate(found.values()))
    assert found['above'].items==rows.path[:16].tolist() and [p.targets.tolist() for p in learn.predictions_by_label().values()]==y[16:].T.tolist()


def test_each_kind_of_loader_has_its_own_method(learn):
    with pytest.raises(PredictionsError, match=r'learn.predictions_by_label\(\)'): finder().predictions()
    unnamed = finder()
    unnamed.dls.multi_label = False
    with pytest.raises(PredictionsError, match=r'learn.predictions_by_label\(\)'): unnamed.predictions()
    with pytest.raises(PredictionsError, match=r'Use learn.predictions\(\)'): learn.predictions_by_label()


def test_labels_in_another_order_are_the_same_and_others_are_found():
    learn = finder()
    table = learn.dls.catalogs['valid']
    both,none = (table.label[table.label==o].index[0] for o in ('above|below', 'none'))
    table.loc[both, 'label'] = 'below|above'
    learn.predictions_by_label()
    table.loc[none, 'label'] = 'above'
    with pytest.raises(PredictionsError, match=rf'Row {none}, set.npz#train/{none}: the batch says none, the catalog above'): learn.predictions_by_label()


def test_torchs_own_loss_gets_its_sigmoid():
    learn = finder()
    wanted = learn.predictions_by_label()['above'].probs
    learn.loss_func = nn.BCEWithLogitsLoss()
    assert np.allclose(learn.predictions_by_label()['above'].probs, wanted, atol=1e-6)
    learn.loss_func = nn.MSELoss()
    with pytest.raises(PredictionsError, match='MSELoss gives no probabilities'): learn.predictions_by_label()


def test_one_label_that_is_there_or_not(catalog):
    "A column of its own, as the loader of a binary question may have, is no case of several labels."
    learn = learner(catalog)
    learn.model[1][-1],learn.loss_func = nn.Linear(32, 1),BCEWithLogitsLossFlat()
    assert learn.predictions().probs.shape[1]==2
    with pytest.raises(PredictionsError, match='one label here'): learn.predictions_by_label()


# a head that nobody trained

@pytest.mark.parametrize('norm', [True, False])
def test_only_training_counts_as_training(catalog, tmp_path, norm):
    learn = learner(catalog, norm=norm, path=tmp_path)
    assert not is_trained(learn)
    learn.predictions(), learn.validate()
    assert not is_trained(learn)
    learn.fit(1, 1e-3)
    assert is_trained(learn)
    learn.predictions()
    assert is_trained(learn)
    assert not is_trained(learner(catalog, norm=norm))


def test_a_loaded_head_is_trained_and_lr_find_trains_none(catalog, tmp_path):
    learn = learner(catalog, path=tmp_path)
    learn.lr_find(num_it=20, show_plot=False, suggest_funcs=())
    assert not is_trained(learn)
    learn.fit(1, 1e-3)
    learn.lr_find(num_it=20, show_plot=False, suggest_funcs=())
    assert is_trained(learn)
    learn.save('m')
    fresh = learner(catalog, path=tmp_path)
    assert is_trained(fresh.load('m', with_opt=False))


def test_the_warning_points_at_the_callers_line(learn):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        learn.predictions()
    assert [(o.category, o.filename) for o in said if o.category is UntrainedWarning]==[(UntrainedWarning, __file__)]


def test_a_learner_without_a_recorder(learn):
    learn.remove_cb(learn.recorder)
    assert len(learn.predictions(tta=np.int64(1)))==len(learn.dls.valid_ds)


# on features

@pytest.mark.parametrize('views', [1, 2])
def test_inside_precomputed(catalog, views):
    learn = learner(catalog, augment='thermogram' if views > 1 else None)
    learn.splitter = lambda m: [list(m[0].parameters()), list(m[1].parameters())]
    learn.train_bn = False
    learn.create_opt()
    learn.freeze()
    with learn.precomputed(views=views):
        learn.fit(1, 1e-2)
        inside = learn.predictions()
        with pytest.raises(PredictionsError, match='Leave the block'): learn.predictions(tta=4)
        if views > 1:
            with pytest.raises(PredictionsError, match='augmented views only'): learn.predictions(0)
        else: train = learn.predictions(0)
        assert is_trained(learn)
    assert inside.items==learn.predictions().items and np.allclose(inside.probs, learn.predictions().probs, atol=1e-6)
    if views==1: assert np.allclose(train.probs, learn.predictions(0).probs, atol=1e-6)


# ensembles

def some(seed, n=12, c=3, order=None):
    "Logits and their predictions, rows in the given order."
    logits = np.random.default_rng(seed).normal(size=(n, c))*3
    order = range(n) if order is None else order
    p = np.exp(logits)/np.exp(logits).sum(1, keepdims=True)
    return logits, Predictions(p[order], np.array([i%c for i in order]), list('abc'), [f'{i}.png' for i in order], [str(i//2) for i in order], 'patient')


@pytest.mark.parametrize('of', ['probabilities', 'logits'])
def test_joined_by_item_whatever_the_order(of):
    order = np.random.default_rng(9).permutation(12)
    one,two,shuffled = some(1),some(2),some(2, order=order)
    got = ensemble([one[1], shuffled[1]], of)
    assert np.allclose(got.probs, ensemble([one[1], two[1]], of).probs) and got.items==one[1].items and got.patients==one[1].patients
    z = (one[0] + two[0])/2
    wanted = np.exp(z)/np.exp(z).sum(1, keepdims=True) if of=='logits' else (one[1].probs + two[1].probs)/2
    assert np.allclose(got.probs, wanted, atol=1e-12)


def test_logits_of_a_model_that_is_certain():
    sure = Predictions([[1., 0.]], [0], ['a', 'b'], ['x'])
    assert np.isfinite(ensemble([sure, Predictions([[.1, .9]], [0], ['a', 'b'], ['x'])], 'logits').probs).all()


def test_ensembles_that_would_mix_things_up():
    one,two = some(1)[1],some(2)[1]
    for change,says in [(dict(items=['0.png']*12), 'an item twice'), (dict(items=[f'{i}.jpg' for i in range(12)]), 'not in both'),
            (dict(classes=list('acb')), 'classes a, c, b'), (dict(targets=(two.targets + 1)%3), '0.png is a in'), (dict(patients=['x']*12), 'other patients')]:
        other = Predictions(**{**dict(probs=two.probs, targets=two.targets, classes=two.classes, items=two.items, patients=two.patients), **change})
        with pytest.raises(PredictionsError, match=says): ensemble([one, other])
    with pytest.raises(PredictionsError, match='nothing to average'): ensemble([])
    with pytest.raises(PredictionsError, match="'logits'"): ensemble([one], of='votes')


@pytest.mark.parametrize('preds,says', [(Predictions([[.1, .9]], [0], ['a', 'b'], ['x']), 'preds is one Predictions: give a list'), (None, 'one NoneType'), (3, 'one int'),
    ([np.ones((1, 2))], 'Prediction 0 is of the type ndarray'), (np.ones((1, 2)), 'of the type ndarray'), ([Predictions([[.1, .9]], [0], ['a', 'b'], ['x']), None], 'Prediction 1 is of the type NoneType'),
    ({'a': 1}, 'of the type str')], ids=['one', 'none', 'number', 'array in a list', 'array', 'none in a list', 'dict'])
def test_an_ensemble_is_of_a_list_of_predictions(preds, says):
    with pytest.raises(PredictionsError, match=says): ensemble(preds)


@pytest.mark.parametrize('given', [dict(ds_idx='valid'), dict(ds_idx=None), dict(ds_idx=1.), dict(ds_idx=-1), dict(tta='4'), dict(tta=4, beta='a'), dict(tta=4, beta=float('nan'))], ids=str)
def test_parts_and_views_that_are_none(learn, given):
    with pytest.raises(PredictionsError, match=f'{[*given][-1]} = '): learn.predictions(**given)


@pytest.mark.parametrize('splits,claim', [(('patient', 'patient'), 'patient'), (('patient', 'image'), 'image'), (('patient', 'unknown'), 'unknown'), (('official', 'patient'), 'official')])
def test_an_ensemble_claims_no_better_split_than_its_worst(splits, claim):
    both = [some(1)[1], some(2)[1]]
    for o,s in zip(both, splits): o.split_by = s
    assert ensemble(both).split_by==claim


def test_logits_of_real_models_are_averaged_as_if_they_had_been_kept(catalog):
    "Sure ones, too: their probabilities would be 0 in float32."
    learns = [learner(catalog) for _ in range(2)]
    for learn,much in zip(learns, (2e3, -7e2)):
        learn.fit(1, 1e-2)
        learn.model[1][-1].weight.data *= much
    logits = [o.get_preds(act=lambda o: o)[0].double() for o in learns]
    mean = torch.stack(logits).mean(0).softmax(1)
    preds = [o.predictions() for o in learns]
    assert min(o.probs.min() for o in preds) < 1e-45
    assert np.allclose(ensemble(preds, of='logits').probs, mean, atol=1e-12)
    assert np.allclose(ensemble(preds).probs, torch.stack([o.softmax(1) for o in logits]).mean(0), atol=1e-12)
    assert abs(ensemble(preds).probs - mean.numpy()).max() > .1


# snapshots

def state(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return all(torch.equal(v, b[k]) for k,v in a.items())


class EpochEnds(Callback):
    "The weights after every epoch, taken apart from the snapshots."
    def before_fit(self): self.states = []
    def after_epoch(self): self.states.append(state(self.learn))


def test_snapshots_are_the_weights_at_the_end_of_each_cycle(learn):
    learn.fit_snapshots(2, 1e-2, cycle_len=1, cycle_mult=2, cbs=(ends := EpochEnds()))
    assert len(learn.snapshots)==2 and len(ends.states)==3
    for kept,epoch in zip(learn.snapshots, (0, 2)):
        assert all(torch.equal(kept[p], ends.states[epoch][k]) for k,p in [*learn.model.named_parameters(), *learn.model.named_buffers()])
    assert not any(isinstance(cb, KeepSnapshots) for cb in learn.cbs)


def test_fit_snapshots_trains_as_fit_cycles_does(catalog):
    ends = []
    for method in ('fit_snapshots', 'fit_cycles'):
        learn = learner(catalog)
        getattr(learn, method)(2, 1e-2, cycle_mult=2, wd=.1)
        ends.append(state(learn))
    assert same(*ends)
    with pytest.raises(ScheduleError): learn.fit_snapshots(0, 1e-2)


def test_every_cycle_answers_for_every_part_and_nothing_moves(learn):
    learn.fit_snapshots(3, 1e-2)
    learn.fit(1, 1e-2)
    before,now = state(learn),learn.predictions(2).probs
    for part in (0, 1, 2):
        got = learn.snapshot_predictions(part)
        assert len(got)==3 and got[0].items==learn.predictions(part).items
        assert abs(got[0].probs - got[2].probs).max() > 1e-5
    for weights,preds in zip(learn.snapshots, learn.snapshot_predictions(2)):
        with torch.no_grad(): [t.copy_(v) for t,v in weights.items()]
        assert np.array_equal(learn.predictions(2).probs, preds.probs)
    learn.model.load_state_dict(before)
    assert np.array_equal(learn.predictions(2).probs, now)


def test_the_weights_come_back_after_an_error(learn):
    learn.fit_snapshots(2, 1e-2)
    learn.snapshots[0] = {t: torch.full_like(v, float('nan')) if v.is_floating_point() else v for t,v in learn.snapshots[0].items()}
    before = state(learn)
    with pytest.raises(PredictionsError, match='diverged'): learn.snapshot_predictions()
    assert same(before, state(learn))


def test_views_and_folders_reach_every_cycle(learn, small_study):
    learn.fit_snapshots(2, 1e-2)
    plain,views = learn.snapshot_predictions(folder=small_study),learn.snapshot_predictions(tta=2)
    assert all(o.startswith('txt/') for o in plain[1].items) and (plain[0].probs!=views[0].probs).any()


def test_what_rests_is_kept_once(catalog):
    learn = learner(catalog)
    learn.splitter = lambda m: [list(m[0].parameters()), list(m[1].parameters())]
    learn.create_opt()
    learn.freeze()
    learn.fit_snapshots(2, 1e-2)
    first,second = learn.snapshots
    assert all(first[p] is second[p] for p in learn.model[0].parameters()) and first[learn.model[1][-1].weight] is not second[learn.model[1][-1].weight]


def test_snapshots_on_features_answer_for_images(catalog):
    learn = learner(catalog, augment=None)
    learn.splitter,learn.train_bn = lambda m: [list(m[0].parameters()), list(m[1].parameters())],False
    learn.create_opt()
    learn.freeze()
    with learn.precomputed():
        learn.fit_snapshots(2, 1e-2)
        inside = learn.snapshot_predictions()
    outside = learn.snapshot_predictions()
    assert all(np.allclose(a.probs, b.probs, atol=1e-6) for a,b in zip(inside, outside)) and len(learn.snapshot_predictions(2))==2
    learn.fit_snapshots(1, 1e-2)
    with learn.precomputed(), pytest.raises(PredictionsError, match='Leave the block'): learn.snapshot_predictions()


def test_a_training_that_stops_early_leaves_the_cycles_that_ended(learn):
    class Stop(Callback):
        order = 60
        def after_epoch(self):
            if self.epoch==1: raise CancelFitException()
    learn.fit_snapshots(4, 1e-2, cbs=Stop())
    assert len(learn.snapshots)==2==len(learn.snapshot_predictions())


def test_no_snapshots_or_those_of_another_network(learn, catalog):
    with pytest.raises(PredictionsError, match='fit_snapshots'): learn.snapshot_predictions()
    learn.fit_snapshots(1, 1e-2)
    learn.model = network()
    with pytest.raises(PredictionsError, match='not of this network'): learn.snapshot_predictions()
