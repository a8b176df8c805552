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
from tff_medical.learning import exact_gradients
from tff_medical.learning import layer_gradients
from tff_medical.learning import unit_gradients


def _run(model, trainable, data, views=None):
  """Returns [units, parameters]."""
  way = exact_gradients.find_way(model)
  with tf.Graph().as_default() as graph:
    batch = collections.OrderedDict(
      (name, tf.compat.v1.placeholder(spec.dtype, spec.shape))
      for name, spec in unit_gradients.batch_spec(model).items()
    )
    weights = tff.learning.models.ModelWeights(
      tuple(tf.constant(w) for w in trainable), ()
    )
    found = unit_gradients.unit_gradients(model, way, weights, batch, views)
    with tf.compat.v1.Session(graph=graph) as session:
      found = session.run(
        list(found), {batch[name]: data[name] for name in batch}
      )
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

  def test_products_stay_factors(self):
    # So no unit's gradient is written down before it is clipped and summed.
    spec = collections.OrderedDict(
      x=tf.TensorSpec((None, 6), tf.float32), y=tf.TensorSpec((None,), tf.int64)
    )
    keras_model = tf.keras.Sequential(
      [tf.keras.layers.Input((6,)), tf.keras.layers.Dense(3)]
    )
    model = tff.learning.models.functional_model_from_keras(
      keras_model, models.loss(multi_label=False), spec
    )
    with tf.Graph().as_default():
      batch = collections.OrderedDict(
        (name, tf.compat.v1.placeholder(spec.dtype, spec.shape))
        for name, spec in unit_gradients.batch_spec(model).items()
      )
      weights = tff.learning.models.ModelWeights(
        tuple(tf.constant(w) for w in model.initial_weights[0]), ()
      )
      gradients = unit_gradients.unit_gradients(
        model, unit_gradients.by_rules, weights, batch
      )
    kernel, bias = gradients.parts
    self.assertIsInstance(kernel, layer_gradients.Factors)
    self.assertEqual(kernel.shape, (6, 3))
    self.assertEqual(kernel.inputs.shape.as_list()[2:], [6])
    self.assertTrue(tf.is_tensor(bias))

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

  @parameterized.parameters(1, 3)
  def test_layers_without_a_rule(self, images):
    """A weight that is used in a function of it, and twice."""

    def predict(weights, x, training=True):
      del training
      matrix, scale = weights[0]
      x = tf.reshape(x, (-1, 60)) @ tf.sin(matrix)
      return x * tf.reshape(scale, (1, 3)) + tf.reduce_sum(scale)

    weights = unit_models.weights()
    weights = (np.ones((60, 3), np.float32), weights[-1])
    model = tff.learning.models.FunctionalModel(
      initial_weights=(weights, ()),
      predict_on_batch_fn=tf.function(predict),
      loss_fn=unit_models.loss,
      input_spec=unit_models.model().input_spec,
    )
    data = unit_models.units(0, 4, images)
    found = _run(model, weights, data)
    expected = unit_models.gradients_one_by_one(weights, data, predict)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)

  def test_leaves_functions_to_run_as_before(self):
    _run(unit_models.model(), unit_models.weights(), unit_models.units(0, 1))
    self.assertFalse(tf.config.functions_run_eagerly())

  def test_averages_over_views(self):
    """A constant image looks the same from every shift."""
    data = unit_models.units(0, 2, images=2)
    data['x'][:] = np.arange(2)[:, None, None, None, None]
    weights = unit_models.weights()
    views = augmentation.Augmentation(('flip', 'shift'), views=3)
    found = _run(unit_models.model(), weights, data, views)
    expected = unit_models.gradients_one_by_one(weights, data)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


if __name__ == '__main__':
  absltest.main()
