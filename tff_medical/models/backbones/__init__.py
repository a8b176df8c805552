"""Frozen networks that turn images into features, chosen by name.

>>> from tff_medical.models import backbones
>>> scattering = backbones.load('scattering', image_shape=(28, 28, 1))
>>> scattering.num_features, scattering.model.count_params()
(3969, 0)
"""

from tff_medical.models.backbones.backbone import Backbone
from tff_medical.models.backbones.backbone import Origin
from tff_medical.models.backbones.loading import BACKBONES
from tff_medical.models.backbones.loading import load

__all__ = [
  'BACKBONES',
  'Backbone',
  'Origin',
  'load',
]
