"Looking at predictions: the study's choices, titles that tell the truth, and maps that leave no trace."
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.vision.augment import Resize
from fastai.vision.data import ImageDataLoaders
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from medfast.catalog import dmr_catalog
from medfast.evaluate import Predictions
from medfast.interpret import InterpretError, grad_cam, most_confused, pick, plot_cam, plot_gallery, plot_top_losses, show_item, top_losses
from medfast.loaders import study_dls
from medfast.models import build_model, medical_learner
from medfast.split import split_catalog


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')


@pytest.fixture(scope='module')
def catalog(small_study): return split_catalog(dmr_catalog(small_study), valid=.25, seed=1)


def two_classes(p, y, **kw): return Predictions(np.stack([1 - p, p], 1), y, ['Healthy', 'Sick'], [f'{i}.png' for i in range(len(p))], **kw)


# which rows

answers = st.lists(st.tuples(st.integers(0, 20).map(lambda o: o/20), st.integers(0, 1)), min_size=1, max_size=30)


@given(answers)
@settings(max_examples=60, deadline=None)
def test_the_studys_own_functions_choose_the_same(rows):
    probs,val_y = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    preds,called = two_classes(probs, val_y), (probs >= .5).astype(int)

    def most_by_correct(y, is_correct): # Study 001, listing 9; ties in the order of the files
        mult = -1 if (y == 1) == is_correct else 1
        idxs = np.where(((called == val_y) == is_correct) & (val_y == y))[0]
        return idxs[np.argsort(mult*probs[idxs], kind='stable')[:4]]
    for y in (0, 1):
        for right,which in ((True, 'most correct'), (False, 'most incorrect')):
            assert probs[pick(preds, which, label=preds.classes[y]).index].tolist()==probs[most_by_correct(y, right)].tolist()
    assert abs(probs[pick(preds, 'most uncertain').index] - .5).tolist()==pytest.approx(np.sort(abs(probs - .5))[:4].tolist())
    assert set(pick(preds, 'correct', n=99).index)==set(np.where(called==val_y)[0])
    assert set(pick(preds, 'incorrect', n=99).index)==set(np.where(called!=val_y)[0])


def test_chance_is_seeded():
    preds = two_classes(np.linspace(0, 1, 40), np.ones(40, int))
    first = pick(preds, 'correct').index.tolist()
    assert first==pick(preds, 'correct').index.tolist() and first!=pick(preds, 'correct', seed=1).index.tolist()


def test_uncertain_between_three_classes_is_a_small_gap_not_a_small_maximum():
    preds = Predictions([[.4, .3, .3], [.5, .49, .01], [.9, .1, 0]], [0, 0, 0], list('abc'), ['x', 'y', 'z'])
    assert pick(preds, 'most uncertain')['item'].tolist()==['y', 'x', 'z']


def test_one_image_a_patient():
    preds = two_classes(np.linspace(.6, 1, 12), np.ones(12, int), patients=[str(i//4) for i in range(12)])
    assert pick(preds, 'most correct', once=True).patient.tolist()==['2', '1', '0']
    assert len(pick(two_classes(np.linspace(.6, 1, 12), np.ones(12, int)), 'most correct', once=True))==4


@pytest.mark.parametrize('kw,says', [(dict(which='best'), 'most uncertain'), (dict(which='correct', label='Well'), 'Healthy, Sick')])
def test_choices_that_do_not_exist(kw, says):
    with pytest.raises(InterpretError, match=says): pick(two_classes(np.ones(2), np.ones(2, int)), **kw)


def test_losses_count_the_true_class():
    preds = two_classes(np.array([.9, .2, 0., 1.]), np.array([0, 1, 0, 0]))
    rows = top_losses(preds, 3)
    assert rows.index.tolist()==[3, 0, 1] and np.isfinite(rows.loss).all()
    assert rows.loss[1]==pytest.approx(-np.log(.2)) and rows.p_predicted[1]==.8


def test_confused_pairs_are_counted_by_image_and_patient():
    preds = Predictions(np.eye(3)[[1, 1, 2, 0, 1]], [0, 0, 0, 0, 1], list('abc'), list('vwxyz'), ['1', '1', '2', '3', '4'])
    got = most_confused(preds)
    assert got.to_dict('list')=={'label': ['a', 'a'], 'predicted': ['b', 'c'], 'images': [2, 1], 'patients': [1, 1]}
    preds.patients = None
    assert most_confused(preds, min_count=2).patients.isna().tolist()==[True]
    assert len(most_confused(preds, min_count=3))==0


# pictures

@pytest.fixture
def pictures(tmp_path):
    names = [f'{i}.png' for i in range(6)]
    for i,n in enumerate(names): Image.new('RGB', (20, 10), (40*i, 0, 0)).save(tmp_path/n)
    return tmp_path


def test_titles_tell_the_probability_of_the_true_class(pictures):
    preds = two_classes(np.array([.1, .2, .7, .8, .9, .4]), np.array([0, 1, 0, 1, 1, 1]))
    for which in ('correct', 'incorrect', 'most uncertain'):
        rows = pick(preds, which)
        for ax,(_,r) in zip(plot_gallery(preds, which, folder=pictures), rows.iterrows()):
            assert f'p({r.label}) = {r.p_true:.3f}' in ax.get_title() and r['item'] in ax.get_title()
            assert ('called' in ax.get_title())==(not r.correct)
            assert ax.images[0].get_array()[0,0,0]*255==pytest.approx(40*int(r['item'][0]), abs=1)


def test_names_hide(pictures):
    preds = two_classes(np.full(6, .9), np.ones(6, int))
    assert not any('png' in ax.get_title() for plot in (plot_gallery(preds, 'correct', names=False, folder=pictures), plot_top_losses(preds, names=False, folder=pictures)) for ax in plot)


def test_more_images_than_columns(pictures):
    axes = plot_gallery(two_classes(np.full(6, .9), np.ones(6, int)), 'correct', n=5, columns=2, folder=pictures)
    assert [bool(ax.images) for ax in axes]==[True]*5 + [False]


@pytest.mark.parametrize('p,y,label,says', [([.9], [1], 'Sick', 'of 1 Sick image, it is called'), ([.9], [1], 'Healthy', 'there are no Healthy images'), ([.9, .1], [1, 0], None, 'of 2 images, all')])
def test_an_empty_gallery_says_why(p, y, label, says):
    axes = plot_gallery(two_classes(np.array(p), np.array(y)), 'most incorrect', label=label)
    assert says in axes[0].texts[0].get_text()


def test_none_correct_says_so():
    assert 'of 1 image, none is called' in plot_gallery(two_classes(np.array([.1]), np.array([1])), 'correct')[0].texts[0].get_text()


@pytest.mark.parametrize('by,told', [('image', True), ('patient', False)])
def test_a_split_by_image_stands_in_every_picture(pictures, by, told):
    preds = two_classes(np.linspace(.2, .9, 6), np.ones(6, int), split_by=by)
    for axes in (plot_gallery(preds, 'correct', folder=pictures), plot_gallery(preds, 'most correct', label='Healthy', folder=pictures), plot_top_losses(preds, folder=pictures)):
        assert ('split by image' in axes[0].figure.get_suptitle())==told and 'patients unknown' in axes[0].figure.get_suptitle()
    preds.patients = list('abcdef')
    assert 'unknown' not in plot_top_losses(preds, folder=pictures)[0].figure.get_suptitle()


def test_rows_of_patients_have_no_picture():
    preds = two_classes(np.array([.1, .2]), np.array([0, 0]), patients=['0001', '0002'])
    with pytest.raises(InterpretError, match='There is no file 000[12].*Rows of patients'): plot_gallery(preds.by_patient(), 'correct')


def test_sixteen_bits_and_turned_pictures(tmp_path):
    Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)).save(tmp_path/'a.png')
    assert np.allclose(show_item(tmp_path/'a.png').get_array()[0,:,0], [0, .5, 1], atol=1e-4)
    im = Image.new('L', (30, 10))
    exif = im.getexif(); exif[0x0112] = 6
    im.save(tmp_path/'b.jpg', exif=exif)
    assert show_item('b.jpg', folder=tmp_path).get_array().shape==(30, 10, 3)


def test_a_thermogram_keeps_its_scale(catalog):
    drawn = show_item(catalog.path[0], low=25., high=35.)
    assert drawn.get_clim()==(25, 35) and drawn.get_array().shape==(480, 640) and 25 < np.median(drawn.get_array()) < 35


# maps

ARCHS = ['resnet18', 'vgg16', 'squeezenet1_1', 'densenet121', 'resnet10t']


def frozen(model):
    for p in model[0].parameters(): p.requires_grad = False
    return model


def everything(model):
    "All that a map could change: weights, statistics, gradients, what learns, modes, hooks."
    sums = [v.double().sum().item() for v in model.state_dict().values()]
    return sums, [(p.requires_grad, None if p.grad is None else p.grad.sum().item()) for p in model.parameters()], [(m.training, len(m._forward_hooks)) for m in model.modules()]


@pytest.mark.parametrize('arch', ARCHS)
def test_every_architecture_frozen_or_not_and_no_trace(arch):
    if arch=='resnet10t': pytest.importorskip('timm')
    torch.manual_seed(0)
    model,x = build_model(arch, 2), torch.randn(3, 64, 64)
    model.train()
    model[1](torch.randn(2, model[0].eval()(x[None]).shape[1], 2, 2)).sum().backward()
    model[0].train()
    before = everything(model)
    cam = grad_cam(model, x, target=1)
    assert everything(model)==before
    assert cam.shape==(64, 64) and cam.dtype==np.float32 and cam.min() >= 0 and cam.max() in (0, 1)
    assert np.array_equal(grad_cam(frozen(model), x[None], target=1), cam)


def test_the_map_is_the_formula():
    torch.manual_seed(1)
    model,x = build_model('resnet18', 3).eval(), torch.randn(1, 3, 96, 96)
    lit = 0
    for target in range(3):
        maps = model[0](x)
        slope = torch.autograd.grad(model[1](maps)[0,target], maps)[0]
        wanted = torch.relu((maps*slope.mean((2, 3), keepdim=True)).sum(1, keepdim=True))
        wanted = nn.functional.interpolate(wanted, size=(96, 96), mode='bilinear', align_corners=False)[0,0].detach()
        lit += wanted.max() > 0
        assert np.allclose(grad_cam(model, x, target=target), wanted/max(wanted.max(), 1e-30), atol=1e-5)
    assert lit
    assert np.array_equal(grad_cam(model, x), grad_cam(model, x, target=int(model(x).argmax())))


class Warmest(nn.Module):
    "Class 1 rises with warm blobs of 5 pixels; class 0 with nothing."
    def __init__(self):
        super().__init__()
        self.find,self.relu = nn.Conv2d(3, 4, 5, stride=2, padding=2), nn.ReLU(inplace=True)
        self.find.weight.data[:] = 0
        self.find.weight.data[1,0] = 1/25
        self.find.bias.data = torch.tensor([.5, -.5, .3, 0])
    def forward(self, x):
        maps = self.relu(self.find(x)).amax((2, 3))
        return torch.stack([0*maps[:,0], maps[:,1]], 1)


@pytest.mark.parametrize('row,col', [(4, 4), (10, 40), (50, 20), (58, 58)])
def test_the_map_lights_where_the_blob_was_planted(row, col):
    x = .1*torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    x[0,row-3:row+3,col-3:col+3] = 1
    cam = grad_cam(Warmest(), x, target=1)
    r,c = np.unravel_index(cam.argmax(), cam.shape)
    assert abs(r - row) <= 4 and abs(c - col) <= 4
    far = np.hypot(*(np.mgrid[:64,:64] - np.array([row, col])[:,None,None])) > 12
    assert cam[far].max()==0


def test_a_layer_whose_output_is_changed_in_place_afterwards():
    x = torch.zeros(3, 32, 32); x[0,10:16,10:16] = 1
    assert np.allclose(grad_cam(Warmest(), x, target=1, layer='find'), grad_cam(Warmest(), x, target=1), atol=1e-6)


def test_where_nothing_speaks_for_a_class_the_map_is_zero(): assert grad_cam(Warmest(), torch.zeros(3, 16, 16), target=1).max()==0


def test_a_layer_by_name_and_layers_that_cannot_be():
    model,x = build_model('resnet18', 2), torch.randn(3, 64, 64)
    assert np.array_equal(grad_cam(model, x, layer='0.7', target=0), grad_cam(model, x, target=0))
    assert not np.array_equal(grad_cam(model, x, layer='0.5', target=0), grad_cam(model, x, target=0))
    before = everything(model)
    with pytest.raises(InterpretError, match="no layer 'layer4'"): grad_cam(model, x, layer='layer4')
    with pytest.raises(InterpretError, match='Linear has no output'): grad_cam(model, x, layer=model[1][-1])
    with pytest.raises(InterpretError, match='Name a convolution'): grad_cam(model, x, layer=nn.Conv2d(3, 3, 1))
    with pytest.raises(InterpretError, match='classes 0 to 1'): grad_cam(model, x, target=-1)
    assert everything(model)==before


def test_images_too_small_for_any_map():
    with pytest.raises(InterpretError, match='1 x 1 pixels'): grad_cam(build_model('resnet18', 2), torch.randn(3, 1, 1))


def test_a_transformer_is_refused():
    timm = pytest.importorskip('timm')
    model = timm.create_model('vit_tiny_patch16_224', img_size=32, num_classes=2, depth=1)
    with pytest.raises(InterpretError, match='tokens'): grad_cam(model, torch.randn(3, 32, 32))


def test_a_single_output_speaks_for_both_classes():
    net = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net[0].weight.data[:] = torch.tensor([1., 0, 0])[None,:,None,None]
    x = torch.zeros(3, 8, 8); x[0,2,2] = 1
    assert grad_cam(net, x, target=1)[2,2]==1 and grad_cam(net, x, target=0).max()==0


# over an image

def test_over_a_thermogram_there_is_a_scale(catalog):
    dls = study_dls(catalog, size=64, bs=4, augment='thermogram')
    learn = medical_learner(dls, 'squeezenet1_1', pretrained=False)
    row = dls.catalogs['valid'].iloc[0]
    state = torch.get_rng_state().tolist()
    axes = plot_cam(learn, row.path, target='Sick')
    assert state==torch.get_rng_state().tolist()
    assert [o.get_ylabel() for o in axes[0].figure.axes]==['', '', '°C']
    assert axes[0].images[0].get_clim()==(20, 40) and 25 < np.median(axes[0].images[0].get_array()) < 36
    x = dls.test_dl([row.path], num_workers=0).one_batch()[0]
    with torch.no_grad(): p = learn.model.eval()(x).softmax(1)[0,1].item()
    assert axes[0].get_title()==f'p(Sick) = {p:.3f}'
    assert np.allclose(axes[1].images[1].get_array(), grad_cam(learn, x, 1), atol=1e-5)
    assert plot_cam(learn, row.to_dict(), target='Sick')[0].get_title()==axes[0].get_title()
    with pytest.raises(InterpretError, match='Healthy, Sick'): plot_cam(learn, row.path, target='sick')


def test_over_a_picture_of_plain_fastai(tmp_path):
    for i in range(8):
        fn = tmp_path/('train', 'valid')[i//4]/('cat', 'dog')[i%2]/f'{i}.png'
        fn.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (60, 40), (30*i, 90, 20)).save(fn)
    dls = ImageDataLoaders.from_folder(tmp_path, item_tfms=Resize(32), bs=2, num_workers=0)
    learn = Learner(dls, build_model('resnet18', 2), CrossEntropyLossFlat())
    axes = plot_cam(learn, fn)
    assert axes[1].get_title().split(' speaks for ')[1] in ('cat', 'dog') and len(axes[0].figure.axes)==2
