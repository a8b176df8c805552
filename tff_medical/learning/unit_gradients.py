"""Per-example gradients: the gradient of each unit of a batch, for DP-SGD.

A unit is one image or all images of a patient. Its gradient is the gradient of
the mean loss over its images (Abadi et al. 2016, arXiv 1607.00133, for
records). The gradients of all units of a batch are computed at once. The model
must not let images influence each other, as batch norm does. The rules of
`layer_gradients` compute the gradients, or `tf.vectorized_map` for a model with
other layers.

Time relative to the plain gradient of the batch, with clipping, measured by
`experiments.gradient_benchmark` on one CPU core: 1.1 to 1.3 by the rules, 1.9
to 3.5 by `tf.vectorized_map`.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
import contextlib

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical.learning import augmentation as augmentation_lib
from tff_medical.learning import labels as labels_lib
from tff_medical.learning import layer_gradients
from tff_medical.learning import unit_inputs

_Weights = tuple[tuple[tf.Tensor, ...], tuple[tf.Tensor, ...]]
Batch = collections.OrderedDict[str, tf.Tensor]


def batch_spec(
  model: tff.learning.models.FunctionalModel,
) -> collections.OrderedDict[str, tf.TensorSpec]:
  """Returns the specs of a batch of units.

  `x` [B, K, ...] and `y` [B, K, ...] are the model's inputs and labels for B
  units of K images. `mask`, float32 [B, K], is 1 for images and 0 for padding.
  Any value above 0 counts as 1, so that no image weighs more than another. All
  other values, including NaN, count as 0. A unit of padding alone is no unit.

  Raises:
    InputError: The model is not functional, or takes or returns more than one
      tensor.
  """
  x, y = (
    tf.TensorSpec((None, None, *spec.shape[1:]), spec.dtype)
    for spec in unit_inputs.of_model(model)
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
    model: Functional model with one output.
    weights: Weights at which the gradient is taken.
    batch: Batch of B units in the layout of `batch_spec`.
    augmentation: Views over which the loss of an image is averaged, if given.

  Returns:
    Gradients [B, ...] for each trainable weight. They are exactly 0 for units
    of padding, and not finite for units with an invalid label (see `labels`).
  """
  # New tensors, so that their consumers are the uses of the weights here.
  trainable = tuple(tf.identity(w) for w in weights.trainable)
  batch = _without_padding(batch)
  x = _views(batch['x'], augmentation)
  every_weight = (trainable, tuple(weights.non_trainable))
  arguments = (model, every_weight, x, batch['y'], batch['mask'])
  by_rules = _by_rules(*arguments)
  return _vectorized(*arguments) if by_rules is None else by_rules


def _by_rules(
  model: tff.learning.models.FunctionalModel,
  weights: _Weights,
  x: tf.Tensor,
  y: tf.Tensor,
  mask: tf.Tensor,
) -> tuple[tf.Tensor, ...] | None:
  """Returns the gradients, or None if the use of a weight has no rule."""
  shape = tf.shape(x)
  with _inlined_functions():
    loss = tf.reduce_sum(_losses(model, weights, x, y, mask))
  uses = [(i, op) for i, w in enumerate(weights[0]) for op in w.consumers()]
  of_outputs = tf.gradients(loss, [op.outputs[0] for _, op in uses])
  # A weight that is used several times has one part per use.
  parts_by_weight: list[list[tf.Tensor]] = [[] for _ in weights[0]]
  for (i, op), gradient in zip(uses, of_outputs):
    if gradient is None:
      continue
    rule = layer_gradients.find_rule(op, weights[0][i])
    if rule is None:
      return None
    units = (shape[0], shape[1] * shape[2])
    parts_by_weight[i].append(rule(op, gradient, units))
  return tuple(
    tf.add_n(parts) if parts else tf.zeros((shape[0], *w.shape), w.dtype)
    for parts, w in zip(parts_by_weight, weights[0])
  )


def _vectorized(
  model: tff.learning.models.FunctionalModel,
  weights: _Weights,
  x: tf.Tensor,
  y: tf.Tensor,
  mask: tf.Tensor,
) -> tuple[tf.Tensor, ...]:
  """Returns the gradients for any model, in about twice the time."""

  def gradient(unit: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
    one_unit = (values[tf.newaxis] for values in unit)
    loss = _losses(model, weights, *one_unit)
    return tuple(tf.gradients(loss, weights[0], unconnected_gradients='zero'))

  return tf.vectorized_map(gradient, (x, y, mask))


@contextlib.contextmanager
def _inlined_functions() -> Iterator[None]:
  """Inlines each `tf.function` that is called inside into the calling graph.

  The rules need to see the operations that use a weight.
  """
  eagerly = tf.config.functions_run_eagerly()
  tf.config.run_functions_eagerly(True)
  try:
    yield
  finally:
    tf.config.run_functions_eagerly(eagerly)


def _losses(
  model: tff.learning.models.FunctionalModel,
  weights: _Weights,
  x: tf.Tensor,
  y: tf.Tensor,
  mask: tf.Tensor,
) -> tf.Tensor:
  """Returns each unit's mean loss over images, [B], of x [B, K, views, ...]."""
  shape = tf.shape(x)
  flat = tf.reshape(x, (-1, *x.shape[3:].as_list()))
  flat_output = model.predict_on_batch(weights, flat, True)
  unit_inputs.check_output(flat_output)
  output = tf.reshape(
    flat_output, (-1, x.shape[2], *flat_output.shape[1:].as_list())
  )
  labels = tf.reshape(y, (-1, *y.shape[2:].as_list()))
  labels, kept = labels_lib.cleaned(labels, flat_output)
  weights_of_images = tf.where(tf.reshape(kept, shape[:2]), mask, float('nan'))
  labels = labels[:, tf.newaxis]
  losses = tf.vectorized_map(
    lambda image: model.loss(*image),
    (output, tf.repeat(labels, x.shape[2], axis=1)),
  )
  losses = tf.reshape(losses, shape[:2])
  return tf.math.divide_no_nan(
    tf.reduce_sum(weights_of_images * losses, axis=1),
    tf.reduce_sum(mask, axis=1),
  )


def is_unit(batch: Batch) -> tf.Tensor:
  """Returns 1 for units and 0 for padding, float32 [B]."""
  return tf.cast(tf.reduce_any(batch['mask'] > 0, axis=1), tf.float32)


def _without_padding(batch: Batch) -> Batch:
  """Returns the batch with zeros in place of padding, and a mask of 0 and 1.

  The weight 0 is not enough for padding: 0 times NaN is NaN.
  """
  real = batch['mask'] > 0

  def clean(values: tf.Tensor) -> tf.Tensor:
    keep = tf.reshape(
      real, tf.concat([tf.shape(real), [1] * (values.shape.rank - 2)], 0)
    )
    return tf.where(keep, values, tf.zeros_like(values))

  return collections.OrderedDict(
    x=clean(batch['x']), y=clean(batch['y']), mask=tf.cast(real, tf.float32)
  )


def _views(
  x: tf.Tensor, augmentation: augmentation_lib.Augmentation | None
) -> tf.Tensor:
  """Returns the views [B, K, views, ...] of x [B, K, ...]."""
  if augmentation is None:
    return x[:, :, tf.newaxis]
  image = x.shape[2:].as_list()
  views = augmentation.views_of(tf.reshape(x, (-1, *image)))
  shape = tf.shape(x)
  return tf.reshape(views, (shape[0], shape[1], augmentation.views, *image))
