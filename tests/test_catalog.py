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
from conftest import real_data
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from medfast.archive import SETS, ArchiveError, read_item
from medfast.catalog import (CORONA_RULES, CatalogError, Rule, _picture, add_ranges, by_class, catalog_report, coronahack_catalog, dmr_catalog, folder_catalog,
                             medmnist_catalog, missing_images, picture_size, plot_ages, plot_classes, plot_samples, radiography_catalog, read_patients, same_images, select,
                             size_report)
from medfast.files import list_files
from medfast.pictures import any_size, in_threads
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
    with pytest.raises(CatalogError, match='disagree about 1 patient: 0004 is'): dmr_catalog(study)
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


def test_long_and_many_names_stay_readable():
    names = [f'a rather long name of class number {i}' for i in range(11)]
    catalog = pd.DataFrame(dict(path=[f'{i}.png' for i in range(22)], label=names*2))
    axes = plot_classes(catalog)
    assert {t.get_rotation() for t in axes[0].get_xticklabels()} == {45.} and all(len(t.get_text()) <= 28 for t in axes[0].get_xticklabels())
    assert '22 images' in texts(axes)


# --- CoronaHack

HEAD = ',X_ray_image_name,Label,Dataset_type,Label_2_Virus_category,Label_1_Virus_category'
ROWS = ['0,IM-0001-0001.jpeg,Normal,TRAIN,,', '1,IM-0001-0001-0002.jpeg,Normal,TRAIN,,', '2,NORMAL2-IM-0001-0001.jpeg,Normal,TEST,,', '3,person7_bacteria_21.jpeg,Pnemonia,TRAIN,,bacteria',
        '4,person7_virus_22.jpeg,Pnemonia,TEST,,Virus', '5,person7_virus_23_2.jpeg,Pnemonia,TEST,,Virus', '6,COVID19_7.jpg,Pnemonia,TRAIN,COVID-19,Virus',
        '7,acute-respiratory-distress-syndrome-ards.jpg,Pnemonia,TRAIN,ARDS,Stress-Smoking']


@pytest.fixture
def corona(tmp_path):
    "A CoronaHack folder of eight images in Kaggle's places."
    for row in ROWS:
        fn = tmp_path/'Coronahack-Chest-XRay-Dataset'/row.split(',')[3].lower()/row.split(',')[1]
        fn.parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (6, 5), len(fn.name)).save(fn)
    (tmp_path/'Chest_xray_Corona_Metadata.csv').write_text('\n'.join([HEAD, *ROWS]) + '\n')
    (tmp_path/'Chest_xray_Corona_dataset_Summary.csv').write_text(',Label,Image_Count\n0,Normal,1576\n')
    return tmp_path


def change(corona, *rows): (corona/'Chest_xray_Corona_Metadata.csv').write_text('\n'.join([HEAD, *rows]))


def test_coronahack_columns(corona):
    catalog,warned = said(lambda: coronahack_catalog(corona))
    assert not warned and not len(missing_images(corona))
    assert catalog.patient.fillna('?').tolist() == ['IM-0001', 'IM-0001', 'NORMAL2-IM-0001', 'person7_bacteria', 'person7_virus', 'person7_virus', '?', '?']
    assert catalog.label.tolist() == ['Normal']*3 + ['Pneumonia']*5
    assert catalog.cause.fillna('').tolist() == ['', '', '', 'bacteria', 'virus', 'virus', 'virus', 'stress-smoking'] and catalog.virus.dropna().tolist() == ['COVID-19', 'ARDS']
    assert catalog.official.tolist() == ['TRAIN', 'TRAIN', 'TEST', 'TRAIN', 'TEST', 'TEST', 'TRAIN', 'TRAIN']
    assert all(os.path.isfile(p) for p in catalog.path) and set(catalog.rows) == {5} and set(catalog['columns']) == {6} and str(catalog.patient.dtype) == 'string'
    assert select(catalog, CORONA_RULES)[0].path.str.contains('COVID19').sum() == 0


def test_coronahack_missing_both_ways(corona):
    folder = corona/'Coronahack-Chest-XRay-Dataset'
    (folder/'train'/'IM-0001-0001.jpeg').unlink()
    (folder/'test'/'person7_virus_22.jpeg').write_bytes(b'no picture')
    Image.new('L', (4, 4)).save(folder/'train'/'holiday.png')
    told = missing_images(corona)
    assert dict(zip(told.file, told.trouble)) == {'IM-0001-0001.jpeg': 'no image', 'person7_virus_22.jpeg': 'not an image', 'holiday.png': 'no row'}
    catalog,warned = said(lambda: coronahack_catalog(corona))
    assert len(catalog) == 6 and len(warned) == 1 and warned[0].startswith('3 of 9 files cannot be used') and warned[0].endswith('Left out, by class: 1 without label, 1 Normal, 1 Pneumonia.')
    with pytest.raises(CatalogError, match='missing_images') as e: coronahack_catalog(corona, missing='raise')
    assert str(corona) not in str(e.value)
    with pytest.raises(CatalogError, match="choose 'raise' or 'drop'"): coronahack_catalog(corona, missing='maybe')


def test_coronahack_without_any_image(corona):
    shutil.rmtree(corona/'Coronahack-Chest-XRay-Dataset')
    with pytest.raises(CatalogError, match='8 of 8 files cannot be used: no image: 8'): coronahack_catalog(corona)


@pytest.mark.parametrize('row,told', [
    ('8,IM-0001-0001.jpeg,Normal,TRAIN,,', 'line 10: IM-0001-0001.jpeg stands in it twice'), ('8,x.jpeg,Sick,TRAIN,,', "line 10: the label 'Sick' of x.jpeg is neither Normal nor Pnemonia"),
    ('8,x.jpeg,,TRAIN,,', 'the label <NA> of x.jpeg'), ('8,x.jpeg,Normal,DEV,,', "the part 'DEV' of x.jpeg"), ('8,x.jpeg,Normal,,,', 'the part <NA> of x.jpeg'), ('8,,Normal,TRAIN,,', 'no name of an image'),
    ('8,person9_virus_1.jpeg,Pnemonia,TRAIN,,bacteria', 'person9_virus_1.jpeg and the row disagree: Pnemonia, bacteria'), ('8,person9_virus_1.jpeg,Pnemonia,TRAIN,,', 'disagree'),
    ('8,person9_virus_1.jpeg,Normal,TRAIN,,Virus', 'disagree'), ('8,IM-0002-0001.jpeg,Pnemonia,TRAIN,,Virus', 'disagree')])
def test_coronahack_rows_that_do_not_fit(corona, row, told):
    change(corona, *ROWS, row)
    with pytest.raises(CatalogError, match=told): coronahack_catalog(corona)


def test_coronahack_name_in_two_folders(corona):
    folder = corona/'Coronahack-Chest-XRay-Dataset'
    shutil.copy(folder/'train'/'COVID19_7.jpg', folder/'test')
    with pytest.raises(CatalogError, match='1 name lies there twice, the first is COVID19_7.jpg in .*/test and .*/train') as e: coronahack_catalog(corona)
    assert str(corona) not in str(e.value)


def test_coronahack_tables(corona):
    (corona/'Chest_xray_Corona_Metadata.csv').rename(corona/'labels.csv')
    assert len(coronahack_catalog(corona)) == 8 # known by its columns
    shutil.copy(corona/'labels.csv', corona/'again.csv')
    with pytest.raises(CatalogError, match=r'holds 2 tables .*\(again.csv; labels.csv\)'): coronahack_catalog(corona)
    for o in ('labels.csv', 'again.csv'): (corona/o).unlink()
    with pytest.raises(CatalogError, match=r'holds 0 tables .*\(Chest_xray_Corona_dataset_Summary.csv has .*Label, Image_Count\)'): coronahack_catalog(corona)
    (corona/'a.csv').write_text('X_ray_image_name,Label\nx.jpeg,Normal\n')
    with pytest.raises(CatalogError, match='a.csv has no column dataset_type'): coronahack_catalog(corona)
    with pytest.raises(CatalogError, match='is not a folder'): coronahack_catalog(corona/'nowhere')


def test_public_coronahack():
    "The sample has the whole csv and 1,201 of its images; a number alone is no patient, with its kind it is."
    src = real_data('coronahack')
    catalog,warned = said(lambda: coronahack_catalog(src))
    assert catalog.label.value_counts().to_dict() == {'Pneumonia': 601, 'Normal': 600} and set(catalog.official) == {'TRAIN'}
    assert catalog.patient.notna().all() and catalog.groupby('label').patient.nunique().to_dict() == {'Normal': 547, 'Pneumonia': 405}
    assert len(warned) == 2 and warned[1].startswith('7 images lie there more than once, 0 of them in two parts: ') and 'no image: 4996' in warned[0] and 'Left out, by class: 976 Normal, 4020 Pneumonia' in warned[0]
    twins = same_images(catalog).groupby('group')
    assert twins.ngroups == 7 and (twins.patient.nunique() == 1).all() and size_report(catalog).commonest.unique().tolist() == ['224 x 224']


def test_public_coronahack_csv():
    from medfast import pictures
    told = pictures._corona_table(pictures._corona_csv(real_data('coronahack')))
    assert told.groupby(['official', 'label']).size().to_dict() == {('TEST', 'Normal'): 234, ('TEST', 'Pneumonia'): 410, ('TRAIN', 'Normal'): 1342, ('TRAIN', 'Pneumonia'): 4211}
    study = select(told.assign(path=told.file), CORONA_RULES)[0]
    assert len(told) - len(study) == 287 and study.label.value_counts().to_dict() == {'Pneumonia': 4334, 'Normal': 1576} # the counts of study 000
    assert study.patient.isna().sum() == 70 and told.patient.isna().sum() == 357 and study.virus.value_counts()['COVID-19'] == 58
    both = lambda keys: int((told.official.groupby(keys).nunique() > 1).sum())
    assert both(told.patient) == 0 and told.patient.nunique() == 2646 + 1436
    numbers = told.file.str.extract(r'^person(\d+)_')[0]
    assert both(numbers) == 170 and numbers.nunique() == 1667 and both(told.file.str.extract(r'IM-(\d{4})-')[0]) == 94
    assert told.groupby('cause').size().to_dict() == {'bacteria': 2777, 'stress-smoking': 2, 'virus': 1842}


# --- radiography

@pytest.fixture
def lungs(tmp_path):
    "Four classes of three images with masks, in Kaggle's layout."
    for k,label in enumerate(('COVID', 'Lung_Opacity', 'Normal', 'Viral Pneumonia')):
        for place in ('images', 'masks'): pictures(tmp_path/'lungs'/label/place, [f'{label}-{i}.png' for i in range(3)])
        for i in range(3): Image.new('L', (8, 6), 40*k + i).save(tmp_path/'lungs'/label/'images'/f'{label}-{i}.png')
        (tmp_path/'lungs'/f'{label}.metadata.xlsx').write_bytes(b'not read')
    (tmp_path/'lungs'/'README.md.txt').write_text('not read')
    return tmp_path/'lungs'


def test_radiography_columns(lungs):
    catalog,warned = said(lambda: radiography_catalog(lungs))
    assert not warned and catalog.label.value_counts().to_dict() == {'COVID': 3, 'Lung_Opacity': 3, 'Normal': 3, 'Viral Pneumonia': 3}
    assert catalog.patient.isna().all() and str(catalog['mask'].dtype) == 'string'
    assert all(os.path.basename(m) == os.path.basename(p) and '/masks/' in m and '/images/' in p for m,p in zip(catalog['mask'], catalog.path))
    assert radiography_catalog(lungs.parent).path.tolist() == catalog.path.tolist() # one folder above


def test_radiography_flat_and_fewer_classes(tmp_path):
    for k,label in enumerate(('COVID-19', 'NORMAL')):
        (tmp_path/label).mkdir()
        for i in range(2): Image.new('L', (8, 6), 9*k + i).save(tmp_path/label/f'{i}.png')
    catalog,warned = said(lambda: radiography_catalog(tmp_path))
    assert catalog.label.tolist() == ['COVID', 'COVID', 'Normal', 'Normal'] and catalog['mask'].isna().all()
    assert len(warned) == 1 and warned[0].startswith('2 of the 4 classes are not there: Lung_Opacity, Viral Pneumonia')


def test_radiography_sizes_and_copies(lungs):
    for fn in (lungs/'Viral Pneumonia'/'images').iterdir(): Image.new('L', (10, 10), 200 + int(fn.stem[-1])).save(fn)
    shutil.copy(lungs/'COVID'/'images'/'COVID-0.png', lungs/'Normal'/'images'/'Normal-7.png')
    catalog,warned = said(lambda: radiography_catalog(lungs))
    assert any('Viral Pneumonia 10 x 10' in o and 'COVID 6 x 8' in o for o in warned) and any('1 image lies there more than once, 1 with different labels: COVID-0.png = Normal-7.png' in o for o in warned)
    assert any('1 of 13 images has no mask, and 0 masks have no image' in o for o in warned) and len(warned) == 3
    assert same_images(catalog).label.tolist() == ['COVID', 'Normal'] and size_report(catalog).loc['Viral Pneumonia', ['sizes', 'smallest']].tolist() == [1, '10 x 10']


def test_radiography_mask_without_image(lungs):
    (lungs/'COVID'/'images'/'COVID-0.png').unlink()
    assert '1 mask has no image (COVID-0.png)' in said(lambda: radiography_catalog(lungs))[1][0]


def test_radiography_what_does_not_fit(lungs, tmp_path):
    (lungs/'COVID'/'images'/'broken.png').write_bytes(b'no picture')
    with pytest.raises(CatalogError, match=r'not an image: 1 \(broken.png\)'): radiography_catalog(lungs)
    assert len(said(lambda: radiography_catalog(lungs, missing='drop'))[0]) == 12
    pictures(lungs, ['Tuberculosis/1.png'])
    with pytest.raises(CatalogError, match='1 picture lies outside .* Tuberculosis/1.png'): radiography_catalog(lungs)
    (tmp_path/'a'/'other').mkdir(parents=True); (tmp_path/'a'/'more').mkdir()
    with pytest.raises(CatalogError, match='holds none of the class folders'): radiography_catalog(tmp_path/'a')
    (tmp_path/'b'/'COVID').mkdir(parents=True)
    with pytest.raises(CatalogError, match='hold no image'): radiography_catalog(tmp_path/'b')


def test_public_radiography():
    catalog,warned = said(lambda: radiography_catalog(real_data('radiography')))
    assert catalog.label.value_counts().to_dict() == {'COVID': 300, 'Normal': 300, 'Viral Pneumonia': 300}
    assert [o.split('. ')[0] for o in warned] == ['1 of the 4 classes is not there: Lung_Opacity', 'Image sizes differ by class: COVID 224 x 224, Normal 224 x 224, Viral Pneumonia 256 x 256',
        '1 image lies there more than once: COVID-3142.png = COVID-3144.png']


# --- archives

def archive(fn, n_classes=3, several=False, colour=False, n=dict(train=9, val=3, test=6), **more):
    "A made-up archive; image i of a part is one grey, and labels go round."
    arrays = dict(more)
    for k,(p,m) in enumerate(n.items()):
        arrays[f'{p}_images'] = np.repeat(np.arange(m) + 60*k, 28*28*(3 if colour else 1)).reshape(m, 28, 28, *([3] if colour else [])).astype(np.uint8)
        arrays[f'{p}_labels'] = (np.arange(m*n_classes).reshape(m, n_classes) % 4 == 0).astype(np.uint8) if several else (np.arange(m)[:, None] % n_classes).astype(np.uint8)
    np.savez_compressed(fn, **arrays)
    return fn


def test_medmnist_columns(tmp_path):
    fn = archive(tmp_path/'organsmnist.npz', 11)
    catalog,warned = said(lambda: medmnist_catalog(fn))
    assert len(warned) == 1 and 'organsmnist.npz is an unofficial copy: MD5' in warned[0] and SETS['organsmnist'].older_md5 in warned[0]
    assert catalog.groupby('split', sort=False).size().to_dict() == dict(train=9, valid=3, test=6) and set(catalog.split_by) == {'official'}
    assert catalog.label[:3].tolist() == ['bladder', 'femur-left', 'femur-right'] and catalog.patient.isna().all() and catalog.attrs['classes'] == list(SETS['organsmnist'].classes)
    assert set(catalog.source) == {'organsmnist 28 px, unofficial copy'} and set(catalog.task) == {'multi-class'} and set(catalog.format) == {'npz'} and set(catalog.rows) == {28}
    assert catalog.path[9] == f'{fn}#valid/0' and (read_item(catalog.path[10]) == 61).all() and catalog.path.is_unique


@pytest.mark.filterwarnings('ignore:.*unofficial copy')
def test_medmnist_in_a_folder(tmp_path):
    archive(tmp_path/'breastmnist.npz', 2)
    assert len(medmnist_catalog(tmp_path)) == 18 == len(medmnist_catalog(tmp_path, 'breastmnist'))
    archive(tmp_path/'breastmnist_64.npz', 2)
    with pytest.raises(CatalogError, match=r'holds 2 archives .*\(breastmnist.npz, breastmnist_64.npz\)'): medmnist_catalog(tmp_path)
    assert medmnist_catalog(tmp_path, 'breastmnist', 64).path[0].endswith('breastmnist_64.npz#train/0')
    with pytest.raises(CatalogError, match='holds 0 archives called pneumoniamnist.npz'): medmnist_catalog(tmp_path, 'pneumoniamnist')
    with pytest.raises(CatalogError, match='nowhere.* is not there'): medmnist_catalog(tmp_path/'nowhere')
    with pytest.raises(ArchiveError, match='28, 64, 128, 224 px'): medmnist_catalog(tmp_path, 'breastmnist', 32)


@pytest.mark.filterwarnings('ignore:.*unofficial copy')
def test_medmnist_several_findings(tmp_path):
    catalog = medmnist_catalog(archive(tmp_path/'chestmnist.npz', 14, several=True))
    assert catalog.label[0] == 'atelectasis|mass|consolidation|pleural' and set(catalog.task) == {'multi-label'}
    own = medmnist_catalog(archive(tmp_path/'own.npz', 3, several=True), classes=['mass', 'nodule', 'hernia'])
    assert own.label[:4].tolist() == ['mass', 'nodule', 'hernia', 'none'] and set(own.source) == {'own 28 px, own archive'}
    assert 'several findings each' in texts(plot_classes(catalog)) and 'atelectasis, mass' in texts(plot_samples(catalog, 1)).replace('\n', ' ')


@pytest.mark.filterwarnings('ignore:.*unofficial copy')
def test_medmnist_colour_samples(tmp_path):
    axes = plot_samples(medmnist_catalog(archive(tmp_path/'bloodmnist.npz', 8, colour=True)), 1)
    shown = [i.get_array() for ax in axes.flat for i in ax.get_images()]
    assert len(shown) == 8 and {o.shape for o in shown} == {(28, 28, 3)} and max(o.max() for o in shown) <= 1
    texts(axes)


def test_simulated_archives_are_named_and_not_warned_of(tmp_path):
    catalog,warned = said(lambda: medmnist_catalog(archive(tmp_path/'organs.npz', 3, classes=np.array(['a', 'b', 'c']), source=np.array('simulated'))))
    assert not warned and set(catalog.source) == {'organs 28 px, no official set'}


def test_fetching_needs_a_folder_and_a_name(tmp_path):
    with pytest.raises(CatalogError, match='needs a folder as src, and name='): medmnist_catalog(tmp_path, download=True)
    with pytest.raises(CatalogError, match='needs a folder as src'): medmnist_catalog(tmp_path/'breastmnist.npz', 'breastmnist', download=True)


@pytest.mark.filterwarnings('ignore:.*unofficial copy')
def test_large_archive_in_seconds(tmp_path):
    "As many images as tissuemnist has in train."
    from time import perf_counter
    rng = np.random.default_rng(0)
    labels = {f'{p}_labels': rng.integers(0, 8, (n, 1)).astype(np.uint8) for p,n in dict(train=165_466, val=10, test=10).items()}
    np.savez(tmp_path/'tissuemnist.npz', **labels, **{f'{p}_images': np.zeros((n, 4, 4), np.uint8) for p,n in dict(train=165_466, val=10, test=10).items()})
    start = perf_counter()
    assert len(medmnist_catalog(tmp_path/'tissuemnist.npz')) == 165_486 and perf_counter() - start < 15


@pytest.mark.parametrize('name,counts,twins,told', [('breastmnist', {'malignant': 210, 'normal, benign': 570}, ['breastmnist.npz#test/76', 'breastmnist.npz#train/115'], '1 image lies there more than once, 1 of them in two parts, 1 with different labels: '), ('pneumoniamnist', {'normal': 1583, 'pneumonia': 4273}, None, '27 images lie there more than once, 8 of them in two parts: ')])
def test_public_archives(name, counts, twins, told):
    catalog,warned = said(lambda: medmnist_catalog(real_data('medmnist'), name))
    assert len(warned) == 1 and warned[0].startswith(told) and catalog.label.value_counts().to_dict() == counts and set(catalog.source) == {f'{name} 28 px, official (MedMNIST 3)'}
    same = same_images(catalog)
    if twins: assert same.file.tolist() == twins and same.label.tolist() == ['normal, benign', 'malignant'] # one picture, two diagnoses
    else: assert same.group.nunique() == 27 and (same.groupby('group').label.nunique() == 1).all()


# --- what would be passed over, and other odd input

def test_formats_that_are_not_read_are_told(tmp_path):
    pictures(tmp_path, ['A/1.png', 'B/2.png'])
    for o in ('A/1.json', 'A/README', 'A/Thumbs.db', 'table.dcm'): (tmp_path/o).write_bytes(b'')
    assert len(folder_catalog(tmp_path)) == 2 # tables, texts and what lies outside the class folders
    for o in ('A/x.dcm', 'A/y.npy', 'B/z.webp'): (tmp_path/o).write_bytes(b'')
    (tmp_path/'B'/'nameless').write_bytes(b' '*128 + b'DICM')
    with pytest.raises(CatalogError, match=r'DICOM, to be converted to png of 16 bits first: 2 \(x.dcm, nameless\); format not read: 2 \(y.npy, z.webp\)'): folder_catalog(tmp_path)
    catalog,warned = said(lambda: folder_catalog(tmp_path, missing='drop'))
    assert len(catalog) == 2 and len(warned) == 1 and warned[0].endswith('Left out, by class: 2 A, 2 B.')


@pytest.mark.parametrize('root', ['', 'train/'])
def test_a_class_folder_without_images_is_told(tmp_path, root):
    pictures(tmp_path, [f'{root}A/1.png', f'{root}B/2.png', f'{root}C/a.png'])
    (tmp_path/root/'C'/'a.png').rename(tmp_path/root/'C'/'a.gif'); (tmp_path/root/'D').mkdir()
    with pytest.raises(CatalogError, match=r'class folder without an image: 2 \(C, D\)'): folder_catalog(tmp_path)
    catalog,warned = said(lambda: folder_catalog(tmp_path, missing='drop'))
    assert set(catalog.label) == {'A', 'B'} and '2 C, 1 D' in warned[0]


def test_a_class_folder_that_is_a_link_out(tmp_path):
    pictures(tmp_path, ['out/1.png', 'in/A/2.png'])
    (tmp_path/'in'/'B').symlink_to(tmp_path/'out')
    with pytest.raises(CatalogError, match=r'leads out of the folder: 1 \(B\)'): folder_catalog(tmp_path/'in')


@pytest.mark.parametrize('images,masks', [('images', 'Mask'), ('IMAGES', 'mask'), ('COVID/images', 'COVID/masks'), ('x', 'deep/masks/y')])
def test_masks_are_never_images(tmp_path, images, masks):
    pictures(tmp_path, [f'{c}/{p}/{i}.png' for c in ('COVID', 'Normal') for p in (images, masks) for i in range(2)])
    catalog = said(lambda: radiography_catalog(tmp_path))[0]
    assert len(catalog) == 4 and catalog['mask'].str.lower().str.contains('mask').all() and not catalog.path.str[len(str(tmp_path)):].str.lower().str.contains('mask').any()


def test_a_picture_beside_images_and_masks(lungs):
    pictures(lungs, ['COVID/preview.png'])
    with pytest.raises(CatalogError, match='COVID/preview.png lies beside the images'): radiography_catalog(lungs)


def test_radiography_passes_nothing_over(lungs, tmp_path):
    Image.new('L', (3, 3)).save(tmp_path/'far.png')
    os.symlink(tmp_path/'far.png', lungs/'Normal'/'images'/'far.png')
    for o in ('x.dcm', 'y.gif'): (lungs/'COVID'/'images'/o).write_bytes(b'')
    shutil.rmtree(lungs/'Lung_Opacity'/'images')
    with pytest.raises(CatalogError, match=r'class folder without an image: 1 \(Lung_Opacity\); format not read: 1 \(y.gif\); leads out of the folder: 1 \(far.png\)'): radiography_catalog(lungs)
    catalog,warned = said(lambda: radiography_catalog(lungs, missing='drop'))
    assert len(catalog) == 9 and 'Left out, by class: 2 COVID, 1 Lung_Opacity, 1 Normal' in warned[0]


def test_two_masks_of_one_image(lungs):
    pictures(lungs, ['COVID/masks/COVID-1.jpg'])
    assert '1 mask has no image (COVID-1.png)' in said(lambda: radiography_catalog(lungs))[1][0]


def test_turned_pictures(tmp_path):
    a = np.zeros((20, 40), np.uint8); a[:, 30:] = 255
    for suffix in ('jpg', 'png', 'tif'):
        for turn in (1, 3, 6, 8):
            exif = Image.Exif(); exif[0x0112] = turn
            Image.fromarray(a).save(tmp_path/f'a.{suffix}', exif=exif, **(dict(compression='tiff_lzw') if suffix == 'tif' else {}))
            row = picture_size(tmp_path/f'a.{suffix}')
            assert (row['rows'], row['columns']) == _picture(tmp_path/f'a.{suffix}').shape == ((40, 20) if turn > 4 else (20, 40)) and not row['trouble']


def test_several_pages_are_no_picture(tmp_path):
    pages = [Image.new('L', (8, 8), i) for i in range(3)]
    pictures(tmp_path, ['A/1.png', 'B/2.png']); pages[0].save(tmp_path/'A'/'pages.tif', save_all=True, append_images=pages[1:])
    with pytest.raises(CatalogError, match=r'several pages: 1 \(pages.tif\)'): folder_catalog(tmp_path)
    pages[0].save(tmp_path/'one.tif')
    assert [picture_size(tmp_path/o)['detail'][:13] for o in ('A/pages.tif', 'one.tif')] == ['more than one', '']


def test_the_pages_of_a_file_are_not_counted(tmp_path, monkeypatch):
    "Counting goes through all of them: 42 s for 50,000."
    monkeypatch.setattr(TiffImageFile, 'n_frames', property(lambda self: pytest.fail('the pages are counted')))
    Image.new('L', (8, 8)).save(tmp_path/'pages.tif', save_all=True, append_images=[Image.new('L', (8, 8))])
    assert picture_size(tmp_path/'pages.tif')['trouble'] == 'several pages'


def test_the_size_of_a_large_picture_is_told_without_a_warning(tmp_path, monkeypatch):
    Image.new('L', (40, 40)).save(tmp_path/'large.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    with warnings.catch_warnings(action='error'):
        before = list(warnings.filters)
        assert picture_size(tmp_path/'large.png')['rows'] == 40 and warnings.filters == before
        with pytest.raises(Image.DecompressionBombWarning): Image.open(tmp_path/'large.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    assert picture_size(tmp_path/'large.png')['trouble'] == 'not an image'


def test_threads_that_overlap_leave_the_filters_of_warnings_as_they_were(tmp_path, monkeypatch):
    Image.new('L', (40, 40)).save(tmp_path/'large.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    with warnings.catch_warnings(action='error'):
        before = list(warnings.filters)
        enter,leave = any_size.__enter__, lambda: any_size.__exit__(None, None, None)
        enter(); enter(); leave() # the first one leaves before the second one
        Image.open(tmp_path/'large.png').close()
        leave()
        assert warnings.filters == before
        assert [o['trouble'] for o in in_threads(picture_size, [tmp_path/'large.png']*400)] == ['']*400 and warnings.filters == before


def test_stamps_are_means(tmp_path):
    stripes = np.zeros((640, 640, 3), np.uint8); stripes[:, ::4] = 255
    Image.fromarray(stripes).save(tmp_path/'a.png')
    assert abs(_picture(tmp_path/'a.png').mean() - .25) < 1e-6


def test_galleries_of_what_cannot_be_drawn(tmp_path):
    pictures(tmp_path, ['A/1.png', 'B/2.png'])
    catalog = folder_catalog(tmp_path)
    for n in (0, -1, 1.5):
        with pytest.raises(CatalogError, match=f'n = {n}'): plot_samples(catalog, n)
    (tmp_path/'A'/'1.png').write_bytes((tmp_path/'A'/'1.png').read_bytes()[:40])
    with pytest.raises(CatalogError, match='1.png cannot be drawn'): plot_samples(catalog)
    (tmp_path/'A'/'1.png').unlink()
    before = plt.get_fignums()
    with pytest.raises(CatalogError, match='1.png cannot be drawn'): plot_samples(catalog)
    assert plt.get_fignums() == before
    with pytest.raises(CatalogError, match='1.png cannot be read'): same_images(catalog)
    for call in (plot_classes, size_report, plot_samples):
        with pytest.raises(CatalogError, match='without a label'): call(catalog.drop(columns='label'))
    for bad in (catalog.drop(columns='rows'), catalog.assign(rows=pd.NA)):
        with pytest.raises(CatalogError, match='size of 2 images is unknown'): size_report(bad)


def test_classes_of_digits_are_in_numeric_order():
    assert list(by_class(pd.DataFrame(dict(path=list('abc'), label=['10', '2', '0'])))) == ['0', '2', '10']


@pytest.mark.parametrize('write', [lambda t: t.encode('utf-16'), lambda t: t.replace(',', '|').encode(), lambda t: t.replace(',IM', ',images/IM').encode()])
def test_coronahack_tables_as_others_save_them(corona, write):
    before = coronahack_catalog(corona)
    table = corona/'Chest_xray_Corona_Metadata.csv'
    table.write_bytes(write(table.read_text()))
    pd.testing.assert_frame_equal(coronahack_catalog(corona), before)


def test_coronahack_heads_that_do_not_fit(corona):
    change(corona)
    with pytest.raises(CatalogError, match='a head and no rows'): coronahack_catalog(corona)
    (corona/'Chest_xray_Corona_Metadata.csv').write_text('\n'.join([HEAD + ',LABEL', *(o + ',Normal' for o in ROWS)]))
    with pytest.raises(CatalogError, match='two columns label'): coronahack_catalog(corona)
    (corona/'Chest_xray_Corona_Metadata.csv').write_text('name,kind\na,b\n')
    with pytest.raises(CatalogError, match='Chest_xray_Corona_Metadata.csv has name, kind; Chest_xray'): coronahack_catalog(corona)


def test_coronahack_equal_files_on_two_sides(corona):
    folder = corona/'Coronahack-Chest-XRay-Dataset'
    shutil.copy(folder/'train'/'IM-0001-0001.jpeg', folder/'test'/'NORMAL2-IM-0001-0001.jpeg')
    warned = said(lambda: coronahack_catalog(corona))[1]
    assert len(warned) == 1 and warned[0].startswith('1 image lies there more than once, 1 of them in two parts: IM-0001-0001.jpeg = NORMAL2-IM-0001-0001.jpeg. Keep one')


def test_what_is_no_archive():
    for src in (None, 5):
        with pytest.raises(CatalogError, match=f'src = {src}: give an .npz file'): medmnist_catalog(src)


def test_a_large_picture_is_opened_without_a_warning_and_no_other_warning_is_lost():
    "Two blocks that overlap in time, as in threads: neither takes the filters of the other away."
    before = list(warnings.filters)
    recording = warnings.catch_warnings(record=True)
    seen = recording.__enter__()
    warnings.simplefilter('always')
    any_size.__enter__()
    warnings.warn('a leak')
    warnings.warn('large', Image.DecompressionBombWarning)
    recording.__exit__(None, None, None)
    any_size.__exit__(None, None, None)
    assert [str(o.message) for o in seen] == ['a leak'] and warnings.filters == before
    any_size.__enter__()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        any_size.__exit__(None, None, None)
        warnings.warn('large', Image.DecompressionBombWarning)
    assert len(seen) == 1 and warnings.filters == before
