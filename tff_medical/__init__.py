"""Differentially private federated learning for medical images, on TFF.

The public names are the submodules below, `InputError` and `__version__`.
`InputError` says in one line what is wrong with an argument. Importing this
package is cheap: a submodule, and with it TensorFlow Federated, is imported on
first use.

>>> import tff_medical
>>> tff_medical.models.MODELS
('cnn', 'cnn_small', 'resnet')
"""

from __future__ import annotations

import os
import typing

from tff_medical import _lazy
from tff_medical._validate import InputError

# TensorFlow's C++ code logs hundreds of lines; its errors come as exceptions, too.
# TensorFlow reads this when it is imported: import this package first, or set it.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

# The only place that states the version; the wheel reads it from here.
__version__ = '0.1.0'

__all__ = [
  'InputError',
  '__version__',
  'auditing',
  'data',
  'learning',
  'models',
  'privacy',
  'program',
  'reporting',
  'runtime',
  'scoring',
  'serving',
]

if typing.TYPE_CHECKING:
  from tff_medical import auditing as auditing
  from tff_medical import data as data
  from tff_medical import learning as learning
  from tff_medical import models as models
  from tff_medical import privacy as privacy
  from tff_medical import program as program
  from tff_medical import reporting as reporting
  from tff_medical import runtime as runtime
  from tff_medical import scoring as scoring
  from tff_medical import serving as serving
else:  # A __getattr__ that type checkers see would allow any name.
  __getattr__, __dir__ = _lazy.attach(__name__, __all__)
