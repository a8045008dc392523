"What benches share: a clock, and the spread of several rounds."
import time

import numpy as np
import torch


def timed(f, device='cpu'):
    "Wall seconds, processor seconds and the result of `f()`."
    wall,cpu = time.perf_counter(), time.process_time()
    result = f()
    if device != 'cpu': torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def spread(values): return f'{np.median(values):8.2f}  ({min(values):.2f} to {max(values):.2f})'
