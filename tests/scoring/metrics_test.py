"""Metrics against figures worked out by hand and against scikit-learn."""

from __future__ import annotations

import dataclasses
import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import special
from sklearn import metrics as sklearn_metrics

from tff_medical import _validate
from tff_medical.scoring import evaluation
from tff_medical.scoring import fitted
from tff_medical.scoring import metrics
from tff_medical.scoring import scored

_BINARY = ('normal', 'pneumonia')


def _names(count):
  return tuple(f'c{k}' for k in range(count))


def _images(scores, labels, class_names, multi_label=False, from_logits=True):
  make = scored.ScoredImages if from_logits else scored.of_probabilities
  return make(scores, labels, class_names, multi_label)


def _metrics(*arguments, **options):
  return metrics.metrics(_images(*arguments, **options))


def _by_group(scores, labels, groups, prefix='site', **options):
  return metrics.by_group(_images(scores, labels, **options), groups, prefix)


class ByHandTest(parameterized.TestCase):
  def test_binary(self):
    # Margins of class 1; the truth orders 5 of 6 pairs rightly.
    margin = np.array([-2.0, -1.0, 1.0, 0.5, 2.0])
    labels = np.array([0, 0, 0, 1, 1])
    logits = np.stack([np.zeros(5), margin], axis=1)
    found = _metrics(logits, labels, class_names=_BINARY)
    loss = np.mean(np.log1p(np.exp(np.where(labels == 1, -margin, margin))))
    expected = {
      'loss': loss,
      'accuracy': 4 / 5,
      'balanced_accuracy': (2 / 3 + 1) / 2,
      'auc': 5 / 6,
      'f1': (4 / 5 + 4 / 5) / 2,
      'ece': found['ece'],
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
    found = _metrics(logits, labels, class_names=('a', 'b'), multi_label=True)
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
    found = _metrics(
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
    found = _metrics(logits, labels, class_names=_names(3), multi_label=True)
    alone = []
    for k in range(3):
      known = labels[:, k] >= 0
      part = _metrics(
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
    found = _by_group(
      np.zeros((2, 2)),
      labels,
      np.array([0, 1]),
      class_names=_BINARY,
      multi_label=True,
    )
    of_site = [v for n, v in found.items() if n.startswith('site/0/')]
    self.assertLen(of_site, 10)
    self.assertTrue(all(map(math.isnan, of_site)))
    self.assertAlmostEqual(found['site/1/loss'], np.log(2))

  def test_a_class_without_labels_is_nan_and_left_out(self):
    logits = np.array([[3.0, 0, 0], [0, 3, 0], [0, 0, 3], [0, 3, 0]])
    labels = np.array([0, 1, 1, 1])
    found = _metrics(logits, labels, class_names=_names(3))
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
    found = _metrics(
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
    found = _metrics(logits, np.array([0, 1]), class_names=_BINARY)
    self.assertLen(found, 10)
    self.assertTrue(all(math.isnan(value) for value in found.values()))


class AgainstScikitLearnTest(parameterized.TestCase):
  @parameterized.parameters(2, 3, 8)
  def test_multi_class(self, classes):
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 300)
    logits = rng.normal(size=(300, classes)) + 1.5 * np.eye(classes)[labels]
    p = special.softmax(logits, axis=1)
    found = _metrics(logits, labels, class_names=_names(classes))
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
    self.assertAlmostEqual(
      found['f1'], sk.f1_score(labels, guess, average='macro')
    )
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
    found = _metrics(logits, labels, class_names=_names(14), multi_label=True)
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
    expected = _metrics(logits, labels, **options)
    found = _metrics(p, labels, from_logits=False, **options)
    for name, value in expected.items():
      np.testing.assert_allclose(found[name], value, err_msg=name)

  @parameterized.parameters(False, True)
  def test_sure_and_wrong_probabilities_have_a_finite_loss(self, multi_label):
    labels = np.array([[0, 1]] * 2) if multi_label else np.array([1, 1])
    found = _metrics(
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
    found = _by_group(logits, labels, sites, class_names=_BINARY)
    self.assertEqual(
      list(dict.fromkeys(name.split('/')[1] for name in found)),
      ['2', '3', '10'],
    )
    for site in (2, 3, 10):
      alone = _metrics(
        logits[sites == site], labels[sites == site], class_names=_BINARY
      )
      for name, value in alone.items():
        self.assertEqual(found[f'site/{site}/{name}'], value)

  def test_named_groups(self):
    found = _by_group(
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
      _metrics(scores, labels, class_names=_BINARY)

  def test_groups_that_do_not_fit(self):
    with self.assertRaisesRegex(_validate.InputError, 'groups must have'):
      _by_group(np.eye(2), np.array([0, 1]), np.zeros(3), class_names=_BINARY)


class OverallTest(absltest.TestCase):
  def _images(self):
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, 60)
    return scored.ScoredImages(
      rng.normal(size=(60, 2)) + 2 * np.eye(2)[labels],
      labels,
      _BINARY,
      sites=np.repeat([0, 1, 2], 20),
    )

  def test_overall_then_worst_site_then_each_site(self):
    images = self._images()
    values = evaluation.overall_and_by_site(images)
    expected = metrics.metrics(images)
    self.assertEqual(list(values)[: len(expected)], list(expected))
    for metric in evaluation.WORST_SITE:
      by_site = [values[f'site/{site}/{metric}'] for site in range(3)]
      self.assertEqual(values[f'worst_site/{metric}'], min(by_site))
      self.assertGreater(len(set(by_site)), 1)

  def test_a_site_without_an_auc_is_not_the_worst(self):
    images = self._images()
    labels = np.where(images.sites == 1, 1, images.labels)
    values = evaluation.overall_and_by_site(
      dataclasses.replace(images, labels=labels)
    )
    self.assertTrue(math.isnan(values['site/1/auc']))
    self.assertEqual(
      values['worst_site/auc'], min(values['site/0/auc'], values['site/2/auc'])
    )

  def test_own_metrics_get_probabilities_and_labels(self):
    images = self._images()
    values = evaluation.overall_and_by_site(
      images,
      own_metrics={
        'own/brier': lambda p, y: ((p - np.eye(2)[y]) ** 2).sum(1).mean()
      },
    )
    expected = sklearn_metrics.brier_score_loss(
      images.labels, special.softmax(images.logits, 1)[:, 1]
    )
    self.assertAlmostEqual(values['own/brier'], 2 * expected)
    with self.assertRaisesRegex(
      _validate.InputError, 'own_metrics: own/bad failed .ZeroDivisionError'
    ):
      evaluation.overall_and_by_site(
        images, own_metrics={'own/bad': lambda p, y: 1 / 0}
      )


class OrdinalTest(absltest.TestCase):
  def test_against_scikit_learn(self):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 5, 200)
    logits = rng.normal(size=(200, 5)) + 2 * np.eye(5)[labels]
    found = metrics.metrics(
      scored.ScoredImages(logits, labels, _names(5), is_ordinal=True)
    )
    guess = logits.argmax(1)
    self.assertAlmostEqual(
      found['kappa'],
      sklearn_metrics.cohen_kappa_score(labels, guess, weights='quadratic'),
    )
    self.assertAlmostEqual(
      found['mae'], sklearn_metrics.mean_absolute_error(labels, guess)
    )

  def test_findings_have_no_order(self):
    with self.assertRaisesRegex(_validate.InputError, 'is_ordinal'):
      scored.ScoredImages(
        np.zeros((1, 2)), np.zeros((1, 2), int), _BINARY, True, True
      )


class WeightsTest(parameterized.TestCase):
  """A weight counts as that many copies of the image."""

  @parameterized.parameters(False, True)
  def test_weights_are_copies(self, multi_label):
    rng = np.random.default_rng(7)
    labels = rng.integers(-1 if multi_label else 0, 2, (50, 3))
    logits = rng.normal(size=(50, 3)).round(1)  # Some scores are equal.
    if not multi_label:
      labels = rng.integers(0, 3, 50)
    images = scored.ScoredImages(
      logits, labels, _names(3), multi_label, not multi_label
    )
    fit = fitted.fit(images)
    measures = metrics.Measures(images, fit)
    weights = rng.integers(0, 3, (4, 50)).astype(float)
    values = measures.values(weights)
    for row, weight in zip(values, weights):
      copies = images.take(np.repeat(np.arange(50), weight.astype(int)))
      expected = metrics.metrics(copies, fit)
      self.assertEqual(measures.names, tuple(expected))
      np.testing.assert_allclose(row, list(expected.values()), atol=1e-12)


class EqualScoresTest(absltest.TestCase):
  def test_auc_counts_them_half_and_weighs_images(self):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 80)
    margin = (rng.normal(size=80) + labels).round()
    logits = np.stack([np.zeros(80), margin], axis=1)
    weights = rng.integers(0, 4, 80).astype(float)
    measures = metrics.Measures(scored.ScoredImages(logits, labels, _BINARY))
    found = measures.values(weights[None])[0, measures.names.index('auc')]
    expected = sklearn_metrics.roc_auc_score(
      labels, margin, sample_weight=weights
    )
    self.assertAlmostEqual(found, expected)


class CalibrationTest(absltest.TestCase):
  def test_error_by_hand(self):
    # Bins (8/15, 9/15] and (12/15, 13/15]: gaps of .6 - 1/2 and .85 - 1.
    p = np.array([[0.4, 0.6], [0.4, 0.6], [0.15, 0.85], [0.15, 0.85]])
    images = scored.of_probabilities(p, np.array([1, 0, 1, 1]), _BINARY)
    self.assertAlmostEqual(
      metrics.metrics(images)['ece'], (2 * 0.1 + 2 * 0.15) / 4
    )

  def test_temperature_undoes_a_factor(self):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 3))
    uniform = rng.random((20_000, 1))
    labels = (special.softmax(logits, 1).cumsum(1) < uniform).sum(1)
    images = scored.ScoredImages(4 * logits, labels, _names(3))
    fit = fitted.fit(images)
    self.assertAlmostEqual(fit.temperature, 4, delta=0.2)
    found = metrics.metrics(images, fit)
    self.assertLess(found['ece_with_temperature'], 0.02)
    self.assertGreater(found['ece'], 0.15)


class ThresholdTest(parameterized.TestCase):
  @parameterized.parameters(0.5, 0.9, 0.95, 0.99)
  def test_has_the_specificity_and_is_the_lowest(self, specificity):
    rng = np.random.default_rng(0)
    negatives = rng.random(200).round(2)
    chosen = fitted.threshold(negatives, specificity)
    self.assertGreaterEqual((negatives < chosen).mean(), specificity)
    lower = np.nextafter(chosen, 0)
    self.assertLess((negatives < lower).mean(), specificity)

  def test_is_tried_on_other_images(self):
    rng = np.random.default_rng(0)

    def images(count):
      labels = rng.integers(0, 2, count)
      logits = rng.normal(size=(count, 2)) + np.eye(2)[labels]
      return scored.ScoredImages(logits, labels, _BINARY)

    validation, test = images(300), images(200)
    result = evaluation.evaluate(test, validation, 0.8)
    p = special.softmax(test.logits, 1)[:, 1]
    flagged = p >= result.fitted['threshold/pneumonia']
    self.assertAlmostEqual(
      result.metrics['sensitivity_at/pneumonia'],
      flagged[test.labels == 1].mean(),
    )
    self.assertAlmostEqual(
      result.metrics['specificity_at/pneumonia'],
      1 - flagged[test.labels == 0].mean(),
    )
    itself = dataclasses.replace(validation, split_name='validation')
    self.assertEqual(evaluation.evaluate(itself, itself).fitted, {})


if __name__ == '__main__':
  absltest.main()
