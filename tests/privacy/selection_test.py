"""Tests of what the choice of the best training costs."""

import dataclasses
import math
import random

from absl.testing import absltest
from absl.testing import parameterized
import dp_accounting
from dp_accounting import rdp
import numpy as np

from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import events
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling
from tff_medical.privacy import selection

_DELTA = 1e-5


def _trial(rounds=50, rate=0.1, noise_multiplier=1.0, clip_norm=1.0):
  return selection.Trial(
    mechanisms.GaussianMechanism(
      sampling=sampling.PoissonSampling(1000, 1000 * rate),
      clipping=mechanisms.FixedClipping(clip_norm),
      noise_multiplier=noise_multiplier,
      privacy_unit='record',
    ),
    rounds,
  )


class NumberOfTrialsTest(parameterized.TestCase):
  @parameterized.parameters(
    (4.0, 1.0), (10.0, 0.0), (10.0, 0.5), (1.5, 1.0), (20.0, 5.0)
  )
  def test_the_distribution_sums_to_one_and_has_its_mean(self, mean, shape):
    number = selection.NumberOfTrials(mean, shape)
    probabilities = number.probabilities(4000)
    self.assertAlmostEqual(sum(probabilities), 1.0, places=7)
    measured = sum(k * p for k, p in enumerate(probabilities, start=1))
    self.assertAlmostEqual(measured, mean, delta=1e-3 * mean)

  def test_shape_1_is_geometric(self):
    probabilities = selection.NumberOfTrials(4.0).probabilities(5)
    expected = [0.25 * 0.75**k for k in range(5)]
    np.testing.assert_allclose(probabilities, expected, rtol=1e-9)

  @parameterized.parameters((4.0, 1.0), (6.0, 0.0), (6.0, 3.0))
  def test_draws_have_the_distribution(self, mean, shape):
    number = selection.NumberOfTrials(mean, shape)
    rng = random.Random(0)
    draws = [number.draw(rng) for _ in range(20_000)]
    for k, probability in enumerate(number.probabilities(6), start=1):
      deviation = math.sqrt(probability / len(draws))
      share = draws.count(k) / len(draws)
      self.assertBetween(
        share, probability - 4 * deviation, probability + 4 * deviation
      )
    self.assertGreaterEqual(min(draws), 1)

  def test_draws_are_not_seeded(self):
    number = selection.NumberOfTrials(500.0)
    random.seed(0)
    first = [number.draw() for _ in range(8)]
    random.seed(0)
    self.assertNotEqual([number.draw() for _ in range(8)], first)

  @parameterized.parameters(
    ({'mean': 1.0}, 'trials'),
    ({'mean': 0.0}, 'trials'),
    ({'mean': 1e9}, 'trials'),
    ({'mean': 4.0, 'shape': -0.5}, 'trials_shape'),
    ({'mean': 4.0, 'shape': math.inf}, 'trials_shape'),
  )
  def test_refuses_a_distribution(self, values, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      selection.NumberOfTrials(**values)

  def test_the_price_is_that_of_theorem_2(self):
    """Computed here from the paper, for one Gaussian and shape 1."""
    sigma, mean = 4.0, 10.0
    orders = np.array(rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS)
    one = orders / (2 * sigma**2)
    gamma = 1 / mean
    constant = 2 * np.min((1 - 1 / orders) * one - np.log(gamma) / orders)
    bounds = one + np.log(mean) / (orders - 1) + constant
    best = min(
      b + math.log1p(-1 / a) - math.log(_DELTA * a) / (a - 1)
      for a, b in zip(orders, bounds)
      if a > 1
    )
    event = selection.NumberOfTrials(mean).event(
      dp_accounting.GaussianDpEvent(sigma)
    )
    stated = accounting.epsilon(event, rounds=1, delta=_DELTA)
    self.assertAlmostEqual(stated, best, delta=1e-6)


class TogetherTest(parameterized.TestCase):
  @parameterized.parameters((4, 2.20), (8, 3.30), (24, 6.37))
  def test_trainings_at_epsilon_1_cost_what_is_published(self, count, price):
    """All 4,708 records in each of 100 rounds."""
    delta = accounting.default_delta(4708)
    noise = 10 * dp_accounting.get_sigma_gaussian(1.0, delta)
    mechanism = mechanisms.GaussianMechanism(
      sampling=sampling.FullParticipation(4708),
      clipping=mechanisms.FixedClipping(1.0),
      noise_multiplier=noise,
      privacy_unit='record',
    )
    trial = selection.Trial(mechanism, 100)
    self.assertBetween(trial.epsilon(delta), 1 - 1e-9, 1 + 1e-3)
    event = selection.Together((trial,) * count).charge_event()
    stated = accounting.epsilon(event, rounds=1, delta=delta)
    self.assertAlmostEqual(stated, price, delta=0.01)

  def test_all_trials_together_meet_the_target(self):
    together = selection.calibrate_together(
      [_trial(clip_norm=1.0), _trial(clip_norm=0.5)] * 2,
      target_epsilon=3.0,
      delta=_DELTA,
    )
    trial = together.trials[0]
    total = accounting.epsilon(
      trial.mechanism.charge_event(), rounds=200, delta=_DELTA
    )
    self.assertBetween(total, 2.97, 3.0)
    self.assertEqual(
      accounting.epsilon(together.charge_event(), rounds=1, delta=_DELTA),
      total,
    )
    self.assertEqual(
      [t.mechanism.clipping.clip_norm for t in together.trials],
      [1.0, 0.5, 1.0, 0.5],
    )

  def test_trials_of_different_cost_get_the_same_epsilon(self):
    together = selection.calibrate_together(
      [_trial(20, 0.1), _trial(40, 0.05)], target_epsilon=2.0, delta=_DELTA
    )
    first, second = (t.epsilon(_DELTA) for t in together.trials)
    self.assertAlmostEqual(first, second, delta=0.01)
    total = accounting.epsilon(together.charge_event(), rounds=1, delta=_DELTA)
    self.assertBetween(total, 1.93, 2.0)


class SelectedTest(parameterized.TestCase):
  def test_the_release_meets_the_target(self):
    number = selection.NumberOfTrials(8.0)
    selected = selection.calibrate_selected(
      [_trial(), _trial(clip_norm=2.0)],
      number,
      target_epsilon=3.0,
      delta=_DELTA,
    )
    trial = selected.trials[0]
    accountant = rdp.RdpAccountant()
    accountant.compose(selected.charge_event())
    self.assertBetween(accountant.get_epsilon(_DELTA), 2.97, 3.0)
    self.assertEqual(selected.charges_for(1), 1)
    # The price of eight trials by composition is higher.
    composed = accounting.epsilon(
      trial.mechanism.charge_event(), rounds=400, delta=_DELTA
    )
    self.assertGreater(composed, 3.0)
    self.assertLess(trial.epsilon(_DELTA), 1.6)

  def test_each_trial_pays_for_what_it_releases_before_its_rounds(self):
    before = dp_accounting.GaussianDpEvent(20.0)
    trial = dataclasses.replace(_trial(), before=before)
    event = trial.mechanism.charge_event()
    together = selection.Together((trial, trial)).charge_event()
    self.assertEqual(
      accounting.epsilon(together, rounds=1, delta=_DELTA),
      accounting.composed_epsilon([(event, 100), (before, 2)], delta=_DELTA),
    )
    number = selection.NumberOfTrials(4.0)
    selected = selection.Selected((trial,), number).charge_event()
    self.assertEqual(events.parse_event(repr(selected)), selected)
    without = selection.Selected((_trial(),), number).charge_event()
    self.assertGreater(
      accounting.epsilon(selected, rounds=1, delta=_DELTA),
      accounting.epsilon(without, rounds=1, delta=_DELTA) + 1e-3,
    )

  @parameterized.parameters({'rounds': 60}, {'rate': 0.2})
  def test_refuses_candidates_of_different_cost(self, **changed):
    with self.assertRaisesRegex(_validate.InputError, 'papernot_steinke'):
      selection.Selected(
        (_trial(), _trial(**changed)), selection.NumberOfTrials(4.0)
      )


if __name__ == '__main__':
  absltest.main()
