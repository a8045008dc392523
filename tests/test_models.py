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
from fastai.callback.training import BnFreeze
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from fasttransform import Transform
from PIL import Image
from torch import nn

from medfast import models, networks
from medfast.interpret import grad_cam
from medfast.loaders import array_dls, study_dls
from medfast.models import (ARCHITECTURES, NETWORKS, ModelError, block_table, body_blocks, build_model, count_parameters, dense_head, find_weights, layer_table,
    medical_learner, three_groups)
from medfast.networks import TABLES, build_network
from medfast.precompute import PrecomputeError
from medfast.predictions import UntrainedWarning  # noqa: F401  (patches Learner)

STUDY = ('resnet18', 'resnet34', 'resnet50', 'resnet152', 'vgg16', 'vgg19')
FILE = 'squeezenet1_1-b8a52dc0.pth'
pytestmark = pytest.mark.filterwarnings('ignore::medfast.predictions.UntrainedWarning')


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


# a network is a table of layers

@pytest.mark.parametrize('n,name,options', [(106_239, 'simple_cnn', {}), (1_662_939, 'big_cnn', {}), (1_664_555, 'big_cnn', dict(bn=True)),
    (1_663_747, 'big_cnn', dict(bn=True, bias=False)), (13_531_204, 'covid_cnn', dict(n_in=3, n_out=4))])
def test_the_studies_networks_have_the_printed_numbers_of_parameters(n, name, options):
    "Torch's own sum, not that of `count_parameters`; nothing rests."
    model = NETWORKS[name](**{**dict(n_in=1, n_out=11), **options})
    assert sum(p.numel() for p in model.parameters() if p.requires_grad)==n


def test_the_base_network_is_that_of_the_studys_notebook():
    "Written out by hand, with the same weights, it gives the same logits."
    by_hand = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(784, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 11))
    ours,x = models.simple_cnn(1, 11), torch.randn(3, 1, 28, 28)
    by_hand.load_state_dict(dict(zip(by_hand.state_dict(), ours.state_dict().values())))
    assert torch.equal(ours(x), by_hand(x))


def test_batch_norm_stands_between_layer_and_relu():
    words = lambda part: [type(m).__name__ for m in part]
    body,head = models.big_cnn(1, 11, bn=True)
    assert words(body)==['Conv2d', 'BatchNorm2d', 'ReLU', 'MaxPool2d']*2
    assert words(head)==['Flatten'] + ['Linear', 'BatchNorm1d', 'ReLU']*2 + ['Linear']


def test_redundant_biases_and_no_others_go():
    plain,lean = models.big_cnn(1, 3, bn=True), models.big_cnn(1, 3, bn=True, bias=False)
    assert set(plain.state_dict()) - set(lean.state_dict())=={f'{o}.bias' for o in ('0.conv1', '0.conv2', '1.dense1', '1.dense2')}
    with pytest.raises(ModelError, match='bn=True'): models.big_cnn(1, 3, bias=False)


@pytest.mark.parametrize('row', ['conv 5 k3', 'conv 5 k5 s2 p2', 'conv 5 k2 p1', 'res 5', 'res 5 s2', 'res 5 s3', 'pool', 'pool 3'])
def test_sizes_are_foretold(row):
    "The dense layer after a row fits what the row really gives, for every size that leaves something."
    tried = 0
    for rows in range(3, 14):
        try: model = build_network(f'{row} | dense 2 | out', 2, 3, size=(rows, 9))
        except ModelError: continue
        assert model.eval()(torch.randn(1, 2, rows, 9)).shape==(1, 3)
        tried += 1
    assert tried > 6


@pytest.mark.parametrize('table,says', [('conv 6 k3 | covn 8 | out', "'covn 8' is no row"), ('conv 6 q3 | mean | out', 'no option q'), ('conv k3 | mean | out', "after 'conv' write a whole number"),
    ('conv 6 k3 | mean', "ends with 'out'"), ('dense 5 | out', 'begins with rows that make maps'), ('conv 6 | mean | conv 6 | out', 'Put it further up'), ('', 'no row'),
    ('conv 6 k3 k | out', 'no row'), ('conv 6 k9 | out', 'nothing is left of maps of 8 x 8')])
def test_tables_that_cannot_be_read(table, says):
    with pytest.raises(ModelError, match=says): build_network(table, 1, 2, size=8)


@pytest.mark.parametrize('row,says', [('conv 6 k0', 'k must be 1 or more'), ('conv 6 s0', 's must be 1 or more'), ('res 6 s0', 's must be 1'), ('conv 0', 'a whole number from 1'),
    ('conv .5', 'a whole number from 1'), ('conv 6 | pool 0', "after 'pool' write a whole number from 1, or nothing"), ('conv 6 | dropout 1', 'a share'), ('conv 6 | dropout 2', 'a share'),
    ('conv 6 | flat 3', 'no number'), ('conv 6 | mean 7', 'no number'), ('conv 6 | norm 3', 'no number'), ('conv 6 | mean | dense .5', 'a whole number')])
def test_numbers_and_options_that_a_row_cannot_have(row, says):
    with pytest.raises(ModelError, match=says): build_network(f'{row} | out', 1, 2, size=8)


def test_the_last_row_takes_its_number_from_the_classes():
    with pytest.raises(ModelError, match="'out 5': after 'out' write no number"): build_network('conv 6 | mean | out 5', 1, 2)


@pytest.mark.parametrize('given', [dict(size=(28,)), dict(size='28'), dict(size=0), dict(size=(28, 0)), dict(size=28.), dict(size=[28, 28, 1]), dict(n_in=-1), dict(n_in=True), dict(n_out=0),
    dict(n_out='2'), dict(table=None), dict(table=['conv 6', 'out'])])
def test_numbers_that_make_no_network(given):
    with pytest.raises(ModelError, match=f'{next(iter(given))} = .*: give '): build_network(**{**dict(table='conv 6 | mean | out', n_in=1, n_out=2), **given})


@pytest.mark.parametrize('given', [dict(widths=()), dict(widths=16), dict(widths=(16, 0)), dict(depth=0), dict(depth=1.5), dict(stride=0), dict(ps=-1), dict(ps=1), dict(ps='a'), dict(ps=float('nan'))])
def test_numbers_that_make_no_small_resnet(given):
    with pytest.raises(ModelError, match=f'{next(iter(given))} = .*: give '): models.small_resnet(1, 2, **given)


@pytest.mark.parametrize('given', [dict(widths=None), dict(widths=(0,)), dict(widths='ab'), dict(ps=-1), dict(ps=1.), dict(n_features=0), dict(n_out=None)])
def test_numbers_that_make_no_head(given):
    with pytest.raises(ModelError, match=f'{next(iter(given))} = .*: give '): dense_head(**{**dict(n_features=512, n_out=2), **given})


def test_sizes_may_be_lists_and_numbers_those_of_numpy():
    assert build_network('conv 6 | dense 4 | out', np.int64(1), np.int64(2), size=[8, 9])(torch.randn(2, 1, 8, 9)).shape==(2, 2)
    assert dense_head(512, 2, widths=[np.int64(8)], ps=np.float64(.1)).dropout1.p==.1


def test_a_small_share_is_a_share():
    assert dense_head(512, 2, widths=(4,), ps=1e-5).dropout1.p==1e-5 and models.small_resnet(1, 2, ps=1e-5)[1].dropout1.p==1e-5


def test_dense_layers_need_a_size_and_means_do_not():
    with pytest.raises(ModelError, match="put 'mean' before"): build_network('conv 4 | dense 5 | out', 1, 2)
    assert build_network('conv 4 | mean | dense 5 | out', 1, 2)(torch.randn(1, 1, 9, 5)).shape==(1, 2)


@pytest.mark.parametrize('name', ['simple_cnn', 'big_cnn', 'covid_cnn'])
def test_stride_and_poolings_that_eat_the_maps_are_an_error(name):
    with pytest.raises(ModelError, match='nothing is left'): NETWORKS[name](n_in=1, n_out=2, size=3)
    with pytest.raises(ModelError, match='nothing is left'): build_network(TABLES['big_cnn'].replace('p2', 's2'), 1, 11, size=28)


def test_images_of_another_size_or_channels_are_refused_in_words():
    model = models.simple_cnn(1, 2)
    for shape,says in [((2, 1, 32, 32), 'Make it with size=32'), ((2, 3, 28, 28), 'Make it with n_in=3'), ((2, 1, 28, 30), r'size=\(28, 30\)'), ((1, 28, 28), 'no batch of images')]:
        with pytest.raises(ModelError, match=says): model(torch.randn(shape))
    assert models.simple_cnn(1, 2, size=(28, 30))(torch.randn(2, 1, 28, 30)).shape==(2, 2)


@pytest.mark.parametrize('size', [5, 8, 28, 33, 64])
def test_the_small_resnet_reads_any_size(size):
    model = models.small_resnet(1, 3, depth=2, stride=2, ps=.1).eval()
    assert model(torch.randn(2, 1, size, size)).shape==(2, 3)
    with pytest.raises(ModelError, match='n_in=3, or make'): model(torch.randn(2, 3, size, size))


@pytest.mark.parametrize('name', NETWORKS)
def test_every_network_has_three_groups_and_a_map_to_look_at(name):
    model = build_model(name, 2, n_in=1, **dict(covid_cnn=dict(size=64)).get(name, {}))
    groups = [list(g) for g in three_groups(model)]
    assert all(groups) and sum(map(len, groups))==len(list(model.parameters()))=={id(p) for g in groups for p in g}.__len__()
    cam = grad_cam(model.eval(), torch.randn(1, 1, *[64 if name=='covid_cnn' else 28]*2))
    assert cam.ndim==2 and torch.isfinite(torch.as_tensor(cam)).all()


def test_groups_and_blocks_of_a_network_that_nobody_named():
    model = models.simple_cnn(1, 11)
    assert [len(list(g)) for g in three_groups(model)]==[2, 2, 6] and len(body_blocks(model))==2


def test_the_names_are_in_models_as_in_networks():
    names = ['ModelError', 'simple_cnn', 'big_cnn', 'covid_cnn', 'small_resnet', 'dense_head', 'study_head', 'mirror_cnn', 'count_parameters', 'layer_table']
    assert all(getattr(models, o) is getattr(networks, o) and o in models.__all__ for o in names)


# layer by layer

@pytest.mark.parametrize('make,shape', [(lambda: build_model('resnet18', 2), (3, 64, 64)), (lambda: build_model('squeezenet1_1', 2), (3, 64, 64)),
    (lambda: models.big_cnn(1, 11, bn=True), (1, 28, 28)), (lambda: torchvision.models.googlenet(init_weights=False), (3, 64, 64)),
    (lambda: torchvision.models.vit_b_32(image_size=64), (3, 64, 64))], ids=['resnet18', 'squeezenet', 'big', 'unused parts', 'tokens'])
def test_rows_add_up_to_the_whole(make, shape):
    with torch.device('meta'): model = make()
    table = layer_table(model, shape)
    assert table[['parameters', 'trainable', 'buffers']].sum().tolist()==count_parameters(model).loc['total'].tolist()
    assert table.index.is_unique and set(table.index) <= set(dict(model.named_modules()))


def test_shapes_are_those_of_a_real_pass():
    model,seen = build_model('resnet18', 2).eval(), {}
    for name,m in model.named_modules(): m.register_forward_hook(lambda _, __, out, name=name: seen.update({name: tuple(out.shape[1:])}))
    model(torch.randn(1, 3, 40, 56))
    table = layer_table(model, (3, 40, 56))
    assert len(table) > 40 and all(seen[name]==shape for name,shape in table.output.items())


def test_looking_at_the_layers_changes_nothing():
    model = models.big_cnn(1, 11, bn=True)
    model[0].norm1.eval()
    before = {k: v.clone() for k,v in model.state_dict().items()}
    modes,state = [m.training for m in model.modules()], torch.get_rng_state()
    layer_table(model, (1, 28, 28))
    with pytest.raises(ModelError): layer_table(model, (1, 30, 30))
    assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items()) and modes==[m.training for m in model.modules()]
    assert torch.equal(state, torch.get_rng_state()) and not any(m._forward_hooks for m in model.modules())


def test_resting_layers_and_those_that_nothing_calls_are_told():
    model = models.simple_cnn(1, 2)
    model.spare = nn.Linear(3, 4)
    model[0].requires_grad_(False)
    with pytest.raises(ModelError, match='cannot read'): layer_table(model, (1, 28, 28))
    class Apart(nn.Module):
        def __init__(self): super().__init__(); self.net,self.spare = models.simple_cnn(1, 2),nn.Linear(3, 4)
        def forward(self, x): return self.net(x)
    wrapped = Apart()
    wrapped.net[0].requires_grad_(False)
    table = layer_table(wrapped, (1, 28, 28))
    assert table.output['spare']=='not called' and table.index[-1]=='spare' and table.trainable[['net.0.conv1', 'net.1.out']].tolist()==[0, 85*2]
    for wrong in ((28, 28), 28, (1, 0, 28), None):
        with pytest.raises(ModelError, match='channels, rows, columns'): layer_table(wrapped, wrong)


@pytest.mark.parametrize('trouble', [False, True])
def test_modes_are_put_back(trouble):
    model = models.big_cnn(1, 2, bn=True)
    model[0].norm1.eval()
    before = [m.training for m in model.modules()]
    try:
        with networks.same_modes(model):
            model.eval()
            if trouble: raise KeyboardInterrupt
    except KeyboardInterrupt: pass
    assert before==[m.training for m in model.modules()] and True in before and False in before


# heads

@pytest.mark.parametrize('options,n,tracked', [({}, 210_001, 0), (dict(bn=True), 214_097, 4_096), (dict(bn=True, ps=.5), 214_097, 4_096), (dict(ps=.5), 210_001, 0), (dict(widths=()), 2_049, 0)])
def test_the_dense_heads_of_study_000(options, n, tracked):
    head = dense_head(2048, 1, **options)
    assert count_parameters(head).loc['total', ['parameters', 'buffers']].tolist()==[n, tracked]
    assert sum(isinstance(m, nn.Dropout) for m in head)==(2 if options.get('ps') else 0)
    assert head.eval()(torch.randn(3, 2048, 2, 3)).shape==(3, 1)


def test_a_dense_head_on_all_of_the_maps():
    head = dense_head(512*4*4, 4, widths=(256,), pool=False)
    assert head(torch.randn(2, 512, 4, 4)).shape==(2, 4) and head(torch.randn(2, 512*16)).shape==(2, 4)


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


@pytest.mark.parametrize('arch,n', [('vgg16', 5), ('vgg19', 5), ('vgg19_plain', 5), ('resnet18', 5), ('resnet152', 5), ('squeezenet1_1', 9), ('mirror_cnn', 3),
    ('simple_cnn', 2), ('big_cnn', 2), ('covid_cnn', 4), ('small_resnet', 5), ('densenet121', 8)])
def test_blocks_cover_the_body_in_its_order(arch, n):
    with torch.device('meta'): model = build_model(arch, 2)
    blocks = body_blocks(model)
    ids = [id(p) for b in blocks for m in b for p in m.parameters()]
    assert len(blocks)==n and ids==[id(p) for p in model[0].parameters()]
    table = block_table(model)
    assert table.parameters.sum()==count_parameters(model).parameters.total and table.index[-1]=='head'


@pytest.mark.parametrize('arch,n', [('convnext_atto', 5), ('vit_tiny_patch16_224', 13), ('efficientnet_b0', 8)])
def test_blocks_of_timm(arch, n):
    pytest.importorskip('timm')
    with torch.device('meta'): blocks = body_blocks(build_model(arch, 2))
    assert len(blocks)==n


def test_convolutions_of_plain_vgg19_by_block():
    with torch.device('meta'): blocks = body_blocks(build_model('vgg19_plain', 2))
    assert [[m.out_channels for m in b if isinstance(m, nn.Conv2d)] for b in blocks]==[[64]*2, [128]*2, [256]*4, [512]*4, [512]*4]


def test_unknown_name_is_answered_with_near_ones():
    for wrong,near in (('resnet43', 'resnet34'), ('VGG16', 'vgg16'), ('squeezenet', 'squeezenet1_1'), ('big_cn', 'big_cnn')):
        with pytest.raises(ModelError, match=near): build_model(wrong, 2)


def test_near_names_are_all_different():
    with pytest.raises(ModelError) as said: build_model('resnet81q', 2)
    near = str(said.value).split('Nearest: ')[1].split('.')[0].split(', ')
    assert len(near)==len(set(near))==3
    with pytest.raises(ModelError, match='No architecture'): build_model(['resnet18'], 2)


@pytest.mark.parametrize('arch', ['resnet18', 'small_resnet', 'convnext_atto'])
@pytest.mark.parametrize('head', ['nothing', nn.Linear, None, 3, ['fastai']], ids=str)
def test_heads_that_are_none(arch, head):
    if arch=='convnext_atto': pytest.importorskip('timm')
    with pytest.raises(ModelError, match="head = .*give 'fastai' or 'study', or a module"): build_model(arch, 2, head=head)


@pytest.mark.parametrize('options,says', [(dict(bn=True), "resnet18 with fastai's head has no option 'bn'. It has .*lin_ftrs, ps"), (dict(head='study', lin_ftrs=[5]), 'It has ps'),
    (dict(head=dense_head(512, 2), ps=.5), 'head of your own has no option'), (dict(ps=-1), 'ps = -1'), (dict(ps=[.1, 2]), 'ps = 2'), (dict(head='study', ps='a'), "ps = 'a'"),
    (dict(n_in=0), 'n_in = 0'), (dict(n_out=0), 'n_out = 0')])
def test_options_that_a_head_has_not(options, says):
    with torch.device('meta'), pytest.raises(ModelError, match=says): build_model('resnet18', **{**dict(n_out=2), **options})


def test_options_of_heads_reach_them():
    with torch.device('meta'): heads = [build_model('squeezenet1_1', 2, **o)[1] for o in (dict(ps=.2), dict(head='study', ps=.2), dict(lin_ftrs=[7], ps=[.1, .2]))]
    assert [[m.p for m in h if isinstance(m, nn.Dropout)] for h in heads]==[[.1, .2]]*3 and heads[2][4].out_features==7


def test_options_that_timm_has_not():
    pytest.importorskip('timm')
    with pytest.raises(ModelError, match='convnext_atto cannot be made with bn'): build_model('convnext_atto', 2, bn=True)


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


def test_weights_of_plain_vgg19_fit_its_body(cache):
    "The file is found by torchvision's name; its tensors are zeros that share one number."
    with torch.device('meta'): shapes = {k: v.shape for k,v in torchvision.models.vgg19().state_dict().items()}
    torch.save({k: torch.zeros(1).expand(o) for k,o in shapes.items()}, cache/'vgg19-dcbb9e9d.pth')
    state,name = find_weights('vgg19_plain')
    with torch.device('meta'): body = build_model('vgg19_plain', 2)[0]
    assert name.startswith('ImageNet: vgg19-dcbb9e9d.pth') and {k: v.shape for k,v in state.items()}=={k: v.shape for k,v in body.state_dict().items()}


class FirstChannel(Transform):
    "Grey batches of what `study_dls` reads."
    order = 99
    def encodes(self, x:torch.Tensor): return x[:,:1] if x.ndim==4 else x


@pytest.fixture
def grey(dls):
    "The same pictures in one channel, not normalised."
    out = study_dls(pd.concat(dls.catalogs.values()), size=32, bs=4, stats=None, device='cpu')
    for dl in out.loaders: dl.after_batch.add(FirstChannel())
    out.n_in = 1
    return out


@pytest.mark.parametrize('arch', ['resnet18', 'squeezenet1_1', 'small_resnet', 'mirror_cnn'])
def test_grey_arrays_train(grey, cache, arch):
    learn = quiet_fit(medical_learner(grey, arch), 1, 1e-3)
    assert next(m for m in learn.model.modules() if isinstance(m, nn.Conv2d)).in_channels==(3 if arch=='mirror_cnn' else 1)
    assert np.isfinite(learn.recorder.values[-1]).all()


def test_timm_reads_grey(grey, cache):
    pytest.importorskip('timm')
    assert medical_learner(grey, 'convnext_atto', pretrained=False).model(grey.one_batch()[0]).shape==(4, 2)


def test_pretrained_weights_for_grey_are_the_sum_over_colours(grey, dls, cached):
    with pytest.raises(ModelError, match='any_stats=True'): medical_learner(grey, 'squeezenet1_1')
    one,three = (medical_learner(o, 'squeezenet1_1', any_stats=True) for o in (grey, dls))
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad(): same = torch.allclose(one.model[0].eval()(x), three.model[0].eval()(x.expand(-1, 3, -1, -1)), atol=1e-4)
    assert same and one.weights.endswith('summed to one channel') and not three.weights.endswith('channel')
    grey.n_in = 2
    with pytest.raises(ModelError, match='2 channels do not'): medical_learner(grey, 'squeezenet1_1', any_stats=True)


def test_any_stats_takes_batches_as_they_are(dls, cached):
    raw = study_dls(pd.concat(dls.catalogs.values()), size=32, bs=4, stats=None)
    assert medical_learner(raw, 'squeezenet1_1', any_stats=True).weights==medical_learner(dls, 'squeezenet1_1').weights


def test_loaders_that_tell_their_stats_without_a_transform(grey, dls, cached):
    grey.n_in,grey.stats = 3,([.485, .456, .406], [.229, .224, .225])
    assert medical_learner(grey, 'squeezenet1_1').pretrained
    grey.stats = ([.5], [.2])
    with pytest.raises(ModelError, match='n_in=3 in array_dls'): medical_learner(grey, 'squeezenet1_1')


def arrays(size=28, **options):
    "24 grey arrays, bright ones sick; 16 of them train."
    rng = np.random.default_rng(0)
    sick = np.arange(24)%3==0
    images = rng.integers(0, 128, (24, size, size), dtype=np.uint8) + (sick*100).astype(np.uint8)[:,None,None]
    rows = pd.DataFrame(dict(path=[f'set.npz#train/{i}' for i in range(24)], label=np.where(sick, 'Sick', 'Healthy'), split=['train']*16 + ['valid']*8))
    return array_dls(rows, images=images, bs=8, device='cpu', **options)


@pytest.mark.parametrize('arch', ['resnet18', 'simple_cnn', 'big_cnn', 'small_resnet', 'mirror_cnn'])
def test_every_way_to_train_on_arrays(cache, arch):
    learn = medical_learner(arrays(), arch, class_weights='balanced', label_smoothing=.1)
    quiet_fit(learn, 2, 1e-3)
    assert np.isfinite(learn.recorder.values[-1]).all() and learn.predictions().probs.shape==(8, 2)
    assert learn.loss_func.func.weight.tolist()==pytest.approx([16/(2*10), 16/(2*6)])


def test_arrays_and_pretrained_weights(cached):
    imagenet = [.485, .456, .406], [.229, .224, .225]
    assert medical_learner(arrays(64, n_in=3, stats=imagenet), 'squeezenet1_1').pretrained
    with pytest.raises(ModelError, match='n_in=3 in array_dls'): medical_learner(arrays(64), 'squeezenet1_1')
    learn = medical_learner(arrays(64), 'squeezenet1_1', any_stats=True)
    assert learn.weights.endswith('one channel') and learn.predictions().probs.shape==(8, 2)


def test_features_of_arrays(cache):
    learn = medical_learner(arrays(), 'big_cnn', recipe='study', freeze=True)
    with learn.precomputed() as facts:
        assert facts.shape==(3136,)
        inside = learn.predictions().probs
    assert np.allclose(inside, learn.predictions().probs, atol=1e-6)


# the studies' networks in a learner

def test_a_whole_network_takes_channels_and_classes_from_the_data(grey, dls, cache, caplog):
    with caplog.at_level(logging.WARNING, 'medfast'): learns = [medical_learner(o, 'big_cnn', bn=True, size=32) for o in (grey, dls)]
    assert [l.model[0].conv1.in_channels for l in learns]==[1, 3] and [l.model[1].out.out_features for l in learns]==[2, 2]
    assert learns[0].weights=='random, seed 42' and not learns[0].pretrained and not caplog.records
    quiet_fit(learns[0], 1, 1e-3)
    with pytest.raises(ModelError, match='size=32'): quiet_fit(medical_learner(grey, 'big_cnn'), 1)


def test_a_whole_network_has_its_own_head_and_options(dls, cache):
    with pytest.raises(ModelError, match='takes no other head'): medical_learner(dls, 'simple_cnn', head=nn.Linear(2, 2))
    with pytest.raises(ModelError, match="no option 'lin_ftrs'. It has widths, depth, stride, ps"): medical_learner(dls, 'small_resnet', lin_ftrs=[5])
    with pytest.raises(ModelError, match='no pretrained weights'): medical_learner(dls, 'small_resnet', pretrained=True)


def test_a_head_for_another_number_of_classes(dls, cache):
    with pytest.raises(ModelError, match=r'gives 1 outputs, and there are 2 classes \(Healthy, Sick\)'): medical_learner(dls, 'squeezenet1_1', pretrained=False, head=dense_head(512, 1))


@pytest.mark.parametrize('head,says', [(dense_head(2048, 2), r'features of the shape \(512, 1, 1\).*n_features=512, or 512 for one with pool=False'), (nn.Sequential(), 'gives 512 outputs'),
    (nn.Sequential(nn.Flatten(), nn.Linear(512, 3), nn.ReLU()), 'gives 3 outputs, and there are 2 classes')], ids=['features', 'empty', 'outputs'])
def test_a_head_that_does_not_fit_its_body_or_classes(dls, cache, head, says):
    with pytest.raises(ModelError, match=says): medical_learner(dls, 'resnet18', pretrained=False, head=head)


def test_a_head_on_all_of_the_maps_of_these_images(grey, cache):
    arch = dict(arch='squeezenet1_1', pretrained=False)
    assert medical_learner(grey, **arch, head=dense_head(512, 2, pool=False)).model(torch.randn(3, 1, 32, 32)).shape==(3, 2)
    with pytest.raises(ModelError, match='n_features=512'): medical_learner(grey, **arch, head=dense_head(512*4, 2, pool=False))


@pytest.mark.parametrize('make', [lambda dls: dls, lambda dls: arrays(n_in=3)], ids=['files', 'arrays'])
def test_looking_at_a_head_leaves_no_trace(dls, cache, monkeypatch, make):
    "The next random numbers, the order of the batches and the weights are those without a look."
    def fit(look):
        if not look: monkeypatch.setattr(models, '_check_head', lambda *_: None)
        torch.manual_seed(1)
        o = make(study_dls(pd.concat(dls.catalogs.values()), size=32, bs=4, augment='thermogram', seed=3, device='cpu'))
        learn = medical_learner(o, 'resnet18', pretrained=False, head=dense_head(512, 2, bn=True, ps=.5))
        assert all(m.training for m in learn.model.modules())
        quiet_fit(learn, 1, 1e-3)
        return torch.cat([v.flatten().double() for v in learn.model.state_dict().values()]), torch.rand(1), np.random.rand(), o.valid.rng.getstate()
    seen,unseen = fit(True), fit(False)
    assert torch.equal(seen[0], unseen[0]) and seen[1:]==unseen[1:]


# the history

def test_before_training_there_is_no_history(dls, cache):
    learn = medical_learner(dls, 'small_resnet', widths=(4,))
    with pytest.raises(ModelError, match='There is no history.*Train first'): learn.history
    learn.recorder.values = []
    with pytest.raises(ModelError, match='no history'): learn.history
    assert len(quiet_fit(learn, 2, 1e-3).history)==2


# the loss

def test_label_smoothing_reaches_the_loss_and_is_that_of_torch(dls, cache):
    out,y = torch.randn(6, 2), torch.tensor([0, 1, 1, 0, 1, 0])
    learn = medical_learner(dls, 'small_resnet', label_smoothing=.2, class_weights=[1, 3])
    wanted = torch.nn.functional.cross_entropy(out, y, weight=torch.tensor([1., 3.]), label_smoothing=.2)
    assert torch.allclose(learn.loss_func(out, y), wanted) and torch.allclose(learn.loss_func.activation(out), out.softmax(1))
    assert torch.equal(medical_learner(dls, 'small_resnet').loss_func(out, y), torch.nn.functional.cross_entropy(out, y))
    for wrong in (-.1, 1, 10):
        with pytest.raises(ModelError, match='label_smoothing'): medical_learner(dls, 'small_resnet', label_smoothing=wrong)


def several_labels():
    "Images that are bright above, below, both or neither."
    rng = torch.Generator().manual_seed(0)
    y = torch.rand(32, 2, generator=rng).round()
    x = torch.randn(32, 1, 8, 8, generator=rng)*.1
    x[:,0,:4],x[:,0,4:] = x[:,0,:4] + y[:,:1,None],x[:,0,4:] + y[:,1:,None]
    out = DataLoaders(*[DataLoader(list(zip(x, y)), bs=8, shuffle=o, num_workers=0) for o in (True, False)])
    out.vocab,out.n_in,out.multi_label = ['above', 'below'],1,True
    return out


def test_several_labels_an_image_are_answered_one_by_one(cache):
    learn = medical_learner(several_labels(), 'simple_cnn', size=8)
    assert isinstance(learn.loss_func, BCEWithLogitsLossFlat)
    quiet_fit(learn, 20, 1e-2)
    assert list(learn.history)==['epoch', 'train_loss', 'valid_loss', 'accuracy_multi'] and learn.history.accuracy_multi.iloc[-1] > .9
    for wrong in (dict(class_weights='balanced'), dict(class_weights=[1, 2]), dict(label_smoothing=.1)):
        with pytest.raises(ModelError, match='one label an image'): medical_learner(several_labels(), 'simple_cnn', size=8, **wrong)


# fine-tuning of the last blocks

@pytest.mark.parametrize('n', [0, 1, 3, 5])
def test_what_rests_does_not_move_by_a_bit(dls, cache, n):
    "Weights and running statistics, with fastai's recipe, which would train and track batch norm of frozen layers."
    learn = medical_learner(dls, 'resnet18', freeze=True)
    learn.unfreeze_last(n)
    blocks = body_blocks(learn.model)
    state = lambda part: torch.cat([v.flatten().double() for m in part for v in m.state_dict().values()])
    before = [state(b) for b in [*blocks, [learn.model[1]]]]
    quiet_fit(learn, 1, slice(1e-3, 1e-2))
    assert [not torch.equal(state(b), o) for b,o in zip([*blocks, [learn.model[1]]], before)]==[False]*(5 - n) + [True]*(n + 1)
    assert [h['lr'] for h in learn.opt.hypers]==pytest.approx([1e-3, 10**-2.5, 1e-2])


def test_the_last_blocks_of_plain_vgg19(dls, cache):
    with torch.device('meta'): learn = medical_learner(dls, 'vgg19_plain', pretrained=False, head=dense_head(512, 2))
    for n,count in enumerate([0, 9_439_232, 17_698_816, 19_764_224, 19_985_664, 20_024_384]):
        learn.unfreeze_last(n)
        assert count_parameters(learn.model).trainable.tolist()==[count, 56_452, count + 56_452]


def test_freezing_again_and_unfreezing_all(dls, cache):
    learn = medical_learner(dls, 'squeezenet1_1', pretrained=False)
    trains = lambda: [o > 0 for o in block_table(learn.model).trainable]
    learn.unfreeze_last(2)
    assert trains()==[False]*7 + [True]*3 and sum(isinstance(cb, BnFreeze) for cb in learn.cbs)==1
    learn.unfreeze_last(1)
    assert trains()==[False]*8 + [True]*2 and sum(isinstance(cb, BnFreeze) for cb in learn.cbs)==1
    learn.freeze()
    assert trains()==[False]*9 + [True]
    learn.unfreeze()
    assert all(trains())
    quiet_fit(learn, 1, slice(1e-4, 1e-3))


@pytest.mark.parametrize('n', [-1, 10, 1.5, None, 'all'])
def test_blocks_that_are_not_there(dls, cache, n):
    with pytest.raises(ModelError, match=r'this body has 9 blocks.*0 \(the head alone\) to 9'): medical_learner(dls, 'squeezenet1_1', pretrained=False).unfreeze_last(n)


def test_no_body_no_blocks(dls, cache):
    learn = medical_learner(dls, 'small_resnet')
    learn.model = nn.Linear(3, 2)
    with pytest.raises(ModelError, match='body, head'): learn.unfreeze_last(1)


# features of a frozen body

@pytest.mark.parametrize('arch,head', [('vgg19_plain', dense_head(512, 2)), ('vgg19_plain', dense_head(512, 2, bn=True, ps=.5)), ('squeezenet1_1', dense_head(512, 2, widths=(8,)))],
    ids=['vgg', 'vgg, batch norm', 'squeezenet'])
def test_a_dense_head_learns_on_features_what_it_learns_on_images(dls, cache, arch, head):
    learn = medical_learner(dls, arch, pretrained=False, recipe='study', freeze=True, head=head)
    state = {k: v.clone() for k,v in learn.model[0].state_dict().items()}
    with learn.precomputed() as facts:
        assert facts.shape==(512,)
        quiet_fit(learn, 2, 1e-3)
        on_features = learn.get_preds()[0]
        with pytest.raises((ModelError, PrecomputeError), match='leave the block'): learn.unfreeze_last(1)
    assert torch.allclose(learn.get_preds()[0], on_features, atol=1e-5)
    assert all(torch.equal(v, state[k]) for k,v in learn.model[0].state_dict().items())


def test_features_of_a_studys_network(dls, cache):
    learn = medical_learner(dls, 'big_cnn', bn=True, size=32, recipe='study', freeze=True)
    with learn.precomputed() as facts:
        assert facts.shape==(64*8*8,)
        quiet_fit(learn, 1, 1e-3)


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
    by_name = medical_learner(dls, 'squeezenet1_1', class_weights=dict(Sick=3, Healthy=1))
    assert by_name.loss_func.func.weight.tolist()==[1, 3]
    assert medical_learner(dls, 'squeezenet1_1', class_weights=pd.Series(dict(Sick=3, Healthy=1))).loss_func.func.weight.tolist()==[1, 3]
    for wrong in ([1.], 'even', dict(Sick=3), 1., [1, -1], [0, 1], [1, float('nan')], [1, float('inf')], ['a', 'b'], [1, None], dict(Sick=0, Healthy=1), True):
        with pytest.raises(ModelError, match='class_weights'): medical_learner(dls, 'squeezenet1_1', class_weights=wrong)


def test_balanced_needs_a_catalog_to_count_in(cache):
    plain = several_labels()
    plain.multi_label = False
    with pytest.raises(ModelError, match="class_weights = 'balanced'.*study_dls or array_dls"): medical_learner(plain, 'simple_cnn', size=8, class_weights='balanced')


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
