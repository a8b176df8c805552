"""Clips the gradients of many units at once, each over all layers.

>>> gradients = (tf.constant([[3.0], [0.0]]), tf.constant([[4.0], [0.5]]))
>>> norms = global_norms(gradients)
>>> factors = clip_factors(norms, tf.constant(1.25))
>>> norms.numpy().tolist(), factors.numpy().tolist()
([5.0, 0.5], [0.25, 1.0])
"""

from __future__ import annotations

import tensorflow as tf

Gradients = tuple[tf.Tensor, ...]


def global_norms(gradients: Gradients) -> tf.Tensor:
  """Returns each unit's L2 norm, [B], over all its gradients [B, ...]."""
  squares = [
    tf.reduce_sum(tf.square(g), axis=list(range(1, g.shape.rank)))
    for g in gradients
  ]
  return tf.sqrt(tf.add_n(squares))


def clip_factors(norms: tf.Tensor, clip_norm: tf.Tensor) -> tf.Tensor:
  """Returns the clipping factor of each unit, [B], from finite norms [B]."""
  return tf.math.divide_no_nan(clip_norm, tf.maximum(norms, clip_norm))


def weighted_sum(
  gradients: Gradients, finite: tf.Tensor, weights: tf.Tensor
) -> Gradients:
  """Returns the weighted sum of gradients [B, ...] over the finite units.

  Args:
    gradients: Gradients of B units, [B, ...] for each weight of the model.
    finite: Whether each unit counts, bool [B].
    weights: Weight of each unit, float [B].
  """
  weights = tf.where(finite, weights, 0.0)

  def finite_rows(rows: tf.Tensor) -> tf.Tensor:
    # The weight 0 is not enough: 0 times NaN is NaN.
    return tf.cond(
      tf.reduce_all(finite),
      lambda: rows,
      lambda: tf.where(finite[:, tf.newaxis], rows, tf.zeros_like(rows)),
    )

  def total(values: tf.Tensor) -> tf.Tensor:
    shape = values.shape[1:]
    rows = finite_rows(tf.reshape(values, (-1, shape.num_elements())))
    return tf.reshape(tf.linalg.matvec(rows, weights, transpose_a=True), shape)

  return tuple(total(values) for values in gradients)
