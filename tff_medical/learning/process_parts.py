"""Parts that the learning processes of this package share.

The state of each process is TFF's `LearningAlgorithmState`.
"""

from __future__ import annotations

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
