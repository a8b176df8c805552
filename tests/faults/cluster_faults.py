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
from collections.abc import Iterator
import dataclasses
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

from tests import ray_clusters
from tests.faults import cases
from tests.faults import cluster_training
from tests.runtime.cluster import nodes
from tff_medical.privacy import ledger as ledger_lib

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_KINDS = ('worker', 'worker', 'node', 'driver')
# Seconds of a run between two kills, longer than several rounds take.
_MAX_DELAY_SECS = 1.0


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


def kill(
  training: cluster_training.Training,
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

  def there_are_workers() -> bool:
    pids[:] = nodes.worker_pids(cluster)
    return bool(pids)

  if not training.wait_for(there_are_workers):
    return False
  nodes.kill(rng.choice(pids))
  return True


def differences(
  training: cluster_training.Training,
  reference: cluster_training.Training,
  rounds: int,
  restarts: int,
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
  flags = cluster_training.flags(
    folder,
    '--client_sampling=all',
    '--client_epochs=10',
    '--clipping=none',
    '--rounds_per_eval=5',
    f'--rounds={rounds}',
  )
  reference = cluster_training.Training(cluster, folder / 'undisturbed', flags)
  problem = reference.end()
  if problem:
    raise RuntimeError(f'without a fault: {problem}')
  progress = cases.Progress(tally)
  training = cluster_training.Training(cluster, folder / 'disturbed', flags)
  restarts = 0
  try:
    for planned in plan(rng, kills, rounds):
      if training.wait(planned.round_num):
        time.sleep(planned.delay_secs)
      if training.has_ended or not kill(training, cluster, planned.kind, rng):
        break
      tally.add(f'{planned.kind}s killed')
      restarts += planned.kind == 'driver'
      progress.show()
    problem = training.end()
  finally:
    training.command.stop()
  problems = (
    [problem]
    if problem
    else list(differences(training, reference, rounds, restarts))
  )
  if not nodes.wait_until(lambda: not nodes.worker_pids(cluster), seconds=30):
    problems.append('workers are left')
  for line in problems:
    tally.lose(f'seed {seed}: {line}')


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
