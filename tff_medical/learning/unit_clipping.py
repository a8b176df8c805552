"""Clips the gradients of many units at once, each over all layers.

The gradient of a dense layer or of a convolution is a sum of outer products:
one for each row of the layer's inputs and the gradients of its outputs. Its
norm has three forms:

- One row: the product of the norms of both (Goodfellow 2015, arXiv 1510.01799).
- Few rows, as those of a patient's images or of a small feature map: the sum of
  the products of all pairs of rows (Li et al. 2022, arXiv 2110.05679).
- Many rows: that of the gradient itself, written down.

The first two need no unit's gradient in memory: the weighted sum over units is
one matrix product. But rows may cancel. Then the rounding error of the pairs'
products, or of the weighted sum, may be above the norm of what remains, and the
unit would be clipped too little. So the pairs' products are in 64 bits, and the
norm is raised by a bound of the sum's rounding error in 32 bits. The bound is
relative to the norms of the rows before they cancel.

>>> gradients = (tf.constant([[3.0], [0.0]]), tf.constant([[4.0], [0.5]]))
>>> norms = global_norms(gradients)
>>> factors = clip_factors(norms, tf.constant(1.25))
>>> norms.numpy().tolist(), factors.numpy().tolist()
([5.0, 0.5], [0.25, 1.0])
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tff_medical.learning import layer_gradients

Gradients = tuple[tf.Tensor, ...]

# Gradients of at most this many numbers are joined: a small operation costs
# more than the copy.
_SMALL = 1024
# Distance of 1 and the next number of 32 and of 64 bits.
_SPACING_32 = 2.0**-23
_SPACING_64 = 2.0**-52


def global_norms(gradients: Gradients) -> tf.Tensor:
  """Returns each unit's L2 norm, [B], over all its gradients [B, ...].

  Args:
    gradients: Tensors, or `unit_gradients.Gradients` with their parts.
  """
  products, others = _divided(gradients)
  matrices = [_matrix(part) for part in others]
  # Squares that are not kept, unlike those of `tf.square`.
  norms = [tf.math.reduce_euclidean_norm(m, axis=1) for m in _joined(matrices)]
  norms += [_norms_of_product(factors) for factors in products]
  if len(norms) == 1:
    return norms[0]
  return tf.math.reduce_euclidean_norm(tf.stack(norms, axis=1), axis=1)


def _parts(gradients: Gradients) -> tuple[layer_gradients.Part, ...]:
  return getattr(gradients, 'parts', tuple(gradients))


def _divided(
  gradients: Gradients,
) -> tuple[list[layer_gradients.Factors], list[layer_gradients.Part]]:
  """Returns the parts that are factors, and the others."""
  parts = _parts(gradients)
  factors = [p for p in parts if isinstance(p, layer_gradients.Factors)]
  others = [p for p in parts if not isinstance(p, layer_gradients.Factors)]
  return factors, others


def _matrix(part: layer_gradients.Part) -> tf.Tensor:
  """Returns gradients [B, numbers], in any order of the numbers."""
  if isinstance(part, layer_gradients.Swapped):
    part = part.values
  return tf.reshape(part, (-1, part.shape[1:].num_elements()))


def _joined(matrices: Sequence[tf.Tensor]) -> list[tf.Tensor]:
  """Returns the matrices, with the small ones side by side in the first one."""
  small = [m for m in matrices if m.shape[1] <= _SMALL]
  large = [m for m in matrices if m.shape[1] > _SMALL]
  return [tf.concat(small, axis=1), *large] if small else large


def _norms_of_product(factors: layer_gradients.Factors) -> tf.Tensor:
  rows = tf.shape(factors.inputs)[1]
  needs_product = layer_gradients.norm_needs_product(
    rows, factors.inputs.shape[2], factors.outputs.shape[2]
  )
  return tf.cond(
    tf.equal(rows, 1),
    lambda: _norms_of_one_row(factors),
    lambda: tf.cond(
      needs_product,
      # The product of a branch is its own: one that comes from outside would be
      # computed for every branch.
      lambda: (
        tf.math.reduce_euclidean_norm(_matrix(factors.product()), axis=1)
        + _rounding(factors)
      ),
      lambda: _norms_by_pairs(factors) + _rounding(factors),
    ),
  )


def _norms_of_one_row(factors: layer_gradients.Factors) -> tf.Tensor:
  # The square of a number below 1e-19 is 0 in float32. The outputs may be as
  # large as such inputs are small, and the gradient far above the clip norm. So
  # the inputs get the scale of the gradient before they are squared.
  largest = tf.reduce_max(tf.abs(factors.outputs), axis=(1, 2), keepdims=True)
  outputs = tf.math.divide_no_nan(factors.outputs, largest)
  return tf.math.reduce_euclidean_norm(
    factors.inputs * largest, axis=(1, 2)
  ) * tf.math.reduce_euclidean_norm(outputs, axis=(1, 2))


def _norms_by_pairs(factors: layer_gradients.Factors) -> tf.Tensor:
  inputs, outputs = (
    tf.matmul(rows, rows, transpose_b=True)
    for rows in (
      tf.cast(factors.inputs, tf.float64),
      tf.cast(factors.outputs, tf.float64),
    )
  )
  # Rounding may leave less than nothing of rows that cancel.
  squares = tf.maximum(tf.reduce_sum(inputs * outputs, axis=(1, 2)), 0.0)
  return tf.cast(tf.sqrt(squares), tf.float32)


def _rounding(factors: layer_gradients.Factors) -> tf.Tensor:
  """Returns a bound of the rounding errors in norm and weighted sum, [B].

  The bound is relative to the sum of the norms of the unit's outer products,
  which is the norm of the gradient if nothing cancels. A sum of n products is
  off by less than n spacings of that (Higham 2002, Accuracy and Stability of
  Numerical Algorithms, section 3.1). For the pairs, in 64 bits, this holds for
  the squared norm.
  """
  inputs, outputs = (
    tf.math.reduce_euclidean_norm(tf.cast(rows, tf.float64), axis=2)
    for rows in (factors.inputs, factors.outputs)
  )
  before = tf.reduce_sum(inputs * outputs, axis=1)
  rows = tf.cast(tf.shape(factors.inputs)[1], tf.float64)
  columns = factors.inputs.shape[2] + factors.outputs.shape[2]
  of_pairs = tf.sqrt((rows**2 + columns + 4) * _SPACING_64)
  return tf.cast(((rows + 4) * _SPACING_32 + of_pairs) * before, tf.float32)


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
  products, others = _divided(gradients)
  matrices = _joined([_matrix(part) for part in others])
  rows = [values for p in products for values in (p.inputs, p.outputs)]
  # The weight 0 is not enough: 0 times NaN is NaN.
  values = tf.cond(
    tf.reduce_all(finite),
    lambda: [tf.identity(v) for v in (*matrices, *rows)],
    lambda: [_without(v, finite) for v in (*matrices, *rows)],
  )
  matrices, rows = values[: len(matrices)], values[len(matrices) :]
  totals = [tf.linalg.matvec(m, weights, transpose_a=True) for m in matrices]
  sums = iter(_split(totals, others))
  sums_of_products = iter(
    _sum_of_products(inputs, outputs, weights, product.shape)
    for inputs, outputs, product in zip(rows[::2], rows[1::2], products)
  )
  return tuple(
    next(
      sums_of_products if isinstance(part, layer_gradients.Factors) else sums
    )
    for part in _parts(gradients)
  )


def _without(values: tf.Tensor, kept: tf.Tensor) -> tf.Tensor:
  """Returns values [B, ...] with zeros for the units that are not kept."""
  kept = tf.reshape(kept, (-1, *[1] * (values.shape.rank - 1)))
  return tf.where(kept, values, tf.zeros_like(values))


def _split(
  totals: Sequence[tf.Tensor], parts: Sequence[layer_gradients.Part]
) -> list[tf.Tensor]:
  """Returns the sum of each part, [*shape], from those of `_joined`."""
  sizes = [_matrix(part).shape[1] for part in parts]
  small = [size for size in sizes if size <= _SMALL]
  large = iter(totals[1:] if small else totals)
  pieces = iter(tf.split(totals[0], small) if small else ())
  sums = []
  for part, size in zip(parts, sizes):
    total = next(pieces if size <= _SMALL else large)
    sums.append(
      part.restored(total)
      if isinstance(part, layer_gradients.Swapped)
      else tf.reshape(total, part.shape[1:])
    )
  return sums


def _sum_of_products(
  inputs: tf.Tensor,
  outputs: tf.Tensor,
  weights: tf.Tensor,
  shape: tuple[int, ...],
) -> tf.Tensor:
  """Returns the weighted sum over the units of inputs [B, n, p] and outputs."""
  weighted = outputs * weights[:, tf.newaxis, tf.newaxis]
  inputs, weighted = (
    tf.reshape(v, (-1, v.shape[2])) for v in (inputs, weighted)
  )
  return tf.reshape(tf.matmul(inputs, weighted, transpose_a=True), shape)
