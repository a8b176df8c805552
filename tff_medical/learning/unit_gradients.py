"""The gradient of each unit of a batch, which DP-SGD clips.

A unit is one image or all images of a patient; its gradient is that of the mean
loss over its images (Abadi et al. 2016, arXiv 1607.00133, for records). All
units of a batch are computed at once by `tf.vectorized_map`, which works for any
model whose images do not influence each other, and so needs no batch norm.
"""

from __future__ import annotations

import collections
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical.learning import augmentation as augmentation_lib
from tff_medical.learning import unit_convolution

Batch = collections.OrderedDict[str, tf.Tensor]


def batch_spec(
  model: tff.learning.models.FunctionalModel,
) -> collections.OrderedDict[str, tf.TensorSpec]:
  """Returns what a batch of units is made of.

  `x` [B, K, ...] and `y` [B, K, ...] are as the model takes them, for B units of
  K images, and `mask`, float32 [B, K], is 1 for images and 0 for padding. A unit
  that is all padding counts as no unit.
  """
  x, y = (
    tf.TensorSpec((None, None, *spec.shape[1:]), spec.dtype)
    for spec in (model.input_spec['x'], model.input_spec['y'])
  )
  mask = tf.TensorSpec((None, None), tf.float32)
  return collections.OrderedDict(x=x, y=y, mask=mask)


def unit_gradients(
  model: tff.learning.models.FunctionalModel,
  weights: tff.learning.models.ModelWeights,
  batch: Batch,
  augmentation: augmentation_lib.Augmentation | None = None,
) -> tuple[tf.Tensor, ...]:
  """Returns the gradient of each unit's mean loss; call it in a graph.

  Args:
    model: A functional model with one output.
    weights: Where the gradient is taken.
    batch: B units, as `batch_spec` says.
    augmentation: If given, the loss of an image is the mean over views of it.

  Returns:
    [B, ...] for each trainable weight; exactly 0 for units that are padding.
  """
  trainable = tuple(weights.trainable)
  every_weight = (trainable, tuple(weights.non_trainable))
  batch = _without_padding(batch)
  x = _views(batch['x'], augmentation)

  def gradient(unit: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> Any:
    x, y, mask = unit
    views = x.shape[1]
    with unit_convolution.vectorizable_convolutions():
      flat = tf.reshape(x, (-1, *x.shape[2:].as_list()))
      output = model.predict_on_batch(every_weight, flat, True)
    output = tf.reshape(output, (-1, views, *output.shape[1:].as_list()))
    losses = tf.vectorized_map(
      lambda image: model.loss(
        image[0], tf.repeat(image[1][tf.newaxis], views, axis=0)
      ),
      (output, y),
    )
    loss = tf.math.divide_no_nan(
      tf.reduce_sum(mask * losses), tf.reduce_sum(mask)
    )
    return tuple(tf.gradients(loss, trainable, unconnected_gradients='zero'))

  return tf.vectorized_map(gradient, (x, batch['y'], batch['mask']))


def _without_padding(batch: Batch) -> Batch:
  """Returns the batch with zeros in place of what the mask leaves out.

  The weight 0 alone would not do: 0 times NaN is NaN.
  """
  real = batch['mask'] > 0

  def clean(values: tf.Tensor) -> tf.Tensor:
    keep = tf.reshape(
      real, tf.concat([tf.shape(real), [1] * (values.shape.rank - 2)], 0)
    )
    return tf.where(keep, values, tf.zeros_like(values))

  return collections.OrderedDict(
    x=clean(batch['x']), y=clean(batch['y']), mask=batch['mask']
  )


def _views(
  x: tf.Tensor, augmentation: augmentation_lib.Augmentation | None
) -> tf.Tensor:
  """Returns [B, K, views, ...] of x [B, K, ...]."""
  if augmentation is None:
    return x[:, :, tf.newaxis]
  image = x.shape[2:].as_list()
  views = augmentation.views_of(tf.reshape(x, (-1, *image)))
  shape = tf.shape(x)
  return tf.reshape(views, (shape[0], shape[1], augmentation.views, *image))


def global_norms(gradients: tuple[tf.Tensor, ...]) -> tf.Tensor:
  """Returns the L2 norm of each unit, [B], over all of [B, ...]."""
  squares = [
    tf.reduce_sum(tf.square(g), axis=list(range(1, g.shape.rank)))
    for g in gradients
  ]
  return tf.sqrt(tf.add_n(squares))
