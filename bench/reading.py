"""Reading a temperature matrix: the study's own code, numpy, pandas and medfast side by side. `python bench/reading.py`

Times mean little on another machine, ratios within one run a little more. Every round reads once in every way, so that a
disturbance meets all of them; printed are the median and the quartiles of the rounds. With MEDFAST_DATA the real files are read too.
"""
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from medfast.thermogram import read_thermogram, _read_strict

SHAPE = 480, 640


def study(fn):
    "The study's code (2019), word for word but for its loop; it knows blanks only."
    fichero = open(fn)
    datos = fichero.read()
    datos = datos.split()
    imagen = np.array(datos)
    imagen.shape = (480, 640)
    imagen = imagen.astype(float)
    fichero.close()
    return imagen


def study_any(fn):
    "The same for files with another separator."
    imagen = np.array(Path(fn).read_text().replace(';', ' ').split())
    imagen.shape = (480, 640)
    return imagen.astype(float)


def ways(sep):
    "The readers that are compared, for files with `sep` between values."
    return {'the study': study if sep == ' ' else study_any,
            'np.loadtxt': lambda fn: np.loadtxt(fn, delimiter=None if sep == ' ' else sep),
            'pandas': lambda fn: pd.read_csv(fn, sep=sep, header=None, dtype='float32').to_numpy(),
            'medfast, strict way': lambda fn: _read_strict(Path(fn).read_bytes(), fn, SHAPE),
            'medfast': read_thermogram}


def measure(readers, files, rounds):
    "Seconds a reader and round, after a look whether all of them read the same."
    for fn in files:
        wanted = readers['medfast'](fn)
        for name, f in readers.items(): assert np.array_equal(f(fn).astype('float32'), wanted), f'{name} reads other numbers'
    times = {name: [] for name in readers}
    for k in range(rounds):
        for name, f in readers.items():
            start = time.perf_counter()
            f(files[k % len(files)])
            times[name].append(time.perf_counter() - start)
    return times


def show(title, times):
    "A table of medians, quartiles, and how many times faster than the study."
    print(f'\n{title}\n{"":22}{"ms":>8}{"quartiles":>18}{"times the study":>18}{"quartiles":>16}')
    base = times['the study']
    for name, t in times.items():
        low, mid, high = statistics.quantiles([1000*o for o in t], n=4)
        worst, ratio, best = statistics.quantiles([b/o for b, o in zip(base, t)], n=4)
        print(f'{name:22}{mid:8.2f}{f"{low:.2f}-{high:.2f}":>18}{ratio:18.1f}{f"{worst:.1f}-{best:.1f}":>16}')


def main(rounds=25):
    temps = np.random.default_rng(0).integers(2000, 3900, SHAPE)/100
    with tempfile.TemporaryDirectory() as folder:
        for sep, decimals, end in ((' ', 2, '\r\r\n'), (';', 5, '\r\n')):
            fn = Path(folder)/f'{decimals}.txt'
            fn.write_bytes(''.join(sep.join(f'{t:.{decimals}f}' for t in row) + end for row in temps).encode())
            readers = ways(sep)
            # two carriage returns are two row ends for pandas, which then sees rows without values and leaves them out
            show(f'made-up matrix, {decimals} decimals, {"blanks" if sep == " " else "semicolons"}', measure(readers, [fn], rounds))
    data = os.environ.get('MEDFAST_DATA')
    real = sorted(Path(data).glob('dmr-ir/txt/*.txt')) if data else []
    blank = [o for o in real if b';' not in o.open('rb').read(100)]
    for name, files, sep in (('blanks', blank, ' '), ('semicolons', [o for o in real if o not in blank], ';')):
        if files: show(f'{len(files)} real files, {name}', measure(ways(sep), files, max(rounds, len(files))))
    print(f'\nnumpy {np.__version__}, pandas {pd.__version__}, Python {sys.version.split()[0]}, {os.cpu_count()} cores seen')


if __name__ == '__main__': main()
