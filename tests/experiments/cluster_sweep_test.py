"""Tests of sweeps whose cells run on a real Ray cluster of two nodes."""

import contextlib
import io
import pathlib
import threading
from unittest import mock

from absl.testing import absltest
import psutil

from experiments import tradeoff
from experiments.config import settings as settings_lib
from experiments.running import cells
from tests import ray_clusters
from tests.experiments import npz
from tff_medical import _validate
from tff_medical.privacy import data_ledger_contents
from tff_medical.program import run_folder


class SettingsTest(absltest.TestCase):
  def test_each_path_is_read_or_made(self):
    paths = {
      name
      for name in settings_lib.owners()
      if settings_lib.field(name).metadata['is_path']
    }
    made = {'output_dir', 'data_ledger', 'features_dir', 'prepared_dir'}
    self.assertEqual(paths - made, {*cells.INPUTS})

  def test_refuses_what_is_no_cluster(self):
    base = settings_lib.Flags.of(output_dir='x', target_epsilon=8.0)
    place = cells.Place(cells_on='nowhere')
    with self.assertRaisesRegex(_validate.InputError, 'HOST:PORT'):
      place.check(base, pathlib.Path('x'))

  def test_refuses_a_cluster_in_the_cluster(self):
    base = settings_lib.Flags({'runtime': 'cluster'})
    place = cells.Place(cells_on=cells.CLUSTER)
    with self.assertRaisesRegex(_validate.InputError, 'leave one of them out'):
      place.check(base, pathlib.Path('x'))


@absltest.skipUnless(ray_clusters.is_installed(), 'Ray is not installed')
class ClusterSweepTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.cluster = ray_clusters.Cluster.of_class(cls, 1, 1)

  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)
    self.enter_context(mock.patch.object(tradeoff, 'check_strictest'))
    self.base = settings_lib.Flags.of(
      dataset='medmnist/breastmnist',
      data_dir=npz.write(self.temp),
      num_clients=30,
      clients_per_round=15.0,
      rounds=4,
      clipping='fixed',  # Its calibration is faster.
    )
    self.killed = []
    self._over = threading.Event()

  def _run(self, name, epsilons, cells_on, kinds=(), **changed):
    """Runs a sweep; returns its folder."""
    folder = self.temp / name
    printed = io.StringIO()
    with (
      mock.patch.object(tradeoff.sweeps, 'REFERENCES', kinds),
      contextlib.redirect_stdout(printed),
      contextlib.redirect_stderr(printed),
    ):
      code = tradeoff.run(
        self.base.changed(output_dir=str(folder), **changed),
        epsilons=epsilons,
        seeds=1,
        jobs=2,
        command='python -m experiments.tradeoff',
        cells_on=cells_on,
      )
    self.assertEqual(code, 0, printed.getvalue())
    return folder / 'cells'

  def _kill_in_the_middle(self, cell):
    """Kills the worker of a cell after its first round, once."""
    thread = threading.Thread(target=self._watch, args=(cell,))
    thread.start()
    self.addCleanup(thread.join)
    self.addCleanup(self._over.set)

  def _watch(self, cell):
    while not self._over.wait(0.02):
      for process in self.cluster.processes():
        with contextlib.suppress(psutil.Error, OSError):
          folders = [
            argument.partition('=')[2]
            for argument in process.cmdline()
            if argument.startswith('--output_dir=') and argument.endswith(cell)
          ]
          # An absolute one stays as it is.
          run = pathlib.Path(process.cwd(), *folders)
          if folders and (run / 'metrics.csv').read_text().count('\n') > 1:
            self.killed.append(run)
            process.parent().kill()
            return

  def test_gives_what_this_machine_gives(self):
    kinds = (tradeoff.sweeps.REFERENCES[0],)
    self._kill_in_the_middle('eps_40_seed_0')
    there = self._run('there', [40.0], self.cluster.address, kinds)
    here = self._run('here', [], '', kinds)
    central = [
      run_folder.RunFolder(folder / 'central_seed_0').read_summary()
      for folder in (there, here)
    ]
    self.assertEqual(central[0].metrics, central[1].metrics)
    self.assertEqual(central[0].weights_sha256, central[1].weights_sha256)
    # The other was lost in the middle, and its ε is that of the run that is here.
    (lost,) = self.killed
    self.assertFalse(lost.exists())
    private = run_folder.RunFolder(there / 'eps_40_seed_0')
    summary = private.read_summary()
    self.assertEqual(summary.stop_reason, 'completed')
    self.assertEqual((summary.rounds, summary.rounds_charged), (4, 4))
    log = (self.temp / 'there' / 'logs' / 'eps_40_seed_0.log').read_text()
    self.assertIn('it begins again', log)
    self.assertTrue(private.saved_model.is_dir())

  def test_no_charge_of_a_data_ledger_is_lost(self):
    ledger = self.temp / 'ledger.jsonl'
    self._kill_in_the_middle('eps_5_seed_0')
    there = self._run(
      'there',
      [5.0],
      self.cluster.address,
      data_ledger=str(ledger),
      data_budget=100.0,
    )
    self.assertLen(self.killed, 1)
    run = run_folder.RunFolder(there / 'eps_5_seed_0')
    summary = run.read_summary()
    # A round that was paid for and lost leaves one less for the budget.
    self.assertIn(summary.stop_reason, ('completed', 'budget_spent'))
    self.assertIn(summary.rounds, (3, 4))
    self.assertEqual(summary.charges, 4)
    self.assertLessEqual(summary.epsilon, 5.0)
    book = data_ledger_contents.read(ledger)
    self.assertEqual([*book.runs], [summary.run_id])
    self.assertEqual(book.charges(summary.run_id), summary.charges)


if __name__ == '__main__':
  absltest.main()
