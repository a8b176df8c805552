"""A node of a real Ray cluster that cannot be reached for a while."""

from __future__ import annotations

import pathlib
import random
import time

from tests import ray_clusters
from tests.faults import cases
from tests.faults import cluster_training
from tests.faults import network

# Ray gives a node up that has not answered for about a minute; a link that is
# down for less loses nothing.
_SHORT_SECS = 8.0
_ROUNDS = 30


def try_partitions(
  folder: pathlib.Path, tally: cases.Tally, *, seed: int
) -> None:
  """Takes the link of a node down for seconds, and until Ray gives it up."""
  problem = network.problem()
  if problem:
    print(f'partitions of the network: skipped, as {problem}', flush=True)
    return
  rng = random.Random(seed)
  with (
    network.Network(3) as links,
    ray_clusters.Cluster(0, 1, 1, network=links) as cluster,
  ):
    flags = cluster_training.without_noise(folder, _ROUNDS)
    reference = cluster_training.finished(cluster, folder / 'connected', flags)
    training = cluster_training.Training(cluster, folder / 'cut_off', flags)
    try:
      for number, is_short in enumerate((True, False)):
        training.wait(rng.randint(1, 8) + 10 * number)
        time.sleep(rng.uniform(0, 1))
        _cut(training, cluster, links, is_short)
        tally.add('links taken down')
      problems = cluster_training.problems(training, reference)
    finally:
      training.command.stop()
    for line in problems:
      tally.lose(f'partition: {line}')


def _cut(
  training: cluster_training.Training,
  cluster: ray_clusters.Cluster,
  links: network.Network,
  is_short: bool,
) -> None:
  """Cuts off the last node; a node that was given up is replaced."""
  charged = training.charged()
  started = time.monotonic()
  links.set_link(2, up=False)
  if is_short:
    time.sleep(_SHORT_SECS)
    links.set_link(2, up=True)
    training.wait(charged + 2)
  else:
    training.wait(charged + 2)
    links.set_link(2, up=True)
    cluster.stop(cluster.nodes[-1])
    cluster.add(1, 2)
  secs = time.monotonic() - started
  print(f'a link was down: the run went on after {secs:.0f} s', flush=True)
