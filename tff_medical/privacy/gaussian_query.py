"""Queries of clipped sums with Gaussian noise.

The queries derive from TensorFlow Privacy's, so that TFF's
`DifferentiallyPrivateFactory` and other code can execute them. Clipping to a
quantile (Andrew et al. 2021) and the state are TensorFlow Privacy's. The noise
on values and count is `noise.SecretNoise`: an attacker who tries 2**32 seeds
can draw the noise of TensorFlow Privacy again.
"""

from __future__ import annotations

from typing import Any

import dp_accounting
import tensorflow as tf
import tensorflow_federated as tff
import tensorflow_privacy as tfp

from tff_medical.privacy import clipping
from tff_medical.privacy import limits
from tff_medical.privacy import noise


def mean_factory(
  query: tfp.SumAggregationDPQuery, expected_cohort: float
) -> tff.aggregators.UnweightedAggregationFactory:
  """Returns the factory of a query's sum over the expected cohort size."""
  return tff.aggregators.DifferentiallyPrivateFactory(
    tfp.NormalizedQuery(query, denominator=expected_cohort)
  )


class GaussianSumQuery(tfp.GaussianSumQuery):
  """Sum with fixed clipping and secret Gaussian noise."""

  def __init__(self, l2_norm_clip: float, stddev: float):
    super().__init__(l2_norm_clip, stddev)
    self._noise = noise.SecretNoise()

  def preprocess_record_impl(
    self, params: Any, record: Any
  ) -> tuple[Any, tf.Tensor]:
    """Returns the clipped record, and its norm before clipping."""
    return clipping.clip(record, params)

  def get_noised_result(
    self, sample_state: Any, global_state: Any
  ) -> tuple[Any, Any, dp_accounting.DpEvent]:
    """Returns the sum with noise, the unchanged state, and the event."""
    stddev = global_state.stddev
    result = tf.nest.map_structure(
      lambda total: total + self._noise.normal(tf.shape(total), stddev),
      sample_state,
    )
    event = dp_accounting.GaussianDpEvent(stddev / global_state.l2_norm_clip)
    return result, global_state, event


class _QuantileQuery(tfp.QuantileEstimatorQuery):
  """Quantile estimate whose count carries secret noise."""

  def _construct_below_estimate_query(
    self, below_estimate_stddev: float, expected_num_records: float
  ) -> tfp.DPQuery:
    return tfp.NormalizedQuery(
      GaussianSumQuery(l2_norm_clip=0.5, stddev=below_estimate_stddev),
      denominator=expected_num_records,
    )

  def get_noised_result(
    self, sample_state: Any, global_state: Any
  ) -> tuple[tf.Tensor, Any, dp_accounting.DpEvent]:
    """Returns the next estimate, kept within the range where clipping binds."""
    estimate, state, event = super().get_noised_result(
      sample_state, global_state
    )
    estimate = tf.clip_by_value(
      estimate, limits.MIN_CLIP_NORM, limits.MAX_CLIP_NORM
    )
    return estimate, state._replace(current_estimate=estimate), event


class AdaptiveSumQuery(tfp.QuantileAdaptiveClipSumQuery):
  """Sum with adaptive clipping, by geometric updates of the clip norm."""

  def __init__(
    self,
    *,
    initial_l2_norm_clip: float,
    noise_multiplier: float,
    target_unclipped_quantile: float,
    learning_rate: float,
    clipped_count_stddev: float,
    expected_num_records: float,
  ):
    quantile = (
      initial_l2_norm_clip,
      target_unclipped_quantile,
      learning_rate,
      clipped_count_stddev,
      expected_num_records,
    )
    super().__init__(initial_l2_norm_clip, noise_multiplier, *quantile[1:])
    self._sum_query = GaussianSumQuery(
      initial_l2_norm_clip, noise_multiplier * initial_l2_norm_clip
    )
    self._quantile_estimator_query = _QuantileQuery(
      *quantile, geometric_update=True
    )
