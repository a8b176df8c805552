"""Noise in TensorFlow graphs from a key that cannot be guessed.

Why: noise protects only as long as nobody can draw it again, and the seeds of
TensorFlow's own sources can be guessed. An op without a seed
(`tf.random.normal`) takes one from a generator that each process seeds with 32
bits of /dev/urandom (tensorflow/core/platform/random.cc,
`InitRngWithRandomSeed`). TensorFlow Privacy's queries for trees and for
distributed noise seed themselves by the clock in microseconds
(`GaussianNoiseGenerator.initialize`,
`DistributedSkellamSumQuery.add_noise_to_sample`). An attacker who sees the
noised sums can try all such seeds. Noise of a model's size correlates strongly
only with itself, so the right seed is recognised and the noise subtracted.

Here the key has 126 bits from the operating system, drawn when the graph is
built. Each execution mixes in fresh bits of TensorFlow's generator. A graph
that runs again, for instance for a repeated round, therefore draws new noise.
The generator is Philox, which is fast but not cryptographic, and the
distributions are computed in floating point.
"""

from __future__ import annotations

from collections.abc import Sequence
import secrets

import tensorflow as tf

_KEY_BITS = 63


class SecretNoise:
  """Draws noise under a secret key that only this object holds."""

  def __init__(self) -> None:
    self._key = [secrets.randbits(_KEY_BITS) for _ in range(2)]

  def normal(
    self,
    shape: Sequence[int] | tf.Tensor,
    stddev: float | tf.Tensor,
  ) -> tf.Tensor:
    """Returns Gaussian noise, float32 of `shape`, new at each execution.

    Args:
      shape: Shape of the noise.
      stddev: Standard deviation of the noise, a scalar.
    """
    return tf.random.stateless_normal(shape, self._seed(), stddev=stddev)

  def skellam(self, shape: Sequence[int], variance: float) -> tf.Tensor:
    """Returns the difference of two Poisson draws, int64, new each time.

    Args:
      shape: Shape of the noise.
      variance: Variance of the noise, at most 2e8. With a larger variance
        rounding errors of the sampler's logarithms distort the distribution.
    """
    # TensorFlow draws Poisson numbers on the CPU alone.
    with tf.device('/device:CPU:0'):
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
