"""Tests that no value of a flag leads to anything but a run or one line."""

from absl.testing import absltest
import numpy as np

from experiments import settings as settings_lib
from tests.faults import flag_faults
from tff_medical.privacy import accounting

# Where 1 in float32 would be another optimizer, or none.
_BELOW_ONE = ('server_momentum', 'ema_decay', 'target_unclipped_quantile')
# Refusals that come from a flag beside the one that was given.
_TOGETHER = ('noise_multiplier', 'target_delta')


class FlagFaultsTest(absltest.TestCase):
  def test_every_value_works_or_is_refused_in_one_line(self):
    tried = refused = 0
    names = set()
    for case in flag_faults.cases():
      result = flag_faults.attempt(case)
      self.assertTrue(result.survived, (case, result))
      tried += 1
      names.add(case.name)
      if result.refusal:
        refused += 1
        self.assertNotIn('\n', result.refusal)
        self.assertRegex(result.refusal, '|'.join((case.name, *_TOGETHER)))
      elif flag_faults.kind_of(case.name) is float:
        self._assert_kept_by_float32(case)
    self.assertGreater(tried, 1500)
    self.assertBetween(refused, 1000, tried - 300)
    self.assertContainsSubset(flag_faults.numeric_names(), names)

  def _assert_kept_by_float32(self, case):
    value = float(case.text)
    kept = np.float32(value)
    self.assertTrue(np.isfinite(kept), case)
    np.testing.assert_allclose(kept, value, rtol=1e-6, err_msg=str(case))
    self.assertFalse(kept and abs(kept) < np.finfo(np.float32).tiny, case)
    if case.name in _BELOW_ONE:
      self.assertLess(kept, 1, case)

  def test_the_ends_of_what_is_accepted_are_accounted_for(self):
    for name, text, *beside in (
      ('target_epsilon', '1e4', 'rounds=100'),
      ('target_epsilon', '1000', 'clients_per_round=100'),
      ('target_epsilon', '1e-6'),
      ('target_delta', '1e-12', 'noise_multiplier=1'),
      ('rounds', '1000000', 'noise_multiplier=1', 'clipping=fixed'),
      ('noise_multiplier', '.001', 'clipping=fixed'),
      ('noise_multiplier', '1e6', 'clipping=fixed'),
      ('clients_per_round', '.001', 'noise_multiplier=1', 'clipping=fixed'),
    ):
      case = flag_faults.Case(name, text, tuple(beside))
      result = flag_faults.attempt(case, account=True)
      self.assertFalse(result.problem, case)
      self.assertEqual(bool(result.refusal), text == '1e-6', (case, result))

  def test_the_bounds_let_the_accountant_state_any_delta(self):
    low, high = settings_lib.bounds('target_delta')
    event = flag_faults.build.build_mechanism(
      flag_faults.read(
        ['--output_dir=x', '--noise_multiplier=1', '--clipping=fixed']
      )
      .resolve()
      .for_population(300, 300),
      300,
      print,
    ).charge_event()
    for delta in (low, high):
      epsilon = accounting.epsilon(event, rounds=1000, delta=delta)
      self.assertTrue(0 < epsilon < 1e3)


if __name__ == '__main__':
  absltest.main()
