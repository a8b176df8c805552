"""Per-example gradients: the gradient of each unit of a batch, for DP-SGD.

A unit is one image or all images of a patient. Its gradient is the gradient of
the mean loss over its images (Abadi et al. 2016, arXiv 1607.00133, for
records). The gradients of all units of a batch are computed at once. The model
must not let images influence each other, as batch norm does.

There are three ways, from the fastest: the rules of `layer_gradients`,
`tf.vectorized_map` and `tf.map_fn`. `exact_gradients.find_way` returns the
first one that is exact for a model.

Time relative to the plain gradient of the batch, with clipping, measured by
`experiments.gradient_benchmark` on one CPU core: 1.1 to 1.3 by the rules, 1.9
to 3.5 by `tf.vectorized_map`.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical.learning import augmentation as augmentation_lib
from tff_medical.learning import labels as labels_lib
from tff_medical.learning import layer_gradients
from tff_medical.learning import unit_inputs
from tff_medical.runtime import precision

Batch = collections.OrderedDict[str, tf.Tensor]
Weights = tuple[tuple[tf.Tensor, ...], tuple[tf.Tensor, ...]]

# A way takes the model, its weights, the views x [B, K, views, ...], y [B, K,
# ...] and the mask [B, K]. It returns the gradients of `unit_gradients`.
Way = Callable[
  [
    tff.learning.models.FunctionalModel,
    Weights,
    tf.Tensor,
    tf.Tensor,
    tf.Tensor,
  ],
  tuple[tf.Tensor, ...],
]


class Gradients(tuple[tf.Tensor, ...]):
  """Gradients [B, ...] for each trainable weight, in the form of their rules.

  Whoever reads the parts instead of the tensors saves the time and the memory
  of products that are then never computed.

  Attributes:
    parts: Gradients of each weight, as tensors, `Factors` or `Swapped`.
  """

  parts: tuple[layer_gradients.Part, ...]

  @classmethod
  def of(cls, parts: Sequence[layer_gradients.Part]) -> Gradients:
    """Returns the gradients that are given by their parts."""
    gradients = cls(
      part if tf.is_tensor(part) else part.product() for part in parts
    )
    gradients.parts = tuple(parts)
    return gradients


# Memory of a microbatch by an estimate that leaves out that TensorFlow frees
# outputs early.
_MICROBATCH_BYTES = 2**29
# More units at once are not faster.
_MAX_MICROBATCH = 256


class NoRuleError(NotImplementedError):
  """The model uses a weight in an operation that has no rule."""


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


def microbatch_size(
  model: tff.learning.models.FunctionalModel, images: int = 1
) -> int:
  """Returns a number of units whose gradients fit into memory at once.

  The estimate for a unit is its gradient, written down, and three times the
  outputs of all operations of the model: as they are, with their gradients, and
  with what the rules copy of them.

  Args:
    model: Functional model with one output.
    images: Number of images of a unit, times the number of views of an image.
  """
  _validate.positive_int(images=images)
  with tf.Graph().as_default() as graph, inlined_functions():
    x, _ = unit_inputs.of_model(model)
    weights = model.initial_weights
    model.predict_on_batch(
      tuple(tuple(tf.constant(w) for w in part) for part in weights),
      tf.compat.v1.placeholder(x.dtype, (None, *x.shape[1:])),
      True,
    )
    by_image = sum(
      _nbytes_by_row(output)
      for op in graph.get_operations()
      for output in op.outputs
    )
  by_weights = sum(np.asarray(w).nbytes for w in model.initial_weights[0])
  fit = _MICROBATCH_BYTES // (by_weights + 3 * images * by_image)
  return int(min(max(fit, 1), _MAX_MICROBATCH))


def _nbytes_by_row(tensor: tf.Tensor) -> int:
  """Returns the bytes for each image of a batch; 0 if there is no batch."""
  shape = tensor.shape
  if not shape.rank or shape[0] is not None:
    return 0
  return tensor.dtype.size * (shape[1:].num_elements() or 0)


def unit_gradients(
  model: tff.learning.models.FunctionalModel,
  way: Way,
  weights: tff.learning.models.ModelWeights,
  batch: Batch,
  augmentation: augmentation_lib.Augmentation | None = None,
) -> tuple[tf.Tensor, ...]:
  """Returns the gradient of each unit's mean loss; call it in a graph.

  Args:
    model: Functional model with one output.
    way: Way from `exact_gradients.find_way`.
    weights: Weights at which the gradient is taken.
    batch: Batch of B units in the layout of `batch_spec`.
    augmentation: Views over which the loss of an image is averaged, if given.

  Returns:
    Gradients [B, ...] for each trainable weight. They are exactly 0 for units
    of padding, and not finite for units with an invalid label (see `labels`).
  """
  batch = without_padding(batch)
  x = views_of(batch['x'], augmentation)
  every_weight = (tuple(weights.trainable), tuple(weights.non_trainable))

  forms: list[layer_gradients.Part] = []

  def tensors_of_parts(*args: Any) -> list[tuple[tf.Tensor, ...]]:
    gradients = way(model, *args)
    forms[:] = getattr(gradients, 'parts', gradients)
    return [layer_gradients.tensors_of(part) for part in forms]

  # Whoever clips and sums gets float32 from here, whatever the precision. Only
  # tensors leave the function; a shape stays the tuple of integers that it is.
  tensors = precision.apart(
    tensors_of_parts, every_weight, x, batch['y'], batch['mask']
  )
  return Gradients.of(
    [
      layer_gradients.with_tensors(part, values)
      for part, values in zip(forms, tensors)
    ]
  )


def by_rules(
  model: tff.learning.models.FunctionalModel,
  weights: Weights,
  x: tf.Tensor,
  y: tf.Tensor,
  mask: tf.Tensor,
) -> tuple[tf.Tensor, ...]:
  """Returns the gradients by the rules of `layer_gradients`.

  Raises:
    NoRuleError: The model uses a weight in an operation that has no rule.
  """
  # New tensors, so that their consumers are the uses of the weights here.
  trainable = tuple(tf.identity(w) for w in weights[0])
  shape = tf.shape(x)
  with inlined_functions():
    loss = tf.reduce_sum(_losses(model, (trainable, weights[1]), x, y, mask))
  uses = [(i, op) for i, w in enumerate(trainable) for op in w.consumers()]
  of_outputs = _gradients_of_outputs(loss, [op for _, op in uses])
  # A weight that is used several times has one part per use.
  parts_by_weight: list[list[layer_gradients.Part]] = [[] for _ in trainable]
  for (i, op), gradients in zip(uses, of_outputs):
    if not gradients:
      continue
    rule = layer_gradients.find_rule(op, trainable[i])
    if rule is None:
      raise NoRuleError(f'operation {op.name!r} ({op.type}) has no rule')
    units = (shape[0], shape[1] * shape[2])
    parts_by_weight[i].append(rule(op, gradients[0], units))
  return Gradients.of(
    [
      parts[0]
      if len(parts) == 1
      else _sum(parts, (shape[0], *w.shape), w.dtype)
      for parts, w in zip(parts_by_weight, trainable)
    ]
  )


def _sum(
  parts: Sequence[layer_gradients.Part],
  shape: tuple[tf.Tensor | int, ...],
  dtype: tf.DType,
) -> tf.Tensor:
  if not parts:
    return tf.zeros(shape, dtype)
  return tf.add_n(Gradients.of(parts))


def _gradients_of_outputs(
  loss: tf.Tensor, ops: Sequence[tf.Operation]
) -> list[list[tf.Tensor]]:
  """Returns the gradients of each op's outputs, without unused outputs.

  The first output alone does not tell whether an op is used. That of a loop is
  its counter, which has no gradient.
  """
  outputs = [
    (i, output)
    for i, op in enumerate(ops)
    for output in op.outputs
    if _carries_gradient(output.dtype)
  ]
  gradients = tf.gradients(loss, [output for _, output in outputs])
  by_op: list[list[tf.Tensor]] = [[] for _ in ops]
  for (i, _), gradient in zip(outputs, gradients):
    if gradient is not None:
      by_op[i].append(gradient)
  return by_op


def _carries_gradient(dtype: tf.DType) -> bool:
  # Lists of tensors, which loops write, are variants.
  return dtype.is_floating or dtype.is_complex or dtype == tf.variant


def vectorized(
  model: tff.learning.models.FunctionalModel,
  weights: Weights,
  x: tf.Tensor,
  y: tf.Tensor,
  mask: tf.Tensor,
) -> tuple[tf.Tensor, ...]:
  """Returns the gradients by `tf.vectorized_map`, in about twice the time."""
  gradient = functools.partial(gradient_of_unit, model, weights)
  return tf.vectorized_map(gradient, (x, y, mask))


def one_by_one(
  model: tff.learning.models.FunctionalModel,
  weights: Weights,
  x: tf.Tensor,
  y: tf.Tensor,
  mask: tf.Tensor,
) -> tuple[tf.Tensor, ...]:
  """Returns the gradients by `tf.map_fn`, one unit after the other."""
  specs = [tf.TensorSpec(v.shape[1:], v.dtype) for v in (x, y, mask)]
  every_weight = (*weights[0], *weights[1])
  weight_specs = [tf.TensorSpec(w.shape, w.dtype) for w in every_weight]

  def gradient(*arguments: tf.Tensor) -> tuple[tf.Tensor, ...]:
    values, unit = arguments[:-3], arguments[-3:]
    split = (values[: len(weights[0])], values[len(weights[0]) :])
    return gradient_of_unit(model, split, unit)

  # A Keras model leaves placeholders behind, which TFF's own runtime would want
  # to be fed inside of a loop.
  traced = tf.compat.v1.wrap_function(gradient, [*weight_specs, *specs])
  pruned = traced.prune(traced.inputs, traced.outputs)
  return tf.map_fn(
    lambda unit: tuple(pruned(*every_weight, *unit)),
    (x, y, mask),
    fn_output_signature=tuple(weight_specs[: len(weights[0])]),
  )


@tf.autograph.experimental.do_not_convert
def gradient_of_unit(
  model: tff.learning.models.FunctionalModel,
  weights: Weights,
  unit: tuple[tf.Tensor, ...],
) -> tuple[tf.Tensor, ...]:
  """Returns the gradient of one unit, x [K, views, ...], y [K, ...] and mask."""
  # New tensors, as the body of a loop only has copies of the outer ones.
  trainable = tuple(tf.identity(w) for w in weights[0])
  one_unit = (values[tf.newaxis] for values in unit)
  # Functions would be traced anew for each conversion to a batch.
  with inlined_functions():
    loss = _losses(model, (trainable, weights[1]), *one_unit)
  gradients = tf.gradients(loss, trainable, unconnected_gradients='zero')
  # The gradient of an embedding is sparse.
  return tuple(tf.convert_to_tensor(g) for g in gradients)


@contextlib.contextmanager
def inlined_functions() -> Iterator[None]:
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
  weights: Weights,
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


def without_padding(batch: Batch) -> Batch:
  """Returns the batch with zeros in place of padding, and a mask of 0 and 1.

  The weight 0 is not enough for padding: 0 times NaN is NaN.
  """
  real = batch['mask'] > 0

  def clean(values: tf.Tensor) -> tf.Tensor:
    keep = tf.reshape(
      real, tf.concat([tf.shape(real), [1] * (values.shape.rank - 2)], 0)
    )
    return tf.where(keep, values, tf.zeros_like(values))

  x, y = batch['x'], batch['y']
  x, y = tf.cond(
    tf.reduce_all(real), lambda: (x, y), lambda: (clean(x), clean(y))
  )
  return collections.OrderedDict(x=x, y=y, mask=tf.cast(real, tf.float32))


def views_of(
  x: tf.Tensor, augmentation: augmentation_lib.Augmentation | None
) -> tf.Tensor:
  """Returns the views [B, K, views, ...] of x [B, K, ...]."""
  if augmentation is None:
    return x[:, :, tf.newaxis]
  image = x.shape[2:].as_list()
  views = augmentation.views_of(tf.reshape(x, (-1, *image)))
  shape = tf.shape(x)
  return tf.reshape(views, (shape[0], shape[1], augmentation.views, *image))
