"""Tests of the steps of many clients at once, by closed forms."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tests.learning import unit_models
from tff_medical import _validate
from tff_medical.learning import augmentation
from tff_medical.learning import batched_steps

# Clients of 3, 1 and no points, with NaN as padding.
_X = np.array([[1, 2, -1], [3, np.nan, np.nan], [np.nan] * 3], np.float32)
_Y = np.array([[1, 0, 2], [-1, np.nan, np.nan], [np.nan] * 3], np.float32)


def _updates(steps, x=_X, y=_Y, start=0.5, augmented=None, rate=0.1):
  """Returns w0 - w of each client of the model w * x with squared loss."""
  batch = unit_models.points(x, y)
  batch['mask'] = np.isfinite(y).astype(np.float32)
  weights = tff.learning.models.ModelWeights((tf.constant([start]),), ())

  @tf.function
  def run():
    tensors = tf.nest.map_structure(tf.convert_to_tensor, batch)
    return batched_steps.updates(
      unit_models.line(), steps, augmented, rate, weights, tensors
    )

  return run()[0].numpy()[:, 0]


def _alone(steps, x, y, start=0.5, rate=0.1):
  """Returns w0 - w of one client, by plain arithmetic."""
  w = start
  for _ in range(steps.epochs):
    for i in range(0, len(x), steps.batch_size):
      a, b = (v[i : i + steps.batch_size].astype(np.float64) for v in (x, y))
      slope = np.mean(2 * a * (w * a - b))
      w -= rate * (slope + steps.proximal_strength * (w - start))
  return start - w


class UpdatesTest(parameterized.TestCase):
  @parameterized.product(
    batch_size=(1, 2, 3, 4), epochs=(1, 3), proximal_strength=(0.0, 2.0)
  )
  def test_each_client_takes_its_own_steps(self, **arguments):
    steps = batched_steps.LocalSteps(**arguments)
    expected = [
      _alone(steps, x[np.isfinite(x)], y[np.isfinite(y)])
      for x, y in zip(_X, _Y)
    ]
    np.testing.assert_allclose(_updates(steps), expected, rtol=1e-5)
    self.assertEqual(expected[2], 0)

  def test_a_diverging_client_leaves_the_others_alone(self):
    steps = batched_steps.LocalSteps(1, epochs=30)
    x = np.where(np.arange(3)[:, np.newaxis] == 1, 1e6 * _X, _X)
    updates, expected = _updates(steps, x), _updates(steps)
    self.assertFalse(np.isfinite(updates[1]))
    np.testing.assert_array_equal(updates[::2], expected[::2])

  def test_every_step_has_views_of_its_own(self):
    class Random(augmentation.Augmentation):
      """Puts random numbers in place of images."""

      def views_of(self, images):
        return tf.random.normal((tf.shape(images)[0], 1, 1))

    once, twice = (
      _updates(
        batched_steps.LocalSteps(1, epochs),
        np.ones((999, 1)),
        np.ones((999, 1)),
        start=0.0,
        augmented=Random(('brightness',)),
        rate=0.01,
      )
      for epochs in (1, 2)
    )
    # Two steps on the same views would have the deviation 2, not the root of 2.
    ratio = np.std(twice) / np.std(once)
    self.assertAlmostEqual(ratio, 2**0.5, delta=0.2)


class CheckTest(parameterized.TestCase):
  def test_dense_layers_pass(self):
    batched_steps.check(unit_models.line())

  def test_refuses_convolutions(self):
    with self.assertRaisesRegex(_validate.InputError, 'exact gradient for'):
      batched_steps.check(unit_models.model())

  @parameterized.parameters(
    ({'batch_size': 0}, 'batch_size must be'),
    ({'batch_size': 1, 'epochs': 0}, 'epochs must be'),
    ({'batch_size': 1, 'proximal_strength': -1.0}, 'proximal_strength must be'),
  )
  def test_refuses(self, arguments, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      batched_steps.LocalSteps(**arguments)


if __name__ == '__main__':
  absltest.main()
