"""Tests that an unknown finding is no part of a gradient, loss or clip.

The expected gradients are computed without any label of an unknown finding: in
closed form for a model of one layer, and from the known outputs alone for a
convolutional one.
"""

import collections

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import special
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import learning
from tff_medical import models
from tff_medical import runtime
from tff_medical.data import label_values
from tff_medical.learning import exact_gradients
from tff_medical.learning import unit_gradients
from tff_medical.privacy import aggregators
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling

# All known, one unknown, one known, none known.
_FINDINGS = np.array(
  [[1, 0, 1], [-1, 0, 1], [0, -1, -1], [-1, -1, -1]], np.float32
)
_FEATURES = 5
_CLIP_NORM = 0.05


def _units(x, y):
  return collections.OrderedDict(
    x=x[:, np.newaxis], y=y[:, np.newaxis], mask=np.ones((len(x), 1), 'f')
  )


def _functional(keras_model):
  spec = collections.OrderedDict(
    x=tf.TensorSpec((None, *keras_model.input_shape[1:])),
    y=tf.TensorSpec((None, 3)),
  )
  return tff.learning.models.functional_model_from_keras(
    keras_model, models.loss(multi_label=True), spec
  )


def _layer():
  return tf.keras.Sequential(
    [tf.keras.layers.InputLayer((_FEATURES,)), tf.keras.layers.Dense(3)]
  )


def _gradients_of_layer(weights, x, y):
  """Returns [units, parameters]; see Bishop 2006, section 4.3.2."""
  kernel, bias = weights
  error = special.expit(x @ kernel + bias) - y
  error[y == label_values.UNKNOWN] = 0
  known = np.maximum((y != label_values.UNKNOWN).sum(axis=1, keepdims=True), 1)
  error /= known
  outer = x[:, :, np.newaxis] * error[:, np.newaxis]
  return np.concatenate([outer.reshape(len(x), -1), error], axis=1)


def _unit_gradients(model, data):
  """Returns [units, parameters] at the initial weights."""
  way = exact_gradients.find_way(model)
  with tf.Graph().as_default() as graph:
    batch = collections.OrderedDict(
      (name, tf.compat.v1.placeholder(spec.dtype, spec.shape))
      for name, spec in unit_gradients.batch_spec(model).items()
    )
    weights = tff.learning.models.ModelWeights(
      tuple(tf.constant(w) for w in model.initial_weights[0]), ()
    )
    gradients = unit_gradients.unit_gradients(model, way, weights, batch)
    with tf.compat.v1.Session(graph=graph) as session:
      found = session.run(
        list(gradients), {batch[name]: data[name] for name in batch}
      )
  return np.concatenate([g.reshape(len(g), -1) for g in found], axis=1)


class UnitGradientsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.rng = np.random.default_rng(0)

  def test_closed_form_of_a_layer(self):
    model = _functional(_layer())
    x = self.rng.normal(size=(4, _FEATURES)).astype(np.float32)
    found = _unit_gradients(model, _units(x, _FINDINGS))
    expected = _gradients_of_layer(model.initial_weights[0], x, _FINDINGS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found[3], 0)

  def test_convolutions_with_the_known_outputs_alone(self):
    keras_model = models.build(
      'cnn_small', input_shape=(8, 8, 1), num_outputs=3, seed=0
    )
    x = self.rng.random((4, 8, 8, 1), np.float32)
    weights = keras_model.trainable_variables
    expected = []
    for image, labels in zip(x, _FINDINGS):
      known = np.flatnonzero(labels != label_values.UNKNOWN)
      with tf.GradientTape() as tape:
        output = keras_model(image[np.newaxis])
        loss = tf.constant(0.0)
        for k in known:
          sign = 2 * labels[k] - 1
          loss += tf.math.softplus(-sign * output[0, k]) / len(known)
      gradient = tape.gradient(loss, weights, unconnected_gradients='zero')
      expected.append(np.concatenate([np.ravel(g) for g in gradient]))
    # TFF's form takes the Keras model's weights, and its eager use away.
    found = _unit_gradients(_functional(keras_model), _units(x, _FINDINGS))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    self.assertGreater(np.abs(found[:3]).max(axis=1).min(), 1e-3)


def _gaussian(unit):
  return mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(1000, 8.0),
    clipping=mechanisms.FixedClipping(_CLIP_NORM),
    privacy_unit=unit,
  )


class ProcessTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    context = runtime.create_local_context(client_threads=1)
    self.enter_context(tff.framework.get_context_stack().install(context))
    rng = np.random.default_rng(1)
    self.x = rng.normal(size=(4, _FEATURES)).astype(np.float32)
    self.model = _functional(_layer())

  def _moved(self, process, data):
    state = process.initialize()
    dataset = runtime.tensor_dataset(data, batch_size=4)
    output = process.next(state, [dataset])
    before, after = (
      np.concatenate(
        [np.ravel(w) for w in process.get_model_weights(s).trainable]
      )
      for s in (state, output.state)
    )
    return after - before, aggregators.broken_units(output.metrics)

  def test_dp_sgd_sums_clipped_gradients_of_known_findings(self):
    process = learning.build_dp_sgd(
      self.model, _gaussian('record'), count_broken=True
    )
    found, broken = self._moved(process, _units(self.x, _FINDINGS))
    gradients = _gradients_of_layer(
      self.model.initial_weights[0], self.x, _FINDINGS
    )
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    self.assertGreater(norms[:3].min(), _CLIP_NORM)
    clipped = gradients * np.minimum(1, _CLIP_NORM / np.maximum(norms, 1e-9))
    np.testing.assert_allclose(found, -clipped.sum(axis=0) / 8.0, atol=1e-6)
    self.assertEqual(broken, 0)

  @parameterized.parameters((-1.0, 0), (-2.0, 1), (0.5, 1), (np.nan, 1))
  def test_a_client_with_unknown_findings_is_not_broken(self, value, broken):
    process = learning.build_dp_fed_avg(
      self.model,
      _gaussian('client'),
      client_optimizer=tff.learning.optimizers.build_sgdm(0.1),
      count_broken=True,
    )
    labels = np.where(_FINDINGS == label_values.UNKNOWN, value, _FINDINGS)
    data = collections.OrderedDict(x=self.x, y=labels.astype(np.float32))
    found, counted = self._moved(process, data)
    self.assertEqual(counted, broken)
    self.assertEqual(np.abs(found).max() == 0, bool(broken))


if __name__ == '__main__':
  absltest.main()
