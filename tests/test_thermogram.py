"Reading temperature matrices: named kinds of files, mutations, cuts, files that are no files, names, scales."
import csv
import os
import threading
import time
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from medfast.thermogram import (ThermogramError, ThermogramFormat, ThermogramName, format_name, image_temps, parse_name, read_thermogram,
                                thermogram_format, to_image, _read_fast, _read_strict, _temperatures)

SHAPE = ROWS, COLUMNS = 12, 16
TEMPS = np.random.default_rng(0).integers(2000, 3900, SHAPE)/100


def text(temps=TEMPS, sep=' ', end='\n', decimals=2, mark='.'):
    "The matrix as a camera's software writes it."
    return ''.join(sep.join(f'{t:.{decimals}f}'.replace('.', mark) for t in row) + end for row in temps)


def put(value, row=2, column=4):
    "The matrix with one value replaced by any text."
    cells = [f'{t:.2f}' for t in TEMPS.ravel()]
    cells[row*COLUMNS + column] = value
    return ''.join(' '.join(cells[r*COLUMNS:(r + 1)*COLUMNS]) + '\n' for r in range(ROWS))


def read(data, tmp_path, **kwargs):
    "`data` through a file."
    fn = tmp_path/'T0001.txt'
    fn.write_bytes(data.encode() if isinstance(data, str) else data)
    return read_thermogram(fn, **{'shape': SHAPE, **kwargs})


GOOD = {
    'blanks': text(), 'CRLF': text(end='\r\n'), 'two CR': text(end='\r\r\n'), 'CR alone': text(end='\r'),
    'tabs': text(sep='\t'), 'semicolons': text(sep=';'), 'semicolons, 5 decimals': text(sep=';', decimals=5),
    'commas': text(sep=','), 'comma and blank': text(sep=', '), 'semicolon and blank': text(sep='; '),
    'decimal comma, semicolons': text(sep=';', mark=','), 'decimal comma, tabs': text(sep='\t', mark=','),
    'decimal comma, blanks': text(mark=','), 'BOM': '\ufeff' + text(), 'BOM and CRLF': '\ufeff' + text(end='\r\n'),
    'aligned columns': text(sep='   '), 'indented': ''.join('  ' + o + '\n' for o in text().splitlines()),
    'separator at the row end': text(sep=';', end=';\r\n'), 'blank lines at the end': text() + '\n\r\n',
    'blank lines between': text(end='\n\n'), 'three decimals': text(decimals=3), 'zeros dropped': ''.join(' '.join(f'{t:g}' for t in r) + '\n' for r in TEMPS)}

BAD = {
    'decimal comma and commas': (text(sep=',', mark=','), 'row 1', 'one value or two'),
    'header': ('Temperature in °C\n' + text(), "row 1, value 'Temperature in \\\\xc2\\\\xb0C'", 'no row of numbers, so the file is no table'),
    'header with whole numbers': ('T 1 2 3\n' + text(), "row 1, value 'T 1 2 3'", 'no row of numbers'),
    'words': ('Dear colleague\n\nall is well\n', "row 1, value 'Dear colleague'", 'no table of temperatures'),
    'a line': ('----- - -----\n', 'row 1', 'no row of numbers'), 'all missing': ('nan nan nan\n', "value 'nan nan nan'", 'no row of numbers'),
    'units of whole numbers': ('28C 29C\n', "value '28C 29C'", 'no units'),
    'whole numbers of any sort': ('+28;-3; 300;\n', 'row 1', 'no decimals'),
    'header with numbers': ('T 1.0\n' + text(), "row 1, column 1, value 'T'", 'must be a number'),
    'comment': ('# 1.0\n' + text(), "row 1, column 1, value '#'", 'must be a number'),
    'units': (put('28.19C'), "row 3, column 5, value '28.19C'", 'no header, units'),
    'nan': (put('nan'), "row 3, column 5, value 'nan'", 'must be a number'),
    'inf': (put('-inf'), "row 3, column 5, value '-inf'", 'must be a number'),
    '-999': (put('-999.00'), 'row 3, column 5, value -999.0', 'missing pixel'),
    'zero': (put('00.00'), 'row 3, column 5, value 0.0', 'missing pixel'),
    'kelvin': (text(TEMPS + 273.15), 'row 1, column 1', 'looks like kelvin'),
    'Fahrenheit': (text(TEMPS*1.8 + 32), 'row 1, column 1', 'looks like Fahrenheit'),
    'raw counts': (text(TEMPS*400), 'row 1, column 1', 'raw camera counts'),
    'whole numbers': (text(decimals=0), 'row 1', 'no decimals'),
    'exponent': (put('2.819e1'), "value '2.819e1'", 'must be a number'),
    'thousands': (put('1,028.19'), "value '1,028.19'", 'must be a number'),
    'six decimals': (put('28.190000'), "value '28.190000'", 'at most 5 decimals'),
    'letter O': (put('3O.19'), "value '3O.19'", 'must be a number'),
    'underscore': (put('2_8.19'), "value '2_8.19'", 'must be a number'),
    'foreign digits': (put('２８.19'), 'row 3, column 5', 'must be a number'),
    'hard blank': (put('28.19\u00a028.35'), 'row 3', 'must be a number|15 values'),
    'no digits behind the point': (put('28.'), "value '28.'", 'must be a number'),
    'other decimal mark': (put('28,19'), "value '28,19'", 'must be a number'),
    'two numbers run together': (put('28.1928.35'), "value '28.1928.35'", 'must be a number'),
    'empty value': (text(sep=';').replace(';', ';;', 1), 'row 1', 'must be a number|values'),
    'blank among tabs': (text(sep='\t').replace('.', ' ', 20).replace(' ', '.', 19), 'row 2', 'must be a number'),
    'tab among blanks': (put('28.19\t28.35'), 'row 3', 'must be a number'),
    'value missing': (put(''), 'row 3', 'has 15 values, 16 are wanted'),
    'value too many': (put('28.19 28.35'), 'row 3', 'has 17 values, 16 are wanted'),
    'row missing': (text(TEMPS[:-1]), 'T0001.txt', 'has 11 rows, 12 are wanted'),
    'two matrices': (text()*2, 'T0001.txt', 'has 24 rows, 12 are wanted'),
    'cut in a value': (text()[:-3], 'row 12', 'may be cut'),
    'last newline missing': (text()[:-1], 'row 12', 'may be cut'),
    'transposed': (text(TEMPS.T), 'row 1', 'lies on its side'),
    'one value a line': (text(TEMPS.reshape(-1, 1)), 'row 1', 'has 1 values'),
    'empty': ('', 'T0001.txt', 'is empty'), 'blanks only': (' \r\n \n', 'T0001.txt', 'is empty'),
    'BOM alone': (b'\xef\xbb\xbf', 'T0001.txt', 'is empty'),
    'binary': (b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR', 'T0001.txt', 'is binary'),
    'UTF-16': (text().encode('utf-16'), 'T0001.txt', 'UTF-16'),
    'zero bytes at the end': (text() + '\0\0', 'T0001.txt', 'is binary'),
    'end-of-file mark': (text() + '\x1a', 'row 13', 'may be cut'),
    'huge': (text()*40, 'T0001.txt', 'bytes, too many for 12 x 16')}


@pytest.mark.parametrize('kind', GOOD)
def test_a_good_kind_is_read_exactly(kind, tmp_path):
    assert np.array_equal(read(GOOD[kind], tmp_path), TEMPS.astype(np.float32))


@pytest.mark.parametrize('kind', BAD)
def test_a_bad_kind_is_refused_with_its_place(kind, tmp_path):
    data, where, why = BAD[kind]
    with pytest.raises(ThermogramError, match=why) as err: read(data, tmp_path)
    assert where in str(err.value) and str(err.value).startswith('T0001.txt') and err.value.hint and str(err.value).isprintable()


def test_attributes_tell_the_place(tmp_path):
    with pytest.raises(ThermogramError) as err: read(put('-999.00'), tmp_path)
    e = err.value
    assert (e.file.name, e.row, e.column, e.value) == ('T0001.txt', 3, 5, -999) and 'within 5 and 50' in e.rule
    assert read(put('55.00'), tmp_path, high=60)[2, 4] == 55


@pytest.mark.parametrize('mark', '.,')
@pytest.mark.parametrize('sep', [' ', '\t', ';', ','])
@pytest.mark.parametrize('decimals', range(1, 6))
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r\r\n'])
def test_both_readers_give_the_same_bits(sep, mark, decimals, end):
    if sep == mark: return
    temps = np.random.default_rng(decimals).uniform(10, 99.9, SHAPE).round(decimals)
    data = text(temps, sep, end, decimals, mark).encode()
    fast = _read_fast(data, SHAPE)
    assert fast is not None and fast.dtype == np.float32
    assert np.array_equal(fast, temps.astype(np.float32)) and np.array_equal(fast, _read_strict(data, 'x.txt', SHAPE))


def test_every_hundred_thousandth_of_a_degree_is_exact():
    "All of 10.00000 to 49.99999 by digit arithmetic against Python's own float."
    for low in range(10, 50):
        told = [f'{low}.{o:05d}' for o in range(0, 100_000, 7)]
        data = (' '.join(told) + '\n').encode()
        assert np.array_equal(_read_fast(data, (1, len(told)))[0], np.array([float(o) for o in told]).astype(np.float32))


def answer(reader, *args):
    "What a reader says: the matrix, or the message."
    try: return reader(*args)
    except ThermogramError as e: return str(e)


def strict(data, *args):
    "Reading with the fast way closed."
    import medfast.thermogram as mod
    way, mod._read_fast = mod._read_fast, lambda *_: None
    try: return answer(_temperatures, data, *args)
    finally: mod._read_fast = way


def agree(data):
    "The answer to `data`, after checking that it does not depend on the way it was read, and that accepted numbers are those that stand there."
    got, other = (f(*a) for f, a in ((lambda *a: answer(_temperatures, *a), (data, 'x.txt', SHAPE, 5., 50.)), (strict, (data, 'x.txt', SHAPE, 5., 50.))))
    if isinstance(got, str): assert got == other
    else:
        assert np.array_equal(got, other) and got.shape == SHAPE and got.dtype == np.float32 and 5 <= got.min() <= got.max() <= 50
        plain = data.decode('utf-8-sig').replace(';', ' ').replace(', ', ' ')
        plain = plain.replace(',', '.') if '.' not in plain else plain.replace(',', ' ')
        assert np.array_equal(got.ravel(), np.array(plain.split(), float).astype(np.float32))
    return got


SOURCES = [o.encode() for o in GOOD.values()]
edit = st.tuples(st.sampled_from(['flip', 'insert', 'delete', 'repeat', 'swap', 'cut']), st.integers(0, 10**6), st.integers(1, 40), st.binary(min_size=1, max_size=3) |
                 st.sampled_from([b' ', b'\n', b'\r', b'\t', b';', b',', b'.', b'-', b'0', b'9', b'\0', b'nan', b'1e1', b'\xef\xbb\xbf']))


def mutate(data, edits):
    "Apply edits to bytes."
    for what, at, n, new in edits:
        at %= len(data) + 1
        if what == 'flip': data = data[:at] + new + data[at + len(new):]
        elif what == 'insert': data = data[:at] + new + data[at:]
        elif what == 'delete': data = data[:at] + data[at + n:]
        elif what == 'repeat': data = data[:at + n] + data[at:]
        elif what == 'swap': data = data[:at] + data[at + n:at + 2*n] + data[at:at + n] + data[at + 2*n:]
        else: data = data[:at]
    return data


def fuzz(n):
    @settings(max_examples=n, deadline=None, derandomize=n < 1000, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(SOURCES), st.lists(edit, min_size=1, max_size=4))
    def check(data, edits): agree(mutate(data, edits))
    return check


def random_bytes(n):
    @settings(max_examples=n, deadline=None, derandomize=n < 1000, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=3000) | st.text('0123456789.,; \t\r\n-+eE', max_size=3000).map(str.encode))
    def check(data): agree(data)
    return check


def test_mutations_give_a_true_matrix_or_our_error(): fuzz(400)()
def test_random_bytes_give_our_error(): random_bytes(100)()


@pytest.mark.full
def test_ten_thousand_mutations(): fuzz(10_000)()


@pytest.mark.full
def test_two_thousand_random_files(): random_bytes(2_000)()


@pytest.mark.parametrize('kind', ['blanks', 'two CR', 'semicolons, 5 decimals', 'decimal comma, tabs', 'CR alone'])
def test_no_cut_is_accepted(kind):
    data = GOOD[kind].encode()
    accepted = [n for n in range(len(data)) if not isinstance(agree(data[:n]), str)]
    assert accepted == []


def test_200_cuts_of_a_real_size_are_refused(tmp_path):
    temps = np.random.default_rng(1).integers(2000, 3900, (480, 640))/100
    data = text(temps, end='\r\r\n').encode()
    assert np.array_equal(read(data, tmp_path, shape=(480, 640)), temps.astype(np.float32))
    cuts = np.random.default_rng(2).integers(0, len(data), 30).tolist() + list(range(len(data) - 150, len(data))) + [3842*o for o in range(0, 480, 24)]
    assert len(cuts) == 200
    for n in cuts:
        with pytest.raises(ThermogramError, match='may be cut|has [0-9]+ (rows|values)|is empty|no decimals'): read(data[:n], tmp_path, shape=(480, 640))


def test_threads_do_not_disturb_each_other(tmp_path):
    fns, matrices, shape = [], [], (120, 160)
    for k in range(6):
        matrices.append(np.random.default_rng(k).uniform(20, 39, shape).round(1 + k % 5))
        fns.append(tmp_path/f'T{k:04d}.txt')
        fns[-1].write_text(text(matrices[-1], decimals=1 + k % 5))
    wrong = []
    def work(k):
        for _ in range(80):
            for i in np.roll(range(6), k):
                if not np.array_equal(read_thermogram(fns[i], shape=shape), matrices[i].astype(np.float32)): wrong.append(i)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for o in threads: o.start()
    for o in threads: o.join()
    assert not wrong


def test_a_result_belongs_to_its_caller(tmp_path):
    first = read(text(), tmp_path)
    kept = first.copy()
    read(text(TEMPS + 1), tmp_path)
    assert np.array_equal(first, kept) and first.flags.writeable and first.flags.c_contiguous


# Files that are no files

@pytest.mark.parametrize('reader', [read_thermogram, thermogram_format])
def test_what_is_no_file_is_refused_at_once(reader, tmp_path):
    os.mkfifo(tmp_path/'pipe.txt')
    (tmp_path/'folder.txt').mkdir()
    (tmp_path/'loop.txt').symlink_to(tmp_path/'loop.txt')
    with open(tmp_path/'huge.txt', 'wb') as f: f.truncate(1 << 30)
    start = time.monotonic()
    for name in ('pipe.txt', 'folder.txt', 'loop.txt', 'huge.txt', 'missing.txt', 'x'*300 + '.txt', 'a\0b.txt', '\ud800.txt'):
        with pytest.raises(ThermogramError, match='regular file|too many|cannot be read|such a name'): reader(tmp_path/name)
    with pytest.raises(ThermogramError, match='regular file'): reader('/dev/zero')
    assert time.monotonic() - start < 1


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    def refuse(*args, **kwargs): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr('medfast.thermogram.os.open', refuse)
    with pytest.raises(ThermogramError, match='T0001.txt: cannot be read .Permission denied.. Check'): read_thermogram(tmp_path/'T0001.txt')


def test_the_message_never_shows_the_folder_or_a_raw_control_character(tmp_path):
    secret = tmp_path/'Jane Doe'
    secret.mkdir()
    (secret/'a\nb\x1b.txt').write_text('')
    with pytest.raises(ThermogramError) as err: read_thermogram(secret/'a\nb\x1b.txt')
    assert 'Jane' not in str(err.value) and str(err.value).isprintable()


# Names

@pytest.mark.parametrize('name', ['', 'x.txt', 'T287.txt', 'T02877.txt', 'T0287.1.0.D.2015-07-20.18.txt', 'T0287.1.1.X.2015-07-20.18.txt', 'T0287.1.1.D.2015-13-20.18.txt',
    'T0287.1.1.D.2015-07-20.018.txt', 'T0287.1.1.D.2015-07-20.18.txt\n', 'T٠٢٨٧.txt', 'TLEFT_V159_18-2-2013_00.jpg', 'IR_2015-04-31_0007.jpg', 'T0287.exe', 'T0287.txt.exe'])
def test_other_names_are_refused(name):
    with pytest.raises(ThermogramError, match='no known grammar|no such day'): parse_name(name)


names = st.builds(ThermogramName, patient=st.integers(0, 9999).map('{:04d}'.format), visit=st.integers(0, 99), view=st.sampled_from(['frontal', 'right 45°', 'right 90°', 'left 45°', 'left 90°']),
                  kind=st.sampled_from(['dynamic', 'static']), date=st.dates(date(1000, 1, 1)), frame=st.integers(0, 99))


@given(names)
def test_names_survive_the_round_trip(name):
    assert parse_name(format_name(name)) == name == parse_name(format_name(name, '.txt.png'))


@pytest.mark.parametrize('wrong', [dict(patient=None), dict(patient='1'), dict(patient='../../x'), dict(visit=None), dict(view='top'), dict(kind='D'), dict(date=None), dict(frame=None), dict(frame=100)])
def test_incomplete_names_cannot_be_written(wrong):
    name = ThermogramName('0287', 1, 'frontal', 'dynamic', date(2015, 7, 20), 18)
    with pytest.raises(ThermogramError, match='DMR-IR names need'): format_name(replace(name, **wrong))


# Scales

@given(st.floats(-50, 150), st.floats(-50, 150), st.sampled_from([8, 16]))
def test_the_way_back_is_within_half_a_level(low, high, bits):
    if high - low < 1e-3: return
    temps = np.linspace(low, high, 60).reshape(6, 10)
    back = image_temps(to_image(temps, low=low, high=high, bits=bits))
    assert np.abs(back - temps).max() <= .5*(high - low)/(2**bits - 1) + 2e-5


def test_what_no_image_can_hold_is_refused():
    for wrong in (dict(low=40), dict(low=float('nan')), dict(bits=12), dict(bits=16, cmap='gray'), dict(cmap='no such')):
        with pytest.raises(ThermogramError): to_image(TEMPS, **wrong)
    for temps in (TEMPS[0], TEMPS[None], np.where(TEMPS > 30, np.nan, TEMPS)):
        with pytest.raises(ThermogramError): to_image(temps)


# Real files

def test_all_real_matrices_are_read(dmr_ir):
    label = {f"T{int(o['ID']):04d}": o['Diagnosis'] for o in csv.DictReader(open(dmr_ir/'id_diagnosis.csv'))}
    seen = {}
    for fn in sorted((dmr_ir/'txt').iterdir()):
        temps = read_thermogram(fn)
        assert temps.shape == (480, 640) and 10 < temps.min() < temps.max() < 45
        seen.setdefault((thermogram_format(fn), label[fn.stem]), []).append(parse_name(fn).patient)
    blank, semicolon = ThermogramFormat('blank', 2, 480, 640), ThermogramFormat('semicolon', 5, 480, 640)
    assert {k: len(v) for k, v in seen.items()} == {(blank, 'Healthy'): 71, (blank, 'Sick'): 21, (semicolon, 'Sick'): 29}


def test_real_matrices_are_the_same_by_the_study_s_own_code(dmr_ir):
    for fn in sorted((dmr_ir/'txt').iterdir())[::12]:
        numbers = np.array(fn.read_text().replace(';', ' ').split())
        numbers.shape = (480, 640)
        assert np.array_equal(read_thermogram(fn), numbers.astype(float).astype(np.float32))
