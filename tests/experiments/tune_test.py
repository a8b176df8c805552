"""Tests of the search over settings: what is tried, paid for and released."""

import contextlib
import csv
import io
import json
import pathlib
import stat
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from experiments import tune
from experiments.config import flags as flags_lib
from experiments.config import settings as settings_lib
from experiments.running import exit_codes
from experiments.running import jobs
from experiments.tuning import pricing
from experiments.tuning import releasing
from experiments.tuning import search as search_lib
from tests import finished_sweeps
from tests.experiments import fake_cells
from tests.experiments import npz
from tff_medical import _validate
from tff_medical.auditing import verification
from tff_medical.privacy import data_ledger_contents
from tff_medical.privacy import events
from tff_medical.privacy import selection
from tff_medical.serving import export

_VALUES = {'server_learning_rate': ['0.1', '0.5'], 'clip_norm': ['0.5', '1']}
_SECRET = search_lib.Search(
  _VALUES, 'random', trials=2.0, price=search_lib.PAPERNOT_STEINKE
)


class TuneTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)
    self.output = self.temp / 'out'
    self.base = settings_lib.Flags.of(
      dataset='medmnist/breastmnist',
      data_dir=npz.write(self.temp),
      privacy_unit='record',
      num_clients=3,
      expected_batch_size=6.0,
      rounds=3,
      target_epsilon=4.0,
      output_dir=str(self.output),
    )
    self.priced = []

  def _run(self, search=None, **changed):
    printed = io.StringIO()
    search = search or search_lib.Search(_VALUES)
    with (
      contextlib.redirect_stdout(printed),
      contextlib.redirect_stderr(printed),
    ):
      code = tune.run(self.base.changed(**changed), search, jobs=2)
    return code, printed.getvalue()

  @contextlib.contextmanager
  def _fake_cells(self, fails=()):
    """Replaces trainings, which end with an AUC by their settings."""

    def finish(job, run):
      given = dict(
        argument[2:].split('=', 1)
        for argument in job.command
        if argument.startswith('--')
      )
      auc = 0.5 + float(given['server_learning_rate']) / 2
      auc += float(given['clip_norm']) / 10
      run.write_summary(
        finished_sweeps.summary(
          metrics={'auc': auc},
          eval_split=given['eval_split'],
          run_id=job.name,
        )
      )

    def call(function, *args):
      if function is pricing.price:
        search, planned, request = args
        self.priced.append((search, planned, request))
        number = len(planned)
        return pricing.Priced(
          (1.5,) * number, (0.75,) * number, 4.0, 1e-3, 'GaussianDpEvent('
          'noise_multiplier=1.0)'
        )  # fmt: skip
      self.released = args
      return {'epsilon': 4.0, 'delta': 1e-3, 'test_metrics': {}}

    event = events.parse_event('GaussianDpEvent(noise_multiplier=1.0)')
    with (
      fake_cells.ending(finish, fails) as started,
      mock.patch.object(jobs, 'call', call),
      mock.patch.object(releasing, 'composed_event', lambda book, ids: event),
      mock.patch.object(data_ledger_contents, 'read', lambda path: None),
    ):
      yield started

  def test_the_best_on_validation_images_is_released(self):
    with self._fake_cells() as started:
      code, printed = self._run()
    self.assertEqual(code, 0, printed)
    self.assertLen(started, 4)
    self.assertIn('server_learning_rate=0.5, clip_norm=1', printed)
    self.assertEndsWith(self.released[0], 'cells/trial_004')
    with open(self.output / 'results.csv', newline='') as file:
      rows = list(csv.DictReader(file))
    self.assertEqual([row['trial'] for row in rows], ['4', '3', '2', '1'])
    self.assertTrue((self.output / 'tuning.png').exists())

  def test_trials_have_the_calibrated_noise_and_a_ledger_of_the_search(self):
    with self._fake_cells() as started:
      self._run()
    for job in started:
      self.assertContainsSubset(
        {
          '--noise_multiplier=1.5',
          '--epsilon_budget=0.75',
          '--target_delta=0.001',
          '--eval_split=validation',
          f'--data_ledger={self.output / "data_ledger.jsonl"}',
          '--data_budget=4.0',
        },
        job.command,
      )
      self.assertNotIn('target_epsilon', ' '.join(job.command))

  def test_trials_are_charged_in_the_ledger_that_is_given(self):
    path = self.temp / 'ledger.jsonl'
    with self._fake_cells() as started:
      self._run(data_ledger=str(path), data_budget=9.0)
    for job in started:
      self.assertIn(f'--data_ledger={path}', job.command)
      self.assertIn('--data_budget=9.0', job.command)

  def test_best_flags_train_again(self):
    with self._fake_cells():
      self._run()
    path = self.output / 'best.flags'
    given = flags_lib.changed(settings_lib.Flags.of(), f'--flagfile={path}')
    self.assertEqual(given.server_learning_rate, 0.5)
    self.assertEqual(given.noise_multiplier, 1.5)
    self.assertIsNone(given.output_dir)
    given.changed(output_dir='elsewhere').resolve()

  def test_nothing_is_chosen_before_all_trials_have_ended(self):
    with self._fake_cells(fails=['trial_002']):
      code, printed = self._run()
    self.assertEqual(code, exit_codes.FAILED)
    self.assertIn('error: trial_002', printed)
    self.assertFalse((self.output / 'best.flags').exists())
    with self._fake_cells() as started:
      code, _ = self._run()
    self.assertEqual(code, 0)
    self.assertEqual([job.name for job in started], ['trial_002'])
    self.assertLen(self.priced, 1)

  def test_refuses_another_search_in_the_folder(self):
    with self._fake_cells():
      self._run()
    for change in ({'rounds': 4}, {'target_epsilon': 5.0}):
      with self.assertRaisesRegex(_validate.InputError, 'another settings'):
        self._run(**change)
    with self.assertRaisesRegex(_validate.InputError, 'another search'):
      self._run(search_lib.Search({'clip_norm': ['1', '2']}))

  def test_the_best_alone_is_evaluated_on_test_images(self):
    with self._fake_cells() as started:
      self._run()
      chosen = [job.name for job in started]
      self.assertNotIn('--eval_split=test', str([j.command for j in started]))
      code, _ = self._run(eval_split='test')
    self.assertEqual(code, 0)
    (job,) = started[len(chosen) :]
    self.assertEqual(job.name, 'best_on_test')
    self.assertIn('--eval_split=test', job.command)
    self.assertEndsWith(self.released[0], 'cells/best_on_test')
    # The trial is still the one that was chosen on validation images.
    self.assertIn('server_learning_rate=0.5', ' '.join(job.command))
    with self._fake_cells() as started:
      code, _ = self._run()
    self.assertEqual((code, started), (0, []))

  def _private(self):
    return self.output / 'private'

  def test_a_secret_search_shows_the_best_alone(self):
    drawn = mock.patch.object(
      selection.NumberOfTrials, 'draw', lambda self, rng: 5
    )
    with drawn, self._fake_cells() as started:
      code, printed = self._run(_SECRET)
    self.assertEqual(code, 0, printed)
    self.assertLen(started, 5)
    self.assertCountEqual(
      [path.name for path in self.output.iterdir()],
      ['private', 'tuning.json', 'best.flags'],  # The model is a fake here.
    )
    self.assertEqual(stat.S_IMODE(self._private().stat().st_mode), 0o700)
    self.assertTrue((self._private() / 'KEEP_SECRET.txt').exists())
    self.assertTrue((self._private() / 'results.csv').exists())
    published = json.loads((self.output / 'tuning.json').read_text())
    self.assertEqual(published['search']['mean_number_of_trials'], 2.0)
    self.assertLen(published['priced']['epsilons'], 4)  # Of all candidates.
    for name in ('tuning.json', 'best.flags'):
      self.assertNotIn('trial_', (self.output / name).read_text())
    for job in started:
      self.assertNotIn('data_ledger', ' '.join(job.command))

  def test_the_secret_number_is_drawn_once(self):
    with self._fake_cells() as started:
      self._run(_SECRET)
      first = (self._private() / 'trials.json').read_text()
      self._run(_SECRET)
      self.assertEqual((self._private() / 'trials.json').read_text(), first)
    self.assertLen(started, len(json.loads(first)['trials']))
    (self._private() / 'trials.json').unlink()
    with self.assertRaisesRegex(_validate.InputError, 'never drawn again'):
      self._run(_SECRET)

  @parameterized.parameters(
    ({'target_epsilon': None, 'noise_multiplier': 1.0}, 'target_epsilon must'),
    ({'cohort_seed': 1}, 'cohort_seed is decided'),
    ({'epsilon_budget': 1.0}, 'epsilon_budget is decided'),
    ({'output_dir': None}, 'output_dir must be given'),
    ({'rounds': 0}, 'rounds'),
  )
  def test_refuses_a_base(self, changed, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      self._run(**changed)
    self.assertFalse(self.output.exists())

  @parameterized.parameters(
    ({'clip_norm': ['1', '-1']}, 'clip_norm'),
    ({'no_such_flag': ['1']}, 'no_such_flag'),
    ({'client_epochs': ['1', '2']}, 'client_epochs=1 would be ignored'),
    (
      {'server_optimizer': ['adam'], 'server_momentum': ['0.5', '0.9']},
      'would be ignored',
    ),
  )
  def test_refuses_a_candidate_before_any_file(self, values, message):
    with self._fake_cells():
      with self.assertRaisesRegex(_validate.InputError, message):
        self._run(search_lib.Search(values))
    self.assertFalse(self.output.exists())

  def test_refuses_a_folder_with_other_files(self):
    self.output.mkdir()
    (self.output / 'thesis.tex').write_text('precious')
    with self.assertRaisesRegex(_validate.InputError, 'holds other files'):
      self._run()

  def test_real_trials_cost_the_target_together(self):
    search = search_lib.Search({'server_learning_rate': ['0.1', '0.5']})
    code, printed = self._run(search, eval_split='test')
    self.assertEqual(code, 0, printed)
    self.assertIn('test auc', printed)
    book = data_ledger_contents.read(self.output / 'data_ledger.jsonl')
    self.assertLen(book.runs, 2)
    self.assertBetween(book.epsilon, 3.9, 4.0)
    model = self.output / 'saved_model'
    card = export.load_card(model)
    self.assertEqual(card['epsilon'], book.epsilon)
    self.assertLess(card['tuning']['epsilon_of_one_training'], 3.5)
    self.assertEqual(card['tuning']['trials'], 2)
    self.assertIn('auc', card['test_metrics'])
    self.assertTrue(all(c.is_right for c in verification.verify(model)))

  def test_a_real_secret_search_is_one_entry_of_the_data_ledger(self):
    path = self.temp / 'ledger.jsonl'
    drawn = mock.patch.object(
      selection.NumberOfTrials, 'draw', lambda self, rng: 1
    )
    with drawn:
      code, printed = self._run(
        _SECRET, data_ledger=str(path), data_budget=5.0, target_epsilon=5.0
      )
    self.assertEqual(code, 0, printed)
    book = data_ledger_contents.read(path)
    (entry,) = book.entries
    self.assertEqual((entry.purpose, entry.charges), ('tune', 1))
    card = export.load_card(self.output / 'saved_model')
    self.assertEqual(card['charge_event'], entry.event)
    self.assertEqual(card['accountant'], 'RDP')
    self.assertBetween(card['epsilon'], 4.9, 5.0)
    self.assertEqual(book.epsilon, card['epsilon'])
    checks = verification.verify(self.output / 'saved_model')
    self.assertTrue(all(c.is_right for c in checks), checks)
    self.assertLess(
      card['tuning']['epsilon_of_one_training'], card['epsilon'] / 2
    )


if __name__ == '__main__':
  absltest.main()
