"""Noise in TensorFlow graphs that nobody can draw a second time.

Why: noise protects only as long as it cannot be guessed, and TensorFlow's own
sources can be. An op without a seed (`tf.random.normal`) takes it from a
generator that each process starts with 32 bits of /dev/urandom
(tensorflow/core/platform/random.cc, `InitRngWithRandomSeed`); the queries of
TensorFlow Privacy for trees and for distributed noise take it from the clock in
microseconds (`GaussianNoiseGenerator.initialize`,
`DistributedSkellamSumQuery.add_noise_to_sample`). As noise of a model's size is
strongly correlated with itself alone, somebody who sees the noised sums can try
all such seeds, recognise the right one and subtract the noise.

Here the key has 126 bits from the operating system, drawn when the graph is
built. Each execution mixes in fresh bits of TensorFlow's generator, so that a
graph that runs again, be it for a repeated round, draws other noise. The
generator is Philox, which is fast but not cryptographic, and the distributions
are computed in floating point.
"""

from __future__ import annotations

from collections.abc import Sequence
import secrets

import tensorflow as tf

_KEY_BITS = 63


class SecretNoise:
  """Draws noise under a key that exists in this object alone."""

  def __init__(self) -> None:
    self._key = [secrets.randbits(_KEY_BITS) for _ in range(2)]

  def normal(
    self,
    shape: Sequence[int] | tf.Tensor,
    stddev: float | tf.Tensor,
  ) -> tf.Tensor:
    """Returns Gaussian noise, float32 of `shape`, new at each execution.

    Args:
      shape: The shape.
      stddev: The standard deviation, a scalar.
    """
    return tf.random.stateless_normal(shape, self._seed(), stddev=stddev)

  def skellam(self, shape: Sequence[int], variance: float) -> tf.Tensor:
    """Returns the difference of two Poisson draws, int64, new each time.

    Args:
      shape: The shape.
      variance: The variance, at most 2e8: beyond, rounding errors of the
        sampler's logarithms would show in the distribution.
    """
    draws = tf.random.stateless_poisson(
      [*shape, 2],
      self._seed(),
      lam=tf.constant(variance / 2, tf.float64),
      dtype=tf.int64,
    )
    return draws[..., 0] - draws[..., 1]

  def _seed(self) -> tf.Tensor:
    fresh = tf.random.uniform(
      [2], minval=tf.int64.min, maxval=tf.int64.max, dtype=tf.int64
    )
    return tf.bitwise.bitwise_xor(tf.constant(self._key, tf.int64), fresh)
