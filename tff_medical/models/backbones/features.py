"""From images to what a network takes, and from its maps to features.

A feature vector has unit norm, whatever the network and the image: each layer's
part has the same length. So one clip norm fits every backbone, and no statistic
of any image is needed.

>>> maps = [tf.ones((2, 3, 3, 4)), tf.random.normal((2, 5, 5, 8))]
>>> features = of_maps([tf.keras.Input(m.shape[1:]) for m in maps])
>>> features.shape
TensorShape([None, 12])
"""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import Any

import tensorflow as tf


class Resized(tf.keras.layers.Layer):
  """Bilinear resizing of images, without aliasing where they shrink."""

  def __init__(self, height: int, width: int, **kwargs: Any):
    super().__init__(**kwargs)
    self.height = height
    self.width = width

  def call(self, inputs: tf.Tensor) -> tf.Tensor:
    """Returns float32 images [N, height, width, C] of images [N, H, W, C]."""
    shrinks = inputs.shape[1] > self.height or inputs.shape[2] > self.width
    return tf.image.resize(inputs, (self.height, self.width), antialias=shrinks)

  def get_config(self) -> dict[str, Any]:
    """Returns the arguments of `__init__`, from which Keras clones a layer."""
    return {
      **super().get_config(),
      'height': self.height,
      'width': self.width,
    }


def images(
  image_shape: tuple[int, int, int], height: int, width: int
) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns the input [N, H, W, C], and it as [N, height, width, C], in 0..1."""
  inputs = tf.keras.Input(shape=image_shape, name='image')
  if (height, width) == tuple(image_shape[:2]):
    return inputs, inputs
  return inputs, Resized(height, width, name='resized')(inputs)


def rgb_images(
  image_shape: tuple[int, int, int], side: int
) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns the input [N, H, W, C], and it as RGB [N, side, side, 3]."""
  inputs, x = images(image_shape, side, side)
  if image_shape[2] == 1:
    x = tf.keras.layers.Concatenate(name='rgb')([x, x, x])
  return inputs, x


def of_maps(maps: Sequence[tf.Tensor]) -> tf.Tensor:
  """Returns features [N, D] of maps [N, h, w, c], each averaged over [h, w]."""
  return of_vectors([tf.keras.layers.GlobalAveragePooling2D()(m) for m in maps])


def of_vectors(vectors: Sequence[tf.Tensor]) -> tf.Tensor:
  """Returns features [N, D] of unit norm, with the same share of each vector.

  Args:
    vectors: Keras tensors [N, d].

  Returns:
    Each vector at unit norm, one after the other, over the root of their
    number. A vector of zeros stays one.
  """
  parts = [tf.keras.layers.UnitNormalization()(v) for v in vectors]
  if len(parts) == 1:
    return parts[0]
  joined = tf.keras.layers.Concatenate()(parts)
  return tf.keras.layers.Rescaling(1 / math.sqrt(len(parts)))(joined)
