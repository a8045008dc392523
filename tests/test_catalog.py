"Catalogs of odd studies: what disagrees, is missing or hostile is named, never passed over."
import os
import shutil
import warnings

import matplotlib

matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medfast.catalog import (CatalogError, Rule, add_ranges, catalog_report, dmr_catalog, folder_catalog, plot_ages,
                             plot_classes, plot_samples, read_patients, select)
from medfast.files import list_files
from medfast.thermogram import ThermogramError


@pytest.fixture
def study(small_study, tmp_path):
    "A copy of the small study that a test may spoil."
    return shutil.copytree(small_study, tmp_path/'study')


def rewrite(study, change):
    "Change the patient table of a study."
    table = pd.read_excel(study/'patients.xlsx')
    table = change(table)
    table.to_excel(study/'patients.xlsx', index=False)
    return table


def said(call):
    "The result of `call` and the text of its warnings."
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        result = call()
    return result, [str(w.message) for w in seen if w.category is UserWarning]


# --- the real matrices

def test_public_copy(dmr_ir):
    catalog = dmr_catalog(dmr_ir)
    assert catalog.label.value_counts().to_dict() == {'Healthy': 71, 'Sick': 50}
    assert catalog.format.value_counts().to_dict() == {'blank': 92, 'semicolon': 29}
    assert set(catalog[catalog.format == 'semicolon'].label) == {'Sick'}
    assert catalog.patient.is_unique and catalog.patient.str.fullmatch(r'\d{4}').all()
    assert catalog['view'].isna().all() and catalog.frame.isna().all() # the names tell no more than the patient
    assert set(catalog.rows) == {480} and set(catalog['columns']) == {640}
    assert not len(catalog_report(dmr_ir))
    table = select(catalog)[1]
    assert table.loc['frontal', 'checked'] == 'nothing told' and table.loc['frontal', 'Sick stay'] == 50


def test_public_copy_ranges(dmr_ir):
    warm = add_ranges(dmr_catalog(dmr_ir), progress=False)
    assert len(warm) == 121 and warm.minimum.min() > 5 and warm.maximum.max() < 50
    assert (warm.minimum < warm['mean']).all() and (warm['mean'] < warm.maximum).all()


# --- the patient table

@pytest.mark.parametrize('ids', [[1, 2], [1., 2.], ['0001', '0002'], ['1', ' T0002 '], ['1.0', '2']])
def test_ids_in_any_spelling(ids):
    assert read_patients(pd.DataFrame(dict(ID=ids, Diagnosis='Sick'))).patient.tolist() == ['0001', '0002']


@pytest.mark.parametrize('bad', ['', 'one', '2.5', '-3', '1e3', '٣', '12345678'])
def test_bad_id_names_its_row(bad):
    with pytest.raises(CatalogError, match=r'\(row 3\)'): read_patients(pd.DataFrame(dict(ID=['1', bad], Diagnosis='Sick')))


@pytest.mark.parametrize('columns', [['ID'], ['Diagnosis'], ['patient', 'label2'], []])
def test_missing_columns(columns):
    with pytest.raises(CatalogError, match='`ID` and `Diagnosis` are needed'): read_patients(pd.DataFrame({c: ['1'] for c in columns}))


def test_duplicate_ids():
    same = pd.DataFrame(dict(ID=[7, '0007'], Diagnosis=['sick ', 'Sick']))
    assert read_patients(same).label.tolist() == ['Sick']
    with pytest.raises(CatalogError, match='0007 has label Sick and Healthy'):
        read_patients(pd.DataFrame(dict(ID=[7, '0007'], Diagnosis=['Sick', 'Healthy'])))


def test_two_columns_of_one_name():
    with pytest.raises(CatalogError, match="two columns for 'age'"):
        read_patients(pd.DataFrame([[1, 'Sick', 3, 4]], columns=['ID', 'Diagnosis', 'Years', 'Age']))


@pytest.mark.parametrize('text', ['ID,Diagnosis\n1,Sick\n2,Healthy\n', '\ufeffID;Diagnosis\r\n1;Sick\r\n2;Healthy\r\n', 'ID\tDiagnosis\n0001\tsick\n2.0\tHEALTHY\n', 'id, diagnosis \n1, Sick\n2, Healthy\n'])
def test_csv_dialects(tmp_path, text):
    (tmp_path/'labels.csv').write_text(text, encoding='utf-8')
    table = read_patients(tmp_path/'labels.csv')
    assert table.patient.tolist() == ['0001', '0002'] and table.label.tolist() == ['Sick', 'Healthy']


def test_latin_csv(tmp_path):
    (tmp_path/'labels.csv').write_bytes('ID,Diagnosis,Habits\n1,Sick,café\n'.encode('latin-1'))
    assert read_patients(tmp_path/'labels.csv').habits.tolist() == ['café']


@pytest.mark.parametrize('name,data', [('a.xlsx', b'PK\x03\x04 cut'), ('a.xlsx', b''), ('a.csv', b''), ('a.ods', b'x'), ('none.csv', None)])
def test_unreadable_table(tmp_path, name, data):
    if data is not None: (tmp_path/name).write_bytes(data)
    with pytest.raises(CatalogError, match=name): read_patients(tmp_path/name)


# --- joining

def test_study_columns(small_study):
    catalog = dmr_catalog(small_study)
    assert len(catalog) == 16 and catalog.columns.is_unique and catalog.index.equals(pd.RangeIndex(16))
    assert {'age', 'table_date', 'plastic_surgery', 'deodorant'} <= set(catalog)
    assert catalog.groupby('patient').label.nunique().max() == 1
    assert str(catalog.patient.dtype) == 'string' and str(catalog.frame.dtype) == 'Int64' and catalog.date.dt.year.min() >= 2012
    truth = pd.read_csv(small_study/'truth.csv', dtype=dict(patient=str)).set_index('patient').label
    assert (catalog.label == catalog.patient.map(truth)).all()


def test_txt_folder_itself(small_study):
    assert dmr_catalog(small_study/'txt').label.tolist() == dmr_catalog(small_study).label.tolist()


def test_csv_and_class_folders(small_study, tmp_path):
    catalog = dmr_catalog(small_study)
    for path,label in zip(catalog.path, catalog.label):
        (tmp_path/'by_class'/label).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path/'by_class'/label)
    by_class = dmr_catalog(tmp_path/'by_class')
    assert by_class.groupby('patient').label.first().to_dict() == catalog.groupby('patient').label.first().to_dict()
    wrong = catalog.drop_duplicates('patient').iloc[0]
    flipped = 'Sick' if wrong.label == 'Healthy' else 'Healthy'
    pd.DataFrame(dict(ID=[wrong.patient], Diagnosis=[flipped])).to_csv(tmp_path/'by_class'/'id_diagnosis.csv', index=False)
    with pytest.raises(CatalogError, match=f'{wrong.patient} is {flipped} in id_diagnosis.csv, {wrong.label} in the class folder {wrong.label}'): dmr_catalog(tmp_path/'by_class')


def test_two_studies_below_one_root(small_study, tmp_path):
    "Both number their patients from 0001; the error names the two folders, not where the disk keeps them."
    first = dmr_catalog(small_study).path[0]
    for place in ('recife/Healthy', 'niteroi/2015/Sick'):
        (tmp_path/'both'/place).mkdir(parents=True)
        shutil.copy(first, tmp_path/'both'/place)
    with pytest.raises(CatalogError, match='0001 is ') as e: dmr_catalog(tmp_path/'both')
    for told in ('Healthy in the class folder recife/Healthy', 'Sick in the class folder niteroi/2015/Sick', 'give the folder of one'): assert told in str(e.value)
    assert str(tmp_path) not in str(e.value)
    assert dmr_catalog(tmp_path/'both'/'recife').label.tolist() == ['Healthy']


def test_sheet_and_csv_disagree(study):
    table = pd.read_excel(study/'patients.xlsx')[['ID', 'Diagnosis']]
    table.loc[3, 'Diagnosis'] = 'Healthy' if table.Diagnosis[3] == 'Sick' else 'Sick'
    table.to_csv(study/'labels.csv', index=False)
    with pytest.raises(CatalogError, match='disagree about 1 patients: 0004 is'): dmr_catalog(study)
    given = dmr_catalog(study, study/'labels.csv') # a table that is given replaces those that are found
    assert given[given.patient == '0004'].label.unique().tolist() == [table.Diagnosis[3]]
    assert 'age' not in given


def test_first_source_fills_from_second(study):
    rewrite(study, lambda t: t.assign(Diagnosis=t.Diagnosis.where(t.ID != 2)))
    pd.DataFrame(dict(ID=[2], Diagnosis=['Sick'])).to_csv(study/'labels.csv', index=False)
    catalog = dmr_catalog(study)
    assert catalog[catalog.patient == '0002'].label.unique().tolist() == ['Sick'] and catalog.age.notna().all()


def test_lock_file_of_excel_is_no_table(study):
    (study/'~$patients.xlsx').write_bytes(b'lock')
    assert len(dmr_catalog(study)) == 16


def test_broken_sheet_is_not_passed_over(study):
    (study/'patients.xlsx').write_bytes(b'not a sheet')
    with pytest.raises(CatalogError, match='patients.xlsx cannot be read'): dmr_catalog(study)


# --- what does not fit

def test_everything_that_does_not_fit_is_listed(study):
    files = list_files(study/'txt')
    rewrite(study, lambda t: pd.concat([t.assign(Diagnosis=t.Diagnosis.mask(t.ID == 2, 'Unknown').mask(t.ID == 3)), pd.DataFrame(dict(ID=[99], Diagnosis=['Sick']))]))
    files[0].write_text('no number here\n')
    (study/'txt'/'README.txt').write_text('hello\n')
    (study/'txt'/'more').mkdir()
    shutil.copy(files[-1], study/'txt'/'more'/files[-1].name)
    os.symlink('/etc/hostname', study/'txt'/'T0500.txt')
    report = catalog_report(study)
    assert report.trouble.value_counts().to_dict() == {'no label': 4, 'not a matrix': 1, 'name not understood': 1, 'name stands twice': 1, 'leads out of the folder': 1, 'no matrix': 1}
    assert report[report.trouble == 'no matrix'].patient.tolist() == ['0099']
    assert "'Unknown' is neither Healthy nor Sick" in report.detail.tolist()
    with pytest.raises(CatalogError, match='8 of 19 files cannot be used') as e: dmr_catalog(study)
    assert str(study) not in str(e.value) and 'README.txt' in str(e.value)
    catalog,warned = said(lambda: dmr_catalog(study, missing='drop'))
    assert len(catalog) == 11 and 'Left out, by class' in warned[0]


def test_labels_without_a_matrix_alone_are_no_error(study):
    rewrite(study, lambda t: pd.concat([t, pd.DataFrame(dict(ID=[99], Diagnosis=['Sick']))]))
    catalog,warned = said(lambda: dmr_catalog(study))
    assert len(catalog) == 16 and not warned and catalog_report(study).trouble.tolist() == ['no matrix']


def test_nothing_left(study):
    rewrite(study, lambda t: t.assign(Diagnosis=None))
    with pytest.raises(CatalogError, match='no label: 16'): dmr_catalog(study, missing='drop')


def test_no_folder_and_no_files(tmp_path):
    with pytest.raises(CatalogError, match='is not a folder'): dmr_catalog(tmp_path/'nowhere')
    with pytest.raises(CatalogError, match='no .txt file'): dmr_catalog(tmp_path)
    with pytest.raises(CatalogError, match='holds no image'): folder_catalog(tmp_path)
    with pytest.raises(CatalogError, match="choose 'raise' or 'drop'"):
        (tmp_path/'A').mkdir(); Image.new('L', (4, 4)).save(tmp_path/'A'/'1.png'); folder_catalog(tmp_path, missing='maybe')


def test_add_ranges_does_not_skip(study):
    catalog = dmr_catalog(study)
    text = open(catalog.path[5]).read()
    open(catalog.path[5], 'w').write('99' + text[2:])
    with pytest.raises(ThermogramError, match=os.path.basename(catalog.path[5])): add_ranges(catalog)


# --- class folders

def pictures(folder, places):
    for i,place in enumerate(places):
        (folder/place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 8), i, np.uint8)).save(folder/place)
    return folder


def test_official_split(tmp_path):
    pictures(tmp_path, ['train/A/1.png', 'Val/A/2.png', 'test/B/3.JPG', 'train/B/deep/4.png'])
    (tmp_path/'models').mkdir()
    catalog = folder_catalog(tmp_path).sort_values('path')
    assert dict(zip(catalog.path.map(os.path.basename), catalog.split)) == {'1.png': 'train', '2.png': 'valid', '3.JPG': 'test', '4.png': 'train'}
    assert set(catalog.split_by) == {'official'} and catalog.patient.isna().all() and set(catalog.format) == {'png', 'jpg'}
    assert dict(zip(catalog.path.map(os.path.basename), catalog.label))['4.png'] == 'B'


def test_patient_where_the_grammar_tells(tmp_path):
    pictures(tmp_path, ['Sick/T0287.1.1.D.2015-07-20.18.jpg', 'Healthy/T0009.png', 'Healthy/holiday.png'])
    catalog = folder_catalog(tmp_path)
    assert 'split' not in catalog
    assert catalog.set_index(catalog.path.map(os.path.basename)).patient.dropna().to_dict() == {'T0009.png': '0009', 'T0287.1.1.D.2015-07-20.18.jpg': '0287'}


def test_pictures_in_the_wrong_place(tmp_path):
    pictures(tmp_path, ['train/A/1.png', 'test/B/2.png', 'extra/A/3.png', 'train/4.png'])
    with pytest.raises(CatalogError, match=r'in no class folder: 1 \(4.png\); outside train, valid and test: 1 \(3.png\)'): folder_catalog(tmp_path)
    catalog,warned = said(lambda: folder_catalog(tmp_path, missing='drop'))
    assert len(catalog) == 2 and len(warned) == 1


def test_links_out_are_not_lost(tmp_path):
    pictures(tmp_path, ['out/1.png', 'in/A/2.png', 'in/B/3.png'])
    os.symlink(tmp_path/'out'/'1.png', tmp_path/'in'/'A'/'1.png')
    with pytest.raises(CatalogError, match='leads out of the folder: 1'): folder_catalog(tmp_path/'in')
    assert len(folder_catalog(tmp_path/'in', links=True)) == 3


def test_bomb_and_garbage(tmp_path):
    pictures(tmp_path, ['A/1.png', 'B/2.png'])
    (tmp_path/'A'/'bad.png').write_bytes(b'\x89PNG\r\n\x1a\n' + b'x'*50)
    Image.new('1', (20_000, 20_000)).save(tmp_path/'B'/'bomb.png')
    with pytest.raises(CatalogError, match='not an image: 2'): folder_catalog(tmp_path)


# --- selection

def test_rules_count_in_order():
    catalog = pd.DataFrame(dict(path=list('abcdef'), label=['Healthy', 'Sick']*3, view=['frontal', 'left 45°', None, 'Frontal', 'right 90°', 'frontal'], breasts=[2, 2, 1, 2., 1, 1]))
    chosen,table = select(catalog)
    assert chosen.path.tolist() == ['a', 'd']
    assert table.loc['frontal', ['not_told', 'Healthy out', 'Sick out']].tolist() == [1, 1, 1]
    assert table.loc['two breasts', ['Healthy out', 'Sick out', 'Healthy stay', 'Sick stay']].tolist() == [1, 1, 1, 1]
    assert table.loc['no deodorant', 'checked'] == "no column 'deodorant'" and table.loc['no deodorant', 'not_told'] == 4
    assert len(catalog) == 6


def test_rule_with_a_function_and_unknown_values():
    catalog = pd.DataFrame(dict(path=list('abc'), label='Sick', age=pd.array([40, 80, None], dtype='Int64')))
    chosen,table = select(catalog, [Rule('under 60', 'age', lambda age: age < 60)])
    assert chosen.path.tolist() == ['a', 'c'] and table.loc['under 60', 'not_told'] == 1


# --- plots

def texts(axes):
    "All that is written in a figure."
    fig = np.ravel(axes)[0].figure
    plt.close(fig)
    return ' '.join(t.get_text() for t in fig.findobj(lambda o: hasattr(o, 'get_text')))


def test_plots_say_what_is_unknown(small_study, tmp_path):
    catalog = dmr_catalog(small_study)
    assert '8 patients' in texts(plot_classes(catalog))
    unknown = catalog.assign(patient=pd.NA)
    assert 'patients unknown' in texts(plot_classes(unknown)) and 'patients unknown' in texts(plot_ages(unknown))
    half = catalog.assign(age=catalog.age.where(catalog.patient != '0001'))
    assert '1 of unknown age' in texts(plot_ages(half))
    with pytest.raises(CatalogError, match='empty'): plot_classes(catalog[:0])
    with pytest.raises(CatalogError, match='no ages'): plot_ages(catalog.assign(age=None))


def test_ages_count_each_patient_once_and_only_her_class(small_study):
    catalog = dmr_catalog(small_study)
    once = catalog.drop_duplicates('patient').label.value_counts()
    for c in ('Healthy', 'Sick'): assert f'{c} ({once[c]})' in texts(plot_ages(catalog))


def test_samples_share_a_scale_and_hide_patients(small_study):
    catalog = dmr_catalog(small_study)
    axes = plot_samples(catalog, 3, low=22., high=38.)
    shown = [i for ax in axes.flat for i in ax.get_images()]
    assert len(shown) == 6 and {i.get_clim() for i in shown} == {(22., 38.)}
    assert not any(p in texts(axes) for p in catalog.patient)


def test_samples_of_pictures(tmp_path):
    folder = pictures(tmp_path, ['A/1.png', 'A/2.png', 'B/3.png'])
    Image.new('I;16', (8, 8), 30_000).save(folder/'B'/'deep.png')
    Image.new('RGBA', (900, 700), 'red').save(folder/'A'/'large.png')
    axes = plot_samples(folder_catalog(folder), 3)
    shown = [i for ax in axes.flat for i in ax.get_images()]
    assert len(shown) == 5 and max(max(i.get_array().shape) for i in shown) < 400
