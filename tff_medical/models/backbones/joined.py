"""Several backbones beside each other, as `scattering+efficientnet-lite0`.

Wavelets describe texture at full resolution, a network of ImageNet describes
shapes. On small medical images a linear head on both does better at ε 1 than on
either (docs/backbones.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
import hashlib

import tensorflow as tf

from tff_medical import _validate
from tff_medical.models.backbones import backbone
from tff_medical.models.backbones import features

SEPARATOR = '+'


# The layers have no Python control flow on tensors, for which to rewrite their
# sources would take a quarter of the time.
@tf.autograph.experimental.do_not_convert
def load(
  request: backbone.Request, find: Callable[[str], backbone.Loader]
) -> backbone.Backbone:
  """Returns the joined backbone: features of unit norm, the same share of each.

  Args:
    request: Request whose name holds two or more names.
    find: Function that returns the loader of a single backbone.

  Raises:
    InputError: A part cannot be loaded, is named twice, or an option is given
      that each part decides for itself.
  """
  for option in ('layers', 'weights', 'image_size'):
    value = getattr(request, option)
    if value is not None:
      raise _validate.InputError(
        f'{option} must not be given for backbone {request.name!r}, each part '
        f'of which has its own, got {value!r}; leave it out'
      )
  names = request.name.split(SEPARATOR)
  if len(set(names)) < len(names):
    raise _validate.InputError(
      f'backbone must join different ones, got {request.name!r}; name each once'
    )
  parts = [
    find(name)(backbone.request(name, request.image_shape, None, None, None))
    for name in names
  ]
  inputs = tf.keras.Input(shape=request.image_shape, name='image')
  # Not nested: Keras cannot clone a model of models.
  outputs = features.of_vectors([part.model.call(inputs) for part in parts])
  return backbone.Backbone(
    name=SEPARATOR.join(part.name for part in parts),
    origin=_origin([part.origin for part in parts]),
    layer_names=(),
    layers=tuple(layer for part in parts for layer in part.layers),
    image_size=max(part.image_size for part in parts),
    model=_model(request.name, inputs, outputs),
  )


def _model(name: str, inputs: tf.Tensor, outputs: tf.Tensor) -> tf.keras.Model:
  try:
    return tf.keras.Model(inputs, outputs, name='joined')
  except ValueError as error:  # Two networks of one family share layer names.
    raise _validate.InputError(
      f'backbone {name!r} cannot be joined ({error}); choose networks of '
      'different families'
    ) from error


def _origin(origins: list[backbone.Origin]) -> backbone.Origin:
  """Returns the origin of all parts; parts without weights add nothing."""
  learned = [origin for origin in origins if origin.trained_on != 'nothing']
  if len(learned) == 1:
    return learned[0]
  digests = ' '.join(origin.sha256 for origin in origins)
  cards = [origin.card for origin in learned if origin.card is not None]
  return backbone.Origin(
    source=_each(origin.source for origin in learned),
    sha256=hashlib.sha256(digests.encode()).hexdigest(),
    license=_each(origin.license for origin in learned),
    trained_on=_each(origin.trained_on for origin in learned) or 'nothing',
    datasets=tuple(name for origin in learned for name in origin.datasets),
    card={'parts': cards} if cards else None,
  )


def _each(values: Iterable[str]) -> str:
  return ', '.join(dict.fromkeys(values))
