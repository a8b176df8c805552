"""Clips the gradients of many units at once, each over all layers.

The gradient of a dense layer for one image is the outer product of the layer's
input and the gradient of its output. Its norm is the product of their norms
(Goodfellow 2015, arXiv 1510.01799), and the weighted sum over images is one
matrix product, so that no image's gradient is ever written down. Of several
rows, as those of a patient's images or of a convolution's positions, the norm
would be a sum that cancels: its rounding error may be far above the norm, which
would clip too little (Li et al. 2022, arXiv 2110.05679, compute it so). Their
gradients are written down, and clipped by the norm of what is then summed.

>>> gradients = (tf.constant([[3.0], [0.0]]), tf.constant([[4.0], [0.5]]))
>>> norms = global_norms(gradients)
>>> factors = clip_factors(norms, tf.constant(1.25))
>>> norms.numpy().tolist(), factors.numpy().tolist()
([5.0, 0.5], [0.25, 1.0])
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tff_medical.learning import layer_gradients

Gradients = tuple[tf.Tensor, ...]


def global_norms(gradients: Gradients) -> tf.Tensor:
  """Returns each unit's L2 norm, [B], over all its gradients [B, ...].

  Args:
    gradients: Tensors, or `unit_gradients.Gradients` with their factors.
  """
  squares = [
    _squares(g) if factors is None else _squares_of_product(factors)
    for g, factors in zip(gradients, _factors(gradients))
  ]
  return tf.sqrt(tf.add_n(squares))


def _factors(
  gradients: Gradients,
) -> tuple[layer_gradients.Factors | None, ...]:
  return getattr(gradients, 'factors', (None,) * len(gradients))


def _squares(values: tf.Tensor) -> tf.Tensor:
  return tf.reduce_sum(
    tf.square(values), axis=list(range(1, values.shape.rank))
  )


def _squares_of_product(factors: layer_gradients.Factors) -> tf.Tensor:
  # The product of a branch is its own: one that comes from outside would be
  # computed for both.
  return _by_rows(
    factors,
    lambda: _squares_of_one_row(factors),
    lambda: _squares(factors.product()),
  )


def _squares_of_one_row(factors: layer_gradients.Factors) -> tf.Tensor:
  # The square of a number below 1e-19 is 0 in float32. The outputs may be as
  # large as such inputs are small, and the gradient far above the clip norm. So
  # the inputs get the scale of the gradient before they are squared.
  largest = tf.reduce_max(tf.abs(factors.outputs), axis=(1, 2), keepdims=True)
  outputs = tf.math.divide_no_nan(factors.outputs, largest)
  return _squares(factors.inputs * largest) * _squares(outputs)


def _by_rows(
  factors: layer_gradients.Factors,
  if_one_row: Callable[[], tf.Tensor],
  otherwise: Callable[[], tf.Tensor],
) -> tf.Tensor:
  """Returns the value of one function, by the number of rows of a unit."""
  rows = factors.inputs.shape[1]
  if rows is None:
    has_one_row = tf.equal(tf.shape(factors.inputs)[1], 1)
    return tf.cond(has_one_row, if_one_row, otherwise)
  return if_one_row() if rows == 1 else otherwise()


def clip_factors(norms: tf.Tensor, clip_norm: tf.Tensor) -> tf.Tensor:
  """Returns the clipping factor of each unit, [B], from finite norms [B]."""
  return tf.math.divide_no_nan(clip_norm, tf.maximum(norms, clip_norm))


def weighted_sum(
  gradients: Gradients, finite: tf.Tensor, weights: tf.Tensor
) -> Gradients:
  """Returns the weighted sum of gradients [B, ...] over the finite units.

  Args:
    gradients: Gradients of B units, [B, ...] for each weight of the model, as
      in `global_norms`.
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

  def total_product(factors: layer_gradients.Factors) -> tf.Tensor:
    p, q = factors.inputs.shape[-1], factors.outputs.shape[-1]

    def one_row() -> tf.Tensor:
      inputs = finite_rows(tf.reshape(factors.inputs, (-1, p)))
      outputs = finite_rows(tf.reshape(factors.outputs, (-1, q)))
      weighted = outputs * weights[:, tf.newaxis]
      return tf.matmul(inputs, weighted, transpose_a=True)

    return _by_rows(factors, one_row, lambda: total(factors.product()))

  return tuple(
    total(values) if factors is None else total_product(factors)
    for values, factors in zip(gradients, _factors(gradients))
  )
