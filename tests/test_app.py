"The upload, the gate and the server behind the page: what strangers hand in, what is shown, and what is left."
import http.client
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from medfast import upload
from medfast.bundle import BundleError, load_bundle, save_bundle
from medfast.interpret import grad_cam
from medfast.upload import NO_DEVICE, UploadError, predict_upload

ROOT = Path(__file__).resolve().parents[1]


# -- specimens -------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='session')
def bundles(tmp_path_factory):
    "Folders of two small bundles, `heat` with an operating point and `chest` without; a matrix and an X-ray."
    import warnings

    from medfast.catalog import coronahack_catalog, dmr_catalog
    from medfast.decisions import OperatingPoint
    from medfast.loaders import study_dls
    from medfast.models import medical_learner
    from medfast.simulate import simulate_chest, simulate_study
    from medfast.split import split_catalog
    home = tmp_path_factory.mktemp('bundles')

    def fitted(dls, arch, seed=42):
        learn = medical_learner(dls, arch, pretrained=False, seed=seed)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-3)
        return learn

    def trained(catalog, arch, name, n=1, **options):
        dls = study_dls(split_catalog(catalog, valid=.25, test=.25, seed=1), size=48, bs=4, device='cpu')
        learns = [fitted(dls, arch, 42 + k) for k in range(n)]
        with learns[0].no_bar(): preds = learns[0].predictions()
        return save_bundle(learns, home/name, **options), preds

    point = OperatingPoint('Sick', ('Healthy', 'Sick'), .35, 1.5, 'sensitivity', .95, .96, .86, 45, 120, 5, 'patient', '0'*64)
    women = dmr_catalog(simulate_study(home/'women', n_patients=12, n_frames=1, progress=False))
    heat, _ = trained(women, 'mirror_cnn', 'heat', point=point, facts=dict(study='Simulated thermograms', trained_on='12 simulated women'))
    folds, _ = trained(women, 'mirror_cnn', 'folds', 2, point=point)
    plain, preds = trained(women, 'mirror_cnn', 'plain')
    with warnings.catch_warnings(action='ignore'): children = coronahack_catalog(simulate_chest(home/'children', n_patients=12, size=96))
    chest, _ = trained(children, 'small_resnet', 'chest')
    return dict(heat=heat, plain=plain, folds=folds, chest=chest, preds=preds, matrix=Path(women.path.iloc[0]), xray=Path(children.path.iloc[0]))


def made(form, picture, **options):
    with io.BytesIO() as f:
        picture.save(f, form, **options)
        return f.getvalue()


def zipped():
    with io.BytesIO() as f:
        with zipfile.ZipFile(f, 'w') as z: z.writestr('../../x.png', b'0'*10**6)
        return f.getvalue()


def noise(mode='L', size=(96, 96)): return Image.frombytes(mode, size, random.Random(0).randbytes(size[0]*size[1]*len(mode)))


def odd_files(matrix):
    "Name, bytes, and what the page of X-rays must say: 'answer', or words of the refusal."
    rows = matrix.read_text().splitlines()
    jpg = made('JPEG', noise(size=(64, 64)), progressive=True)
    frames = [Image.new('L', (32, 32), o) for o in (0, 128, 255)]
    turned = '\n'.join(map(' '.join, zip(*(r.split() for r in rows)))) + '\n'
    return [
        ('bomb.png', made('PNG', Image.new('1', (13_000, 13_000))), '13,000 x 13,000'),
        ('large.png', made('PNG', Image.new('1', (2920, 2920))), 'at most 8,500,000'),
        ('letter.txt', b'Dear doctor,\nplease find enclosed\n', 'must be a number'),
        ('empty.png', b'', '0 bytes'),
        ('cmyk.jpg', made('JPEG', noise('CMYK')), 'answer'),
        ('sixteen.png', made('PNG', Image.fromarray((np.arange(96*96).reshape(96, 96)*7).astype(np.uint16))), 'answer'),
        ('moving.gif', made('GIF', frames[0], save_all=True, append_images=frames[1:]), 'unknown format'),
        ('moving.png', made('PNG', frames[0], save_all=True, append_images=frames[1:]), 'holds more than one picture'),
        ('program', b'\x7fELF\x02\x01\x01' + bytes(200), 'unknown format'),
        ('program.exe', b'MZ\x90\0' + bytes(200), 'unknown format'),
        ('x'*251 + '.png', made('PNG', noise()), 'answer'),
        ('../../../etc/cron.d/evil.png', made('PNG', noise()), 'answer'),
        ('page.png', b'<!doctype html><script>alert(1)</script>', 'unknown format'),
        ('drawing.svg', b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', 'unknown format'),
        ('cut.jpg', jpg[:len(jpg)//2], 'truncated'),
        ('deep.json', b'['*200_000, 'unknown format'),
        ('many.zip', zipped(), 'unknown format'),
        ('paper.pdf', b'%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n', 'unknown format'),
        ('nan.txt', ('\n'.join(['NaN ' + rows[0].split(' ', 1)[1]] + rows[1:]) + '\n').encode(), 'NaN'),
        ('turned.txt', turned.encode(), 'lies on its side'),
        ('\u202egnp.exe', b'MZ', 'unknown format'),
        ('صورة 🩻.png', made('PNG', noise()), 'answer'),
        ('huge.txt', b'28.19 '*2_000_000, 'at most'),
        ('pages.tif', made('TIFF', frames[0], save_all=True, append_images=frames[1:]), 'holds more than one picture'),
        ('passes.jpg', jpg[:-2] + jpg[jpg.rfind(b'\xff\xda'):-2]*500 + jpg[-2:], 'passes'),
        ('<img src=x onerror=alert(1)>${alert(1)}.png', made('PNG', noise()), 'answer'),
        ('matrix.txt', matrix.read_bytes(), 'trained on pictures')]


# -- predict_upload --------------------------------------------------------------------------------------------------

def test_learner_bundle_and_upload_give_the_same_bits(bundles):
    from medfast.images import decode
    bundle, preds = load_bundle(bundles['plain']), bundles['preds']
    many = [[*o.probabilities.values()] for o in bundle.predict_many(preds.items)]
    assert many == preds.probs.tolist()
    for item in preds.items:
        data, name = Path(item).read_bytes(), Path(item).name
        reply = predict_upload(data, name, bundle)
        assert reply.probabilities == bundle.predict(item).probabilities == bundle.predict((name, decode(data, name))).probabilities


def test_a_picture_gives_the_same_bits_as_its_path(bundles):
    reply = predict_upload(bundles['xray'].read_bytes(), bundles['xray'].name, bundles['chest'])
    assert reply.probabilities == load_bundle(bundles['chest']).predict(bundles['xray']).probabilities
    assert reply.decision is None and reply.threshold is None and 'Not calibrated' in reply.calibration


def test_the_decision_stands_at_the_threshold_itself(bundles):
    from dataclasses import replace
    bundle, data, name = load_bundle(bundles['heat']), bundles['matrix'].read_bytes(), bundles['matrix'].name
    p = predict_upload(data, name, bundle).probabilities['Sick']
    for threshold, decision in ((p, 'Sick'), (np.nextafter(p, 1), 'Healthy')):
        bundle.point = replace(bundle.point, threshold=float(threshold))
        assert predict_upload(data, name, bundle).decision == decision


def test_a_thermogram_is_drawn_with_its_scale_and_a_converted_one_alike(bundles, tmp_path):
    from medfast.thermogram import convert_thermograms
    bundle = load_bundle(bundles['heat'])
    text = predict_upload(bundles['matrix'].read_bytes(), bundles['matrix'].name, bundle)
    assert text.picture.size == (640, 542) == text.overlay.size
    convert_thermograms(bundles['matrix'].parent, tmp_path/'png', bits=16, progress=False)
    png = next((tmp_path/'png').rglob(bundles['matrix'].name + '.png'))
    same = predict_upload(png.read_bytes(), png.name, bundle)
    assert np.abs(np.asarray(same.picture, int) - np.asarray(text.picture, int)).max() <= 8
    assert abs(same.probabilities['Sick'] - text.probabilities['Sick']) < 1e-3


def test_odd_files_get_a_sentence_or_an_answer_without_a_path(bundles):
    bundle = load_bundle(bundles['chest'])
    for name, data, wanted in odd_files(bundles['matrix']):
        try: reply = predict_upload(data, name, bundle)
        except UploadError as e:
            assert wanted in str(e), (name[:40], str(e))
            assert len(str(e)) < 420 and str(e).isprintable() and '/' not in str(e) and '\u202e' not in str(e)
        else:
            assert wanted == 'answer', name[:40]
            assert len(reply.name) <= 80 and reply.name.isprintable() and '/' not in reply.name and reply.warning == NO_DEVICE


@pytest.mark.parametrize('data, name', [(None, 'x.png'), (b'x', None), ('text', 'x.png'), (b'x', 7), ([1], 'x.png')])
def test_what_is_no_file_is_refused(bundles, data, name):
    with pytest.raises(UploadError, match='Nothing was handed in'): predict_upload(data, name, bundles['chest'])


def test_without_a_bundle_the_way_out_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv('MEDFAST_BUNDLE', raising=False)
    with pytest.raises(BundleError, match='MEDFAST_BUNDLE'): predict_upload(b'x', 'x.png')
    monkeypatch.setenv('MEDFAST_BUNDLE', str(tmp_path))
    with pytest.raises(BundleError, match='is no bundle'): predict_upload(b'x', 'x.png')


@pytest.mark.parametrize('n', [100, pytest.param(3000, marks=pytest.mark.full)])
def test_changed_bytes_give_an_answer_or_a_sentence_and_nothing_else(bundles, n):
    heat, chest, rng = load_bundle(bundles['heat']), load_bundle(bundles['chest']), random.Random(n)
    matrix = bundles['matrix'].read_bytes()
    seeds = [(chest, 'a.png', made('PNG', noise())), (chest, 'a.jpg', made('JPEG', noise())), (chest, 'a.bmp', made('BMP', noise())), (chest, 'a.tif', made('TIFF', noise())), (heat, 'a.txt', matrix)]
    answers = 0
    for i in range(n):
        bundle, name, data = seeds[i % len(seeds)]
        data = bytearray(data)
        for _ in range(rng.choice([1, 3, 20])): data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < .3: del data[rng.randrange(len(data)):]
        try: answers += bool(predict_upload(bytes(data), name, bundle).probabilities)
        except UploadError as e: assert 10 < len(str(e)) < 420 and not re.search(r'/(tmp|home|work|usr|var|root)\b', str(e))
    assert 0 < answers < n


def test_a_tiff_of_endless_pages_and_a_jpeg_of_endless_passes_are_refused_at_once(bundles):
    import struct
    bundle = load_bundle(bundles['chest'])
    tags = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (278, 3, 1, 1), (279, 4, 1, 1)]
    entry = b''.join(struct.pack('<HHII', *o) for o in tags)
    size = 2 + len(entry) + 4
    pages = b'II*\0' + struct.pack('<I', 16) + bytes(8) + b''.join(struct.pack('<H', len(tags)) + entry + struct.pack('<I', 16 + size*(i + 1)) for i in range(100_000))
    jpg = made('JPEG', Image.new('L', (3000, 3000), 128), progressive=True)
    passes = jpg[:-2] + jpg[jpg.rfind(b'\xff\xda'):-2]*200_000 + jpg[-2:]
    start = time.process_time()
    for name, data in (('a.tif', pages), ('a.jpg', passes)):
        with pytest.raises(UploadError): predict_upload(data, name, bundle)
    assert time.process_time() - start < 2


def test_sixteen_bits_are_drawn_as_they_are(bundles):
    levels = np.repeat([[0, 32768, 65535]], 3, 0).astype(np.uint16).repeat(8, 0).repeat(8, 1)
    picture = predict_upload(made('PNG', Image.fromarray(levels)), 'x.png', bundles['chest']).picture
    assert [picture.getpixel((picture.width*i//6, 5))[0] for i in (1, 3, 5)] == [0, 128, 255]


def test_facts_of_a_bundle_are_text_and_short(bundles):
    bundle = load_bundle(bundles['chest'])
    bundle.facts = {'study': '<b>x</b>', **{f'k{i}': 'y'*5000 for i in range(100)}}
    about = predict_upload(bundles['xray'].read_bytes(), 'x.jpeg', bundle).about
    assert len(about) < 30 and max(len(v) for _, v in about) <= 1500


def test_a_network_without_maps_is_answered_all_the_same(bundles, monkeypatch):
    import medfast.upload as upload
    def none(*_): raise upload.InterpretError('no layer')
    monkeypatch.setattr(upload, 'grad_cam', none)
    reply = predict_upload(bundles['xray'].read_bytes(), 'x.jpeg', bundles['chest'])
    assert reply.overlay is None and 'no layer from which a map' in reply.overlay_words


# -- the command -----------------------------------------------------------------------------------------------------

RUNNER = '''
import sys
addresses = open(sys.argv.pop(1), 'a', buffering=1)
def heard(event, args):
    if event == 'socket.connect' and isinstance(args[1], tuple) or event == 'socket.getaddrinfo': addresses.write(repr(args[1] if event == 'socket.connect' else args[0]) + chr(10))
sys.addaudithook(heard)
import medfast.app as app
assert 'gradio' not in sys.modules
age = float(sys.argv.pop(1))
if age: app._AGE, app._EVERY = age, age/4
app.app_command()
'''


def start(home, bundle, *more, age=2):
    "A server in a process of its own, with its log and the addresses it ever asked for."
    home.mkdir(parents=True, exist_ok=True)
    (home/'run.py').write_text(RUNNER)
    (home/'temp').mkdir(exist_ok=True)
    env = {**os.environ, 'TMPDIR': str(home/'temp'), 'PYTHONPATH': str(ROOT), 'GRADIO_SHARE': 'True', 'GRADIO_SERVER_NAME': '0.0.0.0', 'GRADIO_ALLOWED_PATHS': '/', 'GRADIO_MCP_SERVER': 'True'}
    return subprocess.Popen([sys.executable, '-W', 'ignore', home/'run.py', home/'addresses.txt', str(age), str(bundle), '--port', '0', *more], stdout=subprocess.PIPE, stderr=open(home/'log.txt', 'w'), text=True, env=env)


class Server:
    "A running page: its port, its process, and short ways to ask it."
    def __init__(self, home, bundle, age=2):
        self.home, self.process = home, start(home, bundle, age=age)
        line = self.process.stdout.readline()
        assert 'http://127.0.0.1:' in line, (home/'log.txt').read_text()
        self.url = line.split()[1]
        self.port = int(self.url.rsplit(':', 1)[1])

    def __enter__(self): return self

    def __exit__(self, *_):
        if self.process.poll() is None: self.process.send_signal(signal.SIGINT)
        try: self.process.wait(30)
        finally: self.process.kill()

    def ask(self, method, path, body=b'', **headers):
        "Status and text."
        link = http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)
        try:
            link.request(method, path, body, {k.replace('_', '-'): v for k, v in headers.items()})
            answer = link.getresponse()
            return answer.status, answer.read().decode('utf-8', 'replace')
        finally: link.close()

    def upload(self, name, data):
        form = b'--b1\r\nContent-Disposition: form-data; name="files"; filename="' + name.encode() + b'"\r\nContent-Type: application/octet-stream\r\n\r\n' + data + b'\r\n--b1--\r\n'
        return self.ask('POST', '/gradio_api/upload', form, content_type='multipart/form-data; boundary=b1')

    def answer(self, path): return self.ask('POST', '/gradio_api/run/predict', json.dumps(dict(data=[dict(path=path, meta=dict(_type='gradio.FileData'))], fn_index=0, session_hash='s1')).encode(), content_type='application/json')

    def hand_in(self, name, data):
        "What the page says to a file."
        for _ in range(30):
            status, text = self.upload(name, data)
            if status != 503: break
            time.sleep(.5)
        assert status == 200, (status, text)
        status, text = self.answer(json.loads(text)[0])
        assert status == 200, (status, text)
        return json.loads(text)['data'][0]

    def rss(self): return psutil.Process(self.process.pid).memory_info().rss/2**20
    def log(self): return (self.home/'log.txt').read_text()
    def left(self): return [str(o.relative_to(self.home/'temp')) for o in (self.home/'temp').rglob('*')]


@pytest.fixture(scope='module')
def server(bundles, tmp_path_factory):
    pytest.importorskip('gradio')
    with Server(tmp_path_factory.mktemp('server'), bundles['chest']) as it: yield it


def text_of(page): return re.sub(r'\s+', ' ', re.sub(r'<[^>]+>', ' ', page))


def test_of_several_networks_the_page_says_so_and_shows_the_mean_of_their_maps(bundles):
    bundle,matrix = load_bundle(bundles['folds']), bundles['matrix']
    reply = predict_upload(matrix.read_bytes(), matrix.name, bundle)
    assert 'the probability may lie too near the middle' in reply.calibration and 'slope' not in reply.calibration
    assert 'here the mean of 2 answers' in reply.point and dict(reply.about)['Network'].startswith('the mean of 2 mirror_cnn')
    x,i = bundle.prepare(matrix), bundle.classes.index(reply.headline)
    maps = [grad_cam(o, x, i) for o in bundle.members]
    mean = sum(maps)/2
    assert np.allclose(upload._cam(bundle, x, i), mean/mean.max()) and abs(maps[0] - maps[1]).max() > .05


def test_the_page_tells_of_folds_and_of_the_slope_only_where_there_are_some(bundles):
    bundle,words = load_bundle(bundles['folds']),'The calibration slope below tells how well that holds: 1 is honest.'
    assert bundle.point.n_folds and 'the fold that had not seen them' in upload._point(bundle)
    bundle.point = replace(bundle.point, n_folds=0)
    assert 'fold' not in upload._point(bundle)
    assert words not in upload._calibration(bundle)
    bundle.facts = dict(results=dict(slope=dict(value=.9, low=.5, high=1.4, n=40)))
    assert upload._calibration(bundle).endswith(words) and dict(upload._about(bundle))['Results there'].startswith('Calibration slope 0.90')
    bundle.facts = dict(results='slope unknown')
    assert words not in upload._calibration(bundle), 'a text holds no slope'


def test_what_is_no_bundle_ends_with_a_sentence_and_code_2(tmp_path, capsys):
    from medfast.app import app_command
    with pytest.raises(SystemExit) as end: app_command(str(tmp_path))
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count('\n') == 1 and 'is no bundle' in said


def test_without_the_extra_the_error_says_what_to_install(bundles, monkeypatch, tmp_path):
    from medfast import app
    for o in ('GRADIO_ANALYTICS_ENABLED', 'GRADIO_TEMP_DIR', 'HF_HUB_OFFLINE', 'HF_HUB_DISABLE_TELEMETRY', 'DISABLE_TELEMETRY', 'DO_NOT_TRACK'): monkeypatch.setenv(o, 'x')
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(app.AppError, match=r"pip install 'medfast\[app\]'"): app.page_app(load_bundle(bundles['chest']), tmp_path, 1)


def test_words_from_outside_are_text_on_the_page():
    from medfast.app import answer_html, refusal_html
    from medfast.upload import Reply
    evil, grey = '<img src=x onerror=alert(1)>', Image.new('RGB', (8, 8))
    page = answer_html(Reply(evil, evil, {evil: .5}, evil, evil, evil, .5, evil, grey, None, evil, (evil,), (evil,), ((evil, evil),), evil)) + refusal_html(evil)
    assert '<img src=x' not in page and page.count('&lt;img src=x') >= 12


def test_an_unforeseen_error_is_a_sentence_and_the_log_has_no_name(bundles, tmp_path, monkeypatch, capsys):
    from medfast import app

    def broken(*_): raise ZeroDivisionError('Ana_Silva.png')
    monkeypatch.setattr(app, 'predict_upload', broken)
    (tmp_path/'a1').mkdir()
    (tmp_path/'a1/Ana_Silva.png').write_bytes(b'x')
    said, err = app.answer_file(tmp_path/'a1/Ana_Silva.png', None, tmp_path), capsys.readouterr().err
    assert 'No answer' in said and 'Silva' not in said + err and 'ZeroDivisionError' in err and err.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


def test_the_page_of_the_server_asks_for_nothing_from_outside(server):
    status, page = server.ask('GET', '/')
    assert status == 200 and NO_DEVICE in page and 'Hand in a picture' in page
    assert 'googleapis' not in page and 'gstatic' not in page and 'cdn' not in page.lower()
    link = http.client.HTTPConnection('127.0.0.1', server.port, timeout=60)
    link.request('GET', '/')
    rules = link.getresponse().getheader('content-security-policy')
    assert "connect-src 'self'" in rules and "default-src 'none'" in rules
    status, theme = server.ask('GET', '/theme.css')
    assert status == 200 and not re.search(r'url\(["\']?(https?:)?//|@import', theme)


def test_the_server_is_on_this_machine_only(server):
    mine = [o for o in psutil.Process(server.process.pid).net_connections('tcp') if o.status == psutil.CONN_LISTEN]
    assert {(o.laddr.ip, o.laddr.port) for o in mine} == {('127.0.0.1', server.port)}


def test_doors_of_the_framework_are_closed(server):
    for path in ('/config', '/gradio_api/info', '/gradio_api/openapi.json', '/docs', '/monitoring', '/monitoring/summary', '/gradio_api/file=/etc/passwd', '/gradio_api/file/etc/passwd', '/gradio_api/proxy=http://127.0.0.1/',
            '/gradio_api/runs', '/gradio_api/mcp/', '/gradio_api/queue/data?session_hash=a', '/gradio_api/heartbeat/a', '/login', '/gradio_api/vibe-code', '/assets/../index.html', '/static/../../../etc/passwd', '//etc/passwd', '/%2e%2e/%2e%2e/etc/passwd'):
        assert server.ask('GET', path)[0] == 404, path
    for path in ('/gradio_api/queue/join', '/gradio_api/call/predict', '/gradio_api/api/predict', '/gradio_api/run/answer', '/gradio_api/reset', '/gradio_api/component_server', '/gradio_api/process_recording'):
        assert server.ask('POST', path, b'{}', content_type='application/json')[0] == 404, path
    for path in ('/etc/passwd', str(server.home/'log.txt'), 'https://example.org/x.png'): assert server.answer(path)[0] == 400
    assert server.ask('GET', '/', Host='evil.example')[0] == 403
    assert server.ask('POST', '/gradio_api/upload', b'x', Origin='http://evil.example')[0] == 403


def test_an_upload_is_answered_with_the_bits_of_the_bundle(server, bundles):
    page = server.hand_in(bundles['xray'].name, bundles['xray'].read_bytes())
    for p in load_bundle(bundles['chest']).predict(bundles['xray']).probabilities.values(): assert f'{p:.3f}' in page
    assert page.count('data:image/png;base64,') == 2 and NO_DEVICE in page


def test_odd_files_are_answered_in_words_and_memory_stays(server, bundles):
    good = bundles['xray'].name, bundles['xray'].read_bytes()
    server.hand_in(*good)
    base, top, stop = server.rss(), [0], threading.Event()

    def watch():
        while not stop.wait(.01): top[0] = max(top[0], server.rss())
    watcher = threading.Thread(target=watch)
    watcher.start()
    large = [(f'{mode}.{form}', made(form, Image.new(mode, (2915, 2915))), 'answer') for mode, form in (('RGB', 'PNG'), ('CMYK', 'JPEG'), ('P', 'PNG'), ('I;16', 'PNG'))]
    try:
        for name, data, wanted in odd_files(bundles['matrix']) + large:
            said = server.hand_in(name.replace('"', ''), data)
            assert 'Traceback' not in said and '<img src=x' not in said and '/temp/' not in said
            assert ('Answer for' in said) if wanted == 'answer' else ('No answer' in said and wanted in text_of(said).replace('&#x27;', "'")), (name[:40], text_of(said)[:200])
            assert 'Answer for' in server.hand_in(*good)
    finally:
        stop.set()
        watcher.join()
    assert top[0] - base < 300, f'{top[0] - base:.0f} MB more'


def test_several_at_once_are_all_answered(server, bundles):
    data, said = bundles['xray'].read_bytes(), []
    threads = [threading.Thread(target=lambda i=i: said.append(server.hand_in(f'at-once-{i}.jpeg', data + bytes(i)))) for i in range(8)]
    for o in threads: o.start()
    for o in threads: o.join()
    assert len(said) == 8 and all('Answer for' in o for o in said)


def test_nothing_of_an_upload_is_left(server, bundles):
    secret = 'Ana_Silva_19690203'
    server.hand_in(f'{secret}.jpeg', bundles['xray'].read_bytes())
    server.hand_in(f'{secret}.txt', b'nothing')
    assert not [o for o in server.left() if secret in o]
    server.upload(f'{secret}.png', b'never asked for')
    link = socket.create_connection(('127.0.0.1', server.port))
    link.sendall(f'POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 9000\r\n\r\n--b\r\nContent-Disposition: form-data; name="files"; filename="{secret}.tif"\r\n\r\nhalf'.encode())
    link.close()
    assert [o for o in server.left() if secret in o]
    until = time.monotonic() + 15
    while len(server.left()) > 1 and time.monotonic() < until: time.sleep(.25)
    assert len(server.left()) == 1 and server.left()[0].startswith('medfast-app-')
    assert secret not in server.log() and 'Traceback' not in server.log()


# -- posts that no page would send -----------------------------------------------------------------------------------

PATHS = ['/etc/passwd', '/proc/self/environ', '../../etc/passwd', 'https://example.org/x.png', 'file:///etc/passwd', '', '\0', 'x'*4000, '/gradio_api/file=/etc/passwd', '{0}', '{0}/..', '{0}/../../../etc/passwd', '~/x', '\\\\host\\x', 7, None, ['/etc/passwd'], {'path': '/etc/passwd'}]
JUNK = [b'', b'{', b'null', b'[]', b'"x"', b'7', b'\xff\xfe', b'{"data": []}', b'{"data": {}}', b'{"data": [[]], "session_hash": 3}', b'['*8000, b'{"a":'*2000, b'9'*8000, b'{"data": [' + b'{"path": "/etc/passwd"},'*300 + b'1]}']


def form(rng, folder):
    "A multipart body with something wrong."
    name = rng.choice(['../../../tmp/planted_by_fuzz', 'planted_by_fuzz\0.png', 'a'*5000, '%2e%2e%2fplanted_by_fuzz', '/etc/planted_by_fuzz', '"; name="x', 'con', '.', '..', '', '\u202eplanted_by_fuzz', '$(touch planted_by_fuzz)'])
    field = rng.choice(['files', 'file', 'x'*3000, ''])
    part = f'Content-Disposition: form-data; name="{field}"; filename="{name}"\r\n'.encode() + b'\r\n' + rng.randbytes(rng.choice([0, 1, 300, 9000]))
    head = rng.choice([b'--b1\r\n', b'--b2\r\n', b'', b'--b1--\r\n', b'--b1\r\n' + b'X: ' + b'y'*9000 + b'\r\n'])
    return head + rng.choice([part, part*3, b'\r\n\r\n', b'Content-Disposition: form-data\r\n\r\nx', b'Content-Disposition: form-data; name="files"\r\n\r\nno file']) + rng.choice([b'\r\n--b1--\r\n', b'\r\n--b1', b''])


def shot(server, rng, folder):
    "One request of a stranger; the status and what came back."
    kind = rng.randrange(6)
    if kind == 0:
        body = json.dumps(dict(data=[dict(path=str(o).format(folder) if isinstance(o := rng.choice(PATHS), str) else o, url=rng.choice(['/etc/passwd', None, 'http://127.0.0.1:1/']), orig_name='planted_by_fuzz', meta=dict(_type='gradio.FileData'))],
            fn_index=rng.choice([0, 1, -1, 10**9, None, 'x']), session_hash=rng.choice(['s1', '../x', 'x'*200, None, 7]), event_id=rng.choice([None, 'planted_by_fuzz'])))
        return server.ask('POST', '/gradio_api/run/predict', body.encode(), content_type=rng.choice(['application/json', 'text/plain', 'x'*300]))
    if kind == 1: return server.ask('POST', '/gradio_api/run/predict', rng.choice(JUNK), content_type='application/json')
    if kind == 2: return server.ask('POST', '/gradio_api/upload', form(rng, folder), content_type=rng.choice(['multipart/form-data; boundary=b1', 'multipart/form-data', 'multipart/form-data; boundary=', 'application/json', 'multipart/form-data; boundary="b1"; charset=utf-7']))
    if kind == 3: return server.ask(rng.choice(['GET', 'POST', 'PUT', 'DELETE', 'OPTIONS']), '/' + ''.join(rng.choice(['..', '%2e%2e', '/', 'gradio_api', 'file=', '/etc/passwd', 'assets', 'a', '%00', '?x=1']) for _ in range(6)).replace('//', '/'))
    if kind == 4:
        status, text = server.upload('planted_by_fuzz.png', rng.randbytes(rng.choice([0, 10, 5000])))
        return server.answer(json.loads(text)[0]) if status == 200 else (status, text)
    with socket.create_connection(('127.0.0.1', server.port), timeout=20) as raw:
        raw.sendall(rng.choice([b'GARBAGE\r\n\r\n', b'POST /gradio_api/run/predict HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: -5\r\n\r\n', b'POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n',
            b'GET / HTTP/1.1\r\n\r\n', b'POST /gradio_api/run/predict HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: 99999999999999999999\r\n\r\nx', b'GET /' + b'a'*80_000 + b' HTTP/1.1\r\nHost: x\r\n\r\n']).replace(b'%d', str(server.port).encode()))
        raw.shutdown(socket.SHUT_WR)
        try: return 0, raw.recv(100_000).decode('utf-8', 'replace')
        except (TimeoutError, ConnectionError): return 0, ''


@pytest.mark.parametrize('n', [60, pytest.param(500, marks=pytest.mark.full)])
def test_posts_of_strangers_show_no_traceback_and_no_file(server, bundles, n):
    rng, seen = random.Random(n), set()
    server.hand_in('x.jpeg', bundles['xray'].read_bytes())
    folder, base = str(server.home/'temp'/server.left()[0].split('/')[0]), server.rss()
    for i in range(n):
        status, text = shot(server, rng, folder)
        seen.add(status)
        for bad in ('Traceback', 'File "', 'root:', 'HOME=', 'site-packages'): assert bad not in text, (i, status, text[:300])
    assert {200, 400, 404} <= seen
    assert 'Answer for' in server.hand_in('x.jpeg', bundles['xray'].read_bytes())
    assert 'planted_by_fuzz' not in server.log() and 'Traceback' not in server.log(), server.log()[:2000]
    assert server.rss() - base < 300
    for place in (Path('/tmp'), Path('/etc'), ROOT, server.home): assert not list(place.glob('*planted_by_fuzz*'))


def test_the_server_never_looked_for_another_machine(server):
    heard = (server.home/'addresses.txt').read_text().splitlines()
    assert [o for o in heard if '127.0.0.1' not in o and 'localhost' not in o] == []


def ends(server, how):
    "The server ends by itself, and takes what it was given along."
    assert server.upload('left.png', b'x')[0] == 200 and any('left.png' in o for o in server.left())
    server.process.send_signal(how)
    assert server.process.wait(30) == 0
    assert server.left() == [] and 'left.png' not in server.log() and 'Traceback' not in server.log()


@pytest.mark.full
@pytest.mark.parametrize('end', ['SIGTERM', 'SIGHUP'])
def test_a_polite_kill_takes_everything_along(bundles, tmp_path, end):
    pytest.importorskip('gradio')
    with Server(tmp_path, bundles['chest'], age=0) as it: ends(it, getattr(signal, end))


@pytest.mark.full
def test_an_upload_that_nobody_asks_for_is_gone_within_a_minute(bundles, tmp_path):
    pytest.importorskip('gradio')
    with Server(tmp_path, bundles['chest'], age=0) as it:
        it.upload('Ana_Silva.png', b'x')
        start = time.monotonic()
        while any('Silva' in o for o in it.left()) and time.monotonic() - start < 90: time.sleep(.5)
        took = time.monotonic() - start
        print(f'gone after {took:.0f} s')
        assert 20 < took < 60 and len(it.left()) == 1


def test_ctrl_c_takes_everything_along(server):
    "The last test: it ends the server."
    ends(server, signal.SIGINT)
    assert server.process.stdout.read() == 'Ended. Nothing that was handed in is left.\n'
