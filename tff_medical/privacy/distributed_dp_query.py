"""The aggregation of distributed DP: noise on the clients, a secure sum.

What: a TensorFlow Privacy query for TFF's `DifferentiallyPrivateFactory`,
around TFF's `SecureSumFactory`. A runtime without secure sums refuses the
query. The local runtime of this project computes secure sums as plain sums, for
simulation.

Why not `tff.learning.ddp_secure_aggregator` (TFF 0.87): no epsilon can be
stated for it.

- Its noise is seeded by the client's clock in microseconds
  (`DistributedSkellamSumQuery.add_noise_to_sample`).
- Zeroing uses a quantile and a count without noise.
- With adaptive clipping the server, which the clients do not trust, adds the
  count's noise. Fixed clipping sums an exact count of the clipped clients as
  well (aggregators/robust.py).
- The noise is relative to the norm before rounding inflates the norm.
- The event is `UnsupportedDpEvent`.
"""

from __future__ import annotations

import collections
import math
from typing import Any

import dp_accounting
import tensorflow as tf
import tensorflow_federated as tff
import tensorflow_privacy as tfp

from tff_medical.privacy import noise

# A client's noise exceeds this multiple of its standard deviation with a
# probability of 1e-300.
_RANGE_STDDEVS = 40


class SkellamSumQuery(tfp.SumAggregationDPQuery):
  """Rounds and noises records on the client; sums are in steps of C / R.

  Attributes:
    bound: Largest absolute value, in steps, of an entry that a client sends.
  """

  State = collections.namedtuple('State', ['l2_norm_clip'])

  def __init__(
    self, *, clip_norm: float, clip_steps: int, local_variance: float
  ):
    """Builds the query.

    Args:
      clip_norm: Clip norm C.
      clip_steps: Number R of steps into which the clip norm is divided.
      local_variance: Variance, in steps, of the noise that each client adds.
    """
    self._clip_norm = clip_norm
    self._steps = clip_steps
    self._variance = local_variance
    self._noise = noise.SecretNoise()
    self.bound = clip_steps + math.ceil(
      _RANGE_STDDEVS * math.sqrt(local_variance)
    )

  def initial_global_state(self) -> State:
    """Returns the state: the clip norm, which never changes."""
    return self.State(tf.constant(self._clip_norm, tf.float32))

  def initial_sample_state(self, template: Any) -> Any:
    """Returns the sum of no records."""
    return tf.nest.map_structure(
      lambda like: tf.zeros(like.shape, tf.int64), template
    )

  def derive_sample_params(self, global_state: State) -> tuple[()]:
    """Returns nothing: the clients' graph holds all parameters."""
    del global_state
    return ()

  def preprocess_record(self, params: tuple[()], record: Any) -> Any:
    """Returns the record in steps, int64: clipped, rounded and noised."""
    del params
    wide = tf.nest.map_structure(lambda x: tf.cast(x, tf.float64), record)
    # In float64 the squares of all float32 numbers are finite and none
    # vanishes.
    norm = tf.linalg.global_norm(tf.nest.flatten(wide))
    finite = tf.math.is_finite(norm)
    wide = tf.nest.map_structure(
      lambda x: tf.where(finite, x, tf.zeros_like(x)), wide
    )
    norm = tf.where(finite, norm, 0.0)
    # A little less than R, so that no rounding error exceeds it.
    scale = self._steps * (1 - 1e-9) / tf.maximum(norm, self._clip_norm)
    return tf.nest.map_structure(lambda x: self._noised(x * scale), wide)

  def _noised(self, scaled: tf.Tensor) -> tf.Tensor:
    whole = tf.cast(scaled, tf.int64)  # The cast rounds towards zero.
    if not self._variance:
      return whole
    return whole + self._noise.skellam(scaled.shape, self._variance)

  def get_noised_result(
    self, sample_state: Any, global_state: State
  ) -> tuple[Any, State, dp_accounting.DpEvent]:
    """Returns the sum in the scale of the records; the clients added the noise.

    The event is a placeholder: `DistributedDpMechanism` accounts for the round.
    """
    step = self._clip_norm / self._steps
    result = tf.nest.map_structure(
      lambda total: tf.cast(tf.cast(total, tf.float64) * step, tf.float32),
      sample_state,
    )
    return result, global_state, dp_accounting.UnsupportedDpEvent()


def secure_mean_factory(
  query: SkellamSumQuery, num_clients: float
) -> tff.aggregators.UnweightedAggregationFactory:
  """Returns the factory of the mean over all clients, summed securely."""
  return tff.aggregators.DifferentiallyPrivateFactory(
    tfp.NormalizedQuery(query, denominator=num_clients),
    record_aggregation_factory=tff.aggregators.SecureSumFactory(
      query.bound, -query.bound
    ),
  )
