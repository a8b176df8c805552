"""Tests of `experiments.train` on a real Ray cluster of two nodes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tests import ray_clusters
from tests.experiments import npz
from tests.runtime.cluster import nodes
from tff_medical.privacy import ledger_contents

_ROOT = pathlib.Path(__file__).resolve().parents[2]


@absltest.skipUnless(ray_clusters.is_installed(), 'Ray is not installed')
class ClusterTrainTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.cluster = ray_clusters.Cluster(0, 1, 1).__enter__()
    cls.addClassCleanup(cls.cluster.__exit__)

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self._data_dir = npz.write(self.folder)

  def _command(self, name, *flags):
    return [
      *(sys.executable, '-m', 'experiments.train'),
      '--dataset=medmnist/breastmnist',
      f'--data_dir={self._data_dir}',
      f'--output_dir={self.folder / name}',
      *flags,
    ]

  def _environment(self):
    return {**os.environ, **self.cluster.environment}

  def _train(self, name, *flags):
    done = subprocess.run(
      self._command(name, *flags),
      check=False,
      capture_output=True,
      cwd=_ROOT,
      env=self._environment(),
      text=True,
      timeout=240,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    return self.folder / name

  def _on_cluster(self):
    return ('--runtime=cluster', f'--cluster_address={self.cluster.address}')

  @parameterized.parameters(
    (('--privacy_unit=client', '--num_clients=12', '--client_batch_size=4'),),
    (('--privacy_unit=record', '--num_clients=4', '--unit_sampling=all'),),
  )
  def test_without_noise_the_model_is_that_of_one_machine(self, flags):
    flags = (*flags, '--clipping=none', '--rounds=3')
    if 'client' in flags[0]:
      flags += ('--client_sampling=all',)
    local = self._train('local', *flags)
    cluster = self._train('cluster', *flags, *self._on_cluster())
    logits = [
      np.load(folder / 'scores.npz')['logits'] for folder in (local, cluster)
    ]
    self.assertGreater(np.std(logits[0]), 0)
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-5)

  def _ended(self, signum, charges, flags):
    """Ends a run by a signal after so many charges; returns its exit code."""
    with subprocess.Popen(
      self._command('run', *flags),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      cwd=_ROOT,
      env=self._environment(),
    ) as driver:
      path = self.folder / 'run' / 'privacy_ledger.jsonl'
      until = time.monotonic() + 200
      while not path.exists() or len(path.read_text().splitlines()) < charges:
        self.assertIsNone(driver.poll())
        self.assertLess(time.monotonic(), until)
        time.sleep(0.02)
      driver.send_signal(signum)
      return driver.wait(60)

  def test_a_killed_and_an_interrupted_driver_go_on(self):
    flags = (
      *('--privacy_unit=client', '--num_clients=12', '--clients_per_round=6'),
      *('--clipping=fixed', '--noise_multiplier=1', '--rounds=60'),
      *self._on_cluster(),
    )
    path = self.folder / 'run' / 'privacy_ledger.jsonl'
    self.assertEqual(self._ended(signal.SIGKILL, 5, flags), -signal.SIGKILL)
    self.assertEqual(self._ended(signal.SIGINT, 15, flags), 128 + signal.SIGINT)
    summary = json.loads((self.folder / 'run' / 'summary.json').read_text())
    self.assertEqual(summary['stop_reason'], 'interrupted')
    # The round was finished and saved, unless it would have taken seconds.
    charged = ledger_contents.read(path).entries
    self.assertBetween(charged[-1].round_num - summary['rounds'], 0, 1)
    self.assertTrue(
      nodes.wait_until(lambda: not nodes.worker_pids(self.cluster), seconds=30)
    )
    folder = self._train('run', *flags)
    summary = json.loads((folder / 'summary.json').read_text())
    charged = ledger_contents.read(path).entries
    self.assertEqual(summary['rounds'], 60)
    # A round that was lost with the driver is charged twice, at most.
    self.assertBetween(len(charged), 60, 62)
    self.assertEqual(summary['charges'], len(charged))


if __name__ == '__main__':
  absltest.main()
