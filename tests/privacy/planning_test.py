"""Tests of what is said of a setting before it is trained."""

import math

from absl.testing import absltest
from absl.testing import parameterized

from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import planning

_SCENARIO = planning.Scenario('client', 400, 40, rounds=50, delta=1e-3)
_PARAMETERS = 20_000


class PlanningTest(parameterized.TestCase):
  def test_the_noise_keeps_the_budget_and_hardly_less_would(self):
    outlook = _SCENARIO.outlook(epsilon=4.0, parameters=_PARAMETERS)

    def spent(noise_multiplier):
      mechanism = _SCENARIO.mechanism(40, noise_multiplier)
      return accounting.pld_epsilon(
        mechanism.charge_event(), rounds=50, delta=1e-3
      )

    self.assertLessEqual(spent(outlook.noise_multiplier), 4)
    self.assertGreater(spent(outlook.noise_multiplier * 0.99), 4)

  def test_ratios_are_those_of_the_formula(self):
    outlook = _SCENARIO.outlook(epsilon=4.0, parameters=_PARAMETERS)
    per_round = outlook.noise_multiplier * math.sqrt(_PARAMETERS) / 40
    self.assertAlmostEqual(outlook.noise_per_round, per_round)
    self.assertAlmostEqual(outlook.noise_over_run, per_round / math.sqrt(50))

  def test_adaptive_clipping_needs_more_noise_on_the_updates(self):
    adaptive = planning.Scenario('client', 400, 40, 50, 1e-3, adaptive=True)
    noises = [
      s.outlook(epsilon=1.0, parameters=_PARAMETERS)
      for s in (_SCENARIO, adaptive)
    ]
    self.assertAlmostEqual(
      noises[0].noise_multiplier, noises[1].noise_multiplier, places=4
    )
    self.assertGreater(
      noises[1].noise_per_round, 1.1 * noises[0].noise_per_round
    )

  def test_what_is_needed_is_just_enough(self):
    """Each way out, taken, makes the setting usable; a bit less does not."""
    outlook = _SCENARIO.outlook(epsilon=2.0, parameters=_PARAMETERS)
    self.assertIs(outlook.verdict, planning.Verdict.NOISY)

    def noise(population, cohort, parameters):
      scenario = planning.Scenario('client', population, cohort, 50, 1e-3)
      return scenario.outlook(epsilon=2.0, parameters=parameters).noise_over_run

    population = outlook.population_needed
    for share, check in ((1.01, self.assertLess), (0.97, self.assertGreater)):
      grown = round(population * share)
      check(noise(grown, grown / 10, _PARAMETERS), planning.USABLE_NOISE)
      parameters = int(outlook.parameters_affordable / share)
      check(noise(400, 40, parameters), planning.USABLE_NOISE)

  def test_cohort_needed(self):
    scenario = planning.Scenario('client', 2000, 20, 20, 1e-3)
    outlook = scenario.outlook(epsilon=1.0, parameters=_PARAMETERS)
    self.assertGreater(outlook.noise_over_run, planning.USABLE_NOISE)
    self.assertBetween(outlook.cohort_needed, 21, 1999)
    for share, check in ((1.0, self.assertLess), (0.85, self.assertGreater)):
      cohort = outlook.cohort_needed * share
      noise = (
        planning.Scenario('client', 2000, cohort, 20, 1e-3)
        .outlook(epsilon=1.0, parameters=_PARAMETERS)
        .noise_over_run
      )
      check(noise, planning.USABLE_NOISE * 1.001)

  def test_a_few_hospitals_are_hopeless_and_told_what_helps(self):
    scenario = planning.Scenario('client', 20, 10, 100, 0.01)
    outlook = scenario.outlook(epsilon=2.0, parameters=_PARAMETERS)
    self.assertIs(outlook.verdict, planning.Verdict.HOPELESS)
    self.assertIsNone(outlook.cohort_needed)
    advice = planning.advice(scenario, outlook, _PARAMETERS)
    self.assertIn(f'have {outlook.population_needed:,} clients', advice)
    self.assertIn(f'at most {outlook.parameters_affordable:,} param', advice)
    self.assertIn('protect records', advice)
    self.assertNotIn('a round', advice)

  def test_adaptive_clipping_out_of_reach(self):
    scenario = planning.Scenario('client', 20, 10, 100, 0.01, adaptive=True)
    outlook = scenario.outlook(epsilon=2.0, parameters=_PARAMETERS)
    self.assertEqual(outlook.noise_multiplier, math.inf)
    self.assertIs(outlook.verdict, planning.Verdict.HOPELESS)
    advice = planning.advice(scenario, outlook, _PARAMETERS)
    self.assertIn('choose fixed clipping', advice)
    self.assertGreater(outlook.population_needed, 20)

  def test_no_advice_where_none_is_needed(self):
    scenario = planning.Scenario('record', 50_000, 500, 100, 1e-5)
    outlook = scenario.outlook(epsilon=4.0, parameters=_PARAMETERS)
    self.assertIs(outlook.verdict, planning.Verdict.USABLE)
    self.assertEqual(planning.advice(scenario, outlook, _PARAMETERS), '')
    self.assertEqual(outlook.cohort_needed, 500)
    self.assertEqual(outlook.population_needed, 50_000)

  def test_everybody_in_every_round_is_no_amplification(self):
    everybody = planning.Scenario('client', 40, 40, 50, 1e-3)
    drawn = planning.Scenario('client', 400, 40, 50, 1e-3)
    noises = [
      s.outlook(epsilon=2.0, parameters=100).noise_multiplier
      for s in (everybody, drawn)
    ]
    self.assertGreater(noises[0], 3 * noises[1])

  @parameterized.parameters(
    ({'population': 0}, 'population'),
    ({'rounds': 0}, 'rounds'),
    ({'delta': 1.0}, 'delta'),
    ({'unit': 'site'}, 'privacy_unit'),
    ({'expected_cohort': 500}, 'expected_cohort'),
  )
  def test_refuses(self, changed, message):
    values = {
      'unit': 'client',
      'population': 400,
      'expected_cohort': 40,
      'rounds': 50,
      'delta': 1e-3,
      **changed,
    }
    with self.assertRaisesRegex(_validate.InputError, message):
      planning.Scenario(**values)


if __name__ == '__main__':
  absltest.main()
