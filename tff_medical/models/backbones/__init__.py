"""Networks that were trained before, as features or to be trained further.

>>> from tff_medical.models import backbones
>>> scattering = backbones.load('scattering', image_shape=(28, 28, 1))
>>> scattering.num_features, scattering.model.count_params()
(3969, 0)
"""

from tff_medical.models.backbones.backbone import Backbone
from tff_medical.models.backbones.backbone import Origin
from tff_medical.models.backbones.backbone import Split
from tff_medical.models.backbones.fine_tuning import HEAD
from tff_medical.models.backbones.fine_tuning import PARTS
from tff_medical.models.backbones.fine_tuning import check_part
from tff_medical.models.backbones.fine_tuning import trainable
from tff_medical.models.backbones.loading import BACKBONES
from tff_medical.models.backbones.loading import find
from tff_medical.models.backbones.loading import load

__all__ = [
  'BACKBONES',
  'HEAD',
  'PARTS',
  'Backbone',
  'Origin',
  'Split',
  'check_part',
  'find',
  'load',
  'trainable',
]
