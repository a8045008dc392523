"The study's recipe, step by step, each in one line that its reader recognises."
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from medfast.catalog import dmr_catalog
from medfast.evaluate import confusion
from medfast.interpret import plot_gallery
from medfast.loaders import augmentations, folder_dls
from medfast.models import medical_learner
from medfast.simulate import simulate_study
from medfast.split import make_folders, study_order

import medfast.precompute
import medfast.predictions
import medfast.schedule


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Its folders: 10 + 10 images drawn by image, 6 to learn from, 2 to validate, 2 to test."
    study = simulate_study(tmp_path_factory.mktemp('study')/'s', n_patients=20, n_frames=2, seed=1, progress=False)
    return make_folders(study_order(dmr_catalog(study), 10, valid=2, test=2, seed=5), tmp_path_factory.mktemp('folders')/'selection')


def test_every_step_of_the_recipe(folder, tmp_path):
    assert {o.name for o in folder.iterdir() if o.is_dir()} == {'train', 'valid', 'test'}            # os.listdir(PATH)
    assert {o.name for o in (folder/'valid').iterdir()} == {'Healthy', 'Sick'}                       # os.listdir(f'{PATH}valid')
    data = folder_dls(folder, size=32, bs=4)                                                        # ImageClassifierData.from_paths(PATH, tfms, bs=8)
    learn = medical_learner(data, 'resnet18', recipe='study', pretrained=False, freeze=True)        # ConvLearner.pretrained(arch, data, precompute=True)
    with learn.precomputed(): learn.fit(2, 0.01)                                                    # learn.fit(0.01, 2)
    data = folder_dls(folder, size=32, bs=4, augment=augmentations('thermogram'))                   # transforms_side_on, max_zoom=1.1
    learn = medical_learner(data, 'resnet18', recipe='study', pretrained=False, freeze=True)
    learn.fit(1, 1e-2)                                                                              # learn.fit(1e-2, 1)
    learn.fit_cycles(3, 1e-2, cycle_len=1)                                                          # learn.fit(1e-2, 3, cycle_len=1)
    assert len(learn.recorder.values) == 3
    learn.path = tmp_path
    learn.save('224_lastlayer'); learn.load('224_lastlayer')                                        # the same
    learn.unfreeze()                                                                                # the same
    learn.fit_cycles(3, np.array([1e-4, 1e-3, 1e-2]), cycle_len=1, cycle_mult=2)                    # learn.fit(lr, 3, cycle_len=1, cycle_mult=2)
    assert len(learn.recorder.values) == 7
    learn.plot_schedule()                                                                           # learn.sched.plot_lr()
    preds = learn.predictions(tta=4, beta=.2)                                                       # learn.TTA()
    cm = confusion_matrix(preds.targets, preds.predicted)                                           # the same
    assert (cm == confusion(preds, level='image').to_numpy()).all() and cm.sum() == 4
    for which in ('correct', 'incorrect', 'most correct', 'most incorrect', 'most uncertain'):      # plot_val_with_title(...)
        plot_gallery(preds, which)
