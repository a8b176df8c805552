"""The aggregation of DP-FTRL: each round's sum with the tree's noise.

What: a TensorFlow Privacy query for TFF's `DifferentiallyPrivateFactory`. It
returns a round's sum plus the difference between the noise of two prefix sums.
Summed over the rounds, the differences leave only the noise of the last prefix.

Why not `DifferentiallyPrivateFactory.tree_aggregation`:

- Its noise is seeded by the clock (see `noise`).
- It has no restart with a fixed clip norm.
- Its state changes shape from round to round, which suits neither checkpoints
  nor runtimes.
- It draws a node's noise one round ahead. A round that runs again after a crash
  would release two values under the same noise.

Here the noise is drawn in the round that completes the nodes. The distribution
of the released values is the same; a test compares it with TensorFlow
Privacy's.

How: Honaker's weights (2015, "Efficient use of differentially private binary
trees", estimation from below). A complete subtree of depth d adds the noise
b_d / (2 - 2**-d) to a prefix sum, where b_d = e + (l + r) / 2. Here e is the
noise of the subtree's root, and l and r are the b_(d-1) of the root's halves.
All nodes that a round completes are merged into one b, so that one Gaussian
replaces their e.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import dp_accounting
import tensorflow as tf
import tensorflow_federated as tff
import tensorflow_privacy as tfp

from tff_medical.privacy import clipping
from tff_medical.privacy import noise


class TreeSumQuery(tfp.SumAggregationDPQuery):
  """Clips and sums records, and adds the residual of the tree's noise.

  The state holds `rounds_done` in the current tree, an int32, the
  `l2_norm_clip` and `pending`. For each variable `pending` is [h, ...]: the b
  of each level's subtree, if that subtree is part of the prefix. Later rounds
  cancel this noise. Whoever sees it can remove it, so a state is as secret as
  the client updates.
  """

  State = collections.namedtuple(
    'State', ['rounds_done', 'l2_norm_clip', 'pending']
  )

  def __init__(
    self,
    record_specs: Any,
    *,
    clip_norm: float,
    stddev: float,
    rounds_per_tree: int,
    tree_height: int,
  ):
    """Builds the query.

    Args:
      record_specs: Nest of TensorSpec, as the records are.
      clip_norm: Clip norm of the records.
      stddev: Standard deviation of the noise of each node.
      rounds_per_tree: Number of rounds after which a new tree begins.
      tree_height: Number of levels of a tree of so many rounds.
    """
    self._clip_norm = clip_norm
    self._stddev = stddev
    self._rounds_per_tree = rounds_per_tree
    self._height = tree_height
    self._specs = record_specs
    self._noise = noise.SecretNoise()

  def initial_global_state(self) -> State:
    """Returns the state before the first round."""
    return self.State(
      rounds_done=tf.constant(0, tf.int32),
      l2_norm_clip=tf.constant(self._clip_norm, tf.float32),
      pending=tf.nest.map_structure(
        lambda spec: tf.zeros([self._height, *spec.shape]), self._specs
      ),
    )

  def derive_sample_params(self, global_state: State) -> tf.Tensor:
    """Returns the clip norm, the only parameter of a client."""
    return global_state.l2_norm_clip

  def preprocess_record(self, params: tf.Tensor, record: Any) -> Any:
    """Returns the record, clipped to the clip norm."""
    return clipping.clip(record, params)[0]

  def get_noised_result(
    self, sample_state: Any, global_state: State
  ) -> tuple[Any, State, dp_accounting.DpEvent]:
    """Returns the round's sum with its noise, and the state after it.

    The event is a placeholder: one round of a tree has no epsilon of its own.
    `DpFtrlMechanism` accounts for the whole tree.
    """
    done = global_state.rounds_done
    # A new tree follows a complete one. `==` would compare objects while TFF
    # builds a graph.
    done = tf.where(tf.equal(done, self._rounds_per_tree), 0, done)
    after = tf.nest.map_structure(
      lambda pending: self._next_pending(done, pending), global_state.pending
    )
    result = tf.nest.map_structure(
      lambda total, old, new: (
        total
        + self._prefix_noise(done + 1, new)
        - self._prefix_noise(done, old)
      ),
      sample_state,
      global_state.pending,
      after,
    )
    state = global_state._replace(rounds_done=done + 1, pending=after)
    return result, state, dp_accounting.UnsupportedDpEvent()

  def _next_pending(self, done: tf.Tensor, pending: tf.Tensor) -> tf.Tensor:
    """Returns `pending` after the round that follows `done` rounds.

    That round completes a subtree at each level from 0 to `top`, the number of
    trailing ones of `done`. Each b is halved once per level on the way up. So
    is the noise e of each root, whose variances add up to the sum over k <= top
    of 4**-k.
    """
    # Adding 1 flips the trailing ones and the zero before them, nothing else.
    trailing_ones = tf.bitwise.bitwise_and(done, tf.bitwise.invert(done + 1))
    merged = self._bits(trailing_ones)
    top = tf.reduce_sum(merged)
    levels = tf.range(self._height, dtype=tf.float32)
    merged_noise = tf.tensordot(merged * 2.0 ** (levels - top), pending, 1)
    stddev = self._stddev * tf.sqrt((4.0 - 4.0**-top) / 3.0)
    fresh = self._noise.normal(pending.shape[1:], stddev)
    at_top = tf.reshape(
      tf.equal(levels, top), [-1] + [1] * (pending.shape.rank - 1)
    )
    return tf.where(at_top, merged_noise + fresh, pending)

  def _prefix_noise(self, rounds: tf.Tensor, pending: tf.Tensor) -> tf.Tensor:
    """Returns the noise of the sum of the first `rounds` rounds."""
    levels = tf.range(self._height, dtype=tf.float32)
    weights = self._bits(rounds) / (2.0 - 2.0**-levels)
    return tf.tensordot(weights, pending, 1)

  def _bits(self, number: tf.Tensor) -> tf.Tensor:
    """Returns the binary digits of an int32, float32 [h], lowest first."""
    shifted = tf.bitwise.right_shift(number, tf.range(self._height))
    return tf.cast(tf.bitwise.bitwise_and(shifted, 1), tf.float32)


class TreeAggregationFactory(tff.aggregators.UnweightedAggregationFactory):
  """Sums values with the noise of a tree, over the size of the cohort."""

  def __init__(
    self, query_of: Callable[[Any], TreeSumQuery], expected_cohort: float
  ):
    """Builds the factory.

    Args:
      query_of: Function that returns the query for a nest of TensorSpec.
      expected_cohort: Cohort size, by which sums are divided.
    """
    self._query_of = query_of
    self._expected_cohort = expected_cohort

  def create(
    self, value_type: tff.types.TensorType
  ) -> tff.templates.AggregationProcess:
    """Returns the process for values of `value_type`, a structure of floats."""
    specs = tff.types.type_to_tf_tensor_specs(value_type)
    query = tfp.NormalizedQuery(
      self._query_of(specs), denominator=self._expected_cohort
    )
    return tff.aggregators.DifferentiallyPrivateFactory(query).create(
      value_type
    )
