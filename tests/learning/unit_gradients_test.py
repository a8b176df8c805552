"""Tests of the gradients of units, and of the convolution's gradient."""

import collections

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tests.learning import unit_models
from tff_medical import models
from tff_medical.learning import augmentation
from tff_medical.learning import unit_convolution
from tff_medical.learning import unit_gradients


def _run(model, trainable, data, views=None):
  """Returns [units, parameters]."""
  with tf.Graph().as_default() as graph:
    batch = collections.OrderedDict(
      (name, tf.compat.v1.placeholder(spec.dtype, spec.shape))
      for name, spec in unit_gradients.batch_spec(model).items()
    )
    weights = tff.learning.models.ModelWeights(
      tuple(tf.constant(w) for w in trainable), ()
    )
    found = unit_gradients.unit_gradients(model, weights, batch, views)
    with tf.compat.v1.Session(graph=graph) as session:
      found = session.run(found, {batch[name]: data[name] for name in batch})
  return np.concatenate([g.reshape(len(g), -1) for g in found], axis=1)


class UnitGradientsTest(parameterized.TestCase):
  @parameterized.product(images=(1, 3), multi_label=(False, True))
  def test_equals_one_unit_at_a_time(self, images, multi_label):
    data = unit_models.units(0, 5, images, multi_label)
    weights = unit_models.weights()
    found = _run(unit_models.model(multi_label), weights, data)
    expected = unit_models.gradients_one_by_one(weights, data)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)

  def test_padding_has_no_gradient_whatever_it_holds(self):
    data = unit_models.units(0, 3, images=2)
    data['mask'][:] = [[1, 1], [1, 0], [0, 0]]
    clean = _run(unit_models.model(), unit_models.weights(), data)
    data['x'][data['mask'] == 0] = np.nan
    data['y'][data['mask'] == 0] = -1
    found = _run(unit_models.model(), unit_models.weights(), data)
    np.testing.assert_array_equal(found, clean)
    np.testing.assert_array_equal(found[2], 0)

  def test_a_broken_image_breaks_no_other_unit(self):
    data = unit_models.units(0, 3)
    clean = _run(unit_models.model(), unit_models.weights(), data)
    data['x'][1, 0, 0, 0, 0] = np.inf
    found = _run(unit_models.model(), unit_models.weights(), data)
    self.assertFalse(np.isfinite(np.linalg.norm(found[1])))
    np.testing.assert_array_equal(found[[0, 2]], clean[[0, 2]])

  @parameterized.parameters('cnn_small', 'resnet')
  def test_sum_is_the_gradient_of_the_batch(self, name):
    shape = (32, 32, 1)
    keras_model = models.build(name, input_shape=shape, num_outputs=2, seed=0)
    spec = collections.OrderedDict(
      x=tf.TensorSpec((None, *shape), tf.float32),
      y=tf.TensorSpec((None,), tf.int64),
    )
    model = tff.learning.models.functional_model_from_keras(
      keras_model, models.loss(multi_label=False), spec
    )
    rng = np.random.default_rng(0)
    x = rng.random((4, *shape)).astype(np.float32)
    y = rng.integers(2, size=4)
    trainable = model.initial_weights[0]
    with tf.Graph().as_default() as graph:
      weights = [tf.constant(w) for w in trainable]
      output = model.predict_on_batch((weights, ()), tf.constant(x), True)
      batch_gradient = tf.gradients(model.loss(output, y), weights)
      with tf.compat.v1.Session(graph=graph) as session:
        expected = session.run(batch_gradient)
    data = {'x': x[:, None], 'y': y[:, None], 'mask': np.ones((4, 1))}
    found = _run(model, trainable, data)
    np.testing.assert_allclose(
      found.mean(axis=0), unit_models.flat(expected), rtol=1e-3, atol=1e-5
    )

  def test_averages_over_views(self):
    """A constant image looks the same from every shift."""
    data = unit_models.units(0, 2, images=2)
    data['x'][:] = np.arange(2)[:, None, None, None, None]
    weights = unit_models.weights()
    views = augmentation.Augmentation(views=3, max_shift=2, mirror=True)
    found = _run(unit_models.model(), weights, data, views)
    expected = unit_models.gradients_one_by_one(weights, data)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


class UnitConvolutionTest(parameterized.TestCase):
  @parameterized.product(
    channels=(1, 6),
    strides=(1, 2, 3),
    padding=('SAME', 'VALID'),
    kernel=((1, 1), (3, 3), (2, 5)),
  )
  def test_gradients_are_those_of_tensorflow(
    self, channels, strides, padding, kernel
  ):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 9, 10, channels)).astype(np.float32)
    filters = rng.normal(size=(*kernel, channels, 3)).astype(np.float32)

    def gradients():
      inputs = [tf.constant(images), tf.constant(filters)]
      output = tf.nn.conv2d(*inputs, strides, padding)
      return tf.gradients(tf.reduce_sum(tf.sin(output)), inputs)

    with tf.Graph().as_default() as graph:
      expected = gradients()
      with unit_convolution.vectorizable_convolutions():
        found = gradients()
      with tf.compat.v1.Session(graph=graph) as session:
        expected, found = session.run((expected, found))
    for a, b in zip(found, expected):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

  def test_leaves_other_convolutions_to_tensorflow(self):
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 4))
    filters = np.ones((3, 3, 2, 6))  # Two groups of channels, dilated.
    with tf.Graph().as_default() as graph:
      inputs = [tf.constant(images), tf.constant(filters)]
      with unit_convolution.vectorizable_convolutions():
        output = tf.nn.conv2d(*inputs, 1, 'SAME', dilations=2)
        gradient = tf.gradients(output, inputs[1])
      with tf.compat.v1.Session(graph=graph):
        self.assertEqual(gradient[0].shape, filters.shape)
      types = [op.type for op in graph.get_operations()]
    self.assertIn('Conv2DBackpropFilter', types)

  def test_restores_how_functions_run(self):
    with tf.Graph().as_default():
      with unit_convolution.vectorizable_convolutions():
        self.assertTrue(tf.config.functions_run_eagerly())
    self.assertFalse(tf.config.functions_run_eagerly())


if __name__ == '__main__':
  absltest.main()
