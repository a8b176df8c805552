"""Local DP-SGD: sites train with their own noise, the server averages.

`privacy.local_dp_sgd_mechanism` states the guarantee: a model is private before
it leaves its site, so the server need not be trusted. The price is utility.
Each site adds as much noise as the whole federation does in `dp_sgd`, to a
batch that is smaller by the number of sites.

The gradients of a step's units are taken in microbatches, which bound memory
and change no result.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical.learning import augmentation as augmentation_lib
from tff_medical.learning import exact_gradients
from tff_medical.learning import optimizers
from tff_medical.learning import process_parts
from tff_medical.learning import unit_clipping
from tff_medical.learning import unit_gradients
from tff_medical.learning import unit_inputs
from tff_medical.privacy import local_dp_sgd_mechanism
from tff_medical.privacy import noise


def step_arrays(
  steps: Sequence[Mapping[str, np.ndarray]], expected_units: float
) -> collections.OrderedDict[str, np.ndarray]:
  """Returns a site's data of a round, with every step padded to the same size.

  Pass the arrays to `runtime.tensor_dataset` with the batch size len(x) //
  steps, so that each batch is one step.

  Args:
    steps: Arrays x, y and mask of the drawn units, for each step; they may be
      empty.
    expected_units: Expected number of units in a step of this site.
  """
  width = max(1, *(len(step['mask']) for step in steps))

  def padded(name: str) -> np.ndarray:
    first = steps[0][name]
    values = np.zeros((len(steps), width, *first.shape[1:]), first.dtype)
    for row, step in zip(values, steps):
      row[: len(step[name])] = step[name]
    return values.reshape(-1, *first.shape[1:])

  arrays = collections.OrderedDict(
    (name, padded(name)) for name in ('x', 'y', 'mask')
  )
  rows = width * len(steps)
  arrays['expected_units'] = np.full(rows, expected_units, np.float32)
  return arrays


def step_spec(
  model: tff.learning.models.FunctionalModel,
) -> collections.OrderedDict[str, tf.TensorSpec]:
  """Returns the specs of one step, in the layout of `step_arrays`."""
  spec = unit_gradients.batch_spec(model)
  spec['expected_units'] = tf.TensorSpec((None,), tf.float32)
  return spec


def build_local_dp_sgd(
  model: tff.learning.models.FunctionalModel,
  mechanism: local_dp_sgd_mechanism.LocalDpSgdMechanism,
  *,
  client_optimizer: tff.learning.optimizers.Optimizer,
  server_optimizer: tff.learning.optimizers.Optimizer | None = None,
  augmentation: augmentation_lib.Augmentation | None = None,
  microbatch_size: int | None = None,
) -> tff.learning.templates.LearningProcess:
  """Returns a learning process that runs in any TFF context.

  Each batch of a site's dataset is one step; see `step_arrays`. The server
  averages the sites' model updates, weighted by their expected units.

  A unit with an invalid label (see `labels`), or with a gradient whose norm is
  not finite, counts as a unit with a zero gradient. A site whose model is not
  finite after its steps is left out. So is a site whose expected units are not
  one number in all rows, above 0 and at most the expected units of all sites.

  Args:
    model: Functional model with one output, which treats each image on its own
      (no batch norm).
    mechanism: Clipping, noise and sampling. Without clipping the process is
      FedAvg on the same draws.
    client_optimizer: Optimizer of a site's steps.
    server_optimizer: Optimizer that takes the averaged update as a gradient.
      The default is SGD with learning rate 1, which adds the update.
    augmentation: Views over which each unit's gradient is averaged, if given.
    microbatch_size: Largest number of units whose gradients a site holds at
      once, 1 or more. The default is `unit_gradients.microbatch_size`, for
      units of one image.

  Raises:
    InputError: The model is not functional, has several inputs or outputs, no
      way gives its exact gradients (see `exact_gradients`), or
      `microbatch_size` is below 1.
  """
  if microbatch_size is not None:
    _validate.positive_int(microbatch_size=microbatch_size)
  unit_inputs.check_functional(model)
  way = exact_gradients.find_way(model)

  initial_weights = process_parts.initial_weights(model)
  weights_type = initial_weights.type_signature.result
  return tff.learning.templates.compose_learning_process(
    initial_weights,
    tff.learning.templates.build_broadcast_process(weights_type),
    _client_work(
      _LocalTraining(
        model,
        way,
        mechanism,
        client_optimizer,
        augmentation,
        microbatch_size or unit_gradients.microbatch_size(model),
      ),
      weights_type,
      tff.SequenceType(tff.types.tensorflow_to_type(step_spec(model))),
    ),
    tff.aggregators.MeanFactory(no_nan_division=True).create(
      weights_type.trainable, tff.TensorType(np.float32)
    ),
    tff.learning.templates.build_apply_optimizer_finalizer(
      server_optimizer
      or optimizers.build_server_optimizer('sgd', learning_rate=1.0),
      weights_type,
    ),
  )


class _LocalTraining:
  """Training of one site, as a function of TensorFlow values."""

  def __init__(
    self,
    model: tff.learning.models.FunctionalModel,
    way: unit_gradients.Way,
    mechanism: local_dp_sgd_mechanism.LocalDpSgdMechanism,
    optimizer: tff.learning.optimizers.Optimizer,
    augmentation: augmentation_lib.Augmentation | None,
    microbatch_size: int,
  ):
    self._model = model
    self._way = way
    self._mechanism = mechanism
    self._optimizer = optimizer
    self._augmentation = augmentation
    self._microbatch_size = microbatch_size
    self._noise = noise.SecretNoise()

  def noised_mean(
    self,
    weights: tff.learning.models.ModelWeights,
    batch: unit_gradients.Batch,
    expected: tf.Tensor,
  ) -> unit_clipping.Gradients:
    """Returns the noised sum of clipped gradients, divided by `expected`."""
    clipping = self._mechanism.clipping
    total = self._clipped_sum(weights, batch)
    if clipping is not None and self._mechanism.is_private:
      stddev = clipping.clip_norm * self._mechanism.noise_multiplier
      total = tuple(t + self._noise.normal(tf.shape(t), stddev) for t in total)
    return tuple(tf.math.divide_no_nan(t, expected) for t in total)

  def _clipped_sum(
    self,
    weights: tff.learning.models.ModelWeights,
    batch: unit_gradients.Batch,
  ) -> unit_clipping.Gradients:
    """Returns the sum of clipped gradients over the microbatches of a step."""
    units = tf.shape(batch['mask'])[0]

    def add(start: tf.Tensor, total: unit_clipping.Gradients) -> Any:
      end = start + self._microbatch_size
      part = collections.OrderedDict(
        (name, batch[name][start:end]) for name in ('x', 'y', 'mask')
      )
      added = self._clipped_sum_at_once(weights, part)
      return end, tuple(map(tf.add, total, added))

    zeros = tuple(tf.zeros_like(w) for w in weights.trainable)
    _, total = tf.while_loop(
      lambda start, _: start < units,
      add,
      (tf.constant(0), zeros),
      parallel_iterations=1,  # More of them would be in memory at once.
    )
    return tuple(total)

  def _clipped_sum_at_once(
    self,
    weights: tff.learning.models.ModelWeights,
    batch: unit_gradients.Batch,
  ) -> unit_clipping.Gradients:
    gradients = unit_gradients.unit_gradients(
      self._model, self._way, weights, batch, self._augmentation
    )
    norms = unit_clipping.global_norms(gradients)
    factors = unit_gradients.is_unit(batch)
    clipping = self._mechanism.clipping
    if clipping is not None:
      factors *= unit_clipping.clip_factors(
        norms, tf.constant(clipping.clip_norm)
      )
    return unit_clipping.weighted_sum(
      gradients, tf.math.is_finite(norms), factors
    )

  def train(
    self, initial: tff.learning.models.ModelWeights, data: tf.data.Dataset
  ) -> tff.learning.templates.ClientResult:
    """Returns the site's model update, weighted by its expected units."""
    start = tuple(initial.trainable)
    specs = tuple(tf.TensorSpec(w.shape, w.dtype) for w in start)

    @tf.autograph.experimental.do_not_convert
    def step(state: Any, batch: Any) -> Any:
      trainable, optimizer_state, before = state
      expected = self._expected_units(batch['expected_units'], before)
      gradient = self.noised_mean(
        tff.learning.models.ModelWeights(trainable, initial.non_trainable),
        batch,
        tf.where(expected > 0, expected, 1.0),
      )
      optimizer_state, trainable = self._optimizer.next(
        optimizer_state, trainable, gradient
      )
      return tuple(trainable), optimizer_state, expected

    state = (start, self._optimizer.initialize(specs), tf.constant(0.0))
    trained, _, weight = data.reduce(state, step)
    update = tf.nest.map_structure(tf.subtract, start, trained)
    finite = tf.math.is_finite(tf.linalg.global_norm(update))
    counts = tf.logical_and(finite, weight > 0)
    return tff.learning.templates.ClientResult(
      update=tuple(tf.where(counts, u, tf.zeros_like(u)) for u in update),
      update_weight=tf.where(counts, weight, 0.0),
    )

  def _expected_units(self, column: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
    """Returns a step's expected units, or -1 for an invalid column.

    The expected units divide the noised sum and weigh the site. So no single
    row may change them: the site must state the same number in every row of
    every step.

    Args:
      column: Expected units in each row of a step, float [rows].
      before: Expected units of the previous step, or 0 before the first one.
    """
    # No site expects more units than all sites together. The slack allows for
    # rounding to float32.
    highest = self._mechanism.sampling.expected_cohort * (1 + 1e-3)
    # The maximum is -inf without rows, and NaN if any row is NaN.
    stated = tf.reduce_max(column)
    is_valid = tf.reduce_all(tf.equal(column, stated))
    is_valid &= tf.math.is_finite(stated) & (stated > 0) & (stated <= highest)
    is_valid &= tf.equal(before, 0) | tf.equal(before, stated)
    return tf.where(is_valid, stated, -1.0)


def _client_work(
  training: _LocalTraining, weights_type: tff.Type, data_type: tff.Type
) -> tff.learning.templates.ClientWorkProcess:
  """Returns TFF client work for the training, without state or metrics."""

  @tff.tensorflow.computation(weights_type, data_type)
  def train(weights: Any, data: Any) -> Any:
    return training.train(weights, data)

  @tff.federated_computation
  def initialize() -> Any:
    return tff.federated_value((), tff.SERVER)

  @tff.federated_computation(
    initialize.type_signature.result,
    tff.FederatedType(weights_type, tff.CLIENTS),
    tff.FederatedType(data_type, tff.CLIENTS),
  )
  def next_round(state: Any, weights: Any, data: Any) -> Any:
    result = tff.federated_map(train, (weights, data))
    metrics = tff.federated_value((), tff.SERVER)
    return tff.templates.MeasuredProcessOutput(state, result, metrics)

  return tff.learning.templates.ClientWorkProcess(initialize, next_round)
