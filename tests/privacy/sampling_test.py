"""Tests of how cohorts are drawn and what the accountant is told of it."""

from absl.testing import absltest
from absl.testing import parameterized
import dp_accounting
import numpy as np
from scipy import stats

from tff_medical import _validate
from tff_medical.privacy import sampling


class PoissonSamplingTest(parameterized.TestCase):

  def test_each_client_joins_on_its_own_with_the_stated_rate(self):
    poisson = sampling.PoissonSampling(num_clients=40, clients_per_round=10)
    rounds = 4000
    joined = np.zeros((rounds, 40))
    for round_num in range(rounds):
      rng = sampling.cohort_rng(7, round_num)
      joined[round_num, poisson.draw(rng)] = 1
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
    poisson = sampling.PoissonSampling(num_clients=10, clients_per_round=0.5)
    sizes = [
        len(poisson.draw(sampling.cohort_rng(0, n))) for n in range(200)
    ]
    self.assertEqual(min(sizes), 0)
    self.assertGreater(max(sizes), 0)

  def test_cohort_is_a_function_of_seed_and_round(self):
    poisson = sampling.PoissonSampling(num_clients=1000, clients_per_round=50)
    draw = lambda seed, n: poisson.draw(sampling.cohort_rng(seed, n)).tolist()
    self.assertEqual(draw(2**127 + 1, 3), draw(2**127 + 1, 3))
    self.assertNotEqual(draw(2**127 + 1, 3), draw(2**127 + 1, 4))
    self.assertNotEqual(draw(2**127 + 1, 3), draw(2**127 + 2, 3))

  def test_event_has_the_rate_that_is_drawn_with(self):
    poisson = sampling.PoissonSampling(num_clients=1000, clients_per_round=50)
    inner = dp_accounting.GaussianDpEvent(1.5)
    self.assertEqual(
        poisson.event(inner), dp_accounting.PoissonSampledDpEvent(0.05, inner)
    )

  @parameterized.parameters((0, 1), (10, 0), (10, 10), (10, 11), (10, -1))
  def test_refuses(self, num_clients, clients_per_round):
    with self.assertRaisesRegex(_validate.InputError, 'num_clients|clients_per'):
      sampling.PoissonSampling(num_clients, clients_per_round)


class FullParticipationTest(absltest.TestCase):

  def test_everybody_in_every_round_without_amplification(self):
    everyone = sampling.FullParticipation(5)
    rng = sampling.cohort_rng(0, 1)
    np.testing.assert_array_equal(everyone.draw(rng), np.arange(5))
    inner = dp_accounting.GaussianDpEvent(1.5)
    self.assertEqual(everyone.event(inner), inner)
    self.assertEqual(everyone.clients_per_round, 5)


if __name__ == '__main__':
  absltest.main()
