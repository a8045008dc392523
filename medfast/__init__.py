"""Classifying medical images with fastai: honest splits, honest intervals"""

__version__ = "0.1.0"

import os as _os
import warnings as _warnings

# Threads of torch that wait for each other by spinning cost a factor of four and more as soon as another process wants a core
_os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

# fastai compiles an activation with torch.jit at import; nobody who reads a chapter can do anything about it
_warnings.filterwarnings('ignore', message='.torch.jit.script. is deprecated', category=FutureWarning)
