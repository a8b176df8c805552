"""Workers, nodes and drivers that are killed at random moments of a run."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import pathlib
import random
import time

from tests import ray_clusters
from tests.faults import cases
from tests.faults import cluster_training
from tests.runtime.cluster import nodes

_KINDS = ('worker', 'worker', 'worker', 'node', 'node', 'driver')
_ROUNDS = 60
# Largest time from a charge to a kill, longer than several rounds take.
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


def plan(rng: random.Random, kills: int) -> Iterator[Kill]:
  """Yields kills at random moments of a run, in their order."""
  kinds = [_KINDS[i % len(_KINDS)] for i in range(kills)]
  rng.shuffle(kinds)
  for kind, round_num in zip(
    kinds, sorted(rng.choices(range(1, _ROUNDS), k=kills))
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
  if kind == 'node':
    alive = [node for node in cluster.nodes[1:] if node.poll() is None]
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


def try_kills(
  folder: pathlib.Path, tally: cases.Tally, *, kills: int, seed: int
) -> None:
  """Tries kills at random moments of one run."""
  with ray_clusters.Cluster(0, 1, 1) as cluster:
    flags = cluster_training.without_noise(folder, _ROUNDS)
    reference = cluster_training.finished(
      cluster, folder / 'undisturbed', flags
    )
    training = cluster_training.Training(cluster, folder / 'disturbed', flags)
    try:
      restarts = _disturb(training, cluster, tally, kills, random.Random(seed))
      problems = cluster_training.problems(training, reference, restarts)
    finally:
      training.command.stop()
    if not nodes.wait_until(lambda: not nodes.worker_pids(cluster), seconds=30):
      problems.append('workers are left')
  for line in problems:
    tally.lose(f'kills, seed {seed}: {line}')


def _disturb(
  training: cluster_training.Training,
  cluster: ray_clusters.Cluster,
  tally: cases.Tally,
  kills: int,
  rng: random.Random,
) -> int:
  """Kills one thing after the other; returns the number of drivers."""
  progress = cases.Progress(tally)
  restarts = 0
  for planned in plan(rng, kills):
    if training.wait(planned.round_num):
      time.sleep(planned.delay_secs)
    if training.has_ended or not kill(training, cluster, planned.kind, rng):
      break
    tally.add(f'{planned.kind}s killed')
    restarts += planned.kind == 'driver'
    progress.show()
  return restarts
