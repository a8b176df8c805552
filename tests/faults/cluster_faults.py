"""Real trainings on a real Ray cluster, disturbed at random moments.

    python -m tests.faults.cluster_faults --kills=24 --seed=0

Two nodes of one CPU train a model without noise, once undisturbed and once while
workers, whole nodes and the driver are killed by `kill -9`. A killed node is
replaced by a new one, and a killed driver by the same command. The disturbed
run must end with the same weights and metrics, bit for bit. Each round must be
charged, and at most one round more for each killed driver.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
import dataclasses
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import numpy as np

from tests import ray_clusters
from tests.experiments import npz
from tests.faults import cases
from tests.faults import signals
from tests.runtime.cluster import nodes
from tff_medical.privacy import ledger as ledger_lib

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_KINDS = ('worker', 'worker', 'node', 'driver')
# Seconds of a run between two kills, longer than several rounds take.
_MAX_DELAY_SECS = 1.0
_TIMEOUT_SECS = 300.0


@dataclasses.dataclass(frozen=True)
class Kill:
  """What is killed, and when.

  Attributes:
    kind: 'worker', 'node' or 'driver'.
    round_num: Number of the round after whose charge the clock starts.
    delay_secs: Seconds on that clock.
  """

  kind: str
  round_num: int
  delay_secs: float


def plan(rng: random.Random, kills: int, rounds: int) -> Iterator[Kill]:
  """Yields kills at random moments of a run, in their order."""
  kinds = [_KINDS[i % len(_KINDS)] for i in range(kills)]
  rng.shuffle(kinds)
  for kind, round_num in zip(
    kinds, sorted(rng.choices(range(1, rounds), k=kills))
  ):
    yield Kill(kind, round_num, rng.uniform(0, _MAX_DELAY_SECS))


class Training:
  """A training command on a cluster, which may be started several times."""

  def __init__(
    self,
    cluster: ray_clusters.Cluster,
    folder: pathlib.Path,
    flags: Sequence[str],
  ):
    """Starts the command.

    Args:
      cluster: Cluster on which the clients train.
      folder: Folder in which the run's folder is made.
      flags: Flags of the command.
    """
    folder.mkdir(exist_ok=True)
    self._cluster = cluster
    self._folder = folder
    self._flags = [
      *flags,
      '--runtime=cluster',
      f'--cluster_address={cluster.address}',
    ]
    self.start()

  def start(self) -> None:
    """Starts the command, for the first time or again."""
    self.command = signals.Command.start(
      self._folder, self._flags, environment=self._cluster.environment
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
    return self.command.wait_for(lambda _: self.charged() >= round_num)

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


def kill(
  training: Training,
  cluster: ray_clusters.Cluster,
  kind: str,
  rng: random.Random,
) -> bool:
  """Kills something; returns whether there was anything to kill."""
  if kind == 'driver':
    training.command.stop()
    training.start()
    return True
  alive = [node for node in cluster.nodes[1:] if node.poll() is None]
  if kind == 'node':
    cluster.stop(rng.choice(alive))
    cluster.add(1)
    return True
  pids: list[int] = []

  def there_are_workers(_: object) -> bool:
    pids[:] = nodes.worker_pids(cluster)
    return bool(pids)

  if not training.command.wait_for(there_are_workers):
    return False
  nodes.kill(rng.choice(pids))
  return True


def differences(
  training: Training, reference: Training, rounds: int, restarts: int
) -> Iterator[str]:
  """Yields what is wrong with a finished run.

  Args:
    training: Disturbed run.
    reference: Undisturbed run of the same flags.
    rounds: Number of rounds.
    restarts: Number of times that the driver was killed.
  """
  summaries = [
    json.loads((run.output / 'summary.json').read_text())
    for run in (training, reference)
  ]
  if summaries[0]['weights_sha256'] != summaries[1]['weights_sha256']:
    yield 'the final weights differ'
  tables = [
    (run.output / 'metrics.csv').read_text() for run in (training, reference)
  ]
  if tables[0] != tables[1]:
    yield 'metrics.csv differs'
  entries = ledger_lib.read(training.output / 'privacy_ledger.jsonl').entries
  missing = set(range(1, rounds + 1)) - {entry.round_num for entry in entries}
  if missing:
    yield f'rounds {sorted(missing)} were not charged'
  if not rounds <= len(entries) <= rounds + restarts:
    yield f'{len(entries)} charges of {rounds} rounds, {restarts} restarts'
  if summaries[0]['charges'] != len(entries):
    yield f'{summaries[0]["charges"]} charges stated of {len(entries)}'
  verified = subprocess.run(
    [sys.executable, '-m', 'experiments.verify', str(training.output)],
    check=False,
    capture_output=True,
    cwd=_ROOT,
    text=True,
  )
  if verified.returncode:
    yield f'verify: {cases.last_line(verified.stdout + verified.stderr)}'


def random_kills(
  cluster: ray_clusters.Cluster,
  folder: pathlib.Path,
  tally: cases.Tally,
  *,
  kills: int,
  rounds: int,
  seed: int,
) -> None:
  """Tries kills at random moments of one run."""
  rng = random.Random(seed)
  flags = _flags(folder, rounds)
  reference = Training(cluster, folder / 'undisturbed', flags)
  problem = reference.end()
  if problem:
    raise RuntimeError(f'without a fault: {problem}')
  progress = cases.Progress(tally)
  training = Training(cluster, folder / 'disturbed', flags)
  restarts = 0
  for planned in plan(rng, kills, rounds):
    if training.wait(planned.round_num):
      time.sleep(planned.delay_secs)
    if training.has_ended or not kill(training, cluster, planned.kind, rng):
      break
    tally.add(f'{planned.kind}s killed')
    restarts += planned.kind == 'driver'
    progress.show()
  problem = training.end()
  if problem:
    tally.lose(f'seed {seed}: {problem}')
    return
  for line in differences(training, reference, rounds, restarts):
    tally.lose(f'seed {seed}: {line}')
  if not nodes.wait_until(lambda: not nodes.worker_pids(cluster), seconds=30):
    tally.lose(f'seed {seed}: workers are left')


def _flags(folder: pathlib.Path, rounds: int) -> list[str]:
  """Returns flags of a run in which each client changes the weights."""
  # Labels that cannot be learnt, so that gradients never vanish.
  labels = np.random.default_rng(0).integers(2, size=(60, 1))
  return [
    '--dataset=medmnist/breastmnist',
    f'--data_dir={npz.write(folder, train_labels=labels.astype(np.uint8))}',
    '--privacy_unit=client',
    '--num_clients=12',
    '--client_sampling=all',
    '--client_batch_size=4',
    '--client_epochs=10',
    '--clipping=none',
    '--rounds_per_eval=5',
    f'--rounds={rounds}',
  ]


def main() -> int:
  """Runs the long form; returns its exit code."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--kills', type=int, default=24)
  parser.add_argument('--rounds', type=int, default=60)
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  tally = cases.Tally('cluster')
  if not ray_clusters.is_installed():
    print('cluster: skipped, as requirements-cluster.txt is not installed')
    return 0
  with (
    tempfile.TemporaryDirectory() as folder,
    ray_clusters.Cluster(0, 1, 1) as cluster,
  ):
    random_kills(
      cluster,
      pathlib.Path(folder),
      tally,
      kills=options.kills,
      rounds=options.rounds,
      seed=options.seed,
    )
  return tally.show()


if __name__ == '__main__':
  sys.exit(main())
