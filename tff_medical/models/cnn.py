"""Two plain convolutional networks, for images of about 28 pixels.

Three 3x3 convolutions with strides 2, 2, 1, each followed by group norm and
ReLU, then the mean over [H, W] and one dense layer. Strides take the place of
pooling, as the gradient of max pooling is slow inside a TFF functional model.
The norm of the noise of differential privacy grows with the square root of the
number of parameters, so `small` has few.

>>> small((28, 28, 1), 2, seed=0).count_params()
14194
>>> wide((28, 28, 1), 2, seed=0).count_params()
93154
"""

from __future__ import annotations

import tensorflow as tf

from tff_medical.models import layers

_STRIDES = (2, 2, 1)


def small(
  input_shape: tuple[int, int, int], num_outputs: int, seed: int | None
) -> tf.keras.Model:
  """Returns the network with 16, 32 and 32 filters."""
  return _build(input_shape, num_outputs, seed, (16, 32, 32), groups=4)


def wide(
  input_shape: tuple[int, int, int], num_outputs: int, seed: int | None
) -> tf.keras.Model:
  """Returns the network with 32, 64 and 128 filters."""
  return _build(input_shape, num_outputs, seed, (32, 64, 128), groups=8)


def _build(
  input_shape: tuple[int, int, int],
  num_outputs: int,
  seed: int | None,
  filters: tuple[int, ...],
  groups: int,
) -> tf.keras.Model:
  seeds = layers.layer_seeds(seed)
  inputs, x = layers.pixels(input_shape)
  for width, strides in zip(filters, _STRIDES):
    x = layers.conv_norm(x, width, groups=groups, seeds=seeds, strides=strides)
    x = tf.keras.layers.ReLU()(x)
  return tf.keras.Model(inputs, layers.logits(x, num_outputs, seeds))
