"What a drawn chest or slice is, whatever its number, and what it refuses."
import re
import subprocess
import sys
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score

from medfast.phantom import KINDS, LOBES, ORGANS, Chest, PhantomError, describe_chest, describe_scan, draw_chest, draw_organ

ILL = KINDS[1:]


def findings(kind, n=12, **knobs):
    "Pictures of what `kind` fills: patients, rows, columns."
    return [draw_chest(replace(describe_chest(i, kind), severity=.8, **knobs), size=64) for i in range(1, n + 1)]


def centre(d):
    "Mean row and column of a finding, as shares of the picture."
    rows,cols = np.mgrid[:64,:64]/63
    return np.average(rows, weights=d.finding), np.average(cols, weights=d.finding)


# --- chests

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('size', [16, 33, 128])
def test_every_kind_at_every_size_without_a_warning(kind, size):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for i in range(1, 6):
            d = draw_chest(describe_chest(i, kind, age=None if i%2 else 60), i, size=size)
            assert d.image.shape == d.mask.shape == d.finding.shape == (size, size) and d.image.dtype == np.uint8 and d.mask.dtype == bool
            assert d.image.std() > 25 and .12 < d.mask.mean() < .6


def test_same_description_same_bytes_and_each_picture_its_own():
    chest = describe_chest(3, 'viral', seed=5)
    one = draw_chest(chest, 1, size=64).image
    assert np.array_equal(one, draw_chest(describe_chest(3, 'viral', seed=5), 1, size=64).image)
    for other in (draw_chest(chest, 2, size=64), draw_chest(describe_chest(4, 'viral', seed=5), 1, size=64), draw_chest(describe_chest(3, 'viral', seed=6), 1, size=64)):
        assert (one != other.image).mean() > .5


def test_kind_changes_what_the_patient_has_and_nothing_else():
    for i in range(1, 6):
        people = [describe_chest(i, o, seed=2) for o in KINDS]
        bare = {replace(o, kind='normal', side='', lobe='', severity=0.) for o in people}
        assert len(bare) == 1
        masks = [draw_chest(o, size=48).mask for o in people]
        assert all(np.array_equal(masks[0], o) for o in masks)


def test_the_heart_lies_on_the_right_of_the_picture():
    mean = np.mean([draw_chest(describe_chest(i), size=64).image for i in range(1, 31)], 0)
    low = mean[34:46]
    assert low[:,36:46].mean() > low[:,18:28].mean() + 20
    assert np.mean([d.mask[:,:32].sum() > d.mask[:,32:].sum() for d in findings('viral', 20)]) > .7


def test_lungs_are_dark():
    for i in range(1, 11):
        d = draw_chest(describe_chest(i), size=64)
        assert d.image[d.mask].mean() < d.image[20:,8:-8][~d.mask[20:,8:-8]].mean() - 40


@pytest.mark.parametrize('kind', ['bacterial', 'opacity'])
@pytest.mark.parametrize('side', ['left', 'right'])
def test_one_sided_findings_are_on_the_side_of_the_patient(kind, side):
    cols = np.array([centre(d)[1] for d in findings(kind, side=side)])
    assert ((cols > .5) == (side == 'left')).all()


def test_lobes_lie_above_each_other():
    rows = [np.mean([centre(d)[0] for d in findings('bacterial', lobe=o)]) for o in LOBES]
    assert rows[0] + .1 < rows[1] and rows[0] + .15 < rows[2]


def test_viruses_are_central_and_covid_is_outside_and_below():
    place = {k: np.mean([[centre(d)[0], np.average(abs(np.mgrid[:64,:64][1] - 31.5), weights=d.finding)] for d in findings(k)], 0) for k in ('viral', 'covid')}
    assert place['covid'][0] > place['viral'][0] + .05 and place['covid'][1] > place['viral'][1] + 2
    for k in ('viral', 'covid'):
        for d in findings(k): assert min(d.finding[:,:32].sum(), d.finding[:,32:].sum()) > .15*d.finding.sum()


@pytest.mark.parametrize('kind', ILL)
def test_more_severe_is_lighter_inside_the_lungs_only(kind):
    for i in (1, 2, 3):
        chest = replace(describe_chest(i, kind), exposure=0.)
        pictures = [draw_chest(replace(chest, severity=s), size=64) for s in (0., .4, 1.)]
        light = [d.image[d.mask].mean() for d in pictures]
        assert light[0] < light[1] < light[2]
        assert np.array_equal(pictures[0].image, draw_chest(replace(chest, kind='normal', side='', lobe='', severity=0.), size=64).image)
        assert not pictures[2].finding[~pictures[2].mask].any() and 0 <= pictures[2].finding.min() and pictures[2].finding.max() <= 1


def test_the_finding_stays_in_its_place_from_picture_to_picture():
    chest = replace(describe_chest(2, 'bacterial'), severity=.9)
    centres = np.array([centre(draw_chest(chest, i, size=64)) for i in range(6)])
    assert centres.std(0).max() < .1


def test_letter_of_lead_and_exposure():
    plain = replace(describe_chest(1), marker='')
    lettered = [(draw_chest(replace(plain, marker=o), size=64).image.astype(int) - draw_chest(plain, size=64).image > 30).sum(0) for o in 'RL']
    assert lettered[0][:20].any() and not lettered[0][44:].any()
    assert lettered[1][44:].any() and not lettered[1][:20].any()
    assert draw_chest(replace(plain, exposure=.1), size=64).image.mean() > draw_chest(plain, size=64).image.mean() + 10


def test_truth_says_what_was_asked_for():
    truth = draw_chest(Chest(kind='bacterial', side='left', lobe='upper', severity=.5), 3).truth
    assert truth == dict(number=1, age=4., heart=.52, kind='bacterial', side='left', lobe='upper', severity=.5, image=3)


@pytest.mark.parametrize('bad,match', [(dict(kind='tumour'), 'kind'), (dict(side='left'), 'side'), (dict(lobe='upper'), 'lobe'), (dict(severity=1.5), 'severity'),
    (dict(severity=float('nan')), 'severity'), (dict(kind='viral', side='left'), "side = 'left': viral is 'both'"), (dict(kind='bacterial', side='left'), 'lobe'),
    (dict(marker='X'), 'marker'), (dict(heart=5.), 'heart'), (dict(exposure=9.), 'exposure')])
def test_what_nobody_has_is_refused(bad, match):
    with pytest.raises(PhantomError, match=match): Chest(**bad)


@pytest.mark.parametrize('size', [0, 15, 1025, 64.5, -64])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(PhantomError, match='size'): draw_chest(Chest(), size=size)
    with pytest.raises(PhantomError, match='size'): draw_organ('liver', describe_scan(), size=size)


@pytest.mark.parametrize('knobs', [dict(number=-1), dict(seed=-1), dict(seed=.5)])
def test_negative_seeds_are_refused(knobs):
    for describe in (describe_chest, describe_scan):
        with pytest.raises(PhantomError, match='whole numbers from 0'): describe(**knobs)


# --- organs

VIEWS = ('axial', 'sagittal')


@pytest.mark.parametrize('view', VIEWS)
@pytest.mark.parametrize('organ', ORGANS)
def test_every_organ_on_both_scanners_without_a_warning(organ, view):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for number in range(1, 9):
            for scanner in 'AB':
                d = draw_organ(organ, describe_scan(number, scanner=scanner), number, view=view)
                assert d.image.shape == (28, 28) and d.image.dtype == np.uint8 and d.mask.any() and not d.mask.all()
                assert [d.truth[k] for k in ('organ', 'scanner', 'view')] == [organ, scanner, view]


@pytest.mark.parametrize('family', ['femur', 'kidney', 'lung'])
@pytest.mark.parametrize('size', [28, 65])
def test_a_flip_turns_left_into_right_in_axial_slices_only(family, size):
    for i in range(1, 6):
        scan = describe_scan(i, scanner='AB'[i%2])
        left,right = (draw_organ(f'{family}-{o}', scan, i, size=size) for o in ('left', 'right'))
        assert np.array_equal(left.image[:,::-1], right.image) and np.array_equal(left.mask[:,::-1], right.mask)
        assert not np.array_equal(left.image, right.image)
        left,right = (draw_organ(f'{family}-{o}', scan, i, size=size, view='sagittal').image for o in ('left', 'right'))
        assert (left[:,::-1] != right).mean() > .1


@pytest.mark.parametrize('view', VIEWS)
def test_organs_have_the_grey_of_what_they_are(view):
    grey = {o: np.mean([(d := draw_organ(o, describe_scan(i), i, view=view)).image[d.mask].mean() for i in range(1, 31)]) for o in ORGANS}
    assert grey['lung-left'] < 45 < grey['bladder'] < grey['liver'] < grey['femur-left']
    assert grey['kidney-left'] == pytest.approx(grey['kidney-right'], abs=5) and grey['kidney-left'] > grey['pancreas']


@pytest.mark.parametrize('view', VIEWS)
@pytest.mark.parametrize('organ', ORGANS)
def test_slices_of_a_volume_resemble_each_other_more_than_strangers(organ, view):
    draw = lambda i, k: draw_organ(organ, describe_scan(i), k, view=view).image.ravel()
    same,other = (np.mean([np.corrcoef(draw(i, 0), draw(i + apart, 1))[0,1] for i in range(1, 31)]) for apart in (0, 1))
    assert same > other + .08


def sides(family, n=100):
    "Sagittal slices of the left and of the right organ, one of each a volume."
    x = [draw_organ(f'{family}-{o}', describe_scan(i), view='sagittal').image.ravel()/255 for i in range(1, n + 1) for o in ('left', 'right')]
    return np.array(x), np.tile([0, 1], n), np.repeat(np.arange(n), 2)


@pytest.mark.parametrize('family,low,high', [('femur', .32, .64), ('kidney', .75, 1), ('lung', .75, 1)])
def test_in_sagittal_slices_neighbours_tell_the_side_and_femurs_have_none(family, low, high):
    x,y,volume = sides(family)
    assert low < cross_val_score(LogisticRegression(C=.02, max_iter=500), x, y, groups=volume, cv=GroupKFold(5)).mean() <= high


def test_the_front_is_on_the_left_of_a_sagittal_slice():
    def mean(organ): return np.mean([draw_organ(organ, describe_scan(i), size=48, view='sagittal').image for i in range(1, 41)], 0)
    pancreas,lung,right,left = (mean(o) for o in ('pancreas', 'lung-left', 'kidney-right', 'kidney-left'))
    assert pancreas[:,36:].mean() > pancreas[:,:12].mean() + 40, 'the column is behind'
    assert lung[16:32,:12].mean() > lung[16:32,32:44].mean() + 20, 'the heart is in front'
    assert right[:8,8:24].mean() > left[:8,8:24].mean() + 15, 'the liver is above the right kidney'


def test_scanner_b_shows_less():
    a,b = ([describe_scan(i, scanner=o) for i in range(1, 41)] for o in 'AB')
    for name,less in (('contrast', True), ('zoom', True), ('noise', False), ('window', False)):
        means = [np.mean([getattr(o, name) for o in group]) for group in (a, b)]
        assert (means[1] < means[0]) == less, name


def test_other_names_are_refused():
    with pytest.raises(PhantomError, match=re.escape("organ = 'kidney': did you mean 'kidney-")): draw_organ('kidney', describe_scan())
    with pytest.raises(PhantomError, match="organ = 3: Choose one of bladder"): draw_organ(3, describe_scan())
    with pytest.raises(PhantomError, match="view = 'coronal': choose one of axial, sagittal"): draw_organ('liver', describe_scan(), view='coronal')
    with pytest.raises(PhantomError, match="scanner = 'C'"): describe_scan(scanner='C')


# --- both

def test_drawing_is_quick():
    start = time.process_time()
    for i in range(20): draw_chest(describe_chest(i, KINDS[i%5]))
    for i in range(200): draw_organ(ORGANS[i%11], describe_scan(i), view=VIEWS[i%2])
    assert time.process_time() - start < 6


def test_phantom_loads_neither_torch_nor_pandas():
    code = 'import sys, medfast.phantom; print(sorted({"torch", "fastai", "pandas", "matplotlib"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
