"""Tests of the sweep: its cells, its second start, and its files."""

import contextlib
import csv
import io
import math
import pathlib
import shutil
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from experiments import modes
from experiments import tradeoff
from experiments.config import settings as settings_lib
from experiments.running import jobs
from tests import finished_sweeps
from tests.experiments import fake_cells
from tests.experiments import npz
from tff_medical import _validate
from tff_medical.program import run_folder
from tff_medical.reporting import sweeps


class TradeoffTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)
    self.output = self.temp / 'sweep'
    self.base = settings_lib.Flags.of(
      dataset='medmnist/breastmnist',
      data_dir=npz.write(self.temp),
      num_clients=30,
      clients_per_round=15.0,
      rounds=3,
      clipping='fixed',  # Its calibration is faster.
      output_dir=str(self.output),
    )

  def _run(self, epsilons=(40.0, math.inf), seeds=1, check=False, **changed):
    """Runs a sweep; returns the exit code and the printed text."""
    printed = io.StringIO()
    if not check:  # The check takes some seconds.
      skip = mock.patch.object(tradeoff, 'check_strictest')
      self.enter_context(skip)
    with (
      contextlib.redirect_stdout(printed),
      contextlib.redirect_stderr(printed),
    ):
      code = tradeoff.run(
        self.base.changed(**changed),
        epsilons=epsilons,
        seeds=seeds,
        jobs=2,
        command='python -m experiments.tradeoff',
      )
    return code, printed.getvalue()

  def _fake_cells(self, fails=()):
    """Replaces cells, which end at once; yields the started jobs."""

    def finish(job, run):
      run.write_summary(
        finished_sweeps.summary(
          epsilon=math.inf,
          metrics={'auc': 0.5},
          eval_split=finished_sweeps.eval_split(job),
        )
      )

    return fake_cells.ending(finish, fails)

  def _rows(self):
    with open(self.output / 'results.csv', newline='') as file:
      return {row['cell']: row for row in csv.DictReader(file)}

  def test_another_split_is_evaluated_in_every_cell(self):
    with self._fake_cells() as started:
      _, printed = self._run()
      self.assertIn('the validation AUC is', printed)
      self._run()
      self.assertLen(started, 4)
      _, printed = self._run(eval_split='test')
      self.assertLen(started, 8)
      self._run(eval_split='test')
    self.assertLen(started, 8)
    self.assertIn('the test AUC is', printed)
    self.assertNotIn('validation AUC', printed)
    self.assertEqual({r['eval_split'] for r in self._rows().values()}, {'test'})

  def test_real_cells_in_processes_of_their_own(self):
    """Two cells are really trained; the others count as done before."""
    with self._fake_cells():
      self._run()
    for name in ('per_site_seed_0', 'eps_40_seed_0'):
      shutil.rmtree(self.output / 'cells' / name)
    code, printed = self._run()
    self.assertEqual(code, 0, printed)
    rows = self._rows()
    self.assertCountEqual(
      rows,
      ['central_seed_0', 'per_site_seed_0', 'eps_40_seed_0', 'eps_inf_seed_0'],
    )
    private = rows['eps_40_seed_0']
    self.assertBetween(float(private['epsilon']), 35, 40)
    self.assertEqual(private['unit'], 'client')
    self.assertAlmostEqual(float(private['delta']), 30**-1.1, places=5)
    self.assertLen(private['ledger_sha256'], 64)
    self.assertBetween(float(private['auc']), 0, 1)
    self.assertEqual(rows['per_site_seed_0']['status'], 'skipped')
    self.assertIn('30 clients have too few images', printed)
    self.assertEqual(rows['eps_inf_seed_0']['epsilon'], 'inf')
    self.assertIn(
      private['ledger_sha256'], (self.output / 'report.html').read_text('utf-8')
    )

  def test_nothing_is_done_twice(self):
    with self._fake_cells():
      self._run()
    before = (self.output / 'results.csv').read_text()
    with self._fake_cells() as started:
      self._run()
    self.assertEmpty(started)
    self.assertEqual((self.output / 'results.csv').read_text(), before)

  def test_only_what_is_missing_is_done(self):
    with self._fake_cells():
      self._run(seeds=2)
    shutil.rmtree(self.output / 'cells' / 'eps_inf_seed_1')
    cell = run_folder.RunFolder(self.output / 'cells' / 'eps_40_seed_0')
    cell.write_summary(finished_sweeps.summary(stop_reason='interrupted'))
    with self._fake_cells() as started:
      _, printed = self._run(seeds=2)
    self.assertEqual(
      [job.name for job in started], ['eps_40_seed_0', 'eps_inf_seed_1']
    )
    self.assertIn('6 of 8 cells are done', printed)

  def test_more_epsilons_and_seeds_may_be_asked_for(self):
    with self._fake_cells():
      self._run()
    with self._fake_cells() as started:
      self._run(epsilons=[4.0])
    self.assertEqual([job.name for job in started], ['eps_4_seed_0'])
    self.assertLen(self._rows(), 5)

  def test_a_cell_that_fails_stops_no_other_and_is_named(self):
    with self._fake_cells(fails=['eps_40_seed_0']) as started:
      code, printed = self._run()
    self.assertEqual(code, 1)
    self.assertLen(started, 4)
    self.assertIn('error: cell eps_40_seed_0: error: no luck', printed)
    self.assertEqual(self._rows()['eps_40_seed_0']['status'], 'missing')
    with self._fake_cells() as started:
      code, _ = self._run()
    self.assertEqual([job.name for job in started], ['eps_40_seed_0'])
    self.assertEqual(code, 0)

  def test_an_interrupt_leaves_what_there_is(self):
    with mock.patch.object(jobs, 'run', side_effect=KeyboardInterrupt):
      code, printed = self._run()
    self.assertEqual(code, 130)
    self.assertIn('start the same command again', printed)
    self.assertTrue((self.output / 'report.html').exists())

  def test_commands(self):
    """A cell's flags give exactly its settings."""
    with self._fake_cells() as started:
      self._run(epsilons=[40.0], target_delta=0.01)
    commands = {job.name: job.command for job in started}
    private = commands['eps_40_seed_0']
    self.assertIn('experiments.train', private)
    self.assertIn('--target_epsilon=40.0', private)
    self.assertIn('--target_delta=0.01', private)
    self.assertIn(f'--output_dir={self.output}/cells/eps_40_seed_0', private)
    central = commands['central_seed_0']
    self.assertIn('experiments.references', central)
    self.assertIn('--kind=central', central)
    self.assertIn('--clipping=none', central)
    self.assertFalse([a for a in central if a.startswith('--target')])

  @parameterized.parameters(
    {'clip_norm': 2.0},
    {
      'clipping': 'adaptive',
      'target_unclipped_quantile': 0.7,
      'target_delta': 0.01,
    },
    {'mechanism': 'dp_ftrl', 'rounds_per_tree': 2},
    {'mechanism': 'distributed_dp', 'clients_per_round': None},
    {'client_sampling': 'all', 'clients_per_round': None},
    {
      'privacy_unit': 'record',
      'clients_per_round': None,
      'expected_batch_size': 30.0,
      'client_threads': 1,
    },
  )
  def test_without_privacy_nothing_is_left_of_it(self, **changed):
    base = self.base.changed(**changed)
    plain = tradeoff.without_privacy(base)
    self.assertEqual(plain.clipping, 'none')
    mode = modes.default(base.privacy_unit)
    self.assertEqual(plain.mode(), mode)
    for name in 'clip_norm target_delta rounds_per_tree'.split():
      self.assertNotIn(name, plain.given)
    for name in (
      'rounds num_clients clients_per_round privacy_unit expected_batch_size '
      'client_threads'
    ).split():
      self.assertEqual(getattr(plain, name), getattr(base, name), name)
    self.assertFalse(plain.resolve().mode.is_private)

  def test_flags_of_the_cells_without_privacy(self):
    base = self.base.changed(server_learning_rate=2.0)
    planned = tradeoff.plan_cells(
      base, [4.0, math.inf], 1, '--server_learning_rate=0.1 --rounds=7'
    )
    found = {
      p.cell.epsilon: p.flags
      for p in planned
      if p.cell.kind == sweeps.FEDERATED
    }
    self.assertEqual(found[4.0].server_learning_rate, 2.0)
    self.assertEqual(found[4.0].rounds, 3)
    self.assertEqual(found[math.inf].server_learning_rate, 0.1)
    self.assertEqual(found[math.inf].rounds, 7)
    for wrong, message in (
      ('--clip_norm=1', 'clip_norm.*ignored'),
      ('--seed=7', 'seed is decided'),
      ('--clipping=fixed --noise_multiplier=1', 'clipping is decided'),
    ):
      with self.assertRaisesRegex(_validate.InputError, message):
        tradeoff.plan_cells(base, [math.inf], 1, wrong)

  def test_references_get_what_they_have_use_for(self):
    base = self.base.changed(
      privacy_unit='record',
      num_clients=None,
      clients_per_round=None,
      expected_batch_size=30.0,
      ema_decay=0.9,
      client_threads=1,
    )
    (central,) = (
      p.flags
      for p in tradeoff.plan_cells(base, [], 1)
      if p.cell.kind == sweeps.CENTRAL
    )
    self.assertEqual(central.num_clients, 8)
    self.assertEqual(central.dataset, base.dataset)
    for name in ('ema_decay', 'expected_batch_size', 'client_threads'):
      self.assertEqual(
        getattr(central, name), getattr(settings_lib.Flags.of(), name)
      )

  def test_without_privacy_everybody_still_joins(self):
    base = self.base.changed(mechanism='distributed_dp', clients_per_round=None)
    self.assertEqual(tradeoff.without_privacy(base).client_sampling, 'all')

  def test_without_noise_there_is_no_noised_count(self):
    base = self.base.changed(
      privacy_unit='record', clients_per_round=None, class_weights='noised'
    )
    plain = tradeoff.without_privacy(base.changed(class_count_noise=3.0))
    self.assertIsNone(plain.resolve().mode.class_weights)

  def test_without_noise_adam_bc_is_adam(self):
    base = self.base.changed(clipping='fixed', server_optimizer='adam_bc')
    plain = tradeoff.without_privacy(base.changed(adam_bc_floor=0.1))
    self.assertEqual(plain.resolve().mode.server_optimizer, 'adam')

  def test_seeds_start_at_the_given_one(self):
    base = self.base.changed(seed=5)
    planned = tradeoff.plan_cells(base, [2.0], 2)
    self.assertEqual({p.flags.seed for p in planned}, {5, 6})
    names = {p.cell.name for p in planned if p.cell.kind == sweeps.FEDERATED}
    self.assertEqual(names, {'eps_2_seed_5', 'eps_2_seed_6'})

  @parameterized.parameters(
    ({'target_epsilon': 3.0}, 'target_epsilon is decided for each cell'),
    ({'noise_multiplier': 1.0}, 'noise_multiplier is decided'),
    ({'cohort_seed': 1}, 'cohort_seed is decided'),
    ({'clipping': 'none'}, 'target_epsilon.*ignored'),
    ({'dirichlet_alpha': 0.1}, 'dirichlet_alpha.*ignored'),
    ({'output_dir': None}, 'output_dir'),
    ({'rounds': 0}, 'rounds'),
  )
  def test_refuses_before_anything_is_written(self, changed, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      self._run(**changed)
    self.assertFalse(self.output.exists())

  @parameterized.parameters(
    (
      {'epsilons': [0.01, 8.0], 'clipping': 'adaptive'},
      'target_epsilon 0.01 is out of reach',
    ),
    ({'data_dir': 'nowhere'}, 'nowhere'),
    ({'clients_per_round': 31.0}, 'clients_per_round must be below the 30'),
  )
  def test_refuses_what_the_data_rules_out(self, changed, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      self._run(check=True, **changed)
    self.assertFalse(self.output.exists())

  def test_refuses_another_sweep_s_folder(self):
    with self._fake_cells():
      self._run()
    with self.assertRaisesRegex(
      _validate.InputError, r'--rounds \(3 there, 4 now\)'
    ):
      self._run(rounds=4)
    with self._fake_cells() as started:
      self._run(client_threads=1)  # The setting does not change the cells.
    self.assertEmpty(started)

  def test_refuses_a_folder_with_other_files(self):
    self.output.mkdir()
    (self.output / 'thesis.tex').write_text('precious')
    with self.assertRaisesRegex(_validate.InputError, 'holds other files'):
      self._run()


if __name__ == '__main__':
  absltest.main()
