"""Layers of a network that was trained before: constant kernels, affine norms.

`layer.trainable = False` does not reach TFF, which sorts weights by how they
were made. The kernels here are made as constants. So a model may hold them
beside trained layers, and a client's update has no part for them.

>>> layer = FrozenConv2D(4, 3, use_bias=False)
>>> layer(tf.zeros((1, 8, 8, 2))).shape
TensorShape([1, 6, 6, 4])
>>> len(layer.trainable_weights), len(layer.non_trainable_weights)
(0, 1)
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf


class Frozen(tf.keras.layers.Layer):
  """Base of layers whose weights are constants, even where others train."""

  def add_weight(self, *args: Any, **kwargs: Any) -> tf.Variable:
    """Adds a weight as Keras does, but never a trainable one."""
    return super().add_weight(*args, **{**kwargs, 'trainable': False})


class FrozenConv2D(Frozen, tf.keras.layers.Conv2D):
  """Convolution with a constant kernel and bias."""


class FrozenDepthwiseConv2D(Frozen, tf.keras.layers.DepthwiseConv2D):
  """Depthwise convolution with a constant kernel and bias."""


class Affine(tf.keras.layers.Layer):
  """Scale and offset of each channel: batch norm with constant statistics."""

  def build(self, input_shape: tf.TensorShape) -> None:
    """Adds `scale` and `offset` [C] for inputs [N, ..., C]."""
    shape = (input_shape[-1],)
    self.scale = self.add_weight('scale', shape, initializer='ones')
    self.offset = self.add_weight('offset', shape, initializer='zeros')
    super().build(input_shape)

  def call(self, inputs: tf.Tensor) -> tf.Tensor:
    """Returns `inputs * scale + offset`, in the shape of `inputs`."""
    return inputs * self.scale + self.offset
