"""Classifying medical images with fastai: honest splits, honest intervals"""

__version__ = "0.1.0"

import warnings as _warnings

# fastai compiles an activation with torch.jit at import; nobody who reads a chapter can do anything about it
_warnings.filterwarnings('ignore', message='.torch.jit.script. is deprecated', category=FutureWarning)
