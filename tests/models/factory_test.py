"""What each model promises: shapes, sizes, seeds, range and refusals."""

from __future__ import annotations

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import special
import tensorflow as tf

from tff_medical import _validate
from tff_medical import models
from tff_medical.data import label_values


def _images(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).random(shape, dtype=np.float32)


class BuildTest(parameterized.TestCase):
  @parameterized.parameters(
    ('cnn_small', (28, 28, 1), 2, 14_194),
    ('cnn_small', (28, 28, 3), 8, 14_680),
    ('cnn', (28, 28, 1), 2, 93_154),
    ('cnn', (28, 28, 3), 8, 94_504),
    ('resnet', (64, 64, 1), 2, 172_322),
    ('resnet', (64, 64, 3), 8, 174_472),
    ('resnet', (224, 224, 1), 2, 172_322),
    ('resnet', (224, 224, 3), 8, 174_472),
  )
  def test_shapes_and_documented_sizes(self, name, shape, outputs, parameters):
    model = models.build(name, input_shape=shape, num_outputs=outputs)
    self.assertEqual(model.count_params(), parameters)
    self.assertEqual(model.input_shape, (None, *shape))
    self.assertEqual(model.output_shape, (None, outputs))
    self.assertEqual(model.input.dtype, tf.float32)
    row = next(
      line
      for line in models.factory.__doc__.splitlines()
      if line.startswith(f'| {name} ')
    )
    self.assertIn(f' {parameters:,} ', row)

  @parameterized.parameters(*models.MODELS)
  def test_smallest_images_work_and_smaller_are_refused(self, name):
    size = 32 if name == 'resnet' else 8
    model = models.build(name, input_shape=(size, size, 1), num_outputs=2)
    out = model(_images((2, size, size, 1))).numpy()
    self.assertTrue(np.isfinite(out).all())
    for shape in ((size - 1, size, 1), (size, size - 1, 1)):
      with self.assertRaisesRegex(_validate.InputError, f'{size} x {size}'):
        models.build(name, input_shape=shape, num_outputs=2)

  @parameterized.parameters(*models.MODELS)
  def test_seed_alone_decides_the_weights(self, name):
    def weights(seed, global_seed):
      tf.keras.utils.set_random_seed(global_seed)
      model = models.build(
        name, input_shape=(32, 32, 1), num_outputs=2, seed=seed
      )
      return model.get_weights()

    first, again, other = weights(7, 1), weights(7, 2), weights(8, 1)
    for a, b in zip(first, again):
      np.testing.assert_array_equal(a, b)
    self.assertFalse(np.array_equal(first[0], other[0]))
    fresh, fresh_too = weights(None, 1), weights(None, 2)
    self.assertFalse(np.array_equal(fresh[0], fresh_too[0]))

  def test_layers_do_not_share_a_seed(self):
    model = models.build(
      'resnet', input_shape=(32, 32, 1), num_outputs=2, seed=7
    )
    kernels = [w.ravel()[:8] for w in model.get_weights() if w.ndim > 1]
    scaled = {tuple(np.round(k / np.abs(k).max(), 3)) for k in kernels}
    self.assertLen(scaled, len(kernels))

  def test_black_and_white_become_minus_one_and_one(self):
    model = models.build('cnn', input_shape=(8, 8, 1), num_outputs=2)
    rescale = tf.keras.Model(model.input, model.layers[1].output)
    values = np.stack([np.zeros((8, 8, 1)), np.ones((8, 8, 1))])
    np.testing.assert_array_equal(rescale(values), 2 * values - 1)

  @parameterized.parameters(*models.MODELS)
  def test_images_of_a_batch_do_not_touch_each_other(self, name):
    model = models.build(name, input_shape=(32, 32, 3), num_outputs=3)
    images = _images((4, 32, 32, 3))
    together = model(images, training=True).numpy()
    alone = model(images[2:3], training=True).numpy()
    np.testing.assert_allclose(together[2:3], alone, atol=1e-5)

  @parameterized.named_parameters(
    ('name', {'name': 'densenet'}, 'model must be one of'),
    ('no_channel', {'input_shape': (28, 28)}, 'input_shape must be'),
    ('rgba', {'input_shape': (28, 28, 4)}, 'input_shape must be'),
    ('no_size', {'input_shape': (None, 28, 1)}, 'height must be a whole'),
    ('no_outputs', {'num_outputs': 0}, 'num_outputs must be positive'),
    ('seed', {'seed': -1}, 'seed must be 0 or more'),
  )
  def test_bad_arguments(self, change, message):
    good = {'name': 'cnn', 'input_shape': (28, 28, 1), 'num_outputs': 2}
    with self.assertRaisesRegex(_validate.InputError, message):
      models.build(**{**good, **change})


class LossTest(parameterized.TestCase):
  def test_multi_class_is_the_mean_negative_log_softmax(self):
    logits = np.array([[0.0, 0.0], [0.0, np.log(3.0)]], np.float32)
    loss = models.loss(multi_label=False)(np.array([1, 0]), logits)
    self.assertAlmostEqual(
      float(loss), (np.log(2.0) + np.log(4.0)) / 2, places=6
    )

  def test_multi_label_is_the_mean_over_labels_and_batch(self):
    logits = np.array([[0.0, np.log(3.0)], [0.0, 0.0]], np.float32)
    loss = models.loss(multi_label=True)(np.array([[1, 1], [0, 1]]), logits)
    expected = (3 * np.log(2.0) + np.log(4 / 3)) / 4
    self.assertAlmostEqual(float(loss), expected, places=6)

  def test_unknown_findings_are_no_part_of_loss_or_gradient(self):
    self.assertEqual(models.UNKNOWN, label_values.UNKNOWN)
    labels = np.array([[1, -1, 0], [-1, -1, 1], [-1, -1, -1]])
    # What is predicted of an unknown finding is of no effect, however extreme.
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 3)).astype(np.float32)
    loss = models.loss(multi_label=True)
    for unknown in (0.0, -1e30, 1e30):
      logits = tf.Variable(np.where(labels == -1, np.float32(unknown), values))
      with tf.GradientTape() as tape:
        found = loss(labels, logits)
      p = special.expit(values)
      first = -(np.log(p[0, 0]) + np.log(1 - p[0, 2])) / 2
      expected = (first - np.log(p[1, 2]) + 0) / 3
      self.assertAlmostEqual(float(found), expected, places=6)
      gradient = np.zeros((3, 3))
      gradient[0, [0, 2]] = np.array([p[0, 0] - 1, p[0, 2]]) / 2
      gradient[1, 2] = p[1, 2] - 1
      np.testing.assert_allclose(
        tape.gradient(found, logits), gradient / 3, atol=1e-7
      )

  def test_smoothed_classes_are_mixed_with_the_uniform_distribution(self):
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(5, 3)).astype(np.float32)
    labels = np.array([0, 2, 1, 1, 0])
    logs = np.log(special.softmax(logits.astype(np.float64), axis=1))
    plain = -logs[np.arange(5), labels]
    for smoothing in (0.1, 0.9):
      expected = (1 - smoothing) * plain - smoothing * logs.mean(axis=1)
      found = models.loss(False, label_smoothing=smoothing)(labels, logits)
      self.assertAlmostEqual(float(found), expected.mean(), places=6)

  def test_smoothed_findings_leave_unknown_ones_out(self):
    rng = np.random.default_rng(3)
    labels = np.array([[1, -1, 0], [-1, -1, 1], [-1, -1, -1]])
    values = rng.normal(size=(3, 3)).astype(np.float32)
    p, targets = special.expit(values), np.where(labels == 1, 0.9, 0.1)
    losses = -targets * np.log(p) - (1 - targets) * np.log(1 - p)
    expected = ((losses[0, 0] + losses[0, 2]) / 2 + losses[1, 2]) / 3
    for unknown in (0.0, -1e30, 1e30):
      logits = tf.Variable(np.where(labels == -1, np.float32(unknown), values))
      with tf.GradientTape() as tape:
        found = models.loss(True, label_smoothing=0.2)(labels, logits)
      self.assertAlmostEqual(float(found), expected, places=6)
      gradient = tape.gradient(found, logits).numpy()
      np.testing.assert_array_equal(gradient[labels == -1], 0)
      self.assertAlmostEqual(gradient[1, 2], (p[1, 2] - 0.9) / 3, places=6)

  def test_class_weights_multiply_the_loss_of_each_record(self):
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(4, 3)).astype(np.float32)
    labels = np.array([0, 2, 1, 1])
    plain = -np.log(special.softmax(logits, axis=1))[np.arange(4), labels]
    for scale in (1.0, 1e6):  # Only ratios matter: the mean is 1.
      weights = [1.0 * scale, 2.0 * scale, 6.0 * scale]
      found = models.loss(False, class_weights=weights)(labels, logits)
      expected = np.mean(plain * np.array([1, 6, 2, 2]) / 3)
      self.assertAlmostEqual(float(found), expected, places=5)
    equal = models.loss(False, class_weights=[5.0] * 3)(labels, logits)
    self.assertAlmostEqual(float(equal), plain.mean(), places=6)

  def test_weights_are_bounded_by_the_number_of_classes(self):
    extreme = models.loss(False, class_weights=[1e-30, 1e30, 1e-30])
    logits = np.zeros((1, 3), np.float32)
    self.assertAlmostEqual(
      float(extreme(np.array([1]), logits)), 3 * np.log(3.0), places=5
    )

  @parameterized.parameters(
    (False, {'label_smoothing': 1.0}, 'label_smoothing'),
    (False, {'label_smoothing': -0.1}, 'label_smoothing'),
    (False, {'class_weights': [1.0, 0.0]}, 'class_weights must be positive'),
    (True, {'class_weights': [1.0, 2.0]}, 'class_weights.*multi-label'),
  )
  def test_refuses(self, multi_label, values, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      models.loss(multi_label, **values)

  def test_masking_a_finding_is_dropping_it(self):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(6, 4)).astype(np.float32)
    labels = rng.integers(0, 2, (6, 4))
    masked = labels.copy()
    masked[:, 2] = models.UNKNOWN
    loss = models.loss(multi_label=True)
    kept = [0, 1, 3]
    self.assertAlmostEqual(
      float(loss(masked, logits)),
      float(loss(labels[:, kept], logits[:, kept])),
      places=6,
    )


if __name__ == '__main__':
  absltest.main()
