"""Tests of the tree mechanism: who joins when, and what it costs."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import dp_accounting
from dp_accounting import rdp
import numpy as np
from scipy import stats

from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import calibration
from tff_medical.privacy import dp_ftrl_mechanism
from tff_medical.privacy import mechanisms


def _mechanism(noise_multiplier=2.0, population=300, rounds_per_tree=16):
  return dp_ftrl_mechanism.DpFtrlMechanism(
    sampling=dp_ftrl_mechanism.DpFtrlSampling(population, 10, rounds_per_tree),
    clipping=mechanisms.FixedClipping(0.5),
    noise_multiplier=noise_multiplier,
  )


class TreeSamplingTest(parameterized.TestCase):
  @parameterized.parameters((300, 10, 16), (30, 10, 3), (7, 7, 1), (8, 3, 2))
  def test_nobody_joins_a_tree_twice(self, population, clients, rounds):
    sampling = dp_ftrl_mechanism.DpFtrlSampling(population, clients, rounds)
    for seed in range(20):
      for tree in range(4):
        drawn = [
          sampling.draw(seed, tree * rounds + n, attempt=n)
          for n in range(1, rounds + 1)
        ]
        for cohort in drawn:
          self.assertLen(cohort, clients)
          self.assertTrue(np.all(np.diff(cohort) > 0))
        everybody = np.concatenate(drawn)
        self.assertLen(set(everybody), clients * rounds)
        self.assertBetween(min(everybody), 0, population - 1)
        self.assertBetween(max(everybody), 0, population - 1)

  def test_cohort_is_a_function_of_seed_and_round(self):
    sampling = dp_ftrl_mechanism.DpFtrlSampling(300, 10, 16)

    def draw(seed, n, attempt=1):
      return sampling.draw(seed, n, attempt).tolist()

    self.assertEqual(draw(2**127 + 1, 21), draw(2**127 + 1, 21))
    self.assertNotEqual(draw(2**127 + 1, 21), draw(2**127 + 2, 21))
    # A repeated round keeps its cohort, so that nobody joins a tree twice.
    self.assertEqual(draw(2**127 + 1, 21, 21), draw(2**127 + 1, 21, 22))

  def test_each_tree_is_shuffled_anew_and_evenly(self):
    sampling = dp_ftrl_mechanism.DpFtrlSampling(20, 5, 4)
    joined = np.zeros((4, 20))
    for tree in range(1000):
      for n in range(4):
        joined[n, sampling.draw(3, 4 * tree + n + 1, 1)] += 1
    z = (joined - 250) / math.sqrt(1000 * 0.25 * 0.75)
    self.assertGreater(stats.kstest(z.ravel(), 'norm').pvalue, 1e-4)

  def test_a_tree_is_shuffled_once_and_by_the_same_permutation(self):
    """A permutation takes time by the population, not by the cohort."""
    sampling = dp_ftrl_mechanism.DpFtrlSampling(20, 5, 4)
    dp_ftrl_mechanism._order_of_tree.cache_clear()
    for tree in range(3):
      drawn = [sampling.draw(9, 4 * tree + n + 1, 1) for n in range(4)]
      order = np.random.default_rng((9, 4 * tree + 1)).permutation(20)
      np.testing.assert_array_equal(
        np.stack(drawn), np.sort(order.reshape(4, 5))
      )
    self.assertEqual(dp_ftrl_mechanism._order_of_tree.cache_info().misses, 3)

  def test_refuses_more_rounds_than_clients_last(self):
    with self.assertRaisesRegex(
      _validate.InputError, 'rounds_per_tree must be at most 30 .*got 31'
    ):
      dp_ftrl_mechanism.DpFtrlSampling(300, 10, 31)

  @parameterized.parameters((0, 1, 1), (9, 0, 1), (9, 1, 0), (9, 1, 1.5))
  def test_refuses(self, *arguments):
    with self.assertRaises(_validate.InputError):
      dp_ftrl_mechanism.DpFtrlSampling(*arguments)


class TreeMechanismTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 3, 4, 5, 8, 16, 30)
  def test_epsilon_is_that_of_dp_accounting(self, rounds_per_tree):
    """Of one tree and of three, by RDP, at the relation that the card names."""
    mechanism = _mechanism(2.0, 300, rounds_per_tree)
    for trees in (1, 3):
      accountant = rdp.RdpAccountant(
        neighboring_relation=mechanism.neighboring_relation
      )
      event = dp_accounting.SingleEpochTreeAggregationDpEvent(
        2.0, rounds_per_tree
      )
      accountant.compose(event, trees)
      ours = mechanism.charge_event()
      epsilon = accounting.rdp_epsilon(ours, rounds=trees, delta=1e-4)
      self.assertAlmostEqual(epsilon, accountant.get_epsilon(1e-4), places=9)
      self.assertLess(
        accounting.pld_epsilon(ours, rounds=trees, delta=1e-4), epsilon
      )

  @parameterized.parameters(1, 2, 3, 4, 5, 7, 8, 30)
  def test_height_counts_the_nodes_over_a_leaf(self, rounds_per_tree):
    """By listing all complete nodes: [k * 2**l, (k + 1) * 2**l) within [0, T)."""
    counts = np.zeros(rounds_per_tree, int)
    for level in range(6):
      width = 2**level
      for start in range(0, rounds_per_tree - width + 1, width):
        counts[start : start + width] += 1
    height = _mechanism(2.0, 300, rounds_per_tree).tree_height
    self.assertEqual(height, counts.max())

  @parameterized.parameters((0, 0), (1, 1), (16, 1), (17, 2), (32, 2), (33, 3))
  def test_charges_for_each_tree_begun(self, rounds, trees):
    self.assertEqual(_mechanism().charges_for(rounds), trees)

  def test_calibration_counts_trees(self):
    mechanism = calibration.calibrate(
      _mechanism(), target_epsilon=2.0, delta=1e-4, rounds=40
    )
    epsilon = accounting.pld_epsilon(
      mechanism.charge_event(), rounds=3, delta=1e-4
    )
    self.assertLessEqual(epsilon, 2.0)
    self.assertGreater(epsilon, 1.98)

  def test_no_noise_has_no_guarantee(self):
    mechanism = _mechanism(0.0)
    self.assertFalse(mechanism.is_private)
    self.assertEqual(
      mechanism.charge_event(), dp_accounting.NonPrivateDpEvent()
    )

  def test_describes_all_that_epsilon_rests_on(self):
    described = _mechanism().describe()
    self.assertContainsSubset(
      {
        'mechanism': 'dp_ftrl',
        'neighboring_relation': 'replace_special',
        'tree_height': 5,
        'rounds_per_tree': 16,
        'clients_per_round': 10,
        'clip_norm': 0.5,
      }.items(),
      described.items(),
    )

  def test_refuses_adaptive_clipping(self):
    with self.assertRaisesRegex(_validate.InputError, 'clipping must be fixed'):
      dp_ftrl_mechanism.DpFtrlMechanism(
        sampling=dp_ftrl_mechanism.DpFtrlSampling(10, 2, 3),
        clipping=mechanisms.AdaptiveClipping(),
      )


if __name__ == '__main__':
  absltest.main()
