r"""Measures what a round costs the driver, as input of `cluster_scaling`.

The file of `--json` is a file of costs: noise and server step, checkpoint,
charge and the sum of two totals, each by the size of the model. With
`--cluster_workers` it also holds the cost of a portion, of a client of the
cohort and of a message, and the times after a killed worker. They are measured
on a local cluster of network namespaces, for which the command needs root.

    python -m experiments.driver_benchmark --parameters=10000000 \
        --cluster_workers=4 --json=costs.json
    python -m experiments.cluster_scaling --costs=costs.json
"""

from __future__ import annotations

import functools
import json

from absl import flags as absl_flags

from experiments.running import command

if __name__ == '__main__':
  absl_flags.DEFINE_integer(
    'parameters', 10_000_000, 'number of weights of the model, at least 2,000'
  )
  absl_flags.DEFINE_integer('turns', 5, 'number of measured repetitions')
  absl_flags.DEFINE_integer(
    'cluster_workers', 0, 'workers for the costs of a cluster; 0 for none'
  )
  absl_flags.DEFINE_string('json', None, 'file for the costs')
  command.parse()

from experiments.measuring import cluster_costs
from experiments.measuring import cluster_hosts
from experiments.measuring import driver_costs
from experiments.measuring import timing
from tff_medical import _validate

_MAX_WORKERS = 64


def main(values: absl_flags.FlagValues) -> None:
  """Runs the benchmark that the flags describe."""
  workers = values.cluster_workers
  _validate.within(0, _MAX_WORKERS, cluster_workers=workers)
  if workers:
    cluster_hosts.check()
  costs = driver_costs.measure(values.parameters, values.turns)
  if workers:
    costs |= cluster_costs.measure(workers, values.turns)
  timing.print_table({f'{values.parameters:,} parameters': costs})
  if values.json:
    with open(values.json, 'w', encoding='utf-8') as file:
      json.dump(costs, file, indent=2)


if __name__ == '__main__':
  command.run(functools.partial(main, absl_flags.FLAGS))
