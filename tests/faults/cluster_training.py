"""A real training command on a real Ray cluster, which faults disturb."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import json
import pathlib
import subprocess
import sys
import time

import numpy as np

from tests import ray_clusters
from tests.experiments import npz
from tests.faults import cases
from tests.faults import signals
from tff_medical.privacy import ledger_contents

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_TIMEOUT_SECS = 900.0
_POLL_SECS = 0.05


def flags(folder: pathlib.Path, *others: str) -> list[str]:
  """Returns flags of a run in which each client changes the weights."""
  # Labels that cannot be learnt, so that gradients never vanish.
  labels = np.random.default_rng(0).integers(2, size=(60, 1))
  return [
    '--dataset=medmnist/breastmnist',
    f'--data_dir={npz.write(folder, train_labels=labels.astype(np.uint8))}',
    '--privacy_unit=client',
    '--num_clients=12',
    '--client_batch_size=4',
    *others,
  ]


def without_noise(folder: pathlib.Path, rounds: int) -> list[str]:
  """Returns flags of a run whose weights are the same each time."""
  return flags(
    folder,
    '--client_sampling=all',
    '--client_epochs=10',
    '--clipping=none',
    '--rounds_per_eval=5',
    f'--rounds={rounds}',
  )


class Training:
  """A training command on a cluster, which may be started several times."""

  def __init__(
    self,
    cluster: ray_clusters.Cluster,
    folder: pathlib.Path,
    arguments: Sequence[str],
  ):
    """Starts the command.

    Args:
      cluster: Cluster on which the clients train.
      folder: Folder in which the run's folder is made.
      arguments: Flags of the command.
    """
    folder.mkdir(exist_ok=True)
    self._cluster = cluster
    self._folder = folder
    self._arguments = [
      *arguments,
      '--runtime=cluster',
      f'--cluster_address={cluster.address}',
    ]
    self.start()

  def start(self) -> None:
    """Starts the command, for the first time or again."""
    self.command = signals.Command.start(
      self._folder,
      self._arguments,
      environment=self._cluster.environment,
      prefix=self._cluster.prefix,
    )

  @property
  def output(self) -> pathlib.Path:
    """Folder of the run."""
    return self.command.output

  @property
  def has_ended(self) -> bool:
    """Whether the command has ended."""
    return self.command.process.poll() is not None

  def charged(self) -> int:
    """Returns the number of the last round that was charged."""
    path = self.output / 'privacy_ledger.jsonl'
    if not path.exists():
      return 0
    # The last line may be written at this moment.
    lines = path.read_text().split('\n')[1:-1]
    return max((json.loads(line)['round'] for line in lines), default=0)

  def wait(self, round_num: int) -> bool:
    """Waits for the charge of a round; returns whether it came."""
    return self.wait_for(lambda: self.charged() >= round_num)

  def wait_for(self, condition: Callable[[], bool]) -> bool:
    """Waits for a condition; returns whether it held before the end."""
    until = time.monotonic() + _TIMEOUT_SECS
    while not condition():
      if self.has_ended or time.monotonic() > until:
        return False
      time.sleep(_POLL_SECS)
    return True

  def end(self) -> str:
    """Waits for the command's end; returns what went wrong, or ''."""
    try:
      code = self.command.process.wait(_TIMEOUT_SECS)
    except subprocess.TimeoutExpired:
      self.command.stop()
      return f'no end after {_TIMEOUT_SECS:.0f} s: {self.last_line()}'
    return f'exit code {code}: {self.last_line()}' if code else ''

  def last_line(self) -> str:
    """Returns the last line that the command has printed."""
    return cases.last_line(self.command.text().replace('\r', '\n'))


def finished(
  cluster: ray_clusters.Cluster, folder: pathlib.Path, arguments: Sequence[str]
) -> Training:
  """Returns a run that no fault has disturbed."""
  training = Training(cluster, folder, arguments)
  try:
    problem = training.end()
  finally:
    training.command.stop()
  if problem:
    raise RuntimeError(f'without a fault: {problem}')
  return training


def problems(
  training: Training, reference: Training, restarts: int = 0
) -> list[str]:
  """Waits for the end of a disturbed run; returns what is wrong with it.

  Args:
    training: Disturbed run.
    reference: Undisturbed run of the same flags.
    restarts: Number of times that the driver was killed.
  """
  problem = training.end()
  if problem:
    return [problem]
  lost = []
  summary, expected = (
    json.loads((run.output / 'summary.json').read_text())
    for run in (training, reference)
  )
  if summary['weights_sha256'] != expected['weights_sha256']:
    lost.append('the final weights differ')
  tables = [
    (run.output / 'metrics.csv').read_text() for run in (training, reference)
  ]
  if tables[0] != tables[1]:
    lost.append('metrics.csv differs')
  rounds = expected['rounds']
  entries = ledger_contents.read(
    training.output / 'privacy_ledger.jsonl'
  ).entries
  missing = set(range(1, rounds + 1)) - {entry.round_num for entry in entries}
  if missing:
    lost.append(f'rounds {sorted(missing)} were not charged')
  if not rounds <= len(entries) <= rounds + restarts:
    lost.append(f'{len(entries)} charges, {rounds} rounds, {restarts} restarts')
  if summary['charges'] != len(entries):
    lost.append(f'{summary["charges"]} charges stated of {len(entries)}')
  verified = subprocess.run(
    [sys.executable, '-m', 'experiments.verify', str(training.output)],
    check=False,
    capture_output=True,
    cwd=_ROOT,
    text=True,
  )
  if verified.returncode:
    output = verified.stdout + verified.stderr
    lost.append(f'verify: {cases.last_line(output)}')
  return lost
