"Networks: their sizes, their groups, where their weights come from, and what the recipes do."
import logging
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from fastai.losses import CrossEntropyLossFlat
from PIL import Image

from medfast import models
from medfast.loaders import study_dls
from medfast.models import ARCHITECTURES, ModelError, build_model, count_parameters, find_weights, medical_learner, three_groups

STUDY = ('resnet18', 'resnet34', 'resnet50', 'resnet152', 'vgg16', 'vgg19')
FILE = 'squeezenet1_1-b8a52dc0.pth'


@pytest.fixture(scope='module')
def dls(tmp_path_factory):
    "Twelve small pictures: six of train healthy, two sick; four valid."
    folder,rng,rows = tmp_path_factory.mktemp('pictures'),np.random.default_rng(0),[]
    for i in range(12):
        fn,sick = folder/f'{i:02d}.png', i in (1, 2, 8, 9)
        Image.fromarray(rng.integers(0, 128 + 127*sick, (32, 32), dtype=np.uint8)).save(fn)
        rows.append(dict(path=str(fn), label=('Healthy', 'Sick')[sick], split='train' if i < 8 else 'valid'))
    return study_dls(pd.DataFrame(rows), size=32, bs=4, device='cpu')


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "An empty weights folder, and no network."
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda *a, **k: (_ for _ in ()).throw(OSError('no network')))
    (tmp_path/'hub/checkpoints').mkdir(parents=True)
    models._say_random.cache_clear()
    return tmp_path/'hub/checkpoints'


@pytest.fixture
def cached(cache):
    torch.manual_seed(3)
    torch.save(torchvision.models.squeezenet1_1().state_dict(), cache/FILE)
    return cache/FILE


def quiet_fit(learn, *args, **kw):
    with learn.no_bar(), learn.no_logging(): learn.fit(*args, **kw)
    return learn


# sizes and groups

@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_every_architecture_has_three_groups_that_cover_it(arch):
    with torch.device('meta'): model = build_model(arch, 2)
    groups = [list(g) for g in three_groups(model)]
    ids = [id(p) for g in groups for p in g]
    assert len(groups)==3 and all(groups) and len(set(ids))==len(ids)
    assert set(ids)=={id(p) for p in model.parameters()}
    assert {id(p) for p in groups[2]}=={id(p) for p in model[1].parameters()}


@pytest.mark.parametrize('arch,n', list(zip(STUDY, (528_898, 528_898, 2_107_906, 2_107_906, 528_898, 528_898))))
def test_heads_of_the_study(arch, n):
    with torch.device('meta'): table = count_parameters(build_model(arch, 2, head='study'))
    assert table.parameters['head']==n and table.parameters.total==table.parameters[['body', 'head']].sum()


def test_vgg_of_the_study_has_batch_norm():
    with torch.device('meta'): body = build_model('vgg19', 2)[0]
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in body.modules())==16


@pytest.mark.parametrize('arch', ['convnext_atto', 'vit_tiny_patch16_224', 'mobilenetv3_small_050', 'efficientnet_b0'])
@pytest.mark.parametrize('head', ['fastai', 'study'])
def test_timm_has_three_groups_and_both_heads(arch, head):
    pytest.importorskip('timm')
    with torch.device('meta'): model = build_model(arch, 3, head=head)
    groups = [list(g) for g in three_groups(model)]
    assert all(groups) and sum(len(g) for g in groups)==len(list(model.parameters()))
    assert model.eval()(torch.empty(2, 3, 224, 224, device='meta')).shape==(2, 3)


def test_timm_resnet_is_cut_where_fastai_cuts_torchvisions(monkeypatch):
    pytest.importorskip('timm')
    sizes = lambda m: [sum(p.numel() for p in g) for g in three_groups(m)]
    with torch.device('meta'):
        expected = sizes(build_model('resnet18', 2))
        monkeypatch.delitem(ARCHITECTURES, 'resnet18')
        assert sizes(build_model('resnet18', 2))==expected


def test_unknown_name_is_answered_with_near_ones():
    for wrong,near in (('resnet43', 'resnet34'), ('VGG16', 'vgg16'), ('squeezenet', 'squeezenet1_1')):
        with pytest.raises(ModelError, match=near): build_model(wrong, 2)


# weights

def test_nothing_cached_is_random_said_once_and_not_frozen(dls, cache, caplog):
    with caplog.at_level(logging.WARNING, 'medfast'):
        learns = [medical_learner(dls, 'squeezenet1_1', seed=5) for _ in range(2)]
    assert len(caplog.records)==1 and 'random' in caplog.text
    assert learns[0].weights=='random, seed 5' and all(p.requires_grad for p in learns[0].model.parameters())
    assert all(torch.equal(a, b) for a,b in zip(*(l.model.state_dict().values() for l in learns)))
    assert list(cache.iterdir())==[]


def test_false_is_random_although_a_file_is_there(dls, cached, caplog):
    assert medical_learner(dls, 'squeezenet1_1', pretrained=False).weights=='random, seed 42' and not caplog.records


def test_cached_file_reaches_the_body(dls, cached):
    learn = medical_learner(dls, 'squeezenet1_1')
    expected = torch.load(cached)['features.12.expand3x3.weight']
    assert torch.equal(learn.model[0][0][12].expand3x3.weight, expected)
    assert not any(p.requires_grad for p in learn.model[0].parameters()) and all(p.requires_grad for p in learn.model[1].parameters())


def test_weights_of_half_precision_become_float32(cached):
    torch.save({k: v.half() for k,v in torch.load(cached).items()}, cached)
    assert {v.dtype for v in find_weights('squeezenet1_1')[0].values()}=={torch.float32}


def test_checksum_is_looked_at(dls, cached, monkeypatch):
    assert find_weights('squeezenet1_1')[1]==f'ImageNet: {FILE} (checksum differs from the original)'
    monkeypatch.setattr(models, 'sha256', lambda fn: 'b8a52dc0' + '0'*56)
    assert find_weights('squeezenet1_1')[1]==f'ImageNet: {FILE}'


@pytest.mark.parametrize('harm', [lambda b: b'', lambda b: b[:5000], lambda b: b[:-5000], lambda b: b'<html>404</html>'], ids=['empty', 'start', 'end', 'page'])
@pytest.mark.parametrize('pretrained', [None, True])
def test_damaged_file_is_an_error_never_random(cached, harm, pretrained):
    cached.write_bytes(harm(cached.read_bytes()))
    with pytest.raises(ModelError, match=FILE): find_weights('squeezenet1_1', pretrained)


def test_a_pickle_is_not_run(cached, tmp_path):
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'run'),)
    torch.save(Evil(), cached)
    with pytest.raises(ModelError): find_weights('squeezenet1_1')
    assert not (tmp_path/'run').exists()


@pytest.mark.parametrize('harm', [
    lambda s: {k: v for k,v in s.items() if not k.startswith('features.3')},
    lambda s: torchvision.models.squeezenet1_0().state_dict(),
    lambda s: {**s, 'features.0.bias': s['features.0.bias'].fill_(float('nan'))}, lambda s: [1, 2]], ids=['lacks', 'other', 'nan', 'list'])
def test_weights_that_do_not_fit_are_refused(cached, harm):
    torch.save(harm(torch.load(cached)), cached)
    with pytest.raises(ModelError): find_weights('squeezenet1_1')


def test_true_without_network_raises(cache):
    with pytest.raises(ModelError, match='hub/checkpoints'): find_weights('resnet18', True)


def test_timm_weights_follow_the_same_rule(dls, cache, monkeypatch):
    timm,hub = pytest.importorskip('timm'),pytest.importorskip('huggingface_hub')
    asked = []
    def offline(*args, pretrained=False, **kw):
        asked.append(pretrained)
        raise OSError('no network')
    monkeypatch.setattr(hub, 'try_to_load_from_cache', lambda *a, **k: None)
    with monkeypatch.context() as m:
        m.setattr(timm, 'create_model', offline)
        assert find_weights('convnext_atto')==(None, None) and not asked
        with pytest.raises(ModelError, match='convnext_atto'): find_weights('convnext_atto', True)
    twin = timm.create_model('convnext_atto', num_classes=0)
    monkeypatch.setattr(hub, 'try_to_load_from_cache', lambda *a, **k: '/cached/model.safetensors')
    monkeypatch.setattr(timm, 'create_model', lambda *a, pretrained=False, **kw: twin)
    learn = medical_learner(dls, 'convnext_atto')
    assert learn.weights.startswith('timm: timm/convnext_atto')
    assert all(torch.equal(a, b) for a,b in zip(learn.model[0].state_dict().values(), twin.state_dict().values()))


def test_older_name_of_the_same_weights_is_found(cache):
    "The file of 2018 has another hash in its name, and no counters of batches."
    state = {k: v for k,v in torchvision.models.resnet18().state_dict().items() if 'num_batches' not in k}
    torch.save(state, cache/'resnet18-5c106cde.pth')
    assert find_weights('resnet18')[1].startswith('ImageNet: resnet18-5c106cde.pth')


def test_real_weights(imagenet_weights, dls, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(imagenet_weights))
    learn = medical_learner(dls, 'squeezenet1_1')
    assert learn.weights.startswith(f'ImageNet: {FILE}') and next(learn.model.parameters()).dtype==torch.float32


def test_weights_want_normalised_batches(dls, cached):
    rows = pd.concat(dls.catalogs.values())
    for stats in (None, ([.5]*3, [.5]*3)):
        with pytest.raises(ModelError, match='stats='): medical_learner(study_dls(rows, size=32, bs=4, stats=stats), 'squeezenet1_1')
    before = [len(dl.after_batch.fs) for dl in dls.loaders]
    medical_learner(dls, 'squeezenet1_1')
    assert [len(dl.after_batch.fs) for dl in dls.loaders]==before


# recipes

def test_study_recipe_leaves_a_frozen_body_as_it_is(dls, cache):
    "Bit for bit: neither weights nor running statistics move; with fastai's recipe the statistics do."
    moved = {}
    for recipe in ('study', 'fastai'):
        learn = medical_learner(dls, 'resnet18', recipe=recipe, freeze=True)
        before = {k: v.clone() for k,v in learn.model[0].state_dict().items()}
        quiet_fit(learn, 1, 1e-2)
        moved[recipe] = any(not torch.equal(v, before[k]) for k,v in learn.model[0].state_dict().items())
    assert moved==dict(study=False, fastai=True)


def test_study_recipe_is_plain_sgd_with_momentum(dls, cache):
    learn = quiet_fit(medical_learner(dls, 'squeezenet1_1', recipe='study'), 1, slice(1e-4, 1e-2))
    assert [(round(h['lr'], 6), h['mom'], h['wd']) for h in learn.opt.hypers]==[(1e-4, .9, 0.), (1e-3, .9, 0.), (1e-2, .9, 0.)]


def test_same_seed_same_training(dls, cache):
    fit = lambda seed: torch.cat([p.flatten() for p in quiet_fit(medical_learner(study_dls(pd.concat(dls.catalogs.values()), size=32, bs=4, augment='thermogram', seed=seed),
        'squeezenet1_1', seed=seed), 1).model.parameters()])
    assert torch.equal(fit(1), fit(1)) and not torch.equal(fit(1), fit(2))


def test_class_weights_reach_the_loss(dls, cache):
    learn = medical_learner(dls, 'squeezenet1_1', class_weights='balanced')
    assert learn.loss_func.func.weight.tolist()==pytest.approx([8/(2*6), 8/(2*2)])
    assert isinstance(medical_learner(dls, 'squeezenet1_1').loss_func, CrossEntropyLossFlat)
    for wrong in ([1.], 'even'):
        with pytest.raises(ModelError, match='class_weights'): medical_learner(dls, 'squeezenet1_1', class_weights=wrong)


def test_saving_leaves_nothing_in_the_working_folder(dls, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    learn = medical_learner(dls, 'squeezenet1_1')
    fn = learn.save('stage')
    assert sorted(tmp_path.iterdir())==before and fn.is_file()
    learn.load('stage', with_opt=False)
    fn.unlink(); fn.parent.rmdir()


@pytest.mark.full
def test_folder_of_the_session_goes_when_it_is_empty():
    code = 'from medfast.models import _session_folder; print(_session_folder())'
    folder = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()
    assert folder and not os.path.exists(folder)


@pytest.mark.full
@pytest.mark.parametrize('arch', STUDY)
def test_every_network_of_the_study_trains(dls, cache, arch):
    learn = medical_learner(dls, arch, recipe='study')
    quiet_fit(learn, 1, slice(1e-4, 1e-2))
    assert np.isfinite(learn.recorder.values[-1]).all()
