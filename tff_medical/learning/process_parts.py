"""Parts that the learning processes of this package share.

The state of each process is TFF's `LearningAlgorithmState`.
"""

from __future__ import annotations

import collections
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff


def initial_weights(
  model: tff.learning.models.FunctionalModel,
) -> tff.Computation:
  """Returns the computation of a model's first weights, as `ModelWeights`."""

  @tff.tensorflow.computation
  def first_weights() -> Any:
    trainable, non_trainable = model.initial_weights
    return tff.learning.models.ModelWeights(
      tuple(tf.convert_to_tensor(w) for w in trainable),
      tuple(tf.convert_to_tensor(w) for w in non_trainable),
    )

  return first_weights


def first_state(
  initial_weights: tff.Computation,
  *,
  client_work: Any = (),
  aggregator: tff.Value,
  finalizer: tff.Value,
) -> tff.Value:
  """Returns the state before the first round, within a federated computation.

  Args:
    initial_weights: Computation of the model's first weights.
    client_work: Constant with which the client work begins.
    aggregator: State of the aggregation at the server.
    finalizer: State of the server's optimizer at the server.
  """
  return tff.federated_zip(
    tff.learning.templates.LearningAlgorithmState(
      global_model_weights=tff.federated_eval(initial_weights, tff.SERVER),
      distributor=tff.federated_value((), tff.SERVER),
      client_work=tff.federated_value(client_work, tff.SERVER),
      aggregator=aggregator,
      finalizer=finalizer,
    )
  )


def round_output(
  state: Any,
  step: tff.templates.MeasuredProcessOutput,
  *,
  client_work: tff.Value,
  aggregator: tff.Value,
  broken_units: tff.Value | None,
) -> tff.learning.templates.LearningProcessOutput:
  """Returns the output of a round, within a federated computation.

  Args:
    state: State before the round.
    step: Output of the server's optimizer.
    client_work: State of the client work after the round.
    aggregator: State of the aggregation after the round.
    broken_units: Number of units that each client left out, without noise;
      None publishes no count.
  """
  new_state = tff.federated_zip(
    tff.learning.templates.LearningAlgorithmState(
      global_model_weights=step.result,
      distributor=state.distributor,
      client_work=client_work,
      aggregator=aggregator,
      finalizer=step.state,
    )
  )
  metrics = collections.OrderedDict(finalizer=step.measurements)
  if broken_units is not None:
    metrics['aggregator'] = tff.federated_zip(
      collections.OrderedDict(broken_units=tff.federated_sum(broken_units))
    )
  return tff.learning.templates.LearningProcessOutput(
    new_state, tff.federated_zip(metrics)
  )


def with_model_weights(
  initialize: tff.Computation, next_round: tff.Computation
) -> tff.learning.templates.LearningProcess:
  """Returns the process, whose weights are those of its state.

  Args:
    initialize: Computation of the first state.
    next_round: Computation of a round, from a state and the clients' data.
  """
  state_type = initialize.type_signature.result.member
  weights_type = state_type.global_model_weights

  @tff.tensorflow.computation(state_type)
  def get_model_weights(state: Any) -> Any:
    return state.global_model_weights

  @tff.tensorflow.computation(state_type, weights_type)
  def set_model_weights(state: Any, weights: Any) -> Any:
    return tff.learning.templates.LearningAlgorithmState(
      global_model_weights=weights,
      distributor=state.distributor,
      client_work=state.client_work,
      aggregator=state.aggregator,
      finalizer=state.finalizer,
    )

  return tff.learning.templates.LearningProcess(
    initialize, next_round, get_model_weights, set_model_weights
  )
