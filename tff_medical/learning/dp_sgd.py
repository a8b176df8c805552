"""DP-SGD across sites: the guarantee protects records or patients.

Abadi et al. 2016 (arXiv 1607.00133) over the units of all sites, without
pooling their data. Each site clips the gradient of each drawn unit and sums the
clipped gradients. The server sums over the sites, adds one Gaussian noise for
the whole federation, divides by the expected number of units and takes a step.
This is central DP-SGD: the server has to be trusted. With adaptive clipping
(Andrew et al. 2021, arXiv 1905.03871) the clip norm follows the noised quantile
of the units' norms.

State, noise and quantile come from TensorFlow Privacy's queries, as in
`tff.aggregators.DifferentiallyPrivateFactory`. The sites do for all units of a
batch at once what the queries do for one record.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_federated as tff
import tensorflow_privacy as tfp

from tff_medical import _validate
from tff_medical.learning import augmentation as augmentation_lib
from tff_medical.learning import exact_gradients
from tff_medical.learning import optimizers
from tff_medical.learning import process_parts
from tff_medical.learning import unit_clipping
from tff_medical.learning import unit_gradients
from tff_medical.learning import unit_inputs
from tff_medical.privacy import mechanisms

_Gradients = tuple[tf.Tensor, ...]


class ClippingState(NamedTuple):
  """Server state with clipping; `aggregators.clip_norm` reads it."""

  query_state: Any


class NoClippingState(NamedTuple):
  """Server state without clipping."""

  plain_state: Any


def build_dp_sgd(
  model: tff.learning.models.FunctionalModel,
  mechanism: mechanisms.GaussianMechanism,
  *,
  server_optimizer: tff.learning.optimizers.Optimizer | None = None,
  augmentation: augmentation_lib.Augmentation | None = None,
  count_broken: bool = False,
) -> tff.learning.templates.LearningProcess:
  """Returns a learning process that runs in any TFF context.

  A site's dataset of a round holds the units of the site that
  `mechanism.sampling` drew among the units of all sites. It may be empty. Its
  batches have the layout of `unit_gradients.batch_spec` and only bound memory.
  A round is one step. Neither the batch size nor the grouping of units into
  datasets changes its result, so that a simulation may join the units of
  several sites, as `program.feeds.UnitFeed` does.

  The guarantee holds for the results of `next`, if every round is charged with
  `mechanism.charge_event()`. There are no training metrics, as their sums would
  carry no noise. A unit with an invalid label (see `labels`), or with a
  gradient whose norm is not finite, counts as a unit with a zero gradient.

  Args:
    model: Functional model with one output, which treats each image on its own
      (no batch norm).
    mechanism: Clipping, noise and sampling of records or patients. Without
      clipping the process is plain SGD on the same draws.
    server_optimizer: Optimizer that takes the noised mean as a gradient. The
      default is SGD with learning rate 1.
    augmentation: Views over which each unit's gradient is averaged, if given.
    count_broken: Whether the metrics count the units whose gradients were not
      finite; see `aggregators.broken_units`. Epsilon does not cover this count.

  Raises:
    InputError: The mechanism protects clients, the model is not functional or
      has several inputs or outputs, or no way gives its exact gradients (see
      `exact_gradients`).
  """
  unit_inputs.check_functional(model)
  if mechanism.privacy_unit == 'client':
    raise _validate.InputError(
      "mechanism.privacy_unit must be 'record' or 'patient' for DP-SGD, got "
      "'client'; use build_dp_fed_avg"
    )
  return _compose(
    model,
    exact_gradients.find_way(model),
    QuerySum(mechanism),
    server_optimizer
    or optimizers.build_server_optimizer('sgd', learning_rate=1.0),
    augmentation,
    count_broken,
  )


class QuerySum:
  """Noised sum of clipped gradients, or client updates, under a mechanism.

  The methods are pure functions of TensorFlow values. The server calls
  `initial_state`, `params` and `noised_mean`, the sites `zero` and
  `clipped_sum`.
  """

  def __init__(self, mechanism: mechanisms.GaussianMechanism):
    self._clipping = mechanism.clipping
    self.query = tfp.NormalizedQuery(
      mechanism.sum_query(),
      denominator=float(mechanism.sampling.expected_cohort),
    )
    self._state = (
      NoClippingState if mechanism.clipping is None else ClippingState
    )

  def initial_state(self) -> Any:
    """Returns the state of the query before the first round."""
    return self._state(self.query.initial_global_state())

  def params(self, state: Any) -> Any:
    """Returns the parameters for the sites: the clip norm."""
    return self.query.derive_sample_params(state[0])

  def zero(self, gradients: _Gradients) -> Any:
    """Returns the sum of no units."""
    return self.query.initial_sample_state(gradients)

  def clipped_sum(
    self,
    params: Any,
    gradients: _Gradients,
    norms: tf.Tensor,
    is_unit: tf.Tensor,
  ) -> Any:
    """Returns the sum of clipped gradients over the units with finite norms.

    Args:
      params: Parameters from the server.
      gradients: Gradients of the units, [B, ...] for each weight.
      norms: Norms of the gradients, float [B].
      is_unit: Float [B], 0 for padding, which is neither summed nor counted.
    """
    finite = tf.math.is_finite(norms)
    norms = tf.where(finite, norms, 0.0)
    total = functools.partial(unit_clipping.weighted_sum, gradients, finite)
    if self._clipping is None:
      return total(is_unit)
    if isinstance(self._clipping, mechanisms.FixedClipping):
      return total(is_unit * unit_clipping.clip_factors(norms, params))
    quantile = params.quantile_estimator_params
    below = tf.cast(norms <= quantile.current_estimate, tf.float32)
    zero = self.query.initial_sample_state(())
    return zero._replace(
      sum_state=total(
        is_unit * unit_clipping.clip_factors(norms, params.sum_params)
      ),
      # TensorFlow Privacy counts -0.5 or 0.5, to halve the sensitivity.
      quantile_estimator_state=tf.reduce_sum(is_unit * (below - 0.5)),
    )

  def noised_mean(self, total: Any, state: Any) -> tuple[_Gradients, Any]:
    """Returns the noised gradient and the state of the next round."""
    result, new_state, _ = self.query.get_noised_result(total, state[0])
    return tuple(result), self._state(new_state)


def _site_sum(
  model: tff.learning.models.FunctionalModel,
  way: unit_gradients.Way,
  query: QuerySum,
  augmentation: augmentation_lib.Augmentation | None,
  params: Any,
  weights: tff.learning.models.ModelWeights,
  data: tf.data.Dataset,
) -> Any:
  """Returns the sum over the units of one site, and the broken count."""

  @tf.autograph.experimental.do_not_convert
  def add_batch(total: Any, batch: unit_gradients.Batch) -> Any:
    gradients = unit_gradients.unit_gradients(
      model, way, weights, batch, augmentation
    )
    is_unit = unit_gradients.is_unit(batch)
    norms = unit_clipping.global_norms(gradients)
    broken = tf.logical_and(is_unit > 0, ~tf.math.is_finite(norms))
    added = (
      query.clipped_sum(params, gradients, norms, is_unit),
      tf.reduce_sum(tf.cast(broken, tf.int32)),
    )
    return tf.nest.map_structure(tf.add, total, added)

  zeros = tuple(tf.zeros_like(w) for w in weights.trainable)
  return data.reduce((query.zero(zeros), tf.constant(0)), add_batch)


def _compose(
  model: tff.learning.models.FunctionalModel,
  way: unit_gradients.Way,
  query: QuerySum,
  server_optimizer: tff.learning.optimizers.Optimizer,
  augmentation: augmentation_lib.Augmentation | None,
  count_broken: bool,
) -> tff.learning.templates.LearningProcess:
  """Returns the process around the pure functions.

  TFF's client work and aggregator are not used: the clip norm, which is server
  state of the aggregation, cannot pass to the client work.
  """
  # Computations of one place, and the types that they fix.

  initial_weights = process_parts.initial_weights(model)
  initial_query_state = tff.tensorflow.computation(query.initial_state)
  weights_type = initial_weights.type_signature.result
  query_type = initial_query_state.type_signature.result
  data_type = tff.SequenceType(
    tff.types.tensorflow_to_type(unit_gradients.batch_spec(model))
  )
  finalizer = tff.learning.templates.build_apply_optimizer_finalizer(
    server_optimizer, weights_type
  )
  derive_params = tff.tensorflow.computation(query.params, query_type)

  @tff.tensorflow.computation(
    derive_params.type_signature.result, weights_type, data_type
  )
  def site_sum(params: Any, weights: Any, data: Any) -> Any:
    return _site_sum(model, way, query, augmentation, params, weights, data)

  noised_mean = tff.tensorflow.computation(
    query.noised_mean, (site_sum.type_signature.result[0], query_type)
  )

  # The state has TFF's own form; the query's state stands in for the
  # aggregator's.
  @tff.federated_computation
  def initialize() -> Any:
    return process_parts.first_state(
      initial_weights,
      aggregator=tff.federated_eval(initial_query_state, tff.SERVER),
      finalizer=finalizer.initialize(),
    )

  state_type = initialize.type_signature.result

  @tff.federated_computation(
    state_type, tff.FederatedType(data_type, tff.CLIENTS)
  )
  def next_round(state: Any, data: Any) -> Any:
    # Server to sites: clip norm and weights. Each site sums over its own units.
    params = tff.federated_map(derive_params, state.aggregator)
    sums = tff.federated_map(
      site_sum,
      (
        tff.federated_broadcast(params),
        tff.federated_broadcast(state.global_model_weights),
        data,
      ),
    )
    # Sites to server: one sum, which gets its noise before any other use.
    gradient, aggregator = tff.federated_map(
      noised_mean, (tff.federated_sum(sums[0]), state.aggregator)
    )
    step = finalizer.next(state.finalizer, state.global_model_weights, gradient)
    return process_parts.round_output(
      state,
      step,
      client_work=state.client_work,
      aggregator=aggregator,
      # The count carries no noise, so that it is only there on request.
      broken_units=sums[1] if count_broken else None,
    )

  return process_parts.with_model_weights(initialize, next_round)
