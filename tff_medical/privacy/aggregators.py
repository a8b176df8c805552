"""TFF aggregators that execute a mechanism on client updates.

The aggregation is TFF's own, around the queries of TensorFlow Privacy. Clients
clip their updates. The server sums them, adds Gaussian noise and divides by the
expected cohort size. `tff.learning.dp_aggregator` is not used. It zeroes large
updates by a quantile and a count that carry no noise, so its stated epsilon
does not hold.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical.privacy import interface


def build_aggregator(
  mechanism: interface.ClientMechanism,
) -> tff.aggregators.UnweightedAggregationFactory:
  """Returns the factory that aggregates client updates under `mechanism`.

  Without clipping the result is the plain mean over the cohort. An update whose
  norm is not finite is replaced by zero, so that one broken client cannot
  poison the round. Each client replaces its own update before clipping, so
  sensitivity and guarantee are unchanged.
  """
  return FiniteOrZeroFactory(mechanism.aggregation_factory())


class FiniteOrZeroFactory(tff.aggregators.UnweightedAggregationFactory):
  """Replaces values whose L2 norm is not finite by zero, on the client.

  The factory adds no state and no measurements. A count of the replaced values
  would be a statistic of client data without noise; see `BrokenCountFactory`.
  """

  def __init__(self, inner: tff.aggregators.UnweightedAggregationFactory):
    self._inner = inner

  def create(
    self, value_type: tff.types.TensorType
  ) -> tff.templates.AggregationProcess:
    """Returns the process for values of `value_type`, a structure of floats."""
    inner = self._inner.create(value_type)

    @tff.tensorflow.computation(value_type)
    def finite_or_zero(value: Any) -> Any:
      finite = _is_finite(value)
      return tf.nest.map_structure(
        lambda x: tf.where(finite, x, tf.zeros_like(x)), value
      )

    @tff.federated_computation(
      inner.initialize.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
    )
    def next_fn(state: Any, value: Any) -> Any:
      return inner.next(state, tff.federated_map(finite_or_zero, value))

    return tff.templates.AggregationProcess(inner.initialize, next_fn)


class BrokenCountFactory(tff.aggregators.WeightedAggregationFactory):
  """Aggregates without weights, and counts the clients that send nothing.

  A client counts if its weight is 0 or the norm of its update is not finite.
  TFF's client work gives the weight 0 to a client without data, and to a client
  whose model is not finite. The measurement `broken_units` carries no noise: no
  epsilon covers it.
  """

  def __init__(self, inner: tff.aggregators.UnweightedAggregationFactory):
    self._inner = inner

  def create(
    self, value_type: tff.types.TensorType, weight_type: tff.types.TensorType
  ) -> tff.templates.AggregationProcess:
    """Returns the process for values and weights of these types."""
    inner = self._inner.create(value_type)

    @tff.tensorflow.computation(value_type, weight_type)
    def is_broken(value: Any, weight: Any) -> Any:
      sends = tf.logical_and(tf.not_equal(weight, 0), _is_finite(value))
      return tf.cast(tf.logical_not(sends), tf.int32)

    @tff.federated_computation(
      inner.initialize.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
      tff.FederatedType(weight_type, tff.CLIENTS),
    )
    def next_fn(state: Any, value: Any, weight: Any) -> Any:
      broken = tff.federated_map(is_broken, (value, weight))
      output = inner.next(state, value)
      measurements = collections.OrderedDict(
        broken_units=tff.federated_sum(broken), inner=output.measurements
      )
      return tff.templates.MeasuredProcessOutput(
        output.state, output.result, tff.federated_zip(measurements)
      )

    return tff.templates.AggregationProcess(inner.initialize, next_fn)


def _is_finite(value: Any) -> tf.Tensor:
  # Finite values may have a norm that overflows, which clips them to NaN.
  return tf.math.is_finite(tf.linalg.global_norm(tf.nest.flatten(value)))


def broken_units(metrics: Mapping[str, Any]) -> int:
  """Returns the number of units of a round that sent nothing usable.

  A unit counts if it had nothing to send, or if what it had was not finite.

  Args:
    metrics: Metrics of `next` of a process that was built with `count_broken`.
  """
  return int(metrics['aggregator']['broken_units'])


def clip_norm(aggregator_state: Any) -> float | None:
  """Returns the clip norm of the next round, from a process's server state.

  The adaptive clip norm is computed from the noised count alone, so publishing
  it costs no further epsilon.

  Args:
    aggregator_state: State of an aggregator of `build_aggregator`.

  Returns:
    The clip norm, an L2 norm, or None without clipping.
  """
  query_state = getattr(aggregator_state, 'query_state', None)
  if query_state is None:
    return None
  sum_state = query_state.numerator_state
  return float(getattr(sum_state, 'sum_state', sum_state).l2_norm_clip)
