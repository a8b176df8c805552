"""Tests of how cohorts are drawn and what the accountant is told of it."""

from absl.testing import absltest
from absl.testing import parameterized
import attrs
import dp_accounting
import numpy as np
from scipy import stats

from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import sampling


class PoissonSamplingTest(parameterized.TestCase):
  def test_each_client_joins_on_its_own_with_the_stated_rate(self):
    poisson = sampling.PoissonSampling(population=40, expected_cohort=10)
    rounds = 4000
    joined = np.zeros((rounds, 40))
    for round_num in range(rounds):
      joined[round_num, poisson.draw(7, 1, round_num)] = 1
    # Binomial counts a client and binomial cohort sizes: a fixed-size sample
    # would pass the first test and fail the second.
    counts = joined.sum(axis=0)
    z = (counts - rounds * 0.25) / np.sqrt(rounds * 0.25 * 0.75)
    self.assertGreater(stats.kstest(z, 'norm').pvalue, 1e-4)
    sizes = joined.sum(axis=1)
    self.assertAlmostEqual(sizes.var(), 40 * 0.25 * 0.75, delta=0.6)
    correlation = np.corrcoef(joined[:, 0], joined[:, 1])[0, 1]
    self.assertLess(abs(correlation), 5 / np.sqrt(rounds))

  def test_empty_cohorts_are_drawn(self):
    poisson = sampling.PoissonSampling(population=10, expected_cohort=0.5)
    sizes = [len(poisson.draw(0, n, n)) for n in range(200)]
    self.assertEqual(min(sizes), 0)
    self.assertGreater(max(sizes), 0)

  def test_cohort_is_a_function_of_seed_and_attempt(self):
    """Not of the round: a repeated round has a cohort of its own."""
    poisson = sampling.PoissonSampling(population=1000, expected_cohort=50)

    def draw(seed, n, round_num=1):
      return poisson.draw(seed, round_num, n).tolist()

    self.assertEqual(draw(2**127 + 1, 3), draw(2**127 + 1, 3))
    self.assertNotEqual(draw(2**127 + 1, 3), draw(2**127 + 1, 4))
    self.assertNotEqual(draw(2**127 + 1, 3), draw(2**127 + 2, 3))
    self.assertEqual(draw(2**127 + 1, 3, 1), draw(2**127 + 1, 3, 2))

  def test_event_has_the_rate_that_is_drawn_with(self):
    poisson = sampling.PoissonSampling(population=1000, expected_cohort=50)
    inner = dp_accounting.GaussianDpEvent(1.5)
    self.assertEqual(
      poisson.event(inner), dp_accounting.PoissonSampledDpEvent(0.05, inner)
    )

  @parameterized.parameters((0, 1), (10, 0), (10, 10), (10, 11), (10, -1))
  def test_refuses(self, population, expected_cohort):
    with self.assertRaisesRegex(
      _validate.InputError, 'population|expected_cohort'
    ):
      sampling.PoissonSampling(population, expected_cohort)


class FullParticipationTest(absltest.TestCase):
  def test_everybody_in_every_round_without_amplification(self):
    everyone = sampling.FullParticipation(5)
    np.testing.assert_array_equal(everyone.draw(0, 1, 1), np.arange(5))
    inner = dp_accounting.GaussianDpEvent(1.5)
    self.assertEqual(everyone.event(inner), inner)
    self.assertEqual(everyone.expected_cohort, 5)


class TruncatedPoissonSamplingTest(parameterized.TestCase):
  def test_is_poisson_below_the_cap_and_uniform_above(self):
    capped = sampling.TruncatedPoissonSampling(40, 10, max_cohort=12)
    poisson = sampling.PoissonSampling(40, 10)
    joined = np.zeros(40)
    sizes = []
    for n in range(3000):
      cohort = capped.draw(1, 1, n)
      free = poisson.draw(1, 1, n)
      self.assertContainsSubset(cohort, free)
      self.assertLen(cohort, min(len(free), 12))
      joined[cohort] += 1
      sizes.append(len(cohort))
    self.assertEqual(max(sizes), 12)
    # All units are alike, so the counts are as even as a multinomial's.
    self.assertGreater(stats.chisquare(joined).pvalue, 1e-4)

  def test_costs_more_than_poisson_and_no_less_than_stated(self):
    inner = dp_accounting.GaussianDpEvent(1.0)
    capped = sampling.TruncatedPoissonSampling(1000, 50, max_cohort=60)
    event = capped.event(inner)
    expected = (
      dp_accounting.pld.PLDAccountant().compose(event, 20).get_epsilon(1e-4)
    )
    epsilon = accounting.pld_epsilon(event, rounds=20, delta=1e-4)
    self.assertAlmostEqual(epsilon, expected, delta=1e-2)
    self.assertGreaterEqual(epsilon, expected - 1e-9)
    free = sampling.PoissonSampling(1000, 50).event(inner)
    self.assertGreater(
      epsilon, accounting.pld_epsilon(free, rounds=20, delta=1e-4)
    )

  def test_covers_a_unit_that_is_added(self):
    """40 clients, expected 8, cap 10: by the library, for the larger one."""
    event = sampling.TruncatedPoissonSampling(40, 8, max_cohort=10).event(
      dp_accounting.GaussianDpEvent(1.0)
    )
    stated = accounting.pld_epsilon(event, rounds=100, delta=0.01)
    self.assertAlmostEqual(stated, 18.92, delta=0.01)
    for size in (40, 41):
      neighbor = attrs.evolve(event, dataset_size=size)
      accountant = dp_accounting.pld.PLDAccountant().compose(neighbor, 100)
      self.assertGreaterEqual(stated, accountant.get_epsilon(0.01))

  def test_an_added_unit_meets_no_attack_that_exceeds_the_stated_epsilon(self):
    """By the exact densities of an attack, without any accountant.

    All others send -1 and the one that is added sends 1; where the cap binds it
    takes somebody's place, and moves the sum by 2.
    """
    population, cap, noise, epsilon = 2, 2, 0.5, 6.0
    capped = sampling.TruncatedPoissonSampling(population, 1.98, max_cohort=cap)
    x = np.linspace(-12, 12, 400_001)

    def density(size, with_the_added):
      others = stats.binom.pmf(np.arange(size + 1), size, capped.rate)
      total = np.zeros_like(x)
      for drawn, probability in enumerate(others):
        normal = stats.norm.pdf
        if not with_the_added:
          total += probability * normal(x, -min(drawn, cap), noise)
          continue
        kept = min(1, cap / (drawn + 1))
        out = 1 - capped.rate * kept
        # Whether it was not drawn, or drawn and left out, nothing else differs.
        total += probability * out * normal(x, -min(drawn, cap), noise)
        total += (
          probability
          * capped.rate
          * kept
          * normal(x, 1 - min(drawn, cap - 1), noise)
        )
      return total

    without, added = density(population, False), density(population, True)
    step = x[1] - x[0]
    reached = max(
      np.maximum(p - np.exp(epsilon) * q, 0).sum() * step
      for p, q in ((without, added), (added, without))
    )
    event = capped.event(dp_accounting.GaussianDpEvent(noise))
    self.assertLessEqual(
      epsilon, accounting.pld_epsilon(event, rounds=1, delta=reached)
    )
    # What accounts for a removal alone promises less than the attack reaches.
    removal = attrs.evolve(event, dataset_size=population)
    self.assertGreater(
      epsilon, accounting.pld_epsilon(removal, rounds=1, delta=reached)
    )

  @parameterized.parameters(
    (2, 1.8, 2),
    (40, 8, 8),
    (40, 8, 10),
    (40, 36, 37),
    (1000, 50, 60),
    (7, 1, 5),
  )
  def test_an_added_unit_costs_no_less_than_a_removed_one(
    self, population, expected, cap
  ):
    capped = sampling.TruncatedPoissonSampling(population, expected, cap)
    for noise in (0.6, 4.0):
      event = capped.event(dp_accounting.GaussianDpEvent(noise))
      removal = attrs.evolve(event, dataset_size=population)
      for rounds, delta in ((1, 1e-3), (50, 1e-6)):
        spent = (
          accounting.pld_epsilon(e, rounds=rounds, delta=delta)
          for e in (removal, event)
        )
        self.assertLessEqual(next(spent), next(spent) + 1e-9)

  @parameterized.parameters(0, 9, -1, 1.5)
  def test_refuses(self, max_cohort):
    with self.assertRaisesRegex(_validate.InputError, 'max_cohort'):
      sampling.TruncatedPoissonSampling(40, 10, max_cohort)


if __name__ == '__main__':
  absltest.main()
