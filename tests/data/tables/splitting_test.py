"""Tests of splits that are made, and of near duplicates."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tff_medical.data.tables import splitting


class SplittingTest(parameterized.TestCase):
  def _split(self, count, seed=0):
    groups = [f'patient {i // 3}' for i in range(count)]
    strata = np.arange(count) // 3 % 4
    return splitting.split(groups, strata, seed=seed), strata

  def test_groups_are_never_divided(self):
    splits, _ = self._split(900)
    self.assertTrue((splits.reshape(-1, 3) == splits[::3, np.newaxis]).all())

  def test_stays_as_it_is_when_images_are_added(self):
    before, _ = self._split(3000)
    after, _ = self._split(3300)
    np.testing.assert_array_equal(after[:3000], before)

  def test_shares_of_every_stratum(self):
    splits, strata = self._split(30_000)
    for stratum in range(4):
      shares = np.bincount(splits[strata == stratum], minlength=3)
      shares = shares / shares.sum()
      # 2,500 groups: four standard deviations are .032.
      np.testing.assert_allclose(shares, (0.7, 0.1, 0.2), atol=0.035)

  def test_another_seed_gives_another_split(self):
    self.assertFalse((self._split(900)[0] == self._split(900, seed=1)[0]).all())

  @parameterized.parameters(*range(2, 40))
  def test_small_tables_have_training_and_test(self, count):
    splits = splitting.split(
      [str(i) for i in range(count)], np.zeros(count, int), seed=count
    )
    counts = np.bincount(splits, minlength=3)
    self.assertGreater(counts[0], 0)
    self.assertGreater(counts[2], 0)
    if count > 2:
      self.assertGreater(counts[1], 0)

  def test_strata_of_findings_and_sites(self):
    labels = np.array([[1, 1], [1, 0], [0, 0], [1, 0]])
    self.assertLen(set(splitting.strata(labels, None).tolist()), 3)
    sites = np.array([0, 0, 0, 1])
    self.assertLen(set(splitting.strata(labels, sites).tolist()), 4)
    self.assertEqual(
      splitting.strata(np.array([0, 1, 0]), None).tolist(), [0, 1, 0]
    )

  def test_unknown_findings_make_no_strata(self):
    known = np.array([[1, 1], [1, 0], [0, 0], [1, 0], [0, 0]])
    unknown = np.array([[1, 1], [1, -1], [-1, 0], [1, -1], [-1, -1]])
    np.testing.assert_array_equal(
      splitting.strata(unknown, None), splitting.strata(known, None)
    )


if __name__ == '__main__':
  absltest.main()
