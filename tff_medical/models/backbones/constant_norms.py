"""A copy of a Keras network that per-record gradients can be taken of.

Batch norm becomes an `Affine` layer of its constant statistics, so that images
do not influence each other and nothing is kept beside the trained weights.
Dropout is left out: it would add its own noise to clipped gradients.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical.models import frozen_layers

_NORMS = (
  tf.keras.layers.BatchNormalization,
  tf.keras.layers.GroupNormalization,
  tf.keras.layers.LayerNormalization,
)
_FROZEN = {
  tf.keras.layers.Conv2D: frozen_layers.FrozenConv2D,
  tf.keras.layers.DepthwiseConv2D: frozen_layers.FrozenDepthwiseConv2D,
}


def copy(
  backbone: str, network: tf.keras.Model, *, norms_alone: bool
) -> tf.keras.Model:
  """Returns a network of the same output, whose weights can be trained.

  Args:
    backbone: Name of the backbone in errors.
    network: Functional Keras model.
    norms_alone: Whether norms alone are trained, and convolutions are frozen.

  Raises:
    InputError: Norms alone are to be trained, and a layer with weights is
      neither a norm nor a convolution, or the network has no norm.
  """
  if norms_alone:
    _check_norms(backbone, network)
  copied = tf.keras.models.clone_model(
    network, clone_function=lambda layer: _copied(layer, norms_alone)
  )
  for layer in network.layers:
    target = copied.get_layer(layer.name)
    if isinstance(layer, tf.keras.layers.BatchNormalization):
      target.set_weights(_affine(layer))
    elif target.weights:
      target.set_weights(layer.get_weights())
  return copied


def _check_norms(backbone: str, network: tf.keras.Model) -> None:
  others = [
    layer
    for layer in network.layers
    if layer.weights
    and not isinstance(layer, (*_NORMS, tf.keras.layers.Normalization))
    and type(layer) not in _FROZEN
  ]
  if others:
    raise _validate.InputError(
      f'norms alone cannot be trained in backbone {backbone!r}, whose layer '
      f'{others[0].name!r} is a {type(others[0]).__name__}; train another part'
    )
  if not any(isinstance(layer, _NORMS) for layer in network.layers):
    raise _validate.InputError(
      f'backbone {backbone!r} has no norms to train; train another part'
    )


def _copied(
  layer: tf.keras.layers.Layer, norms_alone: bool
) -> tf.keras.layers.Layer:
  config = {**layer.get_config(), 'trainable': True}
  if isinstance(layer, tf.keras.layers.BatchNormalization):
    return frozen_layers.Affine(name=layer.name)
  if isinstance(layer, tf.keras.layers.Normalization):
    return _rescaling(layer)
  if isinstance(layer, tf.keras.layers.Dropout):
    return tf.keras.layers.Activation('linear', name=layer.name)
  if norms_alone and type(layer) in _FROZEN:
    return _FROZEN[type(layer)].from_config(config)
  return type(layer).from_config(config)


def _rescaling(
  layer: tf.keras.layers.Normalization,
) -> tf.keras.layers.Rescaling:
  """Returns a layer of pixels' public statistics that has no weights."""
  deviation = np.maximum(np.sqrt(np.ravel(layer.variance)), 1e-7)
  return tf.keras.layers.Rescaling(
    (1 / deviation).tolist(),
    offset=(-np.ravel(layer.mean) / deviation).tolist(),
    name=layer.name,
  )


def _affine(norm: tf.keras.layers.BatchNormalization) -> list[np.ndarray]:
  """Returns scale and offset [C] of a batch norm."""
  mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
  scale = 1 / np.sqrt(variance + np.float32(norm.epsilon))
  if norm.scale:
    scale = scale * norm.gamma.numpy()
  offset = -mean * scale
  return [scale, offset + norm.beta.numpy() if norm.center else offset]
