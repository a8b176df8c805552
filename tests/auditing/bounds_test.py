"""Tests of the bounds against mechanisms whose epsilon is known."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import optimize
from scipy import stats

from tff_medical import _validate
from tff_medical.auditing import bounds


def _gaussian_epsilon(mu, delta):
  """Returns epsilon of N(0, 1) against N(mu, 1) (Balle & Wang 2018, eq. 6)."""

  def excess(epsilon):
    return (
      stats.norm.cdf(mu / 2 - epsilon / mu)
      - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu)
      - delta
    )

  return optimize.brentq(excess, 0, 300)


class OneRunTest(parameterized.TestCase):
  @parameterized.parameters(0.5, 1.0, 3.0)
  def test_randomized_response_stays_below_its_epsilon(self, epsilon):
    """The bound may fail in 5 % of trials: in 300, 15 +- 4; 30 is 4 sigma."""
    rng = np.random.default_rng(1)
    count, failures, lower = 400, 0, []
    for _ in range(300):
      correct = rng.binomial(count, 1 / (1 + math.exp(-epsilon)))
      bound = bounds.one_run_epsilon(
        canaries=count,
        guesses=count,
        correct=int(correct),
        delta=0.0,
        confidence=0.95,
      )
      lower.append(bound)
      failures += bound > epsilon
    self.assertLessEqual(failures, 30)
    self.assertGreater(np.mean(lower), 0.6 * epsilon)

  def test_comes_close_with_many_guesses(self):
    correct = round(1e6 / (1 + math.exp(-2)))
    bound = bounds.one_run_epsilon(
      canaries=10**6,
      guesses=10**6,
      correct=correct,
      delta=0.0,
      confidence=0.95,
    )
    self.assertBetween(bound, 1.98, 2.0)

  @parameterized.parameters(
    # All right: 1 - error = accuracy ** guesses.
    (100, 100, math.log(0.05 ** (1 / 100) / (1 - 0.05 ** (1 / 100)))),
    (100, 50, 0.0),
    (100, 0, 0.0),
  )
  def test_closed_forms_without_delta(self, guesses, correct, expected):
    bound = bounds.one_run_epsilon(
      canaries=200,
      guesses=guesses,
      correct=correct,
      delta=0.0,
      confidence=0.95,
    )
    self.assertAlmostEqual(bound, expected, places=4)

  def test_p_value_by_hand(self):
    """Theorem 5.2 with 2 guesses of 3 canaries, both right, epsilon 0.

    W ~ Bin(2, 1/2): P[W >= 2] = 1/4; P[2 > W >= 1] = 1/2 and, halved for i = 2,
    P[2 > W >= 0] = 3/4; the largest is 1/2, times 2 * 3 * delta.
    """
    p_value = bounds.one_run_p_value(
      canaries=3, guesses=2, correct=2, epsilon=0.0, delta=0.01
    )
    self.assertAlmostEqual(p_value, 0.25 + 0.5 * 6 * 0.01)

  def test_delta_lowers_the_bound(self):
    lower = [
      bounds.one_run_epsilon(
        canaries=500,
        guesses=100,
        correct=99,
        delta=delta,
        confidence=0.95,
      )
      for delta in (0.0, 1e-6, 1e-4, 1e-2)
    ]
    self.assertEqual(lower, sorted(lower, reverse=True))
    self.assertGreater(lower[0], lower[2])

  def test_guesses_with_scores(self):
    included = np.arange(1000) % 2 == 0
    perfect = bounds.one_run_bound(
      included.astype(float), included, delta=0.0, confidence=0.95
    )
    self.assertGreater(perfect, 4)
    wrong = bounds.one_run_bound(
      -included.astype(float), included, delta=0.0, confidence=0.95
    )
    self.assertEqual(wrong, 0)

  def test_refuses_what_does_not_fit(self):
    with self.assertRaisesRegex(ValueError, 'correct <= guesses'):
      bounds.one_run_p_value(
        canaries=3, guesses=2, correct=3, epsilon=0.0, delta=0.0
      )
    with self.assertRaisesRegex(ValueError, 'one entry a canary'):
      bounds.one_run_bound(
        np.zeros(3), np.zeros(2, bool), delta=0.0, confidence=0.95
      )
    with self.assertRaisesRegex(_validate.InputError, 'confidence'):
      bounds.one_run_epsilon(
        canaries=3, guesses=2, correct=2, delta=0.0, confidence=1.0
      )


class ThresholdTest(parameterized.TestCase):
  @parameterized.parameters(0.5, 2.0, 6.0)
  def test_stays_below_the_epsilon_of_a_gaussian(self, mu):
    """The bound may fail in 5 % of trials, and does in far fewer."""
    rng = np.random.default_rng(2)
    epsilon = _gaussian_epsilon(mu, 1e-3)
    lower = []
    for _ in range(200):
      rates = stats.norm.logsf(rng.normal(mu, size=500))
      lower.append(bounds.threshold_bound(rates, delta=1e-3, confidence=0.95))
    self.assertLess(np.mean(np.array(lower) > epsilon), 0.05)
    self.assertGreater(np.mean(lower), 0.3 * epsilon)

  def test_share_found_is_at_least_what_is_said_at_all_thresholds(self):
    """The worst threshold fails in about 5 % of trials: 500, 25 +- 5."""
    rng = np.random.default_rng(3)
    failures = 0
    for _ in range(500):
      # Uniform rates are those of canaries that cannot be told: epsilon is 0.
      rates = np.log(rng.random(100))
      failures += bounds.threshold_bound(rates, delta=0.0, confidence=0.95) > 0
    self.assertBetween(failures, 5, 45)

  def test_closed_form_when_all_are_found(self):
    slack = math.sqrt(math.log(20) / 200)
    bound = bounds.threshold_bound(
      np.full(100, -30.0), delta=0.01, confidence=0.95
    )
    self.assertAlmostEqual(bound, 30 + math.log(1 - slack - 0.01))

  def test_too_few_canaries_prove_nothing(self):
    for rates in (np.zeros(0), np.full(1, -100.0)):
      bound = bounds.threshold_bound(rates, delta=0.0, confidence=0.95)
      self.assertEqual(bound, 0.0)


class CosineTest(parameterized.TestCase):
  @parameterized.parameters(3, 50, 2000)
  def test_tail_is_that_of_random_directions(self, dimensions):
    rng = np.random.default_rng(4)
    normal = rng.normal(size=(4000, dimensions))
    cosines = normal[:, 0] / np.linalg.norm(normal, axis=1)
    tail = np.exp(bounds.log_cosine_tail(cosines, dimensions))
    self.assertGreater(stats.kstest(tail, 'uniform').pvalue, 1e-4)

  def test_closed_form_on_the_sphere(self):
    """In 3 dimensions the cosine is uniform (Archimedes)."""
    cosines = np.array([-1.0, -0.5, 0.0, 0.9])
    np.testing.assert_allclose(
      np.exp(bounds.log_cosine_tail(cosines, 3)), (1 - cosines) / 2
    )

  def test_far_tail_is_a_bound_without_underflow(self):
    tail = bounds.log_cosine_tail(np.array([0.5, 1.0]), 100_000)
    np.testing.assert_allclose(tail, [-12_500, -50_000])
    near = bounds.log_cosine_tail(np.array([0.1]), 1000)[0]
    self.assertLess(near, -1000 * 0.1**2 / 2)


class EstimateTest(parameterized.TestCase):
  @parameterized.parameters(0.5, 1.0, 4.0)
  def test_recovers_the_epsilon_of_a_gaussian(self, mu):
    quantiles = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    estimate = bounds.gaussian_estimate(quantiles + mu, 1e-3)
    self.assertAlmostEqual(
      estimate, _gaussian_epsilon(mu, 1e-3), delta=0.02 * mu
    )

  def test_different_spread_is_told_by_integration(self):
    rng = np.random.default_rng(5)
    sample = rng.normal(1.0, 1.5, 5000)
    delta = 1e-2
    epsilon = bounds.gaussian_estimate(sample, delta)
    x = np.linspace(-40, 40, 400_001)
    one = stats.norm.pdf(x, sample.mean(), sample.std(ddof=1))
    zero = stats.norm.pdf(x)
    found = max(
      np.maximum(p - math.exp(epsilon) * q, 0).sum() * (x[1] - x[0])
      for p, q in ((one, zero), (zero, one))
    )
    self.assertAlmostEqual(found, delta, places=5)

  def test_same_distribution_and_a_certain_one(self):
    quantiles = stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
    self.assertLess(bounds.gaussian_estimate(quantiles, 1e-2), 0.05)
    self.assertEqual(bounds.gaussian_estimate(np.full(10, 1e6), 1e-2), math.inf)


class RocTest(parameterized.TestCase):
  def test_auc_and_rate(self):
    scores = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 2.5])
    included = np.array([0, 0, 0, 0, 1, 1], bool)
    self.assertAlmostEqual(bounds.attack_auc(scores, included), 7 / 8)
    self.assertEqual(bounds.tpr_at_fpr(scores, included, 0.0), 0.5)
    self.assertEqual(bounds.tpr_at_fpr(scores, included, 0.25), 1.0)

  def test_ties_count_half_and_nobody_is_nan(self):
    included = np.array([True, False, True])
    self.assertEqual(bounds.attack_auc(np.ones(3), included), 0.5)
    self.assertEqual(bounds.tpr_at_fpr(np.ones(3), included, 0.1), 0.0)
    self.assertTrue(math.isnan(bounds.attack_auc(np.ones(3), included > 2)))


if __name__ == '__main__':
  absltest.main()
