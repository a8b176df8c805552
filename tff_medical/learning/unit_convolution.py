"""A gradient of convolutions that vectorizes over units.

`tf.vectorized_map` turns a loop over units into operations on all of them at
once, but for `Conv2DBackpropFilter`, which it runs unit by unit: each unit's
images need a filter gradient of their own, and no TensorFlow operation computes
many. Here a filter's gradient is the product of a matrix of image patches and a
matrix of output gradients, which vectorizes to one batched product. Measured
for DP-SGD with 28 x 28 images on a CPU, a step so takes 1.1 to 1.3 times as
long as the plain gradient of the batch, instead of 1.9 to 2.5 times.

>>> x = tf.random.normal([2, 5, 5, 3])
>>> patches(x, (3, 3), (2, 2), (3, 3)).shape
TensorShape([2, 9, 27])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib

import numpy as np
import tensorflow as tf

_NAME = 'TffMedicalUnitConv2D'
# Up to so many channels a convolution copies patches faster than a gather.
_FEW_CHANNELS = 4


@contextlib.contextmanager
def vectorizable_convolutions() -> Iterator[None]:
  """Makes `tf.gradients` of what is built inside use this gradient.

  Functions called inside become part of the graph that calls them, as the
  choice of a gradient does not reach into a `tf.function`. Only a graph can be
  built inside, and `tf.GradientTape` does not heed it.
  """
  graph = tf.compat.v1.get_default_graph()
  eagerly = tf.config.functions_run_eagerly()
  tf.config.run_functions_eagerly(True)
  try:
    with graph.gradient_override_map({'Conv2D': _NAME}):
      yield
  finally:
    tf.config.run_functions_eagerly(eagerly)


def patches(
  images: tf.Tensor,
  kernel: Sequence[int],
  strides: Sequence[int],
  outputs: Sequence[int],
) -> tf.Tensor:
  """Returns what each output of a convolution sees.

  Args:
    images: Float [N, H, W, C], of which N alone may be unknown.
    kernel: Its height and width.
    strides: Its steps along [H, W].
    outputs: Height and width of its output. Where it needs more pixels than
      there are, zeros are added around as for the padding 'SAME'.

  Returns:
    [N, outputs, kernel height * kernel width * C], outputs in rows.
  """
  channels = images.shape[3]
  zeros = [
    max((outputs[i] - 1) * strides[i] + kernel[i] - images.shape[1 + i], 0)
    for i in range(2)
  ]
  around = [(0, 0), *((n // 2, n - n // 2) for n in zeros), (0, 0)]
  features = kernel[0] * kernel[1] * channels
  find = _by_convolution if channels <= _FEW_CHANNELS else _by_gather
  found = find(tf.pad(images, around), kernel, strides, outputs)
  return tf.reshape(found, (-1, outputs[0] * outputs[1], features))


def _by_convolution(
  padded: tf.Tensor,
  kernel: Sequence[int],
  strides: Sequence[int],
  outputs: Sequence[int],
) -> tf.Tensor:
  channels = padded.shape[3]
  features = kernel[0] * kernel[1] * channels
  identity = np.eye(features, dtype=padded.dtype.as_numpy_dtype)
  identity = identity.reshape((kernel[0], kernel[1], channels, features))
  found = tf.nn.conv2d(padded, identity, list(strides), 'VALID')
  return found[:, : outputs[0], : outputs[1]]


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


def _is_plain(op: tf.Operation) -> bool:
  """Whether it is a convolution that `patches` knows, of known sizes."""
  images, kernel = op.inputs
  return (
    op.get_attr('data_format') == b'NHWC'
    and op.get_attr('padding') in (b'SAME', b'VALID')
    and list(op.get_attr('dilations')) == [1, 1, 1, 1]
    and images.shape[1:].is_fully_defined()
    and kernel.shape.is_fully_defined()
    and images.shape[3] == kernel.shape[2]
  )


@tf.RegisterGradient(_NAME)
def _gradient(
  op: tf.Operation, gradient: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  images, kernel = op.inputs
  options = {
    'strides': op.get_attr('strides'),
    'padding': op.get_attr('padding'),
    'explicit_paddings': op.get_attr('explicit_paddings'),
    'data_format': op.get_attr('data_format'),
    'dilations': op.get_attr('dilations'),
  }
  of_images = tf.raw_ops.Conv2DBackpropInput(
    input_sizes=tf.shape(images),
    filter=kernel,
    out_backprop=gradient,
    **options,
  )
  if not _is_plain(op):
    of_kernel = tf.raw_ops.Conv2DBackpropFilter(
      input=images,
      filter_sizes=tf.shape(kernel),
      out_backprop=gradient,
      **options,
    )
    return of_images, of_kernel
  height, width, _, filters = kernel.shape
  seen = patches(
    images,
    (height, width),
    options['strides'][1:3],
    op.outputs[0].shape[1:3],
  )
  product = tf.matmul(
    tf.reshape(seen, (-1, seen.shape[2])),
    tf.reshape(gradient, (-1, filters)),
    transpose_a=True,
  )
  return of_images, tf.reshape(product, kernel.shape)
