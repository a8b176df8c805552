"""DP-FedAvg with many clients in one batch.

All clients of a round start from the same weights. A client that takes one step
of SGD therefore sends its learning rate times the gradient of its mean loss at
these weights. The gradients of many clients are per-example gradients whose
units are clients (McMahan et al. 2018, arXiv 1710.06963, section 2.2:
DP-FedSGD), and `unit_gradients` computes them at once. Large products take the
place of hundreds of small calls. Clients that take several steps have weights
of their own after the first one; `batched_steps` trains those of dense models.

Privacy is that of `build_dp_fed_avg`: the whole update of each client is
clipped once, then summed and noised by the same query. Weights agree up to
rounding. The state is the same, so a checkpoint of one form continues in the
other.

`is_faster` says where this form pays. `program.client_groups` makes the groups
of clients that it trains on.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, Union

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical.learning import augmentation as augmentation_lib
from tff_medical.learning import batched_steps
from tff_medical.learning import dp_sgd
from tff_medical.learning import exact_gradients
from tff_medical.learning import labels as labels_lib
from tff_medical.learning import optimizers
from tff_medical.learning import process_parts
from tff_medical.learning import schedules
from tff_medical.learning import unit_clipping
from tff_medical.learning import unit_gradients
from tff_medical.learning import unit_inputs
from tff_medical.privacy import aggregators
from tff_medical.privacy import mechanisms

# A constant learning rate, or one by the number of completed rounds.
LearningRate = Union[float, schedules.Schedule]

# Largest client, in images, for which products of patches are as fast as a
# convolution's own gradient.
_SMALL_CLIENT = 32

# Largest client, in numbers of its inputs, and largest model, in parameters,
# for which steps of many clients at once are faster on a CPU.
_SMALL_INPUTS = 2**18
_SMALL_MODEL = 2**17

# Sizes of a group: of the clients' gradients, and of the images in front of
# convolutions and of dense layers.
_PARAMETERS_AT_ONCE = 2**24
_PIXELS_AT_ONCE = 128 * 28**2
_FEATURES_AT_ONCE = 2**22
# Clients that take several steps have weights, gradients and updates.
_PARAMETERS_OF_STEPS_AT_ONCE = 2**22

# Number of images, and tolerance in float32, of the comparison of losses.
_COMPARED = 3
_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class ClientWork:
  """Work of the clients in a round of plain SGD.

  Attributes:
    largest_client: Number of images of the client that has most.
    batch_size: Number of images in one step.
    epochs: Number of passes over a client's images.
  """

  largest_client: int
  batch_size: int
  epochs: int = 1

  @property
  def is_one_step(self) -> bool:
    """Whether no client takes more than one step."""
    return self.epochs == 1 and self.largest_client <= self.batch_size


@dataclasses.dataclass(frozen=True)
class GroupSize:
  """Largest group of clients whose gradients are held at once.

  Attributes:
    clients: Number of clients.
    images: Number of images in a group of several clients.
  """

  clients: int
  images: int

  def __post_init__(self) -> None:
    _validate.positive_int(
      clients_at_once=self.clients, images_at_once=self.images
    )


def group_size(
  model: tff.learning.models.FunctionalModel, is_one_step: bool = True
) -> GroupSize:
  """Returns the size of a group that needs little memory and is fast.

  A larger group was not faster on a CPU. The gradients and weights of the
  clients take at most 64 MiB, if one client's do. Activations take some dozens
  of MiB.

  Args:
    model: Functional model that the clients train.
    is_one_step: Whether no client takes more than one step.
  """
  trainable, non_trainable = model.initial_weights
  shape = unit_inputs.of_model(model)[0].shape[1:]
  if any(np.ndim(w) > 2 for w in (*trainable, *non_trainable)):
    images = _PIXELS_AT_ONCE // shape[:-1].num_elements()
  else:
    images = _FEATURES_AT_ONCE // shape.num_elements()
  at_once = _PARAMETERS_AT_ONCE if is_one_step else _PARAMETERS_OF_STEPS_AT_ONCE
  return GroupSize(max(1, at_once // _parameters(model)), max(1, images))


def _parameters(model: tff.learning.models.FunctionalModel) -> int:
  return sum(np.size(w) for w in model.initial_weights[0])


def is_faster(
  model: tff.learning.models.FunctionalModel, work: ClientWork, on_gpu: bool
) -> bool:
  """Returns whether clients train faster in one batch than one by one.

  Measured on CPUs, against one client on each core: a CNN of 225k parameters
  takes .6 of the time for clients of 8 images, as much for 32 images, and 1.1
  times as long for 128, where the products of patches lose against the
  convolution's own gradient. On a GPU each small kernel costs its launch, so
  that one batch is taken for clients of any size.

  Several steps, of 16 images in 3 epochs: a dense layer on 5,249 features takes
  .4 of the time for clients of 10 images, .5 for 32 and 1.1 for 64; on 1,024
  features .3 for 32 and .65 for 128. A network of dense layers takes .5 of the
  time with 51k parameters and as much time with 535k. Other layers have no form
  in which each client has its own weights.

  Args:
    model: Functional model that the clients train.
    work: Work of each client.
    on_gpu: Whether clients train on a GPU.
  """
  if not work.is_one_step:
    return _steps_are_faster(model, work, on_gpu)
  is_dense = all(np.ndim(w) <= 2 for w in model.initial_weights[0])
  if not (on_gpu or is_dense or work.largest_client <= _SMALL_CLIENT):
    return False
  try:
    return _exact_way(model) is unit_gradients.by_rules
  except _validate.InputError:
    return False


def _steps_are_faster(
  model: tff.learning.models.FunctionalModel, work: ClientWork, on_gpu: bool
) -> bool:
  trainable, frozen = model.initial_weights
  is_dense = all(np.ndim(w) <= 2 for w in (*trainable, *frozen))
  inputs = unit_inputs.of_model(model)[0].shape[1:].num_elements()
  is_small = (
    work.largest_client * inputs <= _SMALL_INPUTS
    and _parameters(model) <= _SMALL_MODEL
  )
  if not (on_gpu or (is_dense and is_small)):
    return False
  try:
    _check_steps(model)
  except _validate.InputError:
    return False
  return True


@functools.lru_cache(maxsize=4)
def _exact_way(
  model: tff.learning.models.FunctionalModel,
) -> unit_gradients.Way:
  """Returns the fastest exact way to the gradients of clients.

  Raises:
    InputError: There is none, or the loss of a batch is not the mean of the
      losses of its images.
  """
  way = exact_gradients.find_way(model)
  _check_loss(model)
  return way


@functools.lru_cache(maxsize=4)
def _check_steps(model: tff.learning.models.FunctionalModel) -> None:
  """Raises `InputError` unless many clients can take several steps at once."""
  batched_steps.check(model)
  _check_loss(model)


def _check_loss(model: tff.learning.models.FunctionalModel) -> None:
  if not _has_mean_loss(model):
    raise _validate.InputError(
      'model must have a loss that is the mean over the images of a batch, got '
      'another one; average it, or use build_dp_fed_avg'
    )


def build_batched_dp_fed_avg(
  model: tff.learning.models.FunctionalModel,
  mechanism: mechanisms.GaussianMechanism,
  *,
  client_learning_rate: LearningRate,
  client_steps: batched_steps.LocalSteps | None = None,
  server_optimizer: tff.learning.optimizers.Optimizer | None = None,
  count_broken: bool = False,
  augmentation: augmentation_lib.Augmentation | None = None,
) -> tff.learning.templates.LearningProcess:
  """Returns the process of `build_dp_fed_avg` whose clients train by plain SGD.

  The process runs in any TFF context. Its datasets are groups of clients, of
  `program.client_groups.ClientGroupFeed`: each row of a batch is one client, in
  the layout of `unit_gradients.batch_spec`. A client without an image takes
  part with the zero update.

  Args:
    model: Functional model with one input and one output, whose loss is the
      mean over the images of a batch.
    mechanism: Clipping, noise and sampling of clients.
    client_learning_rate: Learning rate of the clients, a number or a function
      of the number of completed rounds; see `schedules.build_schedule`.
    client_steps: Steps of each client, for dense models. The default is one
      step on all images of the client, for every model.
    server_optimizer: As in `build_dp_fed_avg`.
    count_broken: As in `build_dp_fed_avg`.
    augmentation: As in `build_dp_fed_avg`.

  Raises:
    InputError: The mechanism protects other units than clients or has other
      noise than one Gaussian, or the model does not fit.
  """
  unit_inputs.check_functional(model)
  _check_mechanism(mechanism)
  if client_steps is None:
    train = functools.partial(_one_step, model, _exact_way(model), augmentation)
  else:
    _check_steps(model)
    train = functools.partial(
      batched_steps.updates, model, client_steps, augmentation
    )
  return _compose(
    _GroupSum(model, train, dp_sgd.QuerySum(mechanism)),
    mechanism,
    client_learning_rate,
    server_optimizer
    or optimizers.build_server_optimizer('sgd', learning_rate=1.0),
    count_broken,
  )


def _check_mechanism(mechanism: Any) -> None:
  if not isinstance(mechanism, mechanisms.GaussianMechanism):
    raise _validate.InputError(
      'mechanism must be a GaussianMechanism for clients in one batch, got '
      f'{type(mechanism).__name__}; use build_dp_fed_avg'
    )
  if mechanism.privacy_unit != 'client':
    raise _validate.InputError(
      "mechanism.privacy_unit must be 'client' for DP-FedAvg, got "
      f'{mechanism.privacy_unit!r}; use build_dp_sgd'
    )


# Autograph would rewrite the model for this check alone.
@tf.autograph.experimental.do_not_convert
def _has_mean_loss(model: tff.learning.models.FunctionalModel) -> bool:
  """Returns whether the loss of a batch is the mean of its images' losses."""
  rng = np.random.default_rng(0)
  x_spec, y_spec = unit_inputs.of_model(model)
  # A Keras model that TFF made functional is only usable in a plain graph.
  with tf.Graph().as_default():
    output = model.predict_on_batch(
      tf.nest.map_structure(tf.constant, model.initial_weights),
      tf.zeros((_COMPARED, *x_spec.shape[1:]), x_spec.dtype),
      True,
    )
    unit_inputs.check_output(output)
    shape = tf.TensorShape([None, *output.shape[1:]])
    outputs = tf.constant(rng.normal(size=output.shape), output.dtype)
    labels = tf.constant(
      labels_lib.random_valid(rng, [_COMPARED], y_spec, shape)
    )
    losses = [
      model.loss(outputs[part], labels[part])
      for part in (slice(None), *(slice(i, i + 1) for i in range(_COMPARED)))
    ]
    with tf.compat.v1.Session() as session:
      together, *alone = session.run(losses)
  return bool(np.allclose(together, np.mean(alone), _TOLERANCE, _TOLERANCE))


# A training takes the learning rate, the first weights and a batch of clients.
# It returns the update of each client, [C, ...] for each trainable weight.
_Training = Callable[
  [tf.Tensor, tff.learning.models.ModelWeights, unit_gradients.Batch],
  unit_clipping.Gradients,
]


def _one_step(
  model: tff.learning.models.FunctionalModel,
  way: unit_gradients.Way,
  augmentation: augmentation_lib.Augmentation | None,
  rate: tf.Tensor,
  weights: tff.learning.models.ModelWeights,
  batch: unit_gradients.Batch,
) -> unit_clipping.Gradients:
  """Returns the learning rate times each client's mean gradient."""
  return unit_gradients.unit_gradients(
    _scaled(model, rate), way, weights, batch, augmentation
  )


@dataclasses.dataclass(frozen=True)
class _GroupSum:
  """Sum of the clipped updates of a group of clients."""

  model: tff.learning.models.FunctionalModel
  train: _Training
  query: dp_sgd.QuerySum

  def of(
    self,
    params: Any,
    rate: tf.Tensor,
    weights: tff.learning.models.ModelWeights,
    groups: tf.data.Dataset,
  ) -> Any:
    """Returns the sum over the clients, their number, and that of the broken.

    Args:
      params: Parameters of the query, from the server: the clip norm.
      rate: Learning rate of the clients.
      weights: Weights from which all clients start.
      groups: Batches in the layout of `unit_gradients.batch_spec`.
    """

    @tf.autograph.experimental.do_not_convert
    def add_batch(total: Any, batch: unit_gradients.Batch) -> Any:
      updates = self.train(rate, weights, batch)
      norms = unit_clipping.global_norms(updates)
      sends = tf.logical_and(
        tf.math.is_finite(norms), unit_gradients.is_unit(batch) > 0
      )
      added = (
        # A client without data is clipped and counted with its zero update.
        self.query.clipped_sum(params, updates, norms, tf.ones_like(norms)),
        tf.size(norms),
        tf.reduce_sum(tf.cast(~sends, tf.int32)),
      )
      return tf.nest.map_structure(tf.add, total, added)

    zeros = tuple(tf.zeros_like(w) for w in weights.trainable)
    none = (self.query.zero(zeros), tf.constant(0), tf.constant(0))
    return groups.reduce(none, add_batch)


def _scaled(
  model: tff.learning.models.FunctionalModel, rate: tf.Tensor
) -> tff.learning.models.FunctionalModel:
  """Returns the model whose gradients are `rate` times those of `model`."""
  return tff.learning.models.FunctionalModel(
    initial_weights=model.initial_weights,
    predict_on_batch_fn=model.predict_on_batch,
    loss_fn=lambda output, label, sample_weight=None: (
      rate * model.loss(output, label, sample_weight)
    ),
    input_spec=model.input_spec,
  )


def _compose(
  group_sum: _GroupSum,
  mechanism: mechanisms.GaussianMechanism,
  learning_rate: LearningRate,
  server_optimizer: tff.learning.optimizers.Optimizer,
  count_broken: bool,
) -> tff.learning.templates.LearningProcess:
  """Returns the process, whose state is that of `build_dp_fed_avg`."""
  model, query = group_sum.model, group_sum.query

  initial_weights = process_parts.initial_weights(model)
  weights_type = initial_weights.type_signature.result
  data_type = tff.SequenceType(
    tff.types.tensorflow_to_type(unit_gradients.batch_spec(model))
  )
  aggregation = aggregators.build_aggregator(mechanism).create(
    weights_type.trainable
  )
  aggregator_type = aggregation.initialize.type_signature.result.member
  finalizer = tff.learning.templates.build_apply_optimizer_finalizer(
    server_optimizer, weights_type
  )
  # TFF's client work counts the rounds if the learning rate depends on them.
  is_scheduled = callable(learning_rate)

  @tff.federated_computation
  def initialize() -> Any:
    return process_parts.first_state(
      initial_weights,
      client_work=0 if is_scheduled else (),
      aggregator=aggregation.initialize(),
      finalizer=finalizer.initialize(),
    )

  state_type = initialize.type_signature.result

  @tff.tensorflow.computation(state_type.member)
  def prepare(state: Any) -> Any:
    rate = learning_rate
    if callable(learning_rate):
      rate = learning_rate(state.client_work)
    params = query.params(state.aggregator) if mechanism.clipping else ()
    return params, tf.cast(rate, tf.float32)

  @tff.tensorflow.computation(
    prepare.type_signature.result, weights_type, data_type
  )
  def work(sent: Any, weights: Any, groups: Any) -> Any:
    params, rate = sent
    return group_sum.of(params, rate, weights, groups)

  @tff.tensorflow.computation(
    work.type_signature.result[0], np.int32, aggregator_type
  )
  def finish(total: Any, clients: Any, state: Any) -> Any:
    if mechanism.clipping is None:
      mean = [
        tf.math.divide_no_nan(t, tf.cast(clients, t.dtype)) for t in total
      ]
      return tuple(mean), state
    update, query_state, event = query.query.get_noised_result(
      total, state.query_state
    )
    return tuple(update), state._replace(
      query_state=query_state,
      dp_event=event.to_named_tuple(),
      is_init_state=tf.constant(False),
    )

  @tff.tensorflow.computation(state_type.member.client_work)
  def next_client_work(state: Any) -> Any:
    return state + 1 if is_scheduled else state

  @tff.federated_computation(
    state_type, tff.FederatedType(data_type, tff.CLIENTS)
  )
  def next_round(state: Any, data: Any) -> Any:
    # Server to groups: clip norm, learning rate and weights.
    sent = tff.federated_broadcast(tff.federated_map(prepare, state))
    weights = tff.federated_broadcast(state.global_model_weights)
    sums = tff.federated_map(work, (sent, weights, data))
    # Groups to server: one sum, which gets its noise before any other use.
    update, aggregator = tff.federated_map(
      finish,
      (
        tff.federated_sum(sums[0]),
        tff.federated_sum(sums[1]),
        state.aggregator,
      ),
    )
    step = finalizer.next(state.finalizer, state.global_model_weights, update)
    return process_parts.round_output(
      state,
      step,
      client_work=tff.federated_map(next_client_work, state.client_work),
      aggregator=aggregator,
      # The count carries no noise, so that it is only there on request.
      broken_units=sums[2] if count_broken else None,
    )

  return process_parts.with_model_weights(initialize, next_round)
