"""Metrics against figures worked out by hand and against scikit-learn."""

from __future__ import annotations

import math
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import special
from sklearn import metrics as sklearn_metrics
import tensorflow as tf

from tff_medical import _validate
from tff_medical import models
from tff_medical.data import pixels
from tff_medical.learning import evaluation

_BINARY = ('normal', 'pneumonia')


def _names(count):
  return tuple(f'c{k}' for k in range(count))


class ByHandTest(parameterized.TestCase):
  def test_binary(self):
    # Margins of class 1; the truth orders 5 of 6 pairs rightly.
    margin = np.array([-2.0, -1.0, 1.0, 0.5, 2.0])
    labels = np.array([0, 0, 0, 1, 1])
    logits = np.stack([np.zeros(5), margin], axis=1)
    found = evaluation.metrics(logits, labels, class_names=_BINARY)
    loss = np.mean(np.log1p(np.exp(np.where(labels == 1, -margin, margin))))
    expected = {
      'loss': loss,
      'accuracy': 4 / 5,
      'balanced_accuracy': (2 / 3 + 1) / 2,
      'auc': 5 / 6,
      'sensitivity/normal': 2 / 3,
      'sensitivity/pneumonia': 1.0,
      'specificity/normal': 1.0,
      'specificity/pneumonia': 2 / 3,
    }
    self.assertEqual(list(found), list(expected))
    for name, value in expected.items():
      self.assertIs(type(found[name]), float)
      self.assertAlmostEqual(found[name], value, msg=name)

  def test_multi_label(self):
    logits = np.array([[1.0, -1.0], [-1.0, 1.0], [2.0, 2.0], [0.0, -3.0]])
    labels = np.array([[1, 0], [0, 0], [0, 1], [1, 0]])
    found = evaluation.metrics(
      logits, labels, class_names=('a', 'b'), multi_label=True
    )
    p = special.expit(logits)
    loss = -np.mean(np.log(np.where(labels == 1, p, 1 - p)))
    self.assertAlmostEqual(found['loss'], loss)
    self.assertAlmostEqual(found['accuracy'], 6 / 8)
    self.assertAlmostEqual(found['sensitivity/a'], 1.0)
    self.assertAlmostEqual(found['specificity/a'], 1 / 2)
    self.assertAlmostEqual(found['sensitivity/b'], 1.0)
    self.assertAlmostEqual(found['specificity/b'], 2 / 3)
    self.assertAlmostEqual(found['balanced_accuracy'], (3 / 4 + 5 / 6) / 2)
    self.assertAlmostEqual(found['auc'], (2 / 4 + 3 / 3) / 2)

  def test_unknown_findings_are_left_out(self):
    logits = np.array(
      [[1.0, -1.0, 2], [-1.0, 1.0, 1], [2.0, 2.0, 0], [0.0, -3.0, 9]]
    )
    labels = np.array([[1, -1, -1], [0, 0, -1], [-1, 1, 1], [0, 0, -1]])
    found = evaluation.metrics(
      logits, labels, class_names=('a', 'b', 'c'), multi_label=True
    )
    # Right: a of rows 0 and 1, b of rows 2 and 3, c of row 2.
    self.assertAlmostEqual(found['accuracy'], 5 / 7)
    margins = [1.0, 1.0, 0.0, -1.0, 2.0, 3.0, 0.0]
    loss = np.mean(np.log1p(np.exp(-np.array(margins))))
    self.assertAlmostEqual(found['loss'], loss)
    self.assertAlmostEqual(found['sensitivity/a'], 1.0)
    self.assertAlmostEqual(found['specificity/a'], 1 / 2)
    self.assertAlmostEqual(found['sensitivity/b'], 1.0)
    self.assertAlmostEqual(found['specificity/b'], 1 / 2)
    self.assertAlmostEqual(found['sensitivity/c'], 1.0)
    self.assertTrue(math.isnan(found['specificity/c']))
    # c has labels of one kind alone.
    self.assertAlmostEqual(found['balanced_accuracy'], 3 / 4)
    self.assertAlmostEqual(found['auc'], (2 / 2 + 2 / 2) / 2)

  def test_each_finding_is_as_if_the_unknown_images_were_not_there(self):
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(80, 3))
    labels = rng.integers(-1, 2, (80, 3))
    found = evaluation.metrics(
      logits, labels, class_names=_names(3), multi_label=True
    )
    alone = []
    for k in range(3):
      known = labels[:, k] >= 0
      part = evaluation.metrics(
        logits[known, k : k + 1],
        labels[known, k : k + 1],
        class_names=(f'c{k}',),
        multi_label=True,
      )
      alone.append(part['auc'])
      for name in (f'sensitivity/c{k}', f'specificity/c{k}'):
        self.assertEqual(found[name], part[name])
    self.assertAlmostEqual(found['auc'], np.mean(alone))

  def test_a_site_of_which_nothing_is_known_has_no_figures(self):
    labels = np.array([[-1, -1], [0, 1]])
    found = evaluation.by_group(
      np.zeros((2, 2)),
      labels,
      np.array([0, 1]),
      class_names=_BINARY,
      multi_label=True,
    )
    of_site = [v for n, v in found.items() if n.startswith('site/0/')]
    self.assertLen(of_site, 8)
    self.assertTrue(all(map(math.isnan, of_site)))
    self.assertAlmostEqual(found['site/1/loss'], np.log(2))

  def test_a_class_without_labels_is_nan_and_left_out(self):
    logits = np.array([[3.0, 0, 0], [0, 3, 0], [0, 0, 3], [0, 3, 0]])
    labels = np.array([0, 1, 1, 1])
    found = evaluation.metrics(logits, labels, class_names=_names(3))
    self.assertTrue(math.isnan(found['sensitivity/c2']))
    self.assertAlmostEqual(found['specificity/c2'], 3 / 4)
    self.assertAlmostEqual(found['balanced_accuracy'], (1 + 2 / 3) / 2)
    p = special.softmax(logits, axis=1)
    areas = [
      sklearn_metrics.roc_auc_score(labels == k, p[:, k]) for k in (0, 1)
    ]
    self.assertAlmostEqual(found['auc'], np.mean(areas))

  @parameterized.parameters(False, True)
  def test_labels_of_one_kind_leave_no_auc(self, multi_label):
    labels = np.zeros((3, 2) if multi_label else 3, int)
    found = evaluation.metrics(
      np.array([[1.0, 0], [2, 0], [0, 1]]),
      labels,
      class_names=_BINARY,
      multi_label=multi_label,
    )
    self.assertTrue(math.isnan(found['auc']))
    self.assertTrue(math.isnan(found['sensitivity/pneumonia']))
    self.assertFalse(math.isnan(found['loss']))
    self.assertEqual(math.isnan(found['balanced_accuracy']), multi_label)

  @parameterized.parameters(np.nan, np.inf, -np.inf)
  def test_a_diverged_model_has_no_figures(self, bad):
    logits = np.array([[0.0, 1.0], [0.0, bad]])
    found = evaluation.metrics(logits, np.array([0, 1]), class_names=_BINARY)
    self.assertLen(found, 8)
    self.assertTrue(all(math.isnan(value) for value in found.values()))


class AgainstScikitLearnTest(parameterized.TestCase):
  @parameterized.parameters(2, 3, 8)
  def test_multi_class(self, classes):
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 300)
    logits = rng.normal(size=(300, classes)) + 1.5 * np.eye(classes)[labels]
    p = special.softmax(logits, axis=1)
    found = evaluation.metrics(logits, labels, class_names=_names(classes))
    sk = sklearn_metrics
    self.assertAlmostEqual(found['loss'], sk.log_loss(labels, p))
    guess = p.argmax(1)
    self.assertAlmostEqual(found['accuracy'], sk.accuracy_score(labels, guess))
    self.assertAlmostEqual(
      found['balanced_accuracy'], sk.balanced_accuracy_score(labels, guess)
    )
    auc = sk.roc_auc_score(
      labels, p[:, 1] if classes == 2 else p, multi_class='ovr'
    )
    self.assertAlmostEqual(found['auc'], auc)
    recall = sk.recall_score(labels, guess, average=None)
    for k in range(classes):
      self.assertAlmostEqual(found[f'sensitivity/c{k}'], recall[k])
      self.assertAlmostEqual(
        found[f'specificity/c{k}'],
        sk.recall_score(labels != k, guess != k),
      )

  def test_multi_label(self):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (200, 14))
    logits = rng.normal(size=(200, 14)) + labels
    found = evaluation.metrics(
      logits, labels, class_names=_names(14), multi_label=True
    )
    self.assertAlmostEqual(
      found['auc'],
      sklearn_metrics.roc_auc_score(labels, logits, average='macro'),
    )
    self.assertAlmostEqual(
      found['balanced_accuracy'],
      np.mean(
        [
          sklearn_metrics.balanced_accuracy_score(
            labels[:, k], logits[:, k] > 0
          )
          for k in range(14)
        ]
      ),
    )

  @parameterized.parameters(False, True)
  def test_probabilities_give_the_figures_of_their_logits(self, multi_label):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(50, 3))
    labels = rng.integers(0, 2, (50, 3) if multi_label else 50)
    p = special.expit(logits) if multi_label else special.softmax(logits, 1)
    options = {'class_names': _names(3), 'multi_label': multi_label}
    expected = evaluation.metrics(logits, labels, **options)
    found = evaluation.metrics(p, labels, from_logits=False, **options)
    for name, value in expected.items():
      np.testing.assert_allclose(found[name], value, err_msg=name)

  @parameterized.parameters(False, True)
  def test_sure_and_wrong_probabilities_have_a_finite_loss(self, multi_label):
    labels = np.array([[0, 1]] * 2) if multi_label else np.array([1, 1])
    found = evaluation.metrics(
      np.array([[1.0, 0.0], [0.0, 1.0]]),
      labels,
      class_names=_BINARY,
      multi_label=multi_label,
      from_logits=False,
    )
    self.assertAlmostEqual(found['loss'], -np.log(1e-15) / 2, places=1)


class ByGroupTest(absltest.TestCase):
  def test_each_group_alone_in_sorted_order(self):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(60, 2)), rng.integers(0, 2, 60)
    sites = rng.permutation(np.repeat([10, 2, 3], 20))
    found = evaluation.by_group(logits, labels, sites, class_names=_BINARY)
    self.assertEqual(
      list(dict.fromkeys(name.split('/')[1] for name in found)),
      ['2', '3', '10'],
    )
    for site in (2, 3, 10):
      alone = evaluation.metrics(
        logits[sites == site], labels[sites == site], class_names=_BINARY
      )
      for name, value in alone.items():
        self.assertEqual(found[f'site/{site}/{name}'], value)

  def test_named_groups(self):
    found = evaluation.by_group(
      np.eye(2),
      np.array([0, 1]),
      np.array(['Berne', 'Aarau']),
      class_names=_BINARY,
      prefix='hospital',
    )
    self.assertEqual(next(iter(found)), 'hospital/Aarau/loss')
    self.assertEqual(found['hospital/Berne/accuracy'], 1.0)


class RefusalTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('none', np.zeros((0, 2)), np.zeros(0, int), 'at least one image'),
    ('classes', np.zeros((1, 3)), np.zeros(1, int), r'scores must be \[N, 2'),
    ('count', np.zeros((2, 2)), np.zeros(3, int), r'integers \[2\], got'),
    ('column', np.zeros((2, 2)), np.zeros((2, 1), int), r'integers \[2\]'),
    ('floats', np.zeros((2, 2)), np.zeros(2), 'must be integers'),
    ('high', np.zeros((2, 2)), np.array([0, 2]), r'0..1, got 0..2'),
    ('low', np.zeros((2, 2)), np.array([-1, 0]), r'got -1..0'),
  )
  def test_labels_that_do_not_fit(self, scores, labels, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      evaluation.metrics(scores, labels, class_names=_BINARY)

  def test_groups_that_do_not_fit(self):
    with self.assertRaisesRegex(_validate.InputError, 'groups must have'):
      evaluation.by_group(
        np.eye(2), np.array([0, 1]), np.zeros(3), class_names=_BINARY
      )


class EvaluateTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.model = models.build(
      'cnn_small', input_shape=(12, 10, 3), num_outputs=2, seed=0
    )
    rng = np.random.default_rng(0)
    self.images = rng.integers(0, 256, (7, 12, 10, 3), dtype=np.uint8)
    self.labels = np.array([0, 1, 0, 1, 0, 1, 1])

  @parameterized.parameters(1, 3, 7, 100)
  def test_predictions_do_not_depend_on_the_batch(self, batch_size):
    expected = self.model(tf.constant(self.images / 255.0, tf.float32))
    found = evaluation.predict(self.model, self.images, batch_size=batch_size)
    self.assertEqual(found.dtype, np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-5)

  def test_no_images_give_no_predictions(self):
    found = evaluation.predict(self.model, self.images[:0])
    self.assertEqual(found.shape, (0, 2))

  def test_stored_images_are_predicted_batch_by_batch(self):
    path = pathlib.Path(self.create_tempdir().full_path, 'images.raw')
    self.images.tofile(path)
    stored = pixels.StoredPixels(path, self.images.shape)
    with absltest.mock.patch.object(
      pixels.StoredPixels, 'rows', autospec=True
    ) as rows:
      rows.side_effect = lambda _, indices: self.images[indices]
      found = evaluation.predict(self.model, stored, batch_size=3)
    self.assertEqual([len(c.args[1]) for c in rows.mock_calls], [3, 3, 1])
    expected = evaluation.predict(self.model, self.images, batch_size=3)
    np.testing.assert_array_equal(found, expected)
    found = evaluation.predict(self.model, stored, batch_size=3)
    np.testing.assert_array_equal(found, expected)

  def test_overall_and_by_site(self):
    sites = np.array([0, 0, 0, 1, 1, 1, 1])
    logits = evaluation.predict(self.model, self.images)
    options = {'class_names': _BINARY}
    expected = evaluation.metrics(logits, self.labels, **options)
    expected.update(evaluation.by_group(logits, self.labels, sites, **options))
    found = evaluation.evaluate(logits, self.labels, sites=sites, **options)
    self.assertEqual(list(found), list(expected))
    np.testing.assert_array_equal(list(found.values()), list(expected.values()))

  def test_images_that_do_not_fit(self):
    for images in (self.images / 255.0, self.images[..., :1]):
      with self.assertRaisesRegex(_validate.InputError, 'must be uint8'):
        evaluation.predict(self.model, images)


if __name__ == '__main__':
  absltest.main()
