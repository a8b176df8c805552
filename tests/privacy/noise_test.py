"""Tests of noise that cannot be drawn a second time."""

from absl.testing import absltest
import numpy as np
from scipy import stats
import tensorflow as tf

from tff_medical.privacy import noise


class SecretNoiseTest(absltest.TestCase):
  def test_is_standard_normal(self):
    draws = noise.SecretNoise().normal([20_000], 3.0).numpy() / 3
    self.assertGreater(stats.kstest(draws, 'norm').pvalue, 1e-4)

  def test_every_execution_of_a_graph_draws_anew(self):
    source = noise.SecretNoise()
    draw = tf.function(
      lambda: (source.normal([9], 1.0), source.normal([9], 1.0))
    )
    draws = np.concatenate([*draw(), *draw()])
    self.assertLen(set(draws), 36)

  def test_is_not_repeated_where_tensorflow_repeats_itself(self):
    """As two processes whose 32-bit seeds of TensorFlow are alike would."""
    draws = []
    for _ in range(2):
      tf.random.set_seed(1)
      own = tf.random.normal([9]).numpy()
      draws.append((own, noise.SecretNoise().normal([9], 1.0).numpy()))
    np.testing.assert_array_equal(draws[0][0], draws[1][0])
    self.assertFalse(np.any(draws[0][1] == draws[1][1]))


if __name__ == '__main__':
  absltest.main()
