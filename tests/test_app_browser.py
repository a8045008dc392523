"The page in a real browser: what a person sees. Needs Chromium, and the Python package playwright, which is no part of the project."
import os
import shutil
from pathlib import Path

import pytest
from conftest import real_data
from test_app import Server, bundles, odd_files, text_of  # noqa: F401

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
SHOTS = os.environ.get('MEDFAST_SHOTS')


@pytest.fixture(scope='module')
def browser():
    sync = pytest.importorskip('playwright.sync_api')
    pytest.importorskip('gradio')
    if not CHROMIUM: pytest.skip('no Chromium here')
    with sync.sync_playwright() as p:
        it = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'])
        yield it
        it.close()


@pytest.fixture(scope='module')
def servers(browser, bundles, tmp_path_factory):  # noqa: F811
    home = tmp_path_factory.mktemp('pages')
    with Server(home/'heat', bundles['heat']) as heat, Server(home/'chest', bundles['chest']) as chest: yield dict(heat=heat, chest=chest)


class Tab:
    "One page in the browser, and all that it ever asked for or complained of."
    def __init__(self, browser, server, **options):
        self.asked, self.complaints, self.server = [], [], server
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.on('request', lambda o: self.asked.append(o.url))
        self.page.on('dialog', lambda o: (self.complaints.append('dialog ' + o.message), o.dismiss()))
        self.page.on('pageerror', lambda o: self.complaints.append(str(o)))
        self.page.on('console', lambda o: self.complaints.append(o.text) if o.type == 'error' else None)
        self.page.goto(server.url)
        self.page.wait_for_selector('input[type=file]', state='attached', timeout=60_000)

    def __enter__(self): return self
    def __exit__(self, *_): self.context.close()

    def hand_in(self, name, data, folder):
        "What the page says to a file of this name and content."
        self.page.evaluate("document.querySelector('#answer .mf')?.setAttribute('data-old', '')")
        if '/' in name or '\0' in name or len(name.encode()) > 255:
            self.page.set_input_files('input[type=file]', files=[dict(name=name, mimeType='application/octet-stream', buffer=data)])
        else:
            file = folder/name
            file.write_bytes(data)
            self.page.set_input_files('input[type=file]', file)
        self.page.wait_for_selector('#answer .mf:not([data-old])', timeout=60_000)
        return self.page.inner_text('#answer')

    def shot(self, name):
        if SHOTS: self.page.screenshot(path=Path(SHOTS)/f'{name}.png', full_page=True)


def real_matrix(fallback):
    try: return sorted(p for p in real_data('dmr-ir').rglob('*.txt') if p.stat().st_size > 10**6)[0]
    except (pytest.skip.Exception, IndexError): return fallback


def real_xray(fallback):
    try: return sorted(p for p in real_data('coronahack').rglob('*.jp*g'))[0]
    except (pytest.skip.Exception, IndexError): return fallback


def test_a_thermogram_an_xray_and_a_png_are_answered(browser, servers, bundles, tmp_path):  # noqa: F811
    from PIL import Image

    from medfast.bundle import load_bundle
    matrix, xray = real_matrix(bundles['matrix']), real_xray(bundles['xray'])
    png = tmp_path/'copy.png'
    Image.open(xray).convert('L').save(png)
    for kind, file in (('heat', matrix), ('chest', xray), ('chest', png)):
        with Tab(browser, servers[kind]) as tab:
            said = tab.hand_in(file.name, file.read_bytes(), tmp_path)
            answer = load_bundle(bundles[kind]).predict(file)
            assert all(f'{p:.3f}' in said for p in answer.probabilities.values()) and (answer.decision or answer.label) in said
            assert 'not a medical device' in said and 'What the network was trained on' in said
            sizes = tab.page.evaluate("[...document.querySelectorAll('#answer img')].map(o => [o.naturalWidth, o.naturalHeight, o.alt])")
            assert len(sizes) == 2 and min(min(o[:2]) for o in sizes) > 100 and all(o[2] for o in sizes)
            assert kind == 'chest' or '°C' in sizes[0][2] and 'Operating point' in said
            assert {o for o in tab.asked if not o.startswith((tab.server.url, 'data:'))} == set() and tab.complaints == []
            tab.shot(f'good-{kind}-{file.suffix[1:]}')


def test_odd_files_get_readable_words_and_the_next_one_works(browser, servers, bundles, tmp_path):  # noqa: F811
    good = bundles['xray'].name, bundles['xray'].read_bytes()
    server = servers['chest']
    with Tab(browser, server) as tab:
        tab.hand_in(*good, tmp_path)
        base = server.rss()
        for i, (name, data, wanted) in enumerate(odd_files(bundles['matrix'])):
            said = tab.hand_in(name, data, tmp_path)
            tab.shot(f'odd-{i:02d}')
            assert 'Traceback' not in said and str(server.home) not in said
            assert ('Answer for' in said) if wanted == 'answer' else ('No answer' in said and wanted in said), (name[:40], said[:200])
            if i % 5 == 0: assert 'Answer for' in tab.hand_in(*good, tmp_path)
        assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert 'Answer for last.jpeg' in tab.hand_in('last.jpeg', good[1], tmp_path) and server.rss() - base < 300
        assert tab.complaints == [] and {o for o in tab.asked if not o.startswith((server.url, 'data:'))} == set()


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(browser, servers, tmp_path):
    with Tab(browser, servers['chest']) as tab:
        (tmp_path/'large.tif').write_bytes(bytes(2**25 + 1))
        tab.page.set_input_files('input[type=file]', tmp_path/'large.tif')
        tab.page.wait_for_selector('text=exceed the maximum allowed size', timeout=30_000)
        tab.shot('too-large')


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_narrow_and_dark_pages_are_readable_and_work_by_keyboard(browser, servers, bundles, tmp_path, scheme):  # noqa: F811
    with Tab(browser, servers['heat'], viewport=dict(width=390, height=844), color_scheme=scheme) as tab:
        said = tab.hand_in(bundles['matrix'].name, bundles['matrix'].read_bytes(), tmp_path)
        assert 'Decision at the operating point' in said
        assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        ink, ground = (tab.page.evaluate(f"getComputedStyle(document.querySelector('#answer .answer')).{o}").strip('rgba()').split(',') for o in ('color', 'backgroundColor'))
        assert abs(sum(map(int, ink[:3])) - sum(map(int, ground[:3]))) > 300 and (sum(map(int, ground[:3])) < 200) == (scheme == 'dark')
        reached = []
        for _ in range(6):
            tab.page.keyboard.press('Tab')
            reached.append(tab.page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText"))
        assert 'Click to upload or drop files' in reached and 'What was done to the image' in reached
        tab.page.focus('text=What was done to the image')
        tab.page.keyboard.press('Enter')
        assert 'by averaging' in tab.page.inner_text('#answer')
        tab.shot(f'narrow-{scheme}')
