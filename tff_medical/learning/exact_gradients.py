"""Finds a way to per-example gradients that is exact for a model.

DP-SGD clips the gradient of each unit. A gradient that is wrong or missing
changes training without an error. So the ways of `unit_gradients` are compared
on a model before it is trained, from the fastest to the slowest. The reference
is TensorFlow's own gradient of one image in a batch of one. Images, labels and
weights are random, so that the check knows nothing of the clients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import logging
import textwrap
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical.learning import labels as labels_lib
from tff_medical.learning import unit_gradients
from tff_medical.learning import unit_inputs

_WAYS = (
  unit_gradients.by_rules,
  unit_gradients.vectorized,
  unit_gradients.one_by_one,
)

# Two units of two images, each in two views. One image is padding.
_LAYOUT = (2, 2, 2)
_MASK = np.array([[1, 1], [1, 0]], np.float32)

# Largest difference in float32, relative to the largest element of a weight's
# gradient. Terms that cancel leave a rounding error beside it, which is
# relative to the largest element of all gradients.
_TOLERANCE = 1e-3
_ROUNDING = 1e-6

# Relative changes of the initial weights, one for each draw. Initial weights
# may hide a layer: before a scale of 0 every gradient is 0.
_CHANGES = (0.5, 0.1, 0.0)

# Exceptions of TensorFlow where a way cannot be built or run for a model.
_FAILURES = (
  LookupError,
  NotImplementedError,
  TypeError,
  ValueError,
  tf.errors.OpError,
)

_Arrays = tuple[np.ndarray, ...]


def find_way(
  model: tff.learning.models.FunctionalModel,
  ways: Sequence[unit_gradients.Way] | None = None,
) -> unit_gradients.Way:
  """Returns the fastest way whose gradients are exact for the model.

  A model that draws random numbers in training, as dropout does, is compared in
  inference; in training the way only has to run. The loss need not depend on
  every weight; the gradient of a weight without use is 0.

  Args:
    model: Functional model with one input x, float or integers (0 and 1 must be
      valid), and one output.
    ways: Ways to compare, from the fastest to the slowest. The default is all
      ways of `unit_gradients`.

  Raises:
    InputError: No way is exact, images of a batch influence each other, or a
      gradient does not exist or is not finite.
  """
  _check_specs(model)
  compared = model
  reference = _Reference(model)
  if reference.is_random():
    compared = _in_inference(model)
    reference = _Reference(compared)
  samples = reference.samples()
  reference.check_independence(samples[0])
  for way in _WAYS if ways is None else ways:
    fault = _fault(compared, way, samples, reference.names)
    if fault is None and compared is not model:
      fault = _failure(model, way, samples[:1])
    if fault is None:
      return way
  raise _validate.InputError(
    f'model must have an exact gradient for each record, got {fault}; replace '
    'the layer, or protect clients with build_dp_fed_avg'
  )


def _check_specs(model: tff.learning.models.FunctionalModel) -> None:
  for name, spec in zip(('x', 'y'), unit_inputs.of_model(model)):
    if spec.shape.rank is None or not spec.shape[1:].is_fully_defined():
      raise _validate.InputError(
        f'model.input_spec[{name!r}] must state every size after the batch, '
        f'got shape {spec.shape}; state them'
      )


def _in_inference(
  model: tff.learning.models.FunctionalModel,
) -> tff.learning.models.FunctionalModel:
  """Returns the model with the output of inference in training."""

  @tf.function
  def predict(weights: Any, x: tf.Tensor, training: bool = True) -> tf.Tensor:
    del training
    return model.predict_on_batch(weights, x, False)

  return tff.learning.models.FunctionalModel(
    initial_weights=model.initial_weights,
    predict_on_batch_fn=predict,
    loss_fn=model.loss,
    input_spec=model.input_spec,
  )


@dataclasses.dataclass(frozen=True)
class _Sample:
  """Random arguments of a way, and what they give one image at a time.

  Attributes:
    weights: Trainable weights.
    x: Views of images, [2, 2, 2, ...].
    y: Labels [2, 2, ...].
    outputs: Output for each view, [8, ...].
    gradients: Gradients [2, ...] of the units for each trainable weight.
  """

  weights: _Arrays
  x: np.ndarray
  y: np.ndarray
  outputs: np.ndarray
  gradients: _Arrays


class _Reference:
  """TensorFlow's own gradient of one image in a batch of one."""

  def __init__(self, model: tff.learning.models.FunctionalModel):
    self._model = model
    with tf.Graph().as_default() as graph, unit_gradients.inlined_functions():
      weights = _weight_placeholders(model)
      x, y = (
        tf.compat.v1.placeholder(spec.dtype, (None, *spec.shape[1:]))
        for spec in unit_inputs.of_model(model)
      )
      output = model.predict_on_batch(weights, x, True)
      unit_inputs.check_output(output)
      gradients = _plain_gradients(model.loss(output, y), weights[0])
      self.names = tuple(_name(i, w) for i, w in enumerate(weights[0]))
      self._used = [i for i, g in enumerate(gradients) if g is not None]
      self._output_shape = output.shape
      used = [gradients[i] for i in self._used]
      session = _session(graph)
    self._run = session.make_callable([output, *used], [*weights[0], x, y])
    self._outputs = session.make_callable(output, [*weights[0], x])

  def is_random(self) -> bool:
    """Returns whether a second run on the same image differs."""
    weights, x, y = self._draw(_CHANGES[0])
    first, second = (
      self._run(*weights, x[0, 0, :1], y[0, :1]) for _ in range(2)
    )
    return not all(
      np.allclose(a, b, _TOLERANCE, _ROUNDING, equal_nan=True)
      for a, b in zip(first, second)
    )

  def samples(self) -> list[_Sample]:
    """Returns samples of finite gradients, until each weight has had one.

    Raises:
      InputError: No gradient of some weight is finite.
    """
    samples: list[_Sample] = []
    silent = set(self._used)
    broken: set[int] = set()
    for change in _CHANGES:
      sample = self._sample(change)
      not_finite = {
        i for i, g in enumerate(sample.gradients) if not np.isfinite(g).all()
      }
      broken |= not_finite
      if not not_finite:
        samples.append(sample)
        silent -= {i for i in silent if sample.gradients[i].any()}
        if not silent:
          break
    if not samples:
      raise _validate.InputError(
        'model must have finite gradients on random inputs of 0 to 1, got NaN '
        f'or infinity for {self.names[min(broken)]}; check its initial value'
      )
    return samples

  def check_independence(self, sample: _Sample) -> None:
    """Raises `InputError` if an output depends on other images of the batch."""
    views = sample.x.reshape((-1, *sample.x.shape[3:]))
    outputs = self._outputs(*sample.weights, views)
    alone = sample.outputs
    if outputs.shape != alone.shape or _excess(outputs, alone, alone) > 1:
      raise _validate.InputError(
        'model must treat each image on its own, got other outputs for a batch '
        'of images than for each image alone; replace layers with statistics '
        'of the batch, such as BatchNormalization by GroupNormalization'
      )

  def _draw(self, change: float) -> tuple[_Arrays, np.ndarray, np.ndarray]:
    """Returns trainable weights, x and y; the same ones in every process."""
    rng = np.random.default_rng(0)
    weights = tuple(
      _changed(rng, np.asarray(w), change)
      for w in self._model.initial_weights[0]
    )
    x_spec, y_spec = unit_inputs.of_model(self._model)
    x = _random_inputs(rng, x_spec)
    y = labels_lib.random_valid(rng, _LAYOUT[:2], y_spec, self._output_shape)
    return weights, x, y

  def _sample(self, change: float) -> _Sample:
    weights, x, y = self._draw(change)
    units, images, views = _LAYOUT
    outputs = []
    gradients = [np.zeros((units, *w.shape), w.dtype) for w in weights]
    for i, k, v in np.ndindex(*_LAYOUT):
      output, *found = self._run(*weights, x[i, k, v : v + 1], y[i, k : k + 1])
      outputs.append(output[0])
      for j, gradient in zip(self._used, found):
        gradients[j][i] += gradient * (_MASK[i, k] / _MASK[i].sum() / views)
    return _Sample(weights, x, y, np.array(outputs), tuple(gradients))


def _fault(
  model: tff.learning.models.FunctionalModel,
  way: unit_gradients.Way,
  samples: Sequence[_Sample],
  names: Sequence[str],
) -> str | None:
  """Returns why a way is not exact, or None if it is."""
  found = _run(model, way, samples)
  if isinstance(found, str):
    return found
  for sample, gradients in zip(samples, found):
    every = np.concatenate([g.ravel() for g in sample.gradients])
    for name, gradient, expected in zip(names, gradients, sample.gradients):
      for unit, expected_unit in zip(gradient, expected):
        if _excess(unit, expected_unit, every) > 1:
          return f'a wrong one for {name}'
  return None


def _failure(
  model: tff.learning.models.FunctionalModel,
  way: unit_gradients.Way,
  samples: Sequence[_Sample],
) -> str | None:
  """Returns why a way cannot run, or None if it can."""
  found = _run(model, way, samples)
  return found if isinstance(found, str) else None


def _run(
  model: tff.learning.models.FunctionalModel,
  way: unit_gradients.Way,
  samples: Sequence[_Sample],
) -> list[Sequence[np.ndarray]] | str:
  """Returns the gradients of each sample, or why the way cannot run."""
  try:
    with tf.Graph().as_default() as graph, _no_logging():
      weights = _weight_placeholders(model)
      x, y = (
        tf.compat.v1.placeholder(spec.dtype, (None, None, *sizes))
        for spec, sizes in zip(
          unit_inputs.of_model(model),
          (samples[0].x.shape[2:], samples[0].y.shape[2:]),
        )
      )
      mask = tf.compat.v1.placeholder(tf.float32, (None, None))
      gradients = way(model, weights, x, y, mask)
      session = _session(graph)
    run = session.make_callable(list(gradients), [*weights[0], x, y, mask])
    return [run(*s.weights, s.x, s.y, _MASK) for s in samples]
  except _FAILURES as error:
    return f'{type(error).__name__}: {_shortened(error)}'


@contextlib.contextmanager
def _no_logging() -> Iterator[None]:
  """Mutes TensorFlow, which logs whole graphs if it cannot vectorize a loop."""
  logger = tf.get_logger()
  level = logger.level
  logger.setLevel(logging.CRITICAL)
  try:
    yield
  finally:
    logger.setLevel(level)


def _excess(
  values: np.ndarray, expected: np.ndarray, every: np.ndarray
) -> float:
  """Returns the largest difference, relative to the allowed one.

  Args:
    values: Array to be checked.
    expected: Array of the same shape.
    every: All values whose terms may have been rounded in `values`.
  """
  difference = np.abs(values - expected).max(initial=0)
  if not np.isfinite(difference):
    return np.inf
  allowed = _TOLERANCE * np.abs(expected).max(initial=0)
  allowed += _ROUNDING * np.abs(every).max(initial=0)
  return difference / max(allowed, np.finfo(np.float32).tiny)


def _plain_gradients(
  loss: tf.Tensor, weights: Sequence[tf.Tensor]
) -> list[tf.Tensor | None]:
  try:
    gradients = tf.gradients(loss, weights)
  except LookupError as error:  # The message names the operation.
    raise _validate.InputError(
      f'model must have a gradient, got: {_shortened(error)}; replace the '
      'operation'
    ) from error
  # The gradient of an embedding is sparse.
  return [None if g is None else tf.convert_to_tensor(g) for g in gradients]


def _shortened(error: Exception) -> str:
  """Returns an error's message on one line."""
  return textwrap.shorten(str(error), 200)


def _name(index: int, weight: tf.Tensor) -> str:
  """Returns a weight's index, shape and first use, which names the layer."""
  uses = [op.name for op in weight.consumers()]
  use = f'used by {uses[0]!r}' if uses else 'without use'
  return f'weight {index} (shape {weight.shape.as_list()}, {use})'


def _weight_placeholders(
  model: tff.learning.models.FunctionalModel,
) -> unit_gradients.Weights:
  trainable, non_trainable = model.initial_weights
  arrays = [np.asarray(w) for w in trainable]
  return (
    tuple(tf.compat.v1.placeholder(a.dtype, a.shape) for a in arrays),
    tuple(tf.constant(w) for w in non_trainable),
  )


def _session(graph: tf.Graph) -> tf.compat.v1.Session:
  """Returns a session on the CPU, as GPUs may round to fewer bits.

  A Keras model that TFF made functional is only usable in a plain graph.
  """
  config = tf.compat.v1.ConfigProto(device_count={'GPU': 0})
  # Optimizing the graph takes longer than the few runs of it.
  config.graph_options.rewrite_options.disable_meta_optimizer = True
  return tf.compat.v1.Session(graph=graph, config=config)


def _changed(
  rng: np.random.Generator, weight: np.ndarray, change: float
) -> np.ndarray:
  """Returns a weight after random relative changes that keep its signs."""
  factors = rng.uniform(1 - change, 1 + change, weight.shape)
  offsets = rng.uniform(0, 0.2 * change, weight.shape)
  return np.where(weight == 0, offsets, weight * factors).astype(weight.dtype)


def _random_inputs(rng: np.random.Generator, spec: tf.TensorSpec) -> np.ndarray:
  shape = (*_LAYOUT, *spec.shape[1:])
  if spec.dtype.is_floating:
    return rng.random(shape).astype(spec.dtype.as_numpy_dtype)
  return rng.integers(2, size=shape).astype(spec.dtype.as_numpy_dtype)
