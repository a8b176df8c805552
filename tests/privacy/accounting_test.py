"""Tests of epsilon against dp-accounting, closed forms and published figures."""

import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import dp_accounting
from dp_accounting import dp_event
from dp_accounting import pld
from dp_accounting import rdp
from dp_accounting.pld import privacy_loss_distribution

from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import events
from tff_medical.privacy import sampling


def _poisson(rate, noise_multiplier):
  return dp_accounting.PoissonSampledDpEvent(
    rate, dp_accounting.GaussianDpEvent(noise_multiplier)
  )


class PldEpsilonTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.1, 1.0, 200, 1e-3),
    (0.02, 0.8, 1000, 1e-5),
    (0.5, 2.0, 30, 1e-3),
    (0.1, 4.0, 5, 1e-6),
  )
  def test_never_below_and_hardly_above_the_finer_accountant(
    self, rate, noise_multiplier, rounds, delta
  ):
    event = _poisson(rate, noise_multiplier)
    finer = pld.PLDAccountant().compose(event, rounds).get_epsilon(delta)
    ours = accounting.pld_epsilon(event, rounds=rounds, delta=delta)
    self.assertGreaterEqual(ours, finer - 1e-9)
    self.assertLess(ours, finer + 1e-3)

  def test_known_figures(self):
    # Measured with dp-accounting's PLD at its own defaults.
    self.assertAlmostEqual(
      accounting.pld_epsilon(_poisson(0.1, 1.0), rounds=200, delta=1e-3),
      7.096,
      delta=5e-4,
    )
    # TFF's tutorial: 3,383 EMNIST clients, 120 expected, z 1.2, 100 rounds.
    self.assertAlmostEqual(
      accounting.pld_epsilon(_poisson(120 / 3383, 1.2), rounds=100, delta=1e-5),
      1.71,
      delta=5e-3,
    )

  @parameterized.parameters((0.5, 246), (1.0, 72), (1.5, 37))
  def test_twenty_hospitals_in_every_round_are_hardly_protected(
    self, noise_multiplier, epsilon
  ):
    event = dp_accounting.GaussianDpEvent(noise_multiplier)
    self.assertAlmostEqual(
      accounting.pld_epsilon(event, rounds=100, delta=0.01),
      epsilon,
      delta=0.5,
    )

  def test_gaussian_has_a_closed_form(self):
    event = dp_accounting.GaussianDpEvent(5.0)
    exact = dp_accounting.get_epsilon_gaussian(5.0 / math.sqrt(9), 1e-5)
    self.assertAlmostEqual(
      accounting.pld_epsilon(event, rounds=9, delta=1e-5), exact, delta=1e-3
    )

  @parameterized.product(
    total=(20.0, 4.0, 0.7), rounds=(1, 30, 1000), delta=(1e-3, 1e-6)
  )
  def test_full_participation_is_one_gaussian_of_all_rounds(
    self, total, rounds, delta
  ):
    """Gaussians with z in T rounds are one with z / sqrt(T), exactly."""
    everybody = sampling.FullParticipation(1000)
    event = everybody.event(
      dp_accounting.GaussianDpEvent(total * math.sqrt(rounds))
    )
    exact = dp_accounting.get_epsilon_gaussian(total, delta)
    stated = accounting.pld_epsilon(event, rounds=rounds, delta=delta)
    self.assertGreaterEqual(stated, exact - 1e-9)
    # The grid overstates small epsilons; see the module's docstring.
    self.assertLess(stated, exact + (2e-3 if exact > 0.5 else 1e-2))

  @parameterized.parameters(1, 40)
  def test_a_release_before_gaussian_rounds_has_a_closed_form(self, rounds):
    event, before = (dp_accounting.GaussianDpEvent(z) for z in (5.0, 7.0))
    total = 1 / math.hypot(math.sqrt(rounds) / 5, 1 / 7)
    self.assertAlmostEqual(
      accounting.epsilon(event, rounds=rounds, delta=1e-5, before=before),
      dp_accounting.get_epsilon_gaussian(total, 1e-5),
      delta=2e-3,
    )
    alone = accounting.epsilon(event, rounds=0, delta=1e-5, before=before)
    self.assertAlmostEqual(
      alone, dp_accounting.get_epsilon_gaussian(7.0, 1e-5), delta=2e-3
    )

  def test_a_release_before_sampled_rounds_is_composed_by_the_library(self):
    event, before = _poisson(0.1, 1.0), dp_accounting.GaussianDpEvent(4.0)
    expected = (
      pld.PLDAccountant(value_discretization_interval=1e-3)
      .compose(event, 20)
      .compose(before)
      .get_epsilon(1e-4)
    )
    found = accounting.epsilon(event, rounds=20, delta=1e-4, before=before)
    self.assertAlmostEqual(found, expected, delta=1e-3)
    plain = accounting.epsilon(event, rounds=20, delta=1e-4)
    self.assertGreater(found, plain + 0.01)
    by_rdp = accounting.rdp_epsilon(event, rounds=20, delta=1e-4, before=before)
    self.assertGreater(by_rdp, found)
    self.assertGreater(
      by_rdp, accounting.rdp_epsilon(event, rounds=20, delta=1e-4) + 0.01
    )
    # On the coarsest grid the bound without amplification has both parts.
    hardly = dp_accounting.GaussianDpEvent(1e-4)
    self.assertGreaterEqual(
      accounting.epsilon(hardly, rounds=3, delta=1e-4, before=hardly),
      dp_accounting.get_epsilon_gaussian(1e-4 / 2, 1e-4) * (1 - 1e-9),
    )

  def test_no_noise_is_no_guarantee_and_no_round_costs_nothing(self):
    event = dp_accounting.NonPrivateDpEvent()
    self.assertEqual(
      accounting.pld_epsilon(event, rounds=1, delta=0.1), math.inf
    )
    self.assertEqual(accounting.pld_epsilon(event, rounds=0, delta=0.1), 0)

  def test_refuses_what_it_cannot_account_for(self):
    with self.assertRaises(dp_accounting.UnsupportedEventError):
      accounting.pld_epsilon(
        dp_accounting.UnsupportedDpEvent(), rounds=1, delta=0.1
      )

  @parameterized.parameters(0.0, 1.0, -0.1)
  def test_refuses_delta(self, delta):
    with self.assertRaisesRegex(_validate.InputError, 'delta'):
      accounting.pld_epsilon(_poisson(0.1, 1.0), rounds=1, delta=delta)


class RdpEpsilonTest(absltest.TestCase):
  def test_is_looser_than_pld(self):
    event = _poisson(0.1, 1.0)
    by_rdp = accounting.rdp_epsilon(event, rounds=200, delta=1e-3)
    self.assertAlmostEqual(by_rdp, 8.254, delta=1e-3)
    self.assertGreater(
      by_rdp, accounting.pld_epsilon(event, rounds=200, delta=1e-3)
    )

  def test_no_noise(self):
    event = dp_accounting.NonPrivateDpEvent()
    self.assertEqual(
      accounting.rdp_epsilon(event, rounds=1, delta=0.1), math.inf
    )


class DefaultDeltaTest(absltest.TestCase):
  def test_is_below_one_over_the_population(self):
    self.assertAlmostEqual(accounting.default_delta(1000), 1000**-1.1)


class ComposedEpsilonTest(parameterized.TestCase):
  def test_gaussians_compose_to_the_closed_form(self):
    # 4 / 2**2 + 9 / 6**2 + 2 / 4**2 = 1 / 0.8528...**2
    events = ((2.0, 4), (6.0, 9), (4.0, 2))
    charges = [(dp_accounting.GaussianDpEvent(z), n) for z, n in events]
    total = sum(n / z**2 for z, n in events) ** -0.5
    exact = dp_accounting.get_epsilon_gaussian(total, 1e-5)
    stated = accounting.composed_epsilon(charges, delta=1e-5)
    self.assertBetween(stated, exact - 1e-9, exact + 1e-3)

  def test_different_events_cost_what_the_finer_accountant_says(self):
    charges = [
      (_poisson(0.1, 1.0), 100),
      (_poisson(0.05, 0.8), 50),
      (dp_accounting.GaussianDpEvent(8.0), 10),
    ]
    accountant = pld.PLDAccountant()
    for event, count in charges:
      accountant.compose(event, count)
    finer = accountant.get_epsilon(1e-4)
    stated = accounting.composed_epsilon(charges, delta=1e-4)
    self.assertBetween(stated, finer - 1e-9, finer + 1e-3)
    self.assertEqual(
      accounting.composed_epsilon(reversed(charges), delta=1e-4), stated
    )

  @parameterized.parameters(1, 3)
  def test_equal_events_cost_what_their_number_does(self, runs):
    event = _poisson(0.1, 1.0)
    self.assertEqual(
      accounting.composed_epsilon([(event, 50)] * runs, delta=1e-3),
      accounting.epsilon(event, rounds=50 * runs, delta=1e-3),
    )

  @parameterized.parameters((4, 2.20), (8, 3.30), (24, 6.37))
  def test_trainings_at_epsilon_1_compose_to_the_stated_prices(
    self, trials, expected
  ):
    """All records of PneumoniaMNIST in every round, by each training."""
    delta = accounting.default_delta(4708)
    noise = dp_accounting.get_sigma_gaussian(1.0, delta)
    event = dp_accounting.GaussianDpEvent(noise * 10)
    price = accounting.composed_epsilon([(event, 100)] * trials, delta=delta)
    exact = dp_accounting.get_epsilon_gaussian(noise / trials**0.5, delta)
    self.assertBetween(price, exact - 1e-9, exact + 1e-3)
    self.assertAlmostEqual(price, expected, delta=0.01)

  def test_composed_events_are_those_that_they_are_composed_of(self):
    first, second = _poisson(0.1, 1.0), _poisson(0.2, 2.0)
    event = dp_event.ComposedDpEvent(
      [dp_event.SelfComposedDpEvent(first, 20), second]
    )
    expected = accounting.composed_epsilon(
      [(first, 40), (second, 2)], delta=1e-3
    )
    self.assertEqual(accounting.epsilon(event, rounds=2, delta=1e-3), expected)
    self.assertEqual(events.parse_event(repr(event)), event)
    self.assertEqual(accounting.accountant_of(event), 'PLD')

  def test_hardly_any_noise_beside_much_stays_within_memory(self):
    charges = [(_poisson(0.1, 0.01), 10), (_poisson(0.1, 1.0), 1000)]
    bound = sum(n / e.event.noise_multiplier**2 for e, n in charges) ** -0.5
    stated = accounting.composed_epsilon(charges, delta=1e-5)
    self.assertLessEqual(
      stated, dp_accounting.get_epsilon_gaussian(bound, 1e-5)
    )
    alone = accounting.epsilon(charges[0][0], rounds=10, delta=1e-5)
    self.assertGreaterEqual(stated, alone * (1 - 1e-6))

  def test_one_run_without_noise_leaves_no_guarantee(self):
    charges = [(_poisson(0.1, 1.0), 5), (dp_accounting.NonPrivateDpEvent(), 1)]
    self.assertEqual(accounting.composed_epsilon(charges, delta=1e-3), math.inf)

  def test_a_selected_run_is_composed_by_rdp(self):
    inner = dp_event.SelfComposedDpEvent(_poisson(0.05, 2.0), 100)
    selected = dp_event.RepeatAndSelectDpEvent(inner, 10, 1.0)
    other = _poisson(0.1, 1.0)
    accountant = rdp.RdpAccountant()
    accountant.compose(selected).compose(other, 20)
    self.assertEqual(accounting.accountant_of(selected), 'RDP')
    self.assertEqual(
      accounting.composed_epsilon([(selected, 1), (other, 20)], delta=1e-5),
      accountant.get_epsilon(1e-5),
    )
    self.assertEqual(events.parse_event(repr(selected)), selected)

  def test_many_events_are_built_once(self):
    """The ledger of a data set holds tens of events, and asks often."""
    runs = [(_poisson(0.01, 4 + i / 10), 1) for i in range(40)]
    first = accounting.composed_epsilon(runs, delta=1e-3)
    with mock.patch.object(
      privacy_loss_distribution,
      'from_gaussian_mechanism',
      side_effect=AssertionError,
    ):
      self.assertEqual(
        accounting.composed_epsilon(reversed(runs), delta=1e-3), first
      )
      # Of one more charge of a run, nothing but the composition is new.
      more = accounting.composed_epsilon([*runs, runs[0]], delta=1e-3)
    self.assertGreater(more, first)

  def test_a_number_of_charges_that_no_run_has_is_refused(self):
    event = dp_event.SelfComposedDpEvent(_poisson(0.1, 1.0), 10**9)
    with self.assertRaisesRegex(_validate.InputError, 'more than any run'):
      accounting.epsilon(event, rounds=1, delta=1e-3)


if __name__ == '__main__':
  absltest.main()
