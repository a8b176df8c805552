"""Real trainings on real Ray clusters, disturbed at random moments.

    python -m tests.faults.cluster_faults [--only=kills] [--seed=1]

`kills`: two nodes of one CPU train a model without noise, once undisturbed and
once while workers, whole nodes and the driver are killed by `kill -9`. A killed
node is replaced by a new one, and a killed driver by the same command. The
disturbed run must end with the same weights and metrics, bit for bit. Each round
must be charged, and at most one round more for each killed driver.

`signals`: SIGINT and SIGTERM, once or twice, while a run joins the cluster and
within its passes. The command must end as on one machine and leave no worker,
and the same command must come to its end.

`partitions`: the network of a node is cut for seconds, and until Ray gives the
node up. The run must end as without noise. Only root can cut it.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile

from tests import ray_clusters
from tests.faults import cases
from tests.faults import cluster_kills
from tests.faults import cluster_partition
from tests.faults import cluster_signals

_KINDS = ('kills', 'signals', 'partitions')


def run(only: list[str], seed: int, kills: int, tally: cases.Tally) -> None:
  """Tries faults of the kinds `only`."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    if 'kills' in only:
      cluster_kills.try_kills(folder, tally, kills=kills, seed=seed)
    if 'signals' in only:
      cluster_signals.try_signals(folder, tally, tries=12, seed=seed)
    if 'partitions' in only:
      cluster_partition.try_partitions(folder, tally, seed=seed)


def main() -> int:
  """Runs the long form; returns its exit code."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--only', choices=_KINDS, nargs='+', default=_KINDS)
  parser.add_argument('--kills', type=int, default=24)
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  if not ray_clusters.is_installed():
    print('cluster: skipped, as requirements-cluster.txt is not installed')
    return 0
  tally = cases.Tally('cluster')
  run(options.only, options.seed, options.kills, tally)
  return tally.show()


if __name__ == '__main__':
  sys.exit(main())
