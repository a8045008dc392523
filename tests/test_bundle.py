"Bundles: the learner's own bits, in another process too; hostile folders, changed bytes, interrupted saving; images of unknown origin."
import ast
import io
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.fp16 import MixedPrecision  # noqa: F401  (fastai's learners know it)
from fastai.data.transforms import Normalize
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.vision.augment import aug_transforms
from fasttransform import Transform
from PIL import Image
from safetensors.torch import save as save_tensors
from torch import nn

from medfast import bundle as module
from medfast.bundle import BundleError, _described, _filled, _skeleton, _weights, _write_sums, export_onnx, load_bundle, save_bundle
from medfast.calibration import with_temperature
from medfast.catalog import dmr_catalog
from medfast.decisions import OperatingPoint
from medfast.images import ImageError, decode, read_bytes, read_image, read_levels
from medfast.loaders import array_dls, folder_dls, study_dls
from medfast.models import ARCHITECTURES, NETWORKS, build_model, dense_head, medical_learner, study_head
from medfast.networks import build_network
from medfast.precompute import PrecomputeError  # noqa: F401  (patches Learner)
from medfast.predictions import UntrainedWarning, ensemble
from medfast.table import Predictions
from medfast.thermogram import convert_thermograms

pytestmark = [pytest.mark.filterwarnings('ignore::medfast.predictions.UntrainedWarning'), pytest.mark.filterwarnings('ignore::FutureWarning')]
CPU = dict(device='cpu')


# learners of every way in

def halves(rows):
    "Split by the last digit of the place, so that both parts have both classes."
    return pd.DataFrame(rows).assign(split=['valid' if i%5 in (2, 3) else 'train' for i in range(len(rows))])


def pictures(folder, mode='L', suffix='.png', n=15, size=(40, 52)):
    "A catalog of small noisy pictures of two classes."
    folder.mkdir(parents=True)
    rng,rows = np.random.default_rng(0),[]
    for i in range(n):
        x = rng.integers(0, 128 + 127*(i%2), size + ((3,) if mode=='RGB' else ()), dtype=np.uint8)
        x = x.astype(np.uint16)*257 if mode=='I;16' else x
        Image.fromarray(x).save(folder/f'{i:02d}{suffix}')
        rows.append(dict(path=str(folder/f'{i:02d}{suffix}'), label=('no', 'yes')[i%2]))
    return halves(rows)


def archive(fn, colour=False):
    "An archive of MedMNIST's kind, and its catalog."
    rng = np.random.default_rng(1)
    parts = {p: rng.integers(0, 256, (n, 28, 28) + (3,)*colour, dtype=np.uint8) for p,n in dict(train=10, val=6, test=5).items()}
    np.savez(fn, classes=['left', 'right'], **{f'{p}_images': x for p,x in parts.items()}, **{f'{p}_labels': np.arange(len(x))%2 for p,x in parts.items()})
    rows = [dict(path=f'{fn}#{part}/{i}', label=('left', 'right')[i%2], split=part) for part,p in dict(train='train', valid='val', test='test').items() for i in range(len(parts[p]))]
    return pd.DataFrame(rows)


def text_catalog(folder): return dmr_catalog(folder).pipe(lambda o: o.assign(split=['valid' if p in sorted(o.patient.unique())[::3] else 'train' for p in o.patient], split_by='patient'))


@pytest.fixture(scope='session')
def study(small_study): return text_catalog(small_study)


@pytest.fixture(scope='session')
def learners(tmp_path_factory, study, small_study):
    "Name -> trained learner, one for every way in which images come."
    home = tmp_path_factory.mktemp('learners')
    convert_thermograms(small_study, home/'png', progress=False)
    png = study.assign(path=[next((home/'png').rglob(f'{Path(p).name}*.png')).as_posix() for p in study.path])
    rgb,deep,grey,npz,colour = pictures(home/'rgb', 'RGB', '.jpg'), pictures(home/'deep', 'I;16'), pictures(home/'grey'), archive(home/'organs.npz'), archive(home/'blood.npz', True)
    for i,row in grey.iterrows():
        (dest := home/'tree'/row.split/row.label).mkdir(parents=True, exist_ok=True)
        shutil.copy(row.path, dest)
    floats = np.random.default_rng(2).random((15, 32, 32), dtype=np.float32)
    made = dict(
        text=(study_dls(study, size=32, bs=4, augment='thermogram', **CPU), 'mirror_cnn', {}),
        png=(study_dls(png, size=(24, 32), bs=4, stats='train', **CPU), 'small_resnet', dict(widths=(8, 16))),
        jpg=(study_dls(rgb, size=40, bs=4, stats=None, augment=dict(kind='chest', max_rotate=5), **CPU), 'squeezenet1_1', dict(pretrained=False)),
        deep=(study_dls(deep, size=32, bs=4, **CPU), 'mirror_cnn', {}),
        tree=(folder_dls(home/'tree', size=32, bs=4, **CPU), 'mirror_cnn', {}),
        npz=(array_dls(npz, bs=4, augment='organ', **CPU), 'simple_cnn', {}),
        npz_larger=(array_dls(npz, bs=4, size=32, n_in=3, stats=([.5], [.25]), **CPU), 'small_resnet', {}),
        npz_study=(study_dls(npz, bs=4, size=28, **CPU), 'mirror_cnn', {}),
        colour_grey=(array_dls(colour, bs=4, n_in=1, **CPU), 'big_cnn', dict(bn=True)),
        colour=(array_dls(colour, bs=4, **CPU), 'simple_cnn', {}),
        files=(array_dls(rgb, bs=4, size=32, n_in=1, **CPU), 'simple_cnn', dict(size=32)),
        hot=(array_dls(study, bs=4, size=32, **CPU), 'simple_cnn', dict(size=32)),
        floats=(array_dls(grey.drop(columns='path').assign(path=[f'image {i}' for i in range(15)]), images=floats, bs=4, **CPU), 'simple_cnn', dict(size=32)))
    return {name: trained(medical_learner(dls, arch, **options)) for name,(dls,arch,options) in made.items()} | dict(_floats=floats)


def trained(learn):
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    return learn


WAYS = ['text', 'png', 'jpg', 'deep', 'tree', 'npz', 'npz_larger', 'npz_study', 'colour_grey', 'colour', 'files', 'hot', 'floats']


@pytest.fixture(scope='session')
def bundles(learners, tmp_path_factory):
    home = tmp_path_factory.mktemp('bundles')
    return {name: save_bundle(learners[name], home/name) for name in WAYS}


def quiet(learn, *args, **kw):
    with learn.no_bar(): return learn.predictions(*args, **kw)


def sources(learners, name):
    "The validation images of a learner as a bundle takes them."
    rows = learners[name].dls.catalogs['valid']
    if name!='floats': return rows.path.tolist()
    return [learners['_floats'][int(p.split()[1])] for p in rows.path]


# the learner's bits

@pytest.mark.parametrize('name', WAYS)
def test_a_bundle_gives_the_learners_bits(learners, bundles, name):
    answers = list(load_bundle(bundles[name]).predict_many(sources(learners, name)))
    assert [o.error for o in answers] == [None]*len(answers)
    preds = quiet(learners[name])
    assert np.array([list(o.probabilities.values()) for o in answers]).tobytes() == preds.probs.tobytes()
    assert [o.label for o in answers] == [preds.classes[i] for i in preds.probs.argmax(1)]


def test_a_new_process_gives_the_same_bits(learners, bundles, tmp_path):
    told = {name: [str(bundles[name]), [str(o) for o in sources(learners, name)]] for name in WAYS if name!='floats'}
    (tmp_path/'told.json').write_text(json.dumps(told))
    code = '''if True:
        import json, sys
        from medfast.bundle import load_bundle
        told = json.load(open(sys.argv[1]))
        json.dump({k: [[x.hex() for x in a.probabilities.values()] for a in load_bundle(b).predict_many(o)] for k,(b,o) in told.items()}, open(sys.argv[2], 'w'))'''
    threads = str(torch.get_num_threads())
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code, tmp_path/'told.json', tmp_path/'out.json'], check=True, timeout=300, env={**os.environ, 'OMP_NUM_THREADS': threads})
    found = json.loads((tmp_path/'out.json').read_text())
    for name in told: assert found[name] == [[x.hex() for x in row] for row in quiet(learners[name]).probs.tolist()], name


@pytest.mark.parametrize('name', ['text', 'png', 'jpg', 'deep', 'npz', 'files'])
def test_one_image_is_the_learners_batch_of_one(learners, bundles, name):
    learn,bundle = learners[name],load_bundle(bundles[name])
    row = sources(learners, name)[1]
    with learn.no_bar(): out = learn.get_preds(dl=learn.dls.test_dl([row], bs=1, num_workers=0), act=lambda o: torch.softmax(o.double(), 1))[0].numpy()
    assert np.array([list(bundle.predict(row).probabilities.values())]).tobytes() == out.tobytes()


@pytest.mark.parametrize('name', ['text', 'jpg', 'deep', 'files'])
def test_path_bytes_and_decoded_image_are_one(learners, bundles, name):
    bundle,fn = load_bundle(bundles[name]),sources(learners, name)[0]
    same = [bundle.prepare(o) for o in (fn, Path(fn), (Path(fn).name, Path(fn).read_bytes()), bundle.look(fn))]
    assert all(torch.equal(same[0], o) for o in same) and same[0].shape == (1, bundle.input.n_in, *bundle.size)


def test_a_batch_of_another_size_differs_in_the_last_digits_at_most(learners, bundles):
    rows = sources(learners, 'jpg')
    a,b = ([o.probabilities['yes'] for o in load_bundle(bundles['jpg']).predict_many(rows, bs=n)] for n in (1, 6))
    assert np.abs(np.subtract(a, b)).max() < 1e-6


def test_pictures_of_unseen_sizes_go_the_way_of_the_learner(learners, bundles, tmp_path):
    "Colour, palette, alpha, print colours, a turned one and 16 bits, each as `test_dl` reads it."
    rng = np.random.default_rng(3)
    colour,files = Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)), {}
    for mode,suffix in (('P', '.png'), ('RGBA', '.png'), ('CMYK', '.jpg'), ('L', '.bmp'), ('1', '.png'), ('LA', '.png')): colour.convert(mode).save(files.setdefault(mode, tmp_path/f'{mode}{suffix}'))
    exif = Image.Exif(); exif[0x0112] = 6
    colour.save(files.setdefault('turned', tmp_path/'turned.jpg'), exif=exif)
    Image.fromarray(rng.integers(0, 65536, (30, 30), dtype=np.uint16)).save(files.setdefault('I;16', tmp_path/'deep.png'))
    for name in ('jpg', 'files'):
        learn,bundle = learners[name],load_bundle(bundles[name])
        for what,fn in files.items():
            x = learn.dls.test_dl([fn], bs=1, num_workers=0).one_batch()[0].as_subclass(torch.Tensor)
            assert torch.equal(bundle.prepare(fn), x), (name, what)
    assert 'turned upright' in load_bundle(bundles['jpg']).predict(files['turned'], trace=True).trace[0]


def test_levels_of_an_archive_are_the_same_in_memory_and_one_by_one():
    x = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert torch.equal(read_levels(x, None, 1), read_image(x, size=16, n_in=1).as_subclass(torch.Tensor))
    assert torch.equal(read_levels(x, 11, 3), read_image(x, size=11, n_in=3).as_subclass(torch.Tensor))


# what a bundle knows

def test_a_bundle_tells_how_it_was_made(learners, bundles):
    learn,bundle = learners['text'],load_bundle(bundles['text'])
    assert (bundle.classes, bundle.kind, bundle.size, bundle.bs, bundle.low, bundle.high) == (list(learn.dls.vocab), 'thermogram', (32, 32), 4, 20., 40.)
    assert bundle.split['by'] == 'patient' and len(bundle.split['hash']) == 64 and bundle.split['n_images'] == {p: len(o) for p,o in learn.dls.catalogs.items()}
    assert (bundle.weights, bundle.calibrated, bundle.point, bundle.temperature, bundle.views) == ('random, seed 42', False, None, None, True)
    assert not bundle.model.training and {'torch', 'fastai', 'medfast'} <= set(bundle.versions)


def test_no_patient_and_no_folder_is_written_down(study, bundles):
    text = (bundles['text']/'medfast.json').read_text()
    assert not [o for o in (*study.patient, *study.path.map(lambda p: Path(p).name), str(Path(study.path[0]).parent)) if f'"{o}"' in text or len(str(o)) > 6 and str(o) in text]


def a_point(classes, t=1.7, threshold=.4): return OperatingPoint(classes[1], tuple(classes), threshold, t, 'sensitivity', .95, .96, .9, 40, 90, 5, 'patient', 'a'*64)


def test_temperature_and_threshold_are_those_of_the_point(learners, tmp_path):
    learn = learners['text']
    preds = quiet(learn)
    wanted = with_temperature(preds, 1.7).probs
    point = a_point(learn.dls.vocab, threshold=wanted[:, 1].max())
    bundle = load_bundle(save_bundle(learn, tmp_path/'b', point=point))
    answers = list(bundle.predict_many(preds.items))
    assert np.array([[*o.probabilities.values()] for o in answers]).tobytes() == wanted.tobytes()
    assert bundle.point == point and bundle.calibrated and bundle.positive == point.positive
    assert [o.decision for o in answers] == [point.classes[int(p == wanted[:, 1].max())] for p in wanted[:, 1]], 'from the threshold on, no sooner'
    assert {o.threshold for o in answers} == {point.threshold} and 0 < sum(o.decision == point.positive for o in answers) < len(answers)


def test_a_point_without_a_temperature_is_not_called_calibrated(learners, tmp_path):
    assert not load_bundle(save_bundle(learners['text'], tmp_path/'b', point=a_point(learners['text'].dls.vocab, t=1.))).calibrated


def test_a_temperature_alone(learners, tmp_path):
    bundle = load_bundle(save_bundle(learners['npz'], tmp_path/'b', temperature=np.float64(2.)))
    x = bundle.prepare(np.zeros((28, 28), np.uint8))
    p = torch.softmax(bundle.model(x).double()/2, 1).detach().numpy()
    assert bundle.calibrated and bundle.predict(np.zeros((28, 28), np.uint8)).decision is None
    np.testing.assert_allclose(bundle.probabilities(x), p, rtol=1e-12)


@pytest.mark.parametrize('options,says', [(dict(temperature=0), 'above 0'), (dict(temperature=float('nan')), 'above 0'), (dict(temperature='hot'), 'above 0'), (dict(facts=dict(a=float('nan'))), 'facts'),
    (dict(facts=dict(a=b'x')), 'no plain value'), (dict(facts=dict(a='x'*70_000)), '64 KB'), (dict(point=a_point(('no', 'yes'))), 'The operating point is for the classes no, yes')])
def test_what_cannot_be_saved_is_said_and_nothing_is_written(learners, tmp_path, options, says):
    with pytest.raises(BundleError, match=says): save_bundle(learners['text'], tmp_path/'b', **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('low,high,says', [(5., 18., None), (41., 49.9, None), (10., 22., '84% of the image lies outside the 20 to 40 °C that the network was trained on'), (10., 35., ''), (19.9, 40.1, '')])
def test_temperatures_beside_the_scale_are_told_or_refused(bundles, low, high, says):
    bundle,rng = load_bundle(bundles['text']),np.random.default_rng(0)
    temps = np.sort(rng.uniform(low, high, 480*640)).reshape(480, 640).astype(np.float32)
    if says is None:
        with pytest.raises(ImageError, match='cold.txt lies wholly outside the 20 to 40 °C'): bundle.predict(('cold.txt', temps))
    else: assert [o for o in bundle.predict(('cold.txt', temps)).notes if 'outside' in o] == [o for o in (says,) if o]


# several networks, and several images of a patient

def other(learn, seed=7): return trained(medical_learner(learn.dls, 'mirror_cnn', seed=seed))


@pytest.fixture(scope='module')
def three(learners): return [learners['text'], other(learners['text']), other(learners['text'], 8)]


@pytest.fixture(scope='module')
def averaged(three, tmp_path_factory): return save_bundle(three, tmp_path_factory.mktemp('three')/'b', point=a_point(three[0].dls.vocab))


def test_several_learners_give_the_bits_of_their_ensemble(three, averaged):
    bundle,preds = load_bundle(averaged),[quiet(o) for o in three]
    wanted = with_temperature(ensemble(preds), 1.7)
    assert np.array([list(o.probabilities.values()) for o in bundle.predict_many(wanted.items)]).tobytes() == wanted.probs.tobytes()
    assert len(bundle.members) == 3 and 'the mean of 3' in repr(bundle) and all(abs(wanted.probs - with_temperature(o, 1.7).probs).max() > 1e-9 for o in preds)
    assert bundle.split['n_images'] == {p: len(o) for p,o in three[0].dls.catalogs.items()}, 'one split, told as it is'
    x = bundle.prepare(wanted.items[0])
    np.testing.assert_allclose(torch.softmax(bundle.model(x).double(), 1).detach().numpy(), bundle._raw(x), atol=1e-6)


def test_weights_of_every_member_are_compared(three, averaged, tmp_path, monkeypatch):
    state = tensors(averaged)
    assert {k.split('.')[0] for k in state} == {'0', '1', '2'}
    real = module._together
    monkeypatch.setattr(module, '_together', lambda models: real([models[0], models[2], models[1]]))
    with pytest.raises(BundleError, match='gives other outputs'): save_bundle(three, tmp_path/'b')


@pytest.mark.parametrize('n', [0, -1, 2, 4, 33, 10**9, 2.5, True, None, '3'])
def test_another_number_of_members_is_no_bundle(averaged, tmp_path, n):
    shutil.copytree(averaged, tmp_path/'b')
    change_card(tmp_path/'b', lambda card: card.update(members=n))
    refuses(tmp_path/'b', 'members = ' if n not in (2, 4) or n is True else 'model.safetensors')


def test_learners_of_folds_share_one_part_and_no_other(learners, study, tmp_path):
    who = sorted(study.patient.unique())
    def fold(valid, test): return study_dls(study.assign(split=['test' if p in test else 'valid' if p in valid else 'train' for p in study.patient]), size=32, bs=4, augment='thermogram', **CPU)
    one,two,leaky = [trained(medical_learner(o, 'mirror_cnn')) for o in (fold(who[2:5], who[:2]), fold(who[5:8], who[:2]), fold(who[2:5], who[8:10]))]
    split = load_bundle(save_bundle([one, two], tmp_path/'b')).split
    assert split['n_patients'] == dict(development=len(who) - 2, test=2) and sum(split['n_images'].values()) == len(study) and len(split['hash']) == 64
    with pytest.raises(BundleError, match='what one was tested on, another may have learned'): save_bundle([one, leaky], tmp_path/'x')
    for odd,says in ((learners['hot'], 'learner 1 has another input'), (trained(medical_learner(one.dls, 'simple_cnn', size=32)), 'learner 1 has another network')):
        with pytest.raises(BundleError, match=says): save_bundle([one, odd], tmp_path/'x')
    with pytest.raises(BundleError, match='0 learners were given'): save_bundle([], tmp_path/'x')
    with pytest.raises(BundleError, match='stands twice'): save_bundle([one, two, one], tmp_path/'x')
    assert len(load_bundle(save_bundle((o for o in [one, two]), tmp_path/'b2')).members) == 2
    shutil.rmtree(tmp_path/'b2')
    assert [o.name for o in tmp_path.iterdir()] == ['b']


def test_outputs_of_several_networks_are_the_logs_of_their_mean(three, averaged):
    bundle = load_bundle(averaged)
    x = torch.cat([bundle.prepare(o) for o in three[0].dls.catalogs['valid'].path[:3]])
    with torch.no_grad(): np.testing.assert_allclose(bundle.model(x).double().numpy(), np.log(bundle._raw(x)), atol=1e-5)


def test_the_card_tells_of_every_member(three, averaged, tmp_path):
    weights = json.loads((averaged/'medfast.json').read_text())['weights']
    assert weights['n'] == 3*sum(o.numel() for o in three[0].model.parameters()) and weights['trained'] is True
    assert weights['origin'].split('; ') == sorted({o.weights for o in three}) and len({o.weights for o in three}) == 3
    with pytest.warns(UntrainedWarning): save_bundle([three[0], untrained(three[0])], tmp_path/'b')
    assert json.loads((tmp_path/'b'/'medfast.json').read_text())['weights']['trained'] is False


def untrained(learn): return medical_learner(learn.dls, 'mirror_cnn', seed=9)


def test_nan_of_any_member_is_an_error(averaged, three):
    bundle = load_bundle(averaged)
    bundle.members[-1] = lambda x: torch.full((len(x), 2), float('nan'))
    with pytest.raises(BundleError, match='gives NaN'): bundle.predict_patient(three[0].dls.catalogs['valid'].path[:1])


def test_buffers_that_are_not_saved_are_made_for_every_member(three, averaged, monkeypatch):
    fn,real = three[0].dls.catalogs['valid'].path.iloc[0],module._build
    wanted = load_bundle(averaged).predict(fn).probabilities
    def build(made):
        model = real(made)
        model.register_buffer('extra', torch.arange(3.), persistent=False)
        return model
    monkeypatch.setattr(module, '_build', build)
    bundle = load_bundle(averaged)
    assert bundle.predict(fn).probabilities == wanted and [o.extra.tolist() for o in bundle.members] == [[0, 1, 2]]*3


def test_a_note_on_several_images_of_a_patient_stands_once(bundles):
    picture = lambda level: np.full((40, 52), level, np.uint16)
    answer = load_bundle(bundles['deep']).predict_patient([picture(30), picture(40), picture(60_000)])
    assert answer.n_images == 3 and [o[:12] for o in answer.notes] == ['mean of 3 im', 'nearly black']


def test_a_patient_is_the_mean_that_the_evaluation_takes(three, averaged):
    bundle,preds = load_bundle(averaged),ensemble([quiet(o) for o in three])
    one = Predictions(preds.probs, np.zeros(len(preds), int), preds.classes, preds.items, ['x']*len(preds))
    wanted = with_temperature(one.by_patient(), 1.7).probs[0]
    answer = bundle.predict_patient(iter(preds.items), 'x')
    assert np.array(list(answer.probabilities.values())).tobytes() == wanted.tobytes() and answer.n_images == len(preds) > 4
    assert (answer.item, answer.decision, answer.notes, answer.trace) == ('x', preds.classes[int(wanted[1] >= .4)], (f'mean of {len(preds)} images',), ())
    assert abs(wanted - with_temperature(one, 1.7).probs.mean(0)).max() > 1e-9, 'the temperature comes after the mean'
    assert bundle.predict_patient(preds.items, tta=2).probabilities != answer.probabilities


def test_of_a_patient_what_cannot_be_read_is_told_and_the_others_answer(averaged, learners):
    bundle,rows = load_bundle(averaged),sources(learners, 'text')[:3]
    answer = bundle.predict_patient([rows[0], ('b.txt', b'no'), rows[1], ('c.exe', b'MZ')], 'x', trace=True)
    assert answer.notes[:2] == ('mean of 2 images', '2 of 4 could not be read') and [o for o,_ in answer.unread] == ['b.txt', 'c.exe'] and answer.error is None
    assert answer.probabilities == bundle.predict_patient(rows[:2], bs=2).probabilities and [o.split(': ')[0] for o in answer.trace] == rows[:2]
    none = bundle.predict_patient([('b.txt', b'no')], 'x')
    assert (none.error, none.n_images, none.probabilities, none.decision) == ('none of 1 image of this patient can be read', 0, {}, None)
    assert 'none of 0 images' in bundle.predict_patient([]).error
    with pytest.raises(BundleError, match='bs = 0'): bundle.predict_patient(rows, bs=0)
    for name in ('', ' ', None, float('nan')):
        with pytest.raises(BundleError, match='a text is wanted'): bundle.predict_patient(rows, name)
    assert bundle.predict_patient(rows[0]).n_images == 1


def test_many_members_cost_nothing_before_their_weights_are_there(averaged, tmp_path, monkeypatch):
    shutil.copytree(averaged, tmp_path/'b')
    change_card(tmp_path/'b', lambda card: card.update(members=32))
    built,real = [],module._build
    monkeypatch.setattr(module, '_build', lambda o: built.append(o) or real(o))
    refuses(tmp_path/'b', 'model.safetensors: 3')
    assert len(built) == 1


def test_weights_that_no_bundle_could_read_are_not_written(three, tmp_path, monkeypatch):
    monkeypatch.setitem(module._MOST, 'model.safetensors', 1000)
    with pytest.raises(BundleError, match='a bundle holds at most 1,000. Take fewer networks'): save_bundle(three, tmp_path/'b')
    assert list(tmp_path.iterdir()) == []


def test_repeated_rows_are_not_counted_as_images(learners, tmp_path):
    rows = learners['jpg'].dls.catalogs
    catalog = pd.concat(list(rows.values()), ignore_index=True).assign(copy=0)
    more = pd.concat([catalog, catalog[catalog.split == 'train'].head(3).assign(copy=1)], ignore_index=True)
    learn = trained(medical_learner(study_dls(more, size=32, bs=4, **CPU), 'mirror_cnn'))
    assert load_bundle(save_bundle(learn, tmp_path/'b')).split['n_images'] == {p: len(o) for p,o in rows.items()} and len(learn.dls.catalogs['train']) > len(rows['train'])


# views

def test_views_do_not_depend_on_neighbours_and_are_averaged_as_by_the_learner(learners, bundles):
    bundle,rows = load_bundle(bundles['text']),sources(learners, 'text')
    state = torch.get_rng_state()
    alone,together = bundle.predict(rows[1], tta=3), list(bundle.predict_many(rows, tta=3, bs=1))[1]
    assert alone == together and torch.equal(state, torch.get_rng_state())
    xs = [bundle._pixels(rows[1], [], [])]
    with module.no_random(42): views = [bundle._raw(bundle._batch(xs, view=True)) for _ in range(3)]
    assert [*alone.probabilities.values()] == (.2*bundle._raw(bundle._batch(xs)) + .8*np.mean(views, 0))[0].tolist()
    assert len({v.tobytes() for v in views}) == 3


def test_views_lie_where_those_of_the_learner_lie(learners, bundles):
    rows = sources(learners, 'text')
    ours = np.array([[*o.probabilities.values()] for o in load_bundle(bundles['text']).predict_many(rows, tta=40)])
    theirs = [quiet(learners['text'], tta=40, seed=s).probs for s in (1, 2)]
    assert np.abs(ours - theirs[0]).max() < 4*np.abs(theirs[0] - theirs[1]).max() + 1e-3


def test_without_augmentation_there_are_no_views(bundles):
    with pytest.raises(BundleError, match='no views to draw'): load_bundle(bundles['deep']).predict_many([], tta=2)
    with pytest.raises(BundleError, match='bs = 0'): load_bundle(bundles['deep']).predict_many([], bs=0)


# a closed list of networks

def rebuilt(model, x):
    "The outputs of a network and of what its own record and weights make of it."
    made = json.loads(json.dumps(model.made))
    with torch.no_grad(): return model.eval()(x), _filled(module._check_network(made), 1, _weights(model))(x)


@pytest.mark.parametrize('make', [lambda: build_model('simple_cnn', 3, n_in=1), lambda: build_model('big_cnn', 3, n_in=1, bn=True, bias=False), lambda: build_model('covid_cnn', 4, n_in=1, size=64),
    lambda: build_model('small_resnet', 2, n_in=1, widths=(4, 8), depth=2, stride=2, ps=.1), lambda: build_model('mirror_cnn', 2, n_in=1), lambda: build_model('squeezenet1_1', 2, n_in=1, head='study'),
    lambda: build_model('resnet18', 2, n_in=1, lin_ftrs=[32], ps=[.1, .2]), lambda: build_model('resnet18', 2, n_in=1, head=dense_head(512, 2, widths=(20,), bn=True, ps=.2)), lambda: build_model('resnet18', 3, n_in=1, head=study_head(512, 3)),
    lambda: build_network('conv 6 k3 p1 | res 8 s2 | mean | dense 10 | dropout .5 | out', 1, 3, bn=True)], ids=range(10))
def test_what_a_network_was_made_with_makes_it_again(make):
    model = make()
    size = 64 if model.made['options'].get('size')==64 else 28
    for m in model.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)): m.running_mean.uniform_(-.2, .2)
    ours,theirs = rebuilt(model, torch.randn(3, 1, size, size))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize('arch', [*ARCHITECTURES, *NETWORKS])
def test_every_name_of_the_list_has_a_skeleton_that_fits(arch):
    with torch.device('meta'): model = build_model(arch, 2)
    again = _skeleton(module._check_network(json.loads(json.dumps(model.made))))
    assert _described(again) == _described(model) and {p.device.type for p in again.parameters()} == {'meta'}


def test_a_network_of_timm_with_tables_that_are_not_saved():
    pytest.importorskip('timm')
    model = build_model('coatnet_pico_rw_224', 2)
    assert set(dict(model.named_buffers())) - set(model.state_dict())
    ours,theirs = rebuilt(model, torch.randn(1, 3, 224, 224))
    assert torch.equal(ours, theirs)


# learners that are refused

def refused(learn, says, tmp_path, **kw):
    with pytest.raises(BundleError, match=says): save_bundle(learn, tmp_path/'b', **kw)
    assert not (tmp_path/'b').exists() and not list(tmp_path.glob('.writing*'))


def test_a_learner_inside_precomputed_is_refused(learners, tmp_path):
    learn = medical_learner(learners['deep'].dls, 'mirror_cnn', freeze=True)
    learn.train_bn = False; learn.create_opt(); learn.freeze()
    with learn.no_bar(), learn.precomputed(): refused(learn, 'Leave the block first', tmp_path)


def test_several_labels_are_refused(tmp_path):
    catalog = archive(tmp_path/'a.npz').assign(task='multi-label')
    (tmp_path/'t').mkdir()
    refused(medical_learner(array_dls(catalog, bs=4, **CPU), 'simple_cnn'), 'one finding at a time', tmp_path/'t')


def test_code_of_ones_own_is_refused(learners, tmp_path):
    dls,own = learners['npz'].dls,nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3)), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
    refused(Learner(dls, own, loss_func=CrossEntropyLossFlat()), 'build_network', tmp_path)
    refused(medical_learner(learners['deep'].dls, 'mirror_cnn', head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))), 'your own code', tmp_path)


def test_a_network_that_was_changed_is_refused(learners, tmp_path):
    learn = medical_learner(learners['npz'].dls, 'simple_cnn')
    learn.model[1][-1] = nn.Linear(84, 2, bias=False)
    refused(learn, 'changed after it was built', tmp_path)
    learn = medical_learner(learners['npz'].dls, 'simple_cnn')
    learn.model[0].relu1 = nn.Tanh()
    refused(learn, 'other outputs', tmp_path)


def test_a_hook_that_changes_outputs_is_noticed(learners, tmp_path):
    learn = medical_learner(learners['npz'].dls, 'simple_cnn')
    learn.model.register_forward_hook(lambda m, i, o: o + 1)
    refused(learn, 'other outputs', tmp_path)


class Negative(Transform):
    order = 50
    def encodes(self, x:torch.Tensor): return 1 - x


def test_loaders_that_a_bundle_cannot_repeat_are_refused(learners, study, tmp_path):
    dls = study_dls(study, size=32, bs=4, **CPU)
    dls.valid.after_batch.add(Negative())
    refused(medical_learner(dls, 'mirror_cnn'), 'Negative changes the batches', tmp_path)
    dls = study_dls(study, size=32, bs=4, **CPU)
    dls.valid.after_batch.add(Normalize.from_stats([.1]*3, [.9]*3, cuda=False))
    refused(medical_learner(dls, 'mirror_cnn'), 'prepare images otherwise', tmp_path)
    dls = study_dls(study, size=32, bs=4, augment=aug_transforms(max_warp=0, flip_vert=True), **CPU)
    try: save_bundle(medical_learner(dls, 'mirror_cnn'), tmp_path/'b')
    except BundleError as e: assert 'prepare images otherwise' in str(e)
    else: assert not load_bundle(tmp_path/'b').views


@pytest.mark.parametrize('spoil,says', [(lambda m: m.half(), 'changed after|full precision'), (lambda m: m[1][-1].weight.data.fill_(float('nan')), 'NaN or infinite'), (lambda m: m[0][1][0].weight.data.fill_(float('inf')), 'NaN or infinite')])
def test_weights_that_are_no_numbers_are_refused(study, tmp_path, spoil, says):
    learn = medical_learner(study_dls(study, size=32, bs=4, **CPU), 'mirror_cnn')
    spoil(learn.model)
    refused(learn, says, tmp_path)


def test_an_untrained_learner_is_told(learners, tmp_path):
    with pytest.warns(UntrainedWarning): save_bundle(medical_learner(learners['text'].dls, 'mirror_cnn'), tmp_path/'b')


# whole or not at all

def test_a_destination_with_files_is_refused_and_untouched(learners, tmp_path):
    (tmp_path/'b').mkdir()
    (tmp_path/'b/thesis.doc').write_text('do not lose')
    with pytest.raises(BundleError, match='nothing is overwritten'): save_bundle(learners['npz'], tmp_path/'b')
    assert (tmp_path/'b/thesis.doc').read_text() == 'do not lose' and len(list(tmp_path.iterdir())) == 1
    (tmp_path/'empty').mkdir()
    assert load_bundle(save_bundle(learners['npz'], tmp_path/'empty')).classes == ['left', 'right']


@pytest.mark.parametrize('where', ['write_text', '_weights', '_write_sums', '_load', '_check_same', 'os.rename'])
def test_interrupted_saving_leaves_nothing_that_loads(learners, tmp_path, monkeypatch, where):
    def stop(*args, **kw): raise KeyboardInterrupt
    monkeypatch.setattr(f'medfast.bundle.{where}', stop)
    with pytest.raises(KeyboardInterrupt): save_bundle(learners['npz'], tmp_path/'b')
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_saving_leaves_is_refused(learners, tmp_path, monkeypatch):
    monkeypatch.setattr('medfast.bundle.os.rename', lambda *a: (_ for _ in ()).throw(OSError('killed')))
    monkeypatch.setattr('medfast.bundle.shutil.rmtree', lambda *a, **k: None)
    with pytest.raises(OSError): save_bundle(learners['npz'], tmp_path/'b')
    left, = tmp_path.iterdir()
    assert {o.name for o in left.iterdir()} == {'medfast.json', 'model.safetensors', 'SHA256SUMS'}
    with pytest.raises(BundleError, match='never finished'): load_bundle(left)


def test_the_sums_are_those_of_sha256sum(bundles):
    if not shutil.which('sha256sum'): pytest.skip('no sha256sum here')
    assert subprocess.run(['sha256sum', '-c', '--strict', 'SHA256SUMS'], cwd=bundles['npz'], capture_output=True).returncode == 0


# hostile folders

class Payload:
    "A pickle that leaves a mark where it runs."
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return (os.mkdir, (str(self.mark),))


@pytest.fixture
def hostile(bundles, tmp_path):
    "A copy of a good bundle, and the mark that nobody may leave."
    folder,mark = tmp_path/'bundle',tmp_path/'mark'
    shutil.copytree(bundles['npz'], folder)
    yield folder, mark
    assert not mark.exists(), 'code of the bundle ran'


def change_card(folder, f):
    card = json.loads((folder/'medfast.json').read_text())
    f(card)
    (folder/'medfast.json').write_text(json.dumps(card))
    _write_sums(folder)


def refuses(folder, says):
    with pytest.raises(BundleError, match=says): load_bundle(folder)


@pytest.mark.parametrize('name', ['model.safetensors', 'medfast.json', 'SHA256SUMS', 'export.pkl', 'model.pth', 'model.onnx', 'notes.txt', 'model.pt', 'pytorch_model.bin'])
@pytest.mark.parametrize('torch_zip', [False, True])
def test_a_pickle_under_any_name_never_runs(hostile, name, torch_zip):
    folder,mark = hostile
    data = io.BytesIO()
    torch.save(Payload(mark), data) if torch_zip else data.write(pickle.dumps(Payload(mark)))
    (folder/name).write_bytes(data.getvalue())
    if name!='SHA256SUMS': _write_sums(folder)
    says = {'model.safetensors': 'its header would have', 'medfast.json': 'medfast.json is no JSON', 'SHA256SUMS': 'SHA256SUMS must have', 'notes.txt': 'notes.txt does not belong'}
    if name=='model.onnx': assert load_bundle(folder).classes # it is hashed, and never opened
    else: refuses(folder, says.get(name, 'is a pickle'))


def test_the_payload_of_these_tests_would_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path/'mark')))
    assert (tmp_path/'mark').is_dir()


@pytest.mark.parametrize('entry', ['../evil.safetensors', '/etc/passwd', 'a/../../b', '..\\\\b', 'model.safetensors\\n../x', 'C:evil'])
def test_a_path_that_leaves_the_folder_is_refused(hostile, entry):
    folder,_ = hostile
    with open(folder/'SHA256SUMS', 'a') as f: f.write(f'{"0"*64}  {entry}\n')
    refuses(folder, 'SHA256SUMS')


def test_links_are_refused(hostile, bundles):
    folder,_ = hostile
    for name in ('model.safetensors', 'medfast.json', 'SHA256SUMS'):
        (folder/name).rename(folder.parent/name)
        (folder/name).symlink_to(folder.parent/name)
        refuses(folder, 'is a link')
        (folder/name).unlink()
        (folder.parent/name).rename(folder/name)
    assert load_bundle(folder)


def test_pipes_and_folders_are_refused_at_once(hostile):
    folder,_ = hostile
    (folder/'medfast.json').unlink()
    os.mkfifo(folder/'medfast.json')
    refuses(folder, 'not a regular file')
    (folder/'medfast.json').unlink()
    (folder/'medfast.json').mkdir()
    refuses(folder, 'medfast.json')


@pytest.mark.parametrize('n', [2**63, 2**40, 100_000_000, 2**23 + 1, 0])
def test_a_header_that_claims_too_much_is_refused(hostile, n):
    folder,_ = hostile
    data = (folder/'model.safetensors').read_bytes()
    (folder/'model.safetensors').write_bytes(struct.pack('<Q', n) + data[8:])
    _write_sums(folder)
    refuses(folder, 'header')


def test_files_that_are_too_large_are_refused_before_they_are_read(hostile):
    folder,_ = hostile
    for name in ('SHA256SUMS', 'medfast.json', 'model.safetensors'):
        size = (folder/name).stat().st_size
        os.truncate(folder/name, 2**33)
        refuses(folder, 'at most')
        os.truncate(folder/name, size)
    assert load_bundle(folder)


def wide(card): card['network'] = dict(arch='table', n_in=1, n_out=2, head=None, options=dict(table='conv 1000000 k3 | mean | dense 100000000 | out'))
def deep(card): card['network'] = dict(arch='small_resnet', n_in=1, n_out=2, head=None, options=dict(depth=4000))


@pytest.mark.parametrize('change', [lambda c: c.update(classes=['left']), lambda c: c.update(classes=['left', 'left']), lambda c: c.update(classes=['left', 'right', 'other']), lambda c: c.update(classes='ab'), lambda c: c.update(classes=[1, 2]),
    lambda c: c['network'].update(arch='os.system'), lambda c: c['network'].update(arch='medfast.networks:simple_cnn'), lambda c: c['network'].update(arch=['resnet18']), lambda c: c['network'].update(arch='hf-hub:somebody/evil'),
    lambda c: c['network'].update(arch='big_cnn'), lambda c: c['network'].update(arch='resnet18'), lambda c: c['network'].update(n_out=3), lambda c: c['network'].update(n_in=3), lambda c: c['network'].update(options=dict(pretrained=True)),
    lambda c: c['network'].update(options=dict(size=10**9)), lambda c: c['network'].update(head=dict(kind='dense', n_features='__import__')), lambda c: c['network'].update(head='eval'), wide, deep,
    lambda c: c.update(format=2), lambda c: c.update(format=True), lambda c: c.update(more=1), lambda c: c.pop('facts'), lambda c: c['input'].update(size=[28, 10**6]), lambda c: c['input'].update(size=28), lambda c: c['input'].update(way='eval'),
    lambda c: c['input'].update(low=40, high=20), lambda c: c['input'].update(stats=[[.5], [0]]), lambda c: c['input'].update(stats='train'), lambda c: c['input'].update(stats=[['a'], ['b']]), lambda c: c['input'].update(n_in=2),
    lambda c: c['input'].update(augment=dict(kind='evil')), lambda c: c['input'].update(augment=dict(kind='organ', pad=[])), lambda c: c['input'].update(augment=['organ']), lambda c: c['input'].update(bs=0), lambda c: c.update(temperature=-1),
    lambda c: c.update(temperature='1'), lambda c: c.update(point=dict(threshold=.5)), lambda c: c.update(point=dict.fromkeys(('positive', 'classes'), 'left')), lambda c: c.update(facts=[]), lambda c: c.update(versions=None)])
def test_cards_that_lie_are_refused_in_no_time(hostile, change):
    change_card(hostile[0], change)
    refuses(hostile[0], 'medfast.json|model.safetensors')


@pytest.mark.parametrize('text,says', [(b'['*10**6, 'recursion'), (b'{"a":'*10**5, 'recursion'), (b'{"format": 1, "format": 1}', 'twice'), (b'{"format": NaN}', 'NaN'), (b'{"format": -Infinity}', 'Infinity'), (b'{"format": 1e999}', 'too large'),
    (b'9'*10**5, 'digits'), (b' '*(2**20 + 1), 'at most'), (b'\\xff\\xfe'.decode().encode('utf-16'), 'JSON'), (b'', 'JSON'), (b'null', 'format'), (b'[]', 'format'), (b'"x"', 'format'), (b'{"facts": ' + b'['*500 + b']'*500 + b'}', 'format|deep')])
def test_json_bombs_are_refused(hostile, text, says):
    (hostile[0]/'medfast.json').write_bytes(text)
    _write_sums(hostile[0])
    refuses(hostile[0], says)


def tensors(folder): return {k: v.clone() for k,v in module.load_tensors((folder/'model.safetensors').read_bytes()).items()}


@pytest.mark.parametrize('change', [lambda t: t.pop('1.out.bias'), lambda t: t.update(more=torch.zeros(1)), lambda t: t.update({'1.out.bias': torch.zeros(3)}), lambda t: t.update({'1.out.bias': torch.zeros(2, dtype=torch.float64)}),
    lambda t: t.update({'1.out.bias': torch.tensor([0., float('nan')])}), lambda t: t.update({'1.out.bias': torch.tensor([0., float('inf')])}), lambda t: t.clear()])
def test_weights_that_do_not_fit_are_refused(hostile, change):
    state = tensors(hostile[0])
    change(state)
    (hostile[0]/'model.safetensors').write_bytes(save_tensors(state))
    _write_sums(hostile[0])
    refuses(hostile[0], 'model.safetensors')


def test_exchanged_weights_are_found_by_the_sums_and_only_by_them(hostile):
    state = tensors(hostile[0])
    (hostile[0]/'model.safetensors').write_bytes(save_tensors({k: v*0 for k,v in state.items()}))
    refuses(hostile[0], 'its checksum does not fit')
    _write_sums(hostile[0])
    assert load_bundle(hostile[0]).predict(np.zeros((28, 28), np.uint8)).probability == .5


@pytest.mark.parametrize('name', ['model.safetensors', 'medfast.json', 'SHA256SUMS'])
def test_a_missing_file_is_named(hostile, name):
    (hostile[0]/name).unlink()
    refuses(hostile[0], f'{name} is not in')


def test_no_folder_no_bundle(tmp_path):
    refuses(tmp_path/'lost', 'is no folder')
    refuses(tmp_path, 'is no bundle: none of')
    (tmp_path/'bundle').mkdir()
    refuses(tmp_path, 'is the folder of a run. Name the bundle in it')


def corrupt(folder, n, seed=0):
    "Flip a bit, cut, lengthen or exchange bytes of a file, `n` times; how many of them loaded."
    rng,whole,loaded = random.Random(seed),{o.name: o.read_bytes() for o in folder.iterdir()},[]
    for k in range(n):
        name = rng.choice(sorted(whole))
        data = bytearray(whole[name])
        at,how = rng.randrange(len(data)),rng.choice(['flip', 'flip', 'cut', 'add', 'zero'])
        if how=='flip': data[at] ^= 1 << rng.randrange(8)
        elif how=='cut': del data[at:]
        elif how=='add': data += b' '
        else: data[at:at + 16] = bytes(len(data[at:at + 16]))
        if bytes(data)==whole[name]: continue
        (folder/name).write_bytes(data)
        try: load_bundle(folder)
        except BundleError: pass
        else: loaded.append((k, name, how, at))
        (folder/name).write_bytes(whole[name])
    return loaded


@pytest.fixture
def tiny(learners, tmp_path):
    "A bundle of 200 weights."
    learn = learners['npz']
    model = build_network('conv 2 k3 | pool 9 | mean | out', 1, 2)
    return save_bundle(Learner(learn.dls, model, loss_func=CrossEntropyLossFlat()), tmp_path/'tiny')


def test_of_two_hundred_changed_bundles_none_loads(tiny):
    assert corrupt(tiny, 200) == []
    assert load_bundle(tiny)


@pytest.mark.full
def test_of_two_thousand_changed_bundles_none_loads(tiny): assert corrupt(tiny, 2000, seed=1) == []


# images of unknown origin

def png(size=(20, 30), mode='L', **kw):
    out = io.BytesIO()
    Image.new(mode, size).save(out, 'PNG', **kw)
    return out.getvalue()


def noise(kind='PNG'):
    "The bytes of a small colour picture."
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)).save(out, kind)
    return out.getvalue()


def frames(kind):
    out = io.BytesIO()
    Image.new('L', (9, 9)).save(out, kind, save_all=True, append_images=[Image.new('L', (9, 9), 200)])
    return out.getvalue()


ODD = dict(bomb=('a.png', png((13_000, 13_000), '1'), 'at most 16,777,216'), huge=('a.png', b'\x89PNG' + bytes(2**25), 'at most 33,554,432'), empty=('a.png', b'', 'is empty'), program=('a.exe', b'MZ\x90\x00' + bytes(99), 'unknown format'),
    page=('a.html', b'<html>', 'unknown format'), animated=('a.png', frames('PNG'), 'holds more than one picture'), pages=('a.tif', frames('TIFF'), 'holds more than one picture'), gif=('a.gif', frames('GIF'), 'unknown format'),
    cut=('a.png', noise()[:400], 'a.png'), no_matrix=('a.txt', b'hello\n', 'a.txt'), empty_text=('a.txt', b'', 'is empty'), small_matrix=('a.txt', b'28.5 28.6\n'*3, 'wanted'), large_text=('a.csv', b'1'*(10**7), 'at most'),
    utf16=('a.txt', 'grad'.encode('utf-16'), 'UTF-16'), long=('x'*255 + '.png', b'no', r'\.\.\.'), up=('../../etc/passwd', b'root', 'passwd'), control=('a\x1b[2J\n.png', b'no', 'x1b'), zip=('a.npz', b'PK\x03\x04', 'unknown format'),
    text_bomb=('a.png', None, 'a.png'))


def zipped_text():
    "A PNG with a compressed text of 200 MB."
    import zlib
    chunk = lambda kind, body: struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    whole = png()
    return whole[:33] + chunk(b'zTXt', b'Comment\0\0' + zlib.compress(bytes(200_000_000), 9)) + whole[33:]


@pytest.mark.parametrize('what', ODD)
def test_odd_uploads_get_a_readable_answer(what):
    name,data,says = ODD[what]
    with pytest.raises(ImageError, match=says) as e: decode(zipped_text() if data is None else data, name)
    text = str(e.value)
    assert len(text) < 400 and text.isprintable() and 'Traceback' not in text and '/' not in text.split(':')[0].replace('KB', '')


def test_a_bomb_costs_neither_time_nor_memory():
    import tracemalloc
    tracemalloc.start()
    with pytest.raises(ImageError): decode(ODD['bomb'][1], 'a.png')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_a_large_radiograph_is_read():
    out = io.BytesIO()
    Image.fromarray(np.full((4096, 4096), 30000, np.uint16)).save(out, 'PNG')
    assert decode(out.getvalue(), 'a.png').size == (4096, 4096)


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('suffix', ['PNG', 'JPEG', 'BMP', 'TIFF', 'txt'])
def test_fuzzed_files_raise_nothing_but_image_errors(study, bundles, suffix):
    rng,bundle,read = random.Random(suffix),load_bundle(bundles['jpg']),0
    whole = Path(study.path[0]).read_bytes()[:40_000] if suffix=='txt' else noise(suffix)
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 3, 20])): data[rng.randrange(min(len(data), rng.choice([64, 10**9])))] = rng.randrange(256)
        if rng.random() < .2: del data[rng.randrange(len(data)):]
        try: bundle.prepare((f'a.{suffix.lower()}', bytes(data)))
        except ImageError as e: assert str(e).isprintable()
        else: read += 1
    assert read < 100


def test_a_thermogram_bundle_takes_pictures_on_its_own_scale_only(bundles, study, tmp_path):
    bundle,home = load_bundle(bundles['text']),Path(study.path[0]).parent
    for low,high,says in ((20., 40., None), (18., 40., 'shows 18 to 40')):
        convert_thermograms(home, tmp_path/f'{low}', low=low, progress=False)
        fn = next((tmp_path/f'{low}').rglob('*.png'))
        if says is None: assert abs(bundle.predict(fn).probability - bundle.predict(home/fn.name.removesuffix('.png')).probability) < .05
        else:
            with pytest.raises(ImageError, match=says): bundle.predict(fn)
    with pytest.raises(ImageError, match='does not carry its scale'): bundle.predict(('a.png', png()))
    with pytest.raises(ImageError, match='holds temperatures'): load_bundle(bundles['jpg']).predict(study.path[0])


def test_a_nearly_black_picture_of_16_bits_is_noted(bundles):
    assert 'nearly black' in load_bundle(bundles['deep']).predict(np.full((40, 52), 4000, np.uint16)).notes[0]


def test_files_that_are_no_files_never_block(tmp_path):
    os.mkfifo(tmp_path/'pipe.png')
    for path in (tmp_path/'pipe.png', tmp_path, tmp_path/'lost.png', 'a\0b'):
        with pytest.raises(ImageError): read_bytes(path)


@pytest.mark.parametrize('source', [None, 5, b'bytes alone', ('a.png',), ('a.png', 5), (None, b'x'), np.zeros((0, 3), np.uint8), np.zeros((2, 2, 2), np.uint8), np.zeros(4), np.array([['a']]), 'a.npz#test/0', np.full((4, 4), np.nan), np.zeros((3, 3), complex)])
def test_what_is_no_image_is_an_image_error(bundles, source):
    for name in ('jpg', 'npz', 'text'):
        with pytest.raises(ImageError): load_bundle(bundles[name]).predict(source)


def test_one_unreadable_image_does_not_stop_the_others(learners, bundles):
    rows = sources(learners, 'jpg')
    answers = list(load_bundle(bundles['jpg']).predict_many([rows[0], 'lost.png', ('b.png', b'x'), rows[1]], bs=2))
    assert [bool(o.error) for o in answers] == [False, True, True, False] and [o.item for o in answers] == [rows[0], 'lost.png', 'b.png', rows[1]]
    assert 'No such file' in answers[1].error and answers[1].probability is None


def test_sources_are_taken_as_they_are_needed(bundles):
    "A generator is never more than two batches ahead, and stopping stops it."
    taken = []
    def endless():
        while True: taken.append(1); yield np.zeros((28, 28), np.uint8)
    answers = load_bundle(bundles['npz']).predict_many(endless(), bs=4)
    for n in range(1, 20):
        next(answers)
        assert len(taken) <= n + 8
    answers.close()
    held = len(taken)
    assert len(taken) == held < 30


# ONNX

@pytest.mark.parametrize('members', [1, 2])
def test_onnx_is_written_compared_and_not_needed(learners, bundles, tmp_path, members):
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    folder = save_bundle([learners['npz'], trained(medical_learner(learners['npz'].dls, 'simple_cnn', seed=3))][:members], tmp_path/'b', onnx=True)
    bundle,x = load_bundle(folder),torch.randn(5, 1, 28, 28)
    out = runtime.InferenceSession(str(folder/'model.onnx')).run(None, {'images': x.numpy()})[0]
    np.testing.assert_allclose(out, bundle.model(x).detach().numpy(), atol=1e-4)
    bundle.device = torch.device('cuda') # as if: the network is copied to the processor, whole
    export_onnx(bundle, tmp_path/'again.onnx')
    np.testing.assert_allclose(runtime.InferenceSession(str(tmp_path/'again.onnx')).run(None, {'images': x.numpy()})[0], out, atol=1e-5)
    assert 'model.onnx' in (folder/'SHA256SUMS').read_text()
    (folder/'model.onnx').write_bytes((folder/'model.onnx').read_bytes() + b' ')
    refuses(folder, 'model.onnx has changed')


def test_onnx_that_differs_is_not_written(bundles, tmp_path, monkeypatch):
    pytest.importorskip('onnxscript')
    monkeypatch.setattr('medfast.bundle._gap', lambda *a: .1)
    with pytest.raises(BundleError, match='differ by 0.1'): export_onnx(load_bundle(bundles['npz']), tmp_path/'a.onnx')
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_the_way_out_is_named(bundles, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(BundleError, match=r"medfast\[onnx\]"): export_onnx(load_bundle(bundles['npz']), tmp_path/'a.onnx')


def test_nothing_of_pickle_is_imported():
    "Neither the bundle nor the command names a reader that runs code."
    for name in ('bundle.py', 'predict.py'):
        tree = list(ast.walk(ast.parse((Path(module.__file__).parent/name).read_text())))
        imports = {a.name for o in tree if isinstance(o, (ast.Import, ast.ImportFrom)) for a in o.names} | {o.module for o in tree if isinstance(o, ast.ImportFrom)}
        calls = {ast.unparse(o.func) for o in tree if isinstance(o, ast.Call)}
        assert not imports & {'pickle', 'dill', 'cloudpickle', 'load_learner', 'importlib.util.spec_from_file_location'}
        assert not calls & {'eval', 'exec', 'compile', '__import__', 'torch.load', 'load_learner', 'pickle.load', 'pickle.loads', 'importlib.import_module'}
