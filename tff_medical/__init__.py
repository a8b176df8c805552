"""Differentially private federated learning for medical images, on TFF.

The public names are the submodules below, `InputError`, which says in one line
what is wrong with an argument, and `__version__`. Importing this package costs
nothing: a submodule is imported when it is first asked for, and TensorFlow
Federated with it.

>>> import tff_medical
>>> tff_medical.models.MODELS
('cnn', 'cnn_small', 'resnet', 'scattering')
"""

from __future__ import annotations

import typing

from tff_medical import _lazy
from tff_medical._validate import InputError

# The one place of the version: the wheel and its metadata take it from here.
__version__ = '0.1.0'

__all__ = [
  'InputError',
  '__version__',
  'audit',
  'data',
  'evaluation',
  'export',
  'feeds',
  'inversion',
  'learning',
  'membership',
  'models',
  'planning',
  'pretrained',
  'privacy',
  'program',
  'report',
  'runtime',
  'serving',
  'study',
  'tasks',
]

if typing.TYPE_CHECKING:
  from tff_medical import audit as audit
  from tff_medical import data as data
  from tff_medical import evaluation as evaluation
  from tff_medical import export as export
  from tff_medical import feeds as feeds
  from tff_medical import inversion as inversion
  from tff_medical import learning as learning
  from tff_medical import membership as membership
  from tff_medical import models as models
  from tff_medical import planning as planning
  from tff_medical import pretrained as pretrained
  from tff_medical import privacy as privacy
  from tff_medical import program as program
  from tff_medical import report as report
  from tff_medical import runtime as runtime
  from tff_medical import serving as serving
  from tff_medical import study as study
  from tff_medical import tasks as tasks
else:  # A __getattr__ that type checkers see would allow any name.
  __getattr__, __dir__ = _lazy.attach(__name__, __all__)
