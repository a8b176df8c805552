"""Settings of the network and of where its weights begin: flags of Model."""

from __future__ import annotations

import dataclasses
from typing import Optional

from experiments.config import fields


@dataclasses.dataclass(frozen=True)
class ModelSettings:
  """Settings of the network: a backbone with a new head, or a whole model."""

  backbone: Optional[str] = fields.setting(
    None,
    'frozen network whose features are computed once an image: scattering '
    '(wavelets), efficientnet-lite0, keras:NAME of keras.applications, '
    'savedmodel:FOLDER, or several joined by a plus',
  )
  backbone_weights: Optional[str] = fields.setting(
    None,
    "file of the backbone's weights [those of the backbone's authors]",
    only_if={'backbone': fields.GIVEN},
    may_change=True,  # The path may change, but not the digest of the weights.
    is_path=True,
  )
  backbone_layers: Optional[str] = fields.setting(
    None,
    'layers of the backbone whose features are taken, with commas [depends on '
    'the backbone]',
    only_if={'backbone': fields.GIVEN},
  )
  backbone_image_size: Optional[int] = fields.setting(
    None,
    'height and width in pixels to which images are resized for the backbone '
    '[96 to 224, by the size of the images]',
    only_if={'backbone': fields.GIVEN},
    low=8,
    high=1024,
  )
  trainable: str = fields.setting(
    'head',
    'part of the backbone that is trained: a dense head on its features, its '
    'last block, its norms, or all of it, with the head',
    only_if={'backbone': fields.GIVEN},
    choices=('head', 'last_block', 'norms', 'all'),
  )
  features_dir: Optional[str] = fields.setting(
    None,
    'folder that keeps the features of the images [~/.cache/tff_medical/'
    'features]',
    only_if={'backbone': fields.GIVEN, 'trainable': ('head', 'last_block')},
    may_change=True,
    is_path=True,
  )
  model: str = fields.setting(
    'cnn_small',
    'network: cnn_small, cnn or resnet; or module:function, your '
    'own function of (input_shape, num_outputs, seed) that returns a Keras '
    'model and is imported from the working directory',
    only_if={'backbone': (None,)},
  )
  initial_model: Optional[str] = fields.setting(
    None,
    'saved_model folder of an earlier run, public or paid for, whose weights '
    'training starts from',
    may_change=True,  # The path may change, but not the model's digest.
    is_path=True,
  )
