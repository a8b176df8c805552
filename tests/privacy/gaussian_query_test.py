"""Tests that noise does not come from TensorFlow's own 32-bit seeds."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling


def _noised(clipping):
  """Returns noised values and the next clip norm, or None if it is fixed."""
  mechanism = mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(1000, 100),
    clipping=clipping,
    noise_multiplier=1.0,
  )
  query = mechanism.sum_query()
  state = query.initial_global_state()
  template = tf.TensorSpec([9], tf.float32)
  total = query.initial_sample_state(template)
  result, state, _ = query.get_noised_result(total, state)
  quantile = getattr(state, 'quantile_estimator_state', None)
  clip_norm = None if quantile is None else quantile.current_estimate.numpy()
  return result.numpy(), clip_norm


class SumQueryTest(parameterized.TestCase):
  @parameterized.parameters(
    (mechanisms.FixedClipping(),), (mechanisms.AdaptiveClipping(),)
  )
  def test_is_not_repeated_where_tensorflow_repeats_itself(self, clipping):
    tf.random.set_seed(1)
    first, first_clip_norm = _noised(clipping)
    tf.random.set_seed(1)
    again, again_clip_norm = _noised(clipping)
    self.assertFalse(np.any(first == again))
    self.assertFalse(np.any(first == 0))
    if first_clip_norm is not None:
      self.assertNotEqual(first_clip_norm, again_clip_norm)


if __name__ == '__main__':
  absltest.main()
