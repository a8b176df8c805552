"""The features are kymatio's, for every size, and of each image alone."""

from __future__ import annotations

from absl.testing import absltest
from absl.testing import parameterized
import kymatio.numpy
import numpy as np
import tensorflow as tf

from tff_medical.models import scattering


def _images(*shape):
  return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def _by_kymatio(images):
  """Returns [N, h, w, C * 81], the paths in the order of the layer."""
  reference = kymatio.numpy.Scattering2D(J=2, shape=images.shape[1:3])
  found = reference(images.transpose(0, 3, 1, 2)).transpose(0, 3, 4, 1, 2)
  second = found[..., 17:]
  second = second.reshape(*second.shape[:-1], 8, 8).swapaxes(-1, -2)
  second = second.reshape(*second.shape[:-2], 64)
  found = np.concatenate([found[..., :17], second], axis=-1)
  return found.reshape(*found.shape[:3], -1)


class ScatteringTest(parameterized.TestCase):
  @parameterized.parameters(
    (28, 28, 1), (28, 28, 3), (8, 8, 1), (30, 21, 3), (64, 64, 1)
  )
  def test_equals_kymatio(self, *shape):
    images = _images(2, *shape)
    np.testing.assert_allclose(
      scattering.Scattering()(images), _by_kymatio(images), rtol=0, atol=2e-6
    )

  def test_second_order_is_compared_well_above_the_tolerance(self):
    self.assertGreater(_by_kymatio(_images(2, 28, 28, 1))[..., 17:].max(), 1e-3)

  def test_an_empty_batch_stays_empty(self):
    found = scattering.Scattering()(np.zeros((0, 28, 28, 3), np.float32))
    self.assertEqual(found.shape, (0, 7, 7, 243))

  def test_a_broken_image_breaks_no_other(self):
    images = _images(3, 28, 28, 1)
    expected = scattering.Scattering()(images).numpy()
    images[1, 0, 0] = np.nan
    found = scattering.Scattering()(images).numpy()
    self.assertTrue(np.isnan(found[1]).any())
    np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])

  def test_a_flat_image_has_finite_gradients(self):
    image = tf.fill((1, 28, 28, 1), 0.5)
    with tf.GradientTape() as tape:
      tape.watch(image)
      total = tf.reduce_sum(scattering.Scattering()(image))
    self.assertTrue(np.isfinite(tape.gradient(total, image)).all())


class NormalisedTest(absltest.TestCase):
  def test_nothing_is_trained_and_sizes_live_side_by_side(self):
    """Also after Keras cloned one of them."""
    by_shape = {}
    for shape in ((28, 28, 1), (16, 20, 3)):
      inputs = tf.keras.Input(shape)
      by_shape[shape] = tf.keras.Model(inputs, scattering.normalised(inputs))
    first = by_shape[28, 28, 1]
    self.assertEmpty(first.weights)
    images = _images(2, 28, 28, 1)
    expected = first(images).numpy()
    clone = tf.keras.models.clone_model(first)
    np.testing.assert_array_equal(clone(images), expected)
    self.assertEqual(
      by_shape[16, 20, 3](_images(4, 16, 20, 3)).shape, (4, 4, 5, 243)
    )
    np.testing.assert_array_equal(first(images), expected)


if __name__ == '__main__':
  absltest.main()
