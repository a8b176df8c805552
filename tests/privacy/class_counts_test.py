"""Tests of the noised class count: sensitivity, noise, cost and weights."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import dp_accounting
import numpy as np

from tff_medical import _validate
from tff_medical.data import units
from tff_medical.privacy import class_counts


class ClassCountReleaseTest(parameterized.TestCase):
  @parameterized.parameters((1, 5.0), (8, 5.0), (3, 0.0001))
  def test_noise_has_the_stated_deviation_in_every_class(self, sites, noise):
    release = class_counts.ClassCountRelease(noise, num_noises=sites)
    self.assertAlmostEqual(release.stddev, noise * sites**0.5)
    exact = np.arange(sites * 4, dtype=float).reshape(sites, 4)
    draws = np.array([release.draw(exact).values for _ in range(2000)])
    excess = draws - exact.sum(axis=0)
    # Rounding of each site's counts adds a variance of at most 1 / 12.
    expected = np.sqrt(release.stddev**2 + (noise > 1) * sites / 12)
    np.testing.assert_allclose(
      excess.std(axis=0), expected, rtol=0.1, atol=0.01
    )
    np.testing.assert_allclose(
      excess.mean(axis=0), 0, atol=5 * expected / 2000**0.5 + 1e-3
    )
    if noise > 1:
      correlation = np.corrcoef(excess.T) - np.eye(4)
      self.assertLess(np.abs(correlation).max(), 0.12)

  def test_each_draw_is_new(self):
    release = class_counts.ClassCountRelease(1e4)
    first, second = (release.draw(np.zeros((1, 5))) for _ in range(2))
    self.assertNotEqual(first.values, second.values)

  def test_costs_one_gaussian_whatever_the_number_of_sites(self):
    for sites in (1, 8):
      event = class_counts.ClassCountRelease(20.0, sites).event()
      self.assertEqual(event, dp_accounting.GaussianDpEvent(20.0))

  @parameterized.parameters(0.0, -1.0, 1e7, np.nan)
  def test_refuses(self, noise):
    with self.assertRaises(_validate.InputError):
      class_counts.ClassCountRelease(noise)


class ClassCountsTest(absltest.TestCase):
  def test_weights_are_inversely_proportional_above_the_noise(self):
    release = class_counts.ClassCountRelease(10.0, num_noises=4)
    counts = class_counts.ClassCounts(release, (100, 400, 5, -30))
    weights = np.array(counts.weights())
    np.testing.assert_allclose(weights / weights[0], [1, 0.25, 5, 5])

  def test_comes_back_from_a_ledger_s_header(self):
    release = class_counts.ClassCountRelease(10.0, num_noises=4)
    counts = release.draw(np.full((4, 3), 50.0))
    header = json.loads(json.dumps(counts.describe()))
    self.assertEqual(class_counts.ClassCounts.of(header), counts)
    self.assertIsNone(class_counts.ClassCounts.of({'delta': 0.1}))
    for change in (
      {'class_count_noise': None}, {'class_counts': 3}, {'class_count_noise': 0}
    ):  # fmt: skip
      with self.assertRaisesRegex(_validate.InputError, 'class counts'):
        class_counts.ClassCounts.of({**header, **change})


class SensitivityTest(absltest.TestCase):
  """The L2 change by any one unit, over real counts of units."""

  def test_a_unit_changes_the_counts_by_at_most_1(self):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    rows = np.full((60, 5), -1)
    order = iter(rng.permutation(200))
    for row in rows:
      for k in range(rng.integers(1, 4)):
        row[k] = next(order)
    clients = rng.integers(0, 3, 60)

    def counts(kept):
      return units.Units(rows[kept], clients[kept]).class_counts(labels, 4, 3)

    everybody = np.arange(60)
    whole = counts(everybody)
    self.assertAlmostEqual(whole.sum(), 60)
    changes = [
      np.linalg.norm(whole - counts(np.delete(everybody, unit)))
      for unit in everybody
    ]
    self.assertLessEqual(max(changes), 1 + 1e-9)
    self.assertLess(min(changes), 0.9)  # Images of several classes.
    # A unit changes the counts of its own client alone.
    change = whole - counts(np.delete(everybody, 7))
    self.assertEqual(set(np.flatnonzero(change.any(axis=1))), {clients[7]})

  def test_counts_of_records_are_those_of_images(self):
    labels = np.array([0, 2, 1, 2, 2])
    records = units.record_units((np.array([0, 3]), np.array([1, 2, 4])))
    np.testing.assert_array_equal(
      records.class_counts(labels, 3, 2), [[1, 0, 1], [0, 1, 2]]
    )


if __name__ == '__main__':
  absltest.main()
