"""Tests of how cohorts are drawn and what the accountant is told of it."""

import collections
import fractions
import itertools
import math
import tracemalloc

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

  @parameterized.parameters((3, 0.3), (5, 4.5), (4, 2))
  def test_every_cohort_has_the_probability_of_independent_units(
    self, population, expected
  ):
    """Chi-square over all subsets, against the definition of the sampling."""
    poisson = sampling.PoissonSampling(population, expected)
    rate, draws = expected / population, 20_000
    counts = np.zeros(2**population)
    for attempt in range(draws):
      counts[np.sum(2 ** poisson.draw(11, 1, attempt))] += 1
    joins = np.arange(2**population)[:, None] >> np.arange(population) & 1
    probabilities = np.prod(np.where(joins, rate, 1 - rate), axis=1)
    often = probabilities * draws >= 5
    observed = np.append(counts[often], counts[~often].sum())
    expectation = np.append(
      probabilities[often], probabilities[~often].sum() + 1e-12
    )
    self.assertGreater(
      stats.chisquare(observed, draws * expectation / expectation.sum()).pvalue,
      1e-4,
    )

  def test_sizes_units_and_pairs_of_a_large_population(self):
    """Chi-square where NumPy draws by another method than in small ones."""
    population, draws = 100_000, 4000
    poisson = sampling.PoissonSampling(population, expected_cohort=40)
    cohorts = [poisson.draw(3, 1, attempt) for attempt in range(draws)]
    sizes = np.array([len(cohort) for cohort in cohorts])
    edges = np.array([30, 35, 38, 40, 42, 45, 50])
    cdf = stats.binom.cdf([*edges, population], population, poisson.rate)
    self.assertGreater(
      stats.chisquare(
        np.bincount(np.searchsorted(edges, sizes), minlength=len(cdf)),
        draws * np.diff(cdf, prepend=0),
      ).pvalue,
      1e-4,
    )
    units = np.concatenate(cohorts)
    self.assertGreater(
      stats.chisquare(np.bincount(units // 1000, minlength=100)).pvalue, 1e-4
    )
    # Two units of a cohort are in the same of 20 blocks as often as any pair.
    blocks = np.zeros((draws, 20))
    for row, cohort in enumerate(cohorts):
      blocks[row] = np.bincount(cohort // 5000, minlength=20)
    pairs = blocks.T @ blocks - np.diag(blocks.sum(axis=0))
    share = pairs / pairs.sum()
    np.testing.assert_allclose(share, 1 / 400, rtol=0.1)

  @parameterized.parameters(
    (1, 0.5), (10, 0.05), (1000, 0.1), (10**6, 1e-7), (10**7, 1e-3), (50, 0.99)
  )
  def test_sizes_are_drawn_by_the_exact_binomial_distribution(
    self, population, rate
  ):
    first, cumulative = sampling._cumulative_weights(population, rate)
    sizes = range(first, first + len(cumulative))
    weights = np.diff(np.array([0, *cumulative], object))
    if population <= 1000:  # By the definition, in exact fractions.
      q = fractions.Fraction(rate)
      for size, weight in zip(sizes, weights):
        exact = (
          math.comb(population, size) * q**size * (1 - q) ** (population - size)
        )
        error = fractions.Fraction(int(weight), cumulative[-1]) - exact
        self.assertLess(abs(error), fractions.Fraction(1, 2**180))
    else:  # By the gamma function, in doubles.
      np.testing.assert_allclose(
        (weights / cumulative[-1]).astype(float),
        stats.binom.pmf(sizes, population, rate),
        atol=1e-13,
      )
    left_out = stats.binom.cdf(first - 1, population, rate)
    left_out += stats.binom.sf(sizes[-1], population, rate)
    self.assertLess(left_out, 1e-50)

  def test_time_and_memory_follow_the_cohort_not_the_population(self):
    """By the bytes that a draw allocates: an array of all units has 8 GB."""
    for make in (
      lambda n: sampling.PoissonSampling(n, 100),
      lambda n: sampling.TruncatedPoissonSampling(n, 100, max_cohort=101),
    ):
      sampler = make(10**9)
      tracemalloc.start()
      self.addCleanup(tracemalloc.stop)
      cohort = sampler.draw(1, 1, 1)
      peak = tracemalloc.get_traced_memory()[1]
      tracemalloc.stop()
      self.assertLess(peak, 1_000_000)
      self.assertBetween(len(cohort), 40, 170)
      self.assertEqual(cohort.dtype, np.int64)

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
      if len(free) <= 12:
        np.testing.assert_array_equal(cohort, free)
      self.assertLen(set(cohort.tolist()), min(len(free), 12))
      joined[cohort] += 1
      sizes.append(len(cohort))
    self.assertEqual(max(sizes), 12)
    # All units are alike, so the counts are as even as a multinomial's.
    self.assertGreater(stats.chisquare(joined).pvalue, 1e-4)

  def test_every_cohort_has_the_probability_of_the_definition(self):
    """Poisson's, and beyond the cap that of a uniform part of what is drawn."""
    population, cap, rate, draws = 5, 2, 0.4, 20_000
    capped = sampling.TruncatedPoissonSampling(population, 2, max_cohort=cap)
    counts, probabilities = (collections.Counter() for _ in range(2))
    for attempt in range(draws):
      counts[tuple(capped.draw(5, 1, attempt).tolist())] += 1
    for joins in itertools.product([False, True], repeat=population):
      drawn = tuple(n for n in range(population) if joins[n])
      probability = np.prod(np.where(joins, rate, 1 - rate))
      kept = list(itertools.combinations(drawn, min(cap, len(drawn))))
      for cohort in kept:
        probabilities[cohort] += probability / len(kept)
    self.assertEqual(set(counts), set(probabilities))
    cohorts = sorted(probabilities)
    pvalue = stats.chisquare(
      [counts[c] for c in cohorts], [draws * probabilities[c] for c in cohorts]
    ).pvalue
    self.assertGreater(pvalue, 1e-4)

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
