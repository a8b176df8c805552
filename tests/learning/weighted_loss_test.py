"""Tests that smoothed and weighted losses have exact gradients by record.

The expected gradients are the closed form of a linear softmax layer.
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
from tff_medical.learning import exact_gradients
from tff_medical.learning import unit_gradients
from tff_medical.privacy import aggregators
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling

_CLASSES, _FEATURES, _SMOOTHING = 3, 5, 0.3
_WEIGHTS = (1.0, 2.0, 6.0)
_LABELS = np.array([0, 2, 1, 2])
_CLIP_NORM = 1.2


def _model():
  keras_model = tf.keras.Sequential(
    [tf.keras.layers.InputLayer((_FEATURES,)), tf.keras.layers.Dense(_CLASSES)]
  )
  spec = collections.OrderedDict(
    x=tf.TensorSpec((None, _FEATURES)), y=tf.TensorSpec((None,), tf.int64)
  )
  loss = models.loss(False, label_smoothing=_SMOOTHING, class_weights=_WEIGHTS)
  return tff.learning.models.functional_model_from_keras(
    keras_model, loss, spec
  )


def _units(x, labels=_LABELS):
  return collections.OrderedDict(
    x=x[:, np.newaxis],
    y=np.asarray(labels)[:, np.newaxis],
    mask=np.ones((len(x), 1), np.float32),
  )


def _gradients(weights, x):
  """Returns [records, parameters]; see Bishop 2006, section 4.3.4."""
  kernel, bias = weights
  targets = np.eye(_CLASSES)[_LABELS] * (1 - _SMOOTHING) + _SMOOTHING / _CLASSES
  error = special.softmax(x @ kernel + bias, axis=1) - targets
  error *= (np.array(_WEIGHTS) / np.mean(_WEIGHTS))[_LABELS][:, np.newaxis]
  outer = x[:, :, np.newaxis] * error[:, np.newaxis]
  return np.concatenate([outer.reshape(len(x), -1), error], axis=1)


class WeightedLossTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    context = runtime.create_local_context(client_threads=1)
    self.enter_context(tff.framework.get_context_stack().install(context))
    self.x = np.random.default_rng(0).normal(size=(4, _FEATURES))
    self.x = self.x.astype(np.float32)
    self.model = _model()
    self.expected = _gradients(self.model.initial_weights[0], self.x)

  def test_the_fastest_way_is_exact(self):
    self.assertIs(exact_gradients.find_way(self.model), unit_gradients.by_rules)

  @parameterized.parameters(
    unit_gradients.by_rules,
    unit_gradients.vectorized,
    unit_gradients.one_by_one,
  )
  def test_closed_form_of_a_layer(self, way):
    with tf.Graph().as_default() as graph:
      weights = tff.learning.models.ModelWeights(
        tuple(tf.constant(w) for w in self.model.initial_weights[0]), ()
      )
      batch = collections.OrderedDict(
        (name, tf.compat.v1.placeholder(spec.dtype, spec.shape))
        for name, spec in unit_gradients.batch_spec(self.model).items()
      )
      gradients = unit_gradients.unit_gradients(self.model, way, weights, batch)
      with tf.compat.v1.Session(graph=graph) as session:
        data = _units(self.x)
        found = session.run(
          list(gradients), {batch[name]: data[name] for name in batch}
        )
    found = np.concatenate([g.reshape(len(g), -1) for g in found], axis=1)
    np.testing.assert_allclose(found, self.expected, rtol=1e-5, atol=1e-6)

  def _moved(self, labels=_LABELS):
    process = learning.build_dp_sgd(
      self.model,
      mechanisms.GaussianMechanism(
        sampling=sampling.FullParticipation(4),
        clipping=mechanisms.FixedClipping(_CLIP_NORM),
        privacy_unit='record',
      ),
      count_broken=True,
    )
    state = process.initialize()
    data = runtime.tensor_dataset(_units(self.x, labels), batch_size=4)
    output = process.next(state, [data])
    before, after = (
      np.concatenate(
        [np.ravel(w) for w in process.get_model_weights(s).trainable]
      )
      for s in (state, output.state)
    )
    return before - after, aggregators.broken_units(output.metrics)

  def test_records_are_clipped_after_they_are_weighted(self):
    norms = np.linalg.norm(self.expected, axis=1, keepdims=True)
    self.assertLess(norms.min(), _CLIP_NORM)
    self.assertGreater(norms.max(), _CLIP_NORM)
    clipped = self.expected * np.minimum(1, _CLIP_NORM / norms)
    moved, broken = self._moved()
    np.testing.assert_allclose(moved, clipped.mean(axis=0), atol=1e-6)
    self.assertEqual(broken, 0)

  def test_a_label_out_of_range_is_one_broken_record(self):
    norms = np.linalg.norm(self.expected, axis=1, keepdims=True)
    clipped = self.expected * np.minimum(1, _CLIP_NORM / norms)
    moved, broken = self._moved([0, 9, 1, 2])
    np.testing.assert_allclose(
      moved, clipped[[0, 2, 3]].sum(axis=0) / 4, atol=1e-6
    )
    self.assertEqual(broken, 1)


if __name__ == '__main__':
  absltest.main()
