"""Tests of commands that charge one ledger for all runs on the same data."""

import contextlib
import io
import pathlib
import re

from absl.testing import absltest
from absl.testing import parameterized
import dp_accounting

from experiments import audit
from experiments import compare
from experiments import tradeoff
from experiments import train
from experiments import verify
from experiments.config import settings as settings_lib
from tests.experiments import dense_net
from tests.experiments import npz
from tff_medical import _validate
from tff_medical.auditing import data_verification
from tff_medical.privacy import accounting
from tff_medical.privacy import data_ledger_contents
from tff_medical.privacy import events
from tff_medical.serving import export


class DataLedgerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.temp / 'data_ledger.jsonl'
    self.flags = settings_lib.Flags.of(
      dataset='medmnist/breastmnist',
      data_dir=npz.write(self.temp),
      privacy_unit='record',
      num_clients=3,
      expected_batch_size=6.0,
      model=dense_net.MODEL,
      rounds=3,
      noise_multiplier=2.0,
      data_ledger=str(self.path),
      output_dir=str(self.temp / 'first'),
    )

  def _train(self, name='first', **changed):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
      train.run(self.flags.changed(output_dir=str(self.temp / name), **changed))
    return printed.getvalue()

  def _event(self):
    return events.parse_event(
      data_ledger_contents.read(self.path).entries[0].event
    )

  def _verify(self, *folders):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
      code = verify.main(str(self.path), [str(self.temp / f) for f in folders])
    return code, printed.getvalue()

  def test_runs_share_a_budget_that_card_and_verify_state(self):
    self._train(data_budget=9.0)
    printed = self._train('second', rounds=5)
    book = data_ledger_contents.read(self.path)
    total = accounting.epsilon(self._event(), rounds=8, delta=book.delta)
    self.assertEqual(book.epsilon, total)
    self.assertEqual([e.kind for e in book.runs.values()], ['settled'] * 2)
    self.assertIn(f'ε over all runs on this data: {total:.4f} of 9', printed)
    card = export.load_card(self.temp / 'second' / 'saved_model')
    self.assertEqual(card['data_ledger']['epsilon'], total)
    self.assertEqual(card['data_ledger']['sha256'], book.digest)
    self.assertIn('epsilon over all 2 runs', card['not_covered'][0])
    code, printed = self._verify('first', 'second')
    self.assertEqual(code, 0, printed)
    self.assertIn(f'{total:.4f} of 9', printed)
    self.assertLen(re.findall(r'^[0-9a-f]{8}  train', printed, re.M), 2)
    self._train('aside', data_ledger=None)
    code, printed = self._verify('first', 'aside')
    self.assertEqual(code, verify.EXIT_DIFFERS)
    self.assertRegex(printed, 'WRONG .*aside.* is missing')
    # An entry is changed, and then the file is lost.
    text = self.path.read_text().replace('"charges": 3', '"charges": 2')
    self.path.write_text(text)
    (check,) = data_verification.verify(self.path)
    self.assertFalse(check.is_right)
    with self.assertRaisesRegex(_validate.InputError, 'was changed'):
      self._train('third')
    self.path.unlink()
    with self.assertRaisesRegex(_validate.InputError, 'does not exist'):
      data_verification.verify(self.path)

  def test_a_run_that_does_not_fit_is_refused_before_it_leaves_a_file(self):
    with self.assertRaisesRegex(_validate.InputError, 'target_epsilon of at'):
      self._train(data_budget=0.01)
    self.assertFalse((self.temp / 'first').exists())
    self.assertFalse(self.path.exists())

  def test_a_run_that_goes_on_pays_for_its_further_rounds_alone(self):
    self._train(data_budget=9.0)
    self._train(rounds=5)
    book = data_ledger_contents.read(self.path)
    self.assertLen(book.runs, 1)
    self.assertEqual(list(book.runs.values())[0].charges, 5)
    with self.assertRaisesRegex(_validate.InputError, 'must be given, as the'):
      self._train(rounds=6, data_ledger=None)

  def test_an_audit_is_charged_in_the_ledger_of_its_run(self):
    event = dp_accounting.PoissonSampledDpEvent(
      0.1, dp_accounting.GaussianDpEvent(2.0)
    )
    delta = accounting.default_delta(60)
    budget = accounting.epsilon(event, rounds=7, delta=delta)
    self._train(data_budget=budget)
    results = audit.audit(str(self.temp / 'first'), canaries=100)
    book = data_ledger_contents.read(self.path)
    self.assertEqual(
      [(e.purpose, e.kind, e.charges) for e in book.runs.values()],
      [('train', 'settled', 3), ('audit', 'settled', 3)],
    )
    self.assertEqual(results['card']['data_ledger']['epsilon'], book.epsilon)
    # There is room for one round more, and an audit has three.
    (self.temp / 'first' / 'audit').rename(self.temp / 'first' / 'audit_1')
    before = self.path.read_bytes()
    with self.assertRaisesRegex(_validate.InputError, 'has a budget'):
      audit.audit(str(self.temp / 'first'), canaries=100)
    self.assertEqual(self.path.read_bytes(), before)
    self.assertFalse((self.temp / 'first' / 'audit').exists())

  def test_clients_of_another_partition_do_not_add_up(self):
    clients = {
      'privacy_unit': 'client',
      'num_clients': 12,
      'clients_per_round': 6.0,
      'clipping': 'fixed',
      'expected_batch_size': None,
    }
    self._train(data_budget=99.0, **clients)
    with self.assertRaisesRegex(_validate.InputError, 'another partition'):
      self._train('third', seed=1, **clients)
    with self.assertRaisesRegex(_validate.InputError, 'do not add up'):
      self._train('fourth')

  @parameterized.parameters(
    ({'clipping': 'none', 'noise_multiplier': None}, 'no room for a run'),
    ({'noise_multiplier': 0.0}, 'no room for a run'),
    ({'data_ledger': None, 'data_budget': 3.0}, 'would be ignored without'),
    ({'data_budget': 0.0}, 'data_budget must be positive'),
    ({'data_ledger': 's3://bucket/ledger'}, 'must be a folder of this machine'),
  )
  def test_refuses_flags(self, changed, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      self.flags.changed(**changed).resolve()

  def test_a_sweep_has_no_cells_without_privacy(self):
    base = self.flags.changed(noise_multiplier=None)
    planned = tradeoff.plan_cells(base, [1.0, 2.0], seeds=1)
    self.assertEqual([p.cell.epsilon for p in planned], [2.0, 1.0])
    for p in planned:
      self.assertEqual(p.flags.data_ledger, str(self.path))
    with self.assertRaisesRegex(_validate.InputError, 'epsilons must be fin'):
      tradeoff.plan_cells(base, [1.0, float('inf')], seeds=1)

  def test_variants_share_the_ledger_of_the_base(self):
    base = self.flags.changed(noise_multiplier=None, target_epsilon=1.0)
    planned = compare.plan(
      base,
      [compare.Variant.parse('long: --rounds=5'), compare.Variant('base')],
      1,
    )
    for planned_training in planned.values():
      self.assertEqual(planned_training.flags.data_ledger, str(self.path))
    other = compare.Variant.parse('other: --data_ledger=elsewhere')
    with self.assertRaisesRegex(
      _validate.InputError, 'data_ledger of the base'
    ):
      compare.plan(base, [other], 1)


if __name__ == '__main__':
  absltest.main()
