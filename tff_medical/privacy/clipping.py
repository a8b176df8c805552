"""Clipping one contribution to an L2 norm, for any float32 input.

>>> update = (tf.constant([3.0, 0.0]), tf.constant(4.0))
>>> clipped, norm = clip(update, 1.0)
>>> clipped[1].numpy().round(4), norm.numpy()
(0.8, 5.0)
>>> clip(tf.constant([float('nan'), 1.0]), 1.0)[0].numpy().tolist()
[0.0, 0.0]
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def clip(values: Any, clip_norm: float | tf.Tensor) -> tuple[Any, tf.Tensor]:
  """Returns values clipped to an L2 norm, and their norm before clipping.

  Unlike `tf.clip_by_global_norm` this function bounds any float32 input: values
  whose norm is not finite become zeros, not NaN.

  Args:
    values: Structure of float32 tensors, clipped together.
    clip_norm: Scalar that `limits.check_clip_norm` accepts.
  """
  values = tf.nest.map_structure(tf.convert_to_tensor, values)
  norm = tf.linalg.global_norm(tf.nest.flatten(values))
  finite = tf.math.is_finite(norm)
  factor = clip_norm / tf.maximum(norm, clip_norm)

  def clipped(x: tf.Tensor) -> tf.Tensor:
    return tf.where(finite, x * factor, tf.zeros_like(x))

  return tf.nest.map_structure(clipped, values), norm
