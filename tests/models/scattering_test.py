"""The features are kymatio's, for every size, and of each image alone."""

from __future__ import annotations

import collections

from absl.testing import absltest
from absl.testing import parameterized
import kymatio.numpy
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import models
from tff_medical.learning import unit_gradients
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


class ModelTest(absltest.TestCase):
  def test_only_the_classifier_is_trained(self):
    model = models.build(
      'scattering', input_shape=(28, 28, 3), num_outputs=5, seed=0
    )
    self.assertEqual([w.shape for w in model.weights], [(7 * 7 * 243, 5), (5,)])
    self.assertLen(model.trainable_weights, 2)

  def test_several_sizes_in_one_process(self):
    """Also after TFF cloned one of them in a graph."""
    first = models.build('scattering', input_shape=(28, 28, 1), num_outputs=2)
    images = _images(2, 28, 28, 1) / 2 + 0.5
    expected = first(images).numpy()
    spec = (
      tf.TensorSpec((None, 28, 28, 1), tf.float32),
      tf.TensorSpec((None,), tf.int64),
    )
    for _ in range(2):
      tff.learning.models.functional_model_from_keras(
        first, models.loss(False), spec
      )
      models.restore_eager(first)
    other = models.build('scattering', input_shape=(16, 20, 3), num_outputs=3)
    self.assertEqual(other(_images(4, 16, 20, 3)).shape, (4, 3))
    np.testing.assert_array_equal(first(images), expected)

  def test_gradients_of_units_follow_by_rules(self):
    keras_model = models.build(
      'scattering', input_shape=(28, 28, 1), num_outputs=2, seed=0
    )
    spec = collections.OrderedDict(
      x=tf.TensorSpec((None, 28, 28, 1), tf.float32),
      y=tf.TensorSpec((None,), tf.int64),
    )
    model = tff.learning.models.functional_model_from_keras(
      keras_model, models.loss(False), spec
    )
    with tf.Graph().as_default():
      weights = tuple(tf.constant(w) for w in model.initial_weights[0])
      gradients = unit_gradients.by_rules(
        model,
        (weights, ()),
        tf.compat.v1.placeholder(tf.float32, (None, None, 1, 28, 28, 1)),
        tf.compat.v1.placeholder(tf.int64, (None, None)),
        tf.compat.v1.placeholder(tf.float32, (None, None)),
      )
    self.assertLen(gradients, 2)


if __name__ == '__main__':
  absltest.main()
