"""Invalid labels: a fault of one record must not end a round.

On a CPU TensorFlow's sparse cross-entropy raises an error for a label out of
range, which would end the round for all clients. On a GPU it gives NaN. Here
such labels are replaced before the loss sees them, and the record or client
that holds one counts as broken.

The shape of the labels, beside the model's output [N, K], gives their meaning.
Labels [N] are classes 0 to K - 1 (0 or 1 if K is 1). Labels [N, K] are 0 or 1
for each of several findings, or -1 for a finding that is unknown and that the
loss has to leave out, as `models.loss` does. A model without classes, with output [N] or [N, 1]
and float labels, is left alone: one finding cannot be told from a regression
target.

>>> output = tf.zeros([3, 2])
>>> valid(tf.constant([0, 1, 2]), output).numpy().tolist()
[True, True, False]
>>> findings = tf.constant([[0.0, 1.0], [0.5, 0.0], [1.0, -1.0]])
>>> valid(findings, output).numpy().tolist()
[True, False, True]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import models


def valid(labels: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
  """Returns for which labels a loss can be computed, bool [N].

  Args:
    labels: Classes [N], or findings [N, K].
    output: Output of the model, [N, K].
  """
  if output.shape.rank == 2 and labels.shape.rank == 2:
    are_findings = labels.dtype.is_integer or output.shape[1] != 1
    if labels.shape[1] == output.shape[1] and are_findings:
      allowed = tf.logical_or(tf.equal(labels, 0), tf.equal(labels, 1))
      if labels.shape[1] > 1:  # A column alone may be one of classes.
        allowed = tf.logical_or(allowed, tf.equal(labels, models.UNKNOWN))
      return tf.reduce_all(allowed, axis=1)
    if labels.shape[1] == 1 and labels.dtype.is_integer:  # Classes in a column.
      return valid(labels[:, 0], output)
  classes = output.shape[1] if output.shape.rank == 2 else None
  if classes is not None and labels.shape.rank == 1:
    if labels.dtype.is_integer or (labels.dtype.is_floating and classes > 1):
      highest = tf.cast(max(classes, 2) - 1, labels.dtype)
      allowed = tf.logical_and(labels >= 0, labels <= highest)
      if labels.dtype.is_floating:
        allowed = tf.logical_and(allowed, tf.equal(labels, tf.floor(labels)))
      return allowed
  return tf.fill(tf.shape(labels)[:1], True)


def random_valid(
  rng: np.random.Generator,
  counts: Sequence[int],
  spec: tf.TensorSpec,
  output: tf.TensorShape,
) -> np.ndarray:
  """Returns random valid labels, [*counts, ...] for `spec` of [N, ...].

  Args:
    rng: Generator of the labels.
    counts: Sizes of the leading axes, in place of N.
    spec: Spec of the labels.
    output: Shape of the model's output, [N, K].
  """
  shape = (*counts, *spec.shape[1:])
  dtype = spec.dtype.as_numpy_dtype
  classes = output[1] if output.rank == 2 else None
  in_column = spec.dtype.is_integer and shape[len(counts) :] == (1,)
  if classes is not None and (spec.shape.rank == 1 or in_column):
    if spec.dtype.is_integer or classes > 1:
      # The last output need not be a class: see `canaries.with_canaries`.
      return rng.integers(2, size=shape).astype(dtype)
    return rng.random(shape).astype(dtype)
  if spec.dtype.is_floating and spec.shape.rank == 1:
    return rng.random(shape).astype(dtype)
  return rng.integers(2, size=shape).astype(dtype)


def cleaned(
  labels: tf.Tensor, output: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns labels with 0 in place of invalid ones, and the mask of `valid`."""
  kept = valid(labels, output)
  mask = tf.reshape(
    kept, tf.concat([tf.shape(kept), [1] * (labels.shape.rank - 1)], 0)
  )
  return tf.where(mask, labels, tf.zeros_like(labels)), kept


def guarded(model: Any) -> Any:
  """Returns a model whose loss and gradients are NaN for invalid labels.

  TFF's client work zeroes the update of a client whose model is not finite, and
  gives the client the weight 0.

  Args:
    model: `FunctionalModel`, or function that returns a `VariableModel`.
  """
  if isinstance(model, tff.learning.models.FunctionalModel):
    return _GuardedFunctionalModel(model)
  return lambda: _GuardedVariableModel(model())


def _nan_unless(kept: tf.Tensor) -> tf.Tensor:
  """Returns a factor of the loss, which its gradient inherits: 1 or NaN."""
  return tf.where(tf.reduce_all(kept), 1.0, float('nan'))


class _GuardedFunctionalModel(tff.learning.models.FunctionalModel):
  """Functional model with a guarded loss; all else is the inner model's."""

  def __init__(self, inner: tff.learning.models.FunctionalModel):
    super().__init__(
      initial_weights=inner.initial_weights,
      predict_on_batch_fn=inner.predict_on_batch,
      loss_fn=self._guarded_loss,
      metrics_fns=(
        inner.initialize_metrics_state,
        inner.update_metrics_state,
        inner.finalize_metrics,
      ),
      input_spec=inner.input_spec,
    )
    self._inner = inner

  def _guarded_loss(
    self, output: Any, label: Any, sample_weight: Any = None
  ) -> tf.Tensor:
    if not (tf.is_tensor(output) and tf.is_tensor(label)):
      return self._inner.loss(output, label, sample_weight)
    label, kept = cleaned(label, output)
    return self._inner.loss(output, label, sample_weight) * _nan_unless(kept)


class _GuardedVariableModel(tff.learning.models.VariableModel):
  """Variable model with a guarded loss; all else is the inner model's."""

  def __init__(self, inner: tff.learning.models.VariableModel):
    self._inner = inner

  @property
  def trainable_variables(self) -> Any:
    return self._inner.trainable_variables

  @property
  def non_trainable_variables(self) -> Any:
    return self._inner.non_trainable_variables

  @property
  def local_variables(self) -> Any:
    return self._inner.local_variables

  @property
  def input_spec(self) -> Any:
    return self._inner.input_spec

  @tf.function
  def forward_pass(self, batch_input: Any, training: bool = True) -> Any:
    is_mapping = isinstance(batch_input, Mapping)
    x, y = (
      (batch_input['x'], batch_input['y']) if is_mapping else tuple(batch_input)
    )
    if not tf.is_tensor(y):
      return self._inner.forward_pass(batch_input, training=training)
    # Only the shape of the output is needed; TensorFlow prunes its computation.
    output = self._inner.predict_on_batch(x, training=training)
    if not tf.is_tensor(output):
      return self._inner.forward_pass(batch_input, training=training)
    y, kept = cleaned(y, output)
    if is_mapping:
      batch_input = type(batch_input)({**batch_input, 'y': y})
    else:
      batch_input = type(batch_input)((x, y))
    result = self._inner.forward_pass(batch_input, training=training)
    return result._replace(loss=result.loss * _nan_unless(kept))

  @tf.function
  def predict_on_batch(self, x: Any, training: bool = True) -> Any:
    return self._inner.predict_on_batch(x, training=training)

  @tf.function
  def report_local_unfinalized_metrics(self) -> Any:
    return self._inner.report_local_unfinalized_metrics()

  def metric_finalizers(self) -> Any:
    return self._inner.metric_finalizers()

  @tf.function
  def reset_metrics(self) -> Any:
    return self._inner.reset_metrics()
