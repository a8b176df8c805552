"""Keras models that train under TFF, chosen by name.

>>> from tff_medical import models
>>> models.MODELS
('cnn', 'cnn_small', 'resnet')
>>> model = models.build('cnn_small', input_shape=(28, 28, 1), num_outputs=2)
>>> model.count_params()
14194
"""

from tff_medical.models.checks import check_federated
from tff_medical.models.checks import restore_eager
from tff_medical.models.factory import MODELS
from tff_medical.models.factory import UNKNOWN
from tff_medical.models.factory import build
from tff_medical.models.factory import find
from tff_medical.models.factory import loss
from tff_medical.models.initial import InitialModel
from tff_medical.models.own import ModelFunction
from tff_medical.models.transfer import Transfer

__all__ = [
  'MODELS',
  'UNKNOWN',
  'InitialModel',
  'ModelFunction',
  'Transfer',
  'build',
  'check_federated',
  'find',
  'loss',
  'restore_eager',
]
