"""The backbone `scattering`: fixed wavelet features, fitted to no image."""

from __future__ import annotations

import tensorflow as tf

from tff_medical import _validate
from tff_medical.models import scattering
from tff_medical.models.backbones import backbone
from tff_medical.models.backbones import features

NAME = 'scattering'
_MIN_SIZE = 8
_ORIGIN = backbone.Origin(
  source='none', sha256='', license='none', trained_on='nothing'
)


def load(request: backbone.Request) -> backbone.Backbone:
  """Returns the backbone: scattering and group norm, flattened, at unit norm.

  Raises:
    InputError: The images are too small, or weights are given.
  """
  request.without_weights()
  layers = request.chosen((NAME,), (NAME,))
  height, width, _ = request.image_shape
  if request.image_size is not None:
    height = width = request.side(_MIN_SIZE)
  if min(height, width) < _MIN_SIZE:
    raise _validate.InputError(
      f'backbone {NAME!r} needs images of at least {_MIN_SIZE} x {_MIN_SIZE} '
      f'pixels, got {height} x {width}; choose a larger image_size'
    )
  inputs, x = features.images(request.image_shape, height, width)
  x = tf.keras.layers.Rescaling(2.0, offset=-1.0)(x)
  x = tf.keras.layers.Flatten()(scattering.normalised(x))
  return backbone.Backbone(
    name=request.name,
    origin=_ORIGIN,
    layer_names=(NAME,),
    layers=layers,
    image_size=(height, width),
    model=tf.keras.Model(inputs, features.of_vectors([x]), name=NAME),
  )
