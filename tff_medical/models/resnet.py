"""A small residual network, for images of 64 to 224 pixels.

He et al. 2015 (arXiv 1512.03385) with group norm and one basic block per stage.
A 7x7 convolution with stride 2 and average pooling come first, then blocks of
24, 48 and 96 filters. The maps shrink by a factor of 16 before the mean over
[H, W]: to 4x4 from 64 pixels and to 14x14 from 224. The number of parameters
does not depend on the size of the image.

>>> build((64, 64, 1), 2, seed=0).count_params()
172322
"""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow as tf

from tff_medical.models import layers

_STEM = 16
_STAGES = ((24, 1), (48, 2), (96, 2))
_GROUPS = 8


def build(
  input_shape: tuple[int, int, int], num_outputs: int, seed: int | None
) -> tf.keras.Model:
  """Returns the network: stem, three basic blocks and the head."""
  seeds = layers.layer_seeds(seed)
  inputs, x = layers.pixels(input_shape)
  x = layers.conv_norm(
    x, _STEM, groups=_GROUPS, seeds=seeds, kernel=7, strides=2
  )
  x = tf.keras.layers.ReLU()(x)
  x = tf.keras.layers.AveragePooling2D(2)(x)
  for filters, strides in _STAGES:
    x = _block(x, filters, strides, seeds)
  return tf.keras.Model(inputs, layers.logits(x, num_outputs, seeds))


def _block(
  x: tf.Tensor, filters: int, strides: int, seeds: Iterator[int | None]
) -> tf.Tensor:
  """Returns a basic block: two 3x3 convolutions plus a 1x1 projection."""
  y = layers.conv_norm(x, filters, groups=_GROUPS, seeds=seeds, strides=strides)
  y = tf.keras.layers.ReLU()(y)
  y = layers.conv_norm(y, filters, groups=_GROUPS, seeds=seeds)
  x = layers.conv_norm(
    x, filters, groups=_GROUPS, seeds=seeds, kernel=1, strides=strides
  )
  return tf.keras.layers.ReLU()(tf.keras.layers.Add()([x, y]))
