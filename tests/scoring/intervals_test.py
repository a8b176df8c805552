"""Bootstrap intervals against closed forms, copies, and a plain loop."""

import dataclasses

from absl.testing import absltest
import numpy as np
from scipy import stats
from sklearn import metrics as sklearn_metrics

from tff_medical import _validate
from tff_medical.scoring import intervals
from tff_medical.scoring import scored

_NAMES = ('no', 'yes')


def _images(count, seed=0, shift=1.0, **changed):
  rng = np.random.default_rng(seed)
  labels = np.arange(count) % 2
  logits = rng.normal(size=(count, 2)) + shift * np.eye(2)[labels]
  return scored.ScoredImages(logits, labels, _NAMES, **changed)


class IntervalsTest(absltest.TestCase):
  def test_accuracy_has_the_interval_of_a_binomial(self):
    images = _images(400)
    right = images.logits.argmax(1) == images.labels
    low, high = stats.binom.ppf([0.025, 0.975], 400, right.mean()) / 400
    found = intervals.intervals(images)['accuracy']
    np.testing.assert_allclose(found, (low, high), atol=0.008)

  def test_auc_is_that_of_a_plain_loop(self):
    images = _images(150)
    rng = np.random.default_rng(9)
    areas = []
    margin = images.logits[:, 1] - images.logits[:, 0]
    for _ in range(1000):
      rows = rng.integers(0, 150, 150)
      areas.append(
        sklearn_metrics.roc_auc_score(images.labels[rows], margin[rows])
      )
    expected = np.percentile(areas, [2.5, 97.5])
    found = intervals.intervals(images)['auc']
    np.testing.assert_allclose(found, expected, atol=0.012)

  def test_copies_of_patients_do_not_narrow_the_interval(self):
    images = _images(100)
    four = images.take(np.repeat(np.arange(100), 4))
    patients = np.repeat(np.random.default_rng(0).permutation(100), 4)
    by_patient = dataclasses.replace(four, clusters=patients)
    expected = intervals.intervals(images)['auc']
    np.testing.assert_allclose(
      intervals.intervals(by_patient)['auc'], expected, atol=1e-12
    )
    low, high = intervals.intervals(four)['auc']
    self.assertLess(high - low, 0.7 * (expected[1] - expected[0]))

  def test_numbers_of_patients_do_not_matter(self):
    clusters = np.arange(60) // 3
    found = [
      intervals.intervals(_images(60, clusters=numbers))
      for numbers in (clusters, 100 - clusters)
    ]
    self.assertEqual(*found)

  def test_an_undetermined_metric_has_none(self):
    images = dataclasses.replace(_images(20), labels=np.zeros(20, int))
    found = intervals.intervals(images, resamples=50)
    self.assertNotIn('auc', found)
    self.assertIn('accuracy', found)

  def test_a_diverged_model_has_none(self):
    images = dataclasses.replace(_images(4), logits=np.full((4, 2), np.nan))
    self.assertEqual(intervals.intervals(images, resamples=5), {})

  def test_more_images_than_fit_at_once(self):
    images = _images(60)
    whole = intervals.intervals(images)
    with absltest.mock.patch.object(intervals, '_CHUNK', 60 * 7):
      parts = intervals.intervals(images)
    low, high = whole['accuracy']
    np.testing.assert_allclose(parts['accuracy'], (low, high), atol=1e-12)


class DifferencesTest(absltest.TestCase):
  def test_of_a_model_and_itself_is_zero(self):
    images = _images(50)
    found = intervals.differences([(images, images)], 'auc')
    self.assertEqual(found, (0.0, 0.0))
    self.assertFalse(intervals.excludes_zero(found))

  def test_pairs_narrow_the_interval(self):
    base = _images(200)
    rng = np.random.default_rng(4)
    noise = 0.05 * rng.normal(size=(200, 2))
    better = base.logits + 0.3 * np.eye(2)[base.labels] + noise
    model = dataclasses.replace(base, logits=better)
    low, high = intervals.differences([(model, base)], 'auc')
    self.assertTrue(intervals.excludes_zero((low, high)))
    alone = intervals.intervals(base)['auc']
    self.assertLess(high - low, 0.5 * (alone[1] - alone[0]))

  def test_over_seeds_is_that_of_the_mean(self):
    base, model = _images(80, seed=1), _images(80, seed=2, shift=2)
    one = intervals.differences([(model, base)], 'auc')
    two = intervals.differences([(model, base), (base, base)], 'auc')
    np.testing.assert_allclose(two, np.array(one) / 2)

  def test_other_images_are_refused(self):
    with self.assertRaisesRegex(_validate.InputError, 'of the same images'):
      intervals.differences([(_images(8), _images(10))], 'auc')


if __name__ == '__main__':
  absltest.main()
