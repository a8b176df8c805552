"""Per-example gradients (gradients of each unit) by rules for layers.

Why: `tf.vectorized_map` computes the filter gradients of a convolution unit by
unit, and spends thousands of small operations on shapes. Images do not
influence each other, so the gradient with respect to a layer's output is
computed for the whole batch at once. From this gradient and the layer's input
one batched product gives each unit's gradient of the weight (as in Rochette et
al. 2019, arXiv 1912.06015). The rules cover the operations of convolutions
(depthwise ones as well), dense layers, biases and normalisations.

>>> x = tf.random.normal([2, 5, 5, 3])
>>> patches(x, (3, 3), (2, 2), (3, 3)).shape
TensorShape([2, 9, 27])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Union

import numpy as np
import tensorflow as tf


class Factors(NamedTuple):
  """Gradients of B units as products of two factors, before the product.

  The gradient of a unit is the sum of the outer products of its rows.

  Attributes:
    inputs: Rows of a layer's inputs, [B, n, p].
    outputs: Gradients of the layer's outputs, [B, n, q].
    shape: Shape of the weight, which has p * q numbers.
  """

  inputs: tf.Tensor
  outputs: tf.Tensor
  shape: tuple[int, ...]

  def product(self) -> tf.Tensor:
    """Returns the gradients [B, *shape]."""
    product = tf.matmul(self.inputs, self.outputs, transpose_a=True)
    return tf.reshape(product, (-1, *self.shape))


class Swapped(NamedTuple):
  """Gradients of B units, whose two axes are swapped.

  A product of matrices is faster with the longer axis as the last one.

  Attributes:
    values: Gradients [B, q, p].
    shape: Shape of the weight, which has p * q numbers.
  """

  values: tf.Tensor
  shape: tuple[int, ...]

  def product(self) -> tf.Tensor:
    """Returns the gradients [B, *shape]."""
    return tf.reshape(tf.transpose(self.values, (0, 2, 1)), (-1, *self.shape))

  def restored(self, total: tf.Tensor) -> tf.Tensor:
    """Returns a sum of the gradients, given as q * p numbers, as [*shape]."""
    total = tf.reshape(total, self.values.shape[1:])
    return tf.reshape(tf.transpose(total), self.shape)


Part = Union[tf.Tensor, Factors, Swapped]


def tensors_of(part: Part) -> tuple[tf.Tensor, ...]:
  """Returns the tensors of a part, without its shape."""
  return (part,) if tf.is_tensor(part) else part[:-1]


def with_tensors(part: Part, tensors: Sequence[tf.Tensor]) -> Part:
  """Returns a part like another one, of other tensors."""
  if isinstance(part, Factors):
    return Factors(tensors[0], tensors[1], part.shape)
  if isinstance(part, Swapped):
    return Swapped(tensors[0], part.shape)
  return tensors[0]


def norm_needs_product(rows: Any, inputs: int, outputs: int) -> Any:
  """Returns whether the norm of a product is faster from the product itself.

  The alternative takes the products of all pairs of rows, in 64 bits (Li et al.
  2022, arXiv 2110.05679). A number of 64 bits counts as four here, for its size
  and the conversion.

  Args:
    rows: Number of rows of a unit, an integer or a scalar tensor.
    inputs: Number p of columns of one factor.
    outputs: Number q of columns of the other factor.
  """
  return 4 * rows * (inputs + outputs) > inputs * outputs


_Rule = Callable[[tf.Operation, tf.Tensor, tf.Tensor], Part]

# Largest number of channels for which a convolution copies patches faster than
# a gather.
_FEW_CHANNELS = 4


def find_rule(op: tf.Operation, weight: tf.Tensor) -> _Rule | None:
  """Returns the rule for an operation that takes `weight`, or None.

  A rule takes the operation, the gradient of its output [N, ...], and [B, n]:
  the N images are B units of n images each. It returns the gradients of the B
  units: [B, ...] with the shape of `weight`, `Factors` or `Swapped`.
  """
  for rule, applies in _RULES.get(op.type, ()):
    if applies(op, weight):
      return rule
  return None


def patches(
  images: tf.Tensor,
  kernel: Sequence[int],
  strides: Sequence[int],
  outputs: Sequence[int],
) -> tf.Tensor:
  """Returns the input patch of each output of a convolution.

  Args:
    images: Float images [N, H, W, C]; only N may be unknown.
    kernel: Height and width of the kernel.
    strides: Strides along [H, W].
    outputs: Height and width of the output. If the output needs more pixels
      than the image has, zeros are added around it as for the padding 'SAME'.

  Returns:
    Patches [N, outputs, kernel height * kernel width * C], in row-major order
    of the outputs.
  """
  channels = images.shape[3]
  features = kernel[0] * kernel[1] * channels
  copied = images
  if (*kernel, *strides) != (1, 1, 1, 1):
    copy = _by_convolution if channels <= _FEW_CHANNELS else _by_gather
    padded = _padded(images, kernel, strides, outputs)
    copied = copy(padded, kernel, strides, outputs)
  return tf.reshape(copied, (-1, outputs[0] * outputs[1], features))


def _padded(
  images: tf.Tensor,
  kernel: Sequence[int],
  strides: Sequence[int],
  outputs: Sequence[int],
) -> tf.Tensor:
  """Returns images with the zeros around them that the outputs need."""
  zeros = [
    max((outputs[i] - 1) * strides[i] + kernel[i] - images.shape[1 + i], 0)
    for i in range(2)
  ]
  around = [(0, 0), *((n // 2, n - n // 2) for n in zeros), (0, 0)]
  return tf.pad(images, around)


def _by_convolution(
  padded: tf.Tensor,
  kernel: Sequence[int],
  strides: Sequence[int],
  outputs: Sequence[int],
) -> tf.Tensor:
  # Each filter of the identity kernel copies one pixel of the patch.
  channels = padded.shape[3]
  features = kernel[0] * kernel[1] * channels
  identity = np.eye(features, dtype=padded.dtype.as_numpy_dtype)
  identity = identity.reshape((kernel[0], kernel[1], channels, features))
  copied = tf.nn.conv2d(padded, identity, list(strides), 'VALID')
  return copied[:, : outputs[0], : outputs[1]]


def _by_gather(
  padded: tf.Tensor,
  kernel: Sequence[int],
  strides: Sequence[int],
  outputs: Sequence[int],
) -> tf.Tensor:
  height, width, channels = padded.shape[1:]
  rows, columns = (
    np.arange(outputs[i])[:, np.newaxis] * strides[i] + np.arange(kernel[i])
    for i in range(2)
  )
  pixels = rows[:, np.newaxis, :, np.newaxis] * width
  pixels = pixels + columns[np.newaxis, :, np.newaxis, :]
  return tf.gather(
    tf.reshape(padded, (-1, height * width, channels)),
    pixels.reshape(outputs[0] * outputs[1], -1).astype(np.int32),
    axis=1,
  )


def _by_unit(values: tf.Tensor, units: tf.Tensor) -> tf.Tensor:
  """Returns the rows of each unit, [B, n * ..., C], of values [N, ..., C]."""
  features = values.shape[-1]
  rows = values.shape[1:-1].num_elements()
  return tf.reshape(values, (units[0], units[1] * rows, features))


def _has_plain_filter(op: tf.Operation, weight: tf.Tensor) -> bool:
  images, kernel = op.inputs
  return (
    kernel is weight
    and op.get_attr('data_format') == b'NHWC'
    and op.get_attr('padding') in (b'SAME', b'VALID')
    and list(op.get_attr('dilations')) == [1, 1, 1, 1]
    and images.shape[1:].is_fully_defined()
  )


def _is_convolution(op: tf.Operation, weight: tf.Tensor) -> bool:
  images, kernel = op.inputs
  # Otherwise each group of channels has filters of its own.
  return _has_plain_filter(op, weight) and images.shape[3] == kernel.shape[2]


def _convolution(
  op: tf.Operation, gradient: tf.Tensor, units: tf.Tensor
) -> Part:
  images, kernel = op.inputs
  seen = patches(
    images,
    kernel.shape[:2],
    op.get_attr('strides')[1:3],
    op.outputs[0].shape[1:3],
  )
  gradient = tf.ensure_shape(gradient, op.outputs[0].shape)
  factors = Factors(
    _by_unit(seen, units), _by_unit(gradient, units), tuple(kernel.shape)
  )
  p, q = seen.shape[-1], gradient.shape[-1]
  if not norm_needs_product(seen.shape[1], p, q):
    return factors
  if p <= q:
    return factors.product()
  swapped = tf.matmul(factors.outputs, factors.inputs, transpose_a=True)
  return Swapped(swapped, factors.shape)


def _depthwise(
  op: tf.Operation, gradient: tf.Tensor, units: tf.Tensor
) -> tf.Tensor:
  images, kernel = op.inputs
  height, width, channels, multiplier = kernel.shape
  strides = op.get_attr('strides')[1:3]
  outputs = op.outputs[0].shape[1:3]
  padded = _padded(images, (height, width), strides, outputs)
  gradient = tf.reshape(gradient, (-1, *outputs, channels, multiplier))

  # Each tap of the kernel sees the image at an offset of its own.
  def tap(row: int, column: int) -> tf.Tensor:
    seen = padded[
      :,
      row : row + (outputs[0] - 1) * strides[0] + 1 : strides[0],
      column : column + (outputs[1] - 1) * strides[1] + 1 : strides[1],
    ]
    by_image = tf.reduce_sum(seen[..., tf.newaxis] * gradient, axis=(1, 2))
    return tf.reduce_sum(
      tf.reshape(by_image, (*units, channels, multiplier)), axis=1
    )

  taps = [tap(i, j) for i in range(height) for j in range(width)]
  return tf.reshape(tf.stack(taps, axis=1), (units[0], *kernel.shape))


def _is_product(op: tf.Operation, weight: tf.Tensor) -> bool:
  return (
    op.inputs[1] is weight
    and op.inputs[0] is not weight
    and not op.get_attr('transpose_a')
    and not op.get_attr('transpose_b')
  )


def _product(
  op: tf.Operation, gradient: tf.Tensor, units: tf.Tensor
) -> Factors:
  gradient = tf.ensure_shape(gradient, op.outputs[0].shape)
  return Factors(
    _by_unit(op.inputs[0], units),
    _by_unit(gradient, units),
    tuple(op.inputs[1].shape),
  )


def _is_by_channel(op: tf.Operation, weight: tf.Tensor) -> bool:
  """Returns whether the weight has one number per channel for every image."""
  shape = op.outputs[0].shape
  return (
    weight.shape.rank == 1
    and shape.rank > 1
    and shape[0] is None
    and shape[1:].is_fully_defined()
    and shape[-1] == weight.shape[0]
    and op.inputs[0] is not op.inputs[1]
  )


def _sum(op: tf.Operation, gradient: tf.Tensor, units: tf.Tensor) -> tf.Tensor:
  gradient = tf.ensure_shape(gradient, op.outputs[0].shape)
  return tf.reduce_sum(_by_unit(gradient, units), axis=1)


def _is_scale(index: int) -> Callable[[tf.Operation, tf.Tensor], bool]:
  return lambda op, weight: (
    op.inputs[index] is weight and _is_by_channel(op, weight)
  )


def _scale(index: int) -> _Rule:
  def rule(
    op: tf.Operation, gradient: tf.Tensor, units: tf.Tensor
  ) -> tf.Tensor:
    return _sum(op, gradient * op.inputs[1 - index], units)

  return rule


_RULES = {
  'Conv2D': ((_convolution, _is_convolution),),
  'DepthwiseConv2dNative': ((_depthwise, _has_plain_filter),),
  'MatMul': ((_product, _is_product),),
  'BiasAdd': ((_sum, _is_by_channel),),
  'Add': ((_sum, _is_by_channel),),
  'AddV2': ((_sum, _is_by_channel),),
  'Mul': tuple((_scale(i), _is_scale(i)) for i in range(2)),
}
