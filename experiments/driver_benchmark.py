r"""Measures what a round costs the driver, as input of `cluster_scaling`.

The file of `--json` is a file of costs: noise and server step, checkpoint,
charge and the sum of two totals, each by the size of the model.

    python -m experiments.driver_benchmark --parameters=10000000 \
        --json=costs.json
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
  absl_flags.DEFINE_string('json', None, 'file for the costs')
  command.parse()

from experiments.measuring import driver_costs
from experiments.measuring import timing


def main(values: absl_flags.FlagValues) -> None:
  """Runs the benchmark that the flags describe."""
  costs = driver_costs.measure(values.parameters, values.turns)
  timing.print_table({f'{values.parameters:,} parameters': costs})
  if values.json:
    with open(values.json, 'w', encoding='utf-8') as file:
      json.dump(costs, file, indent=2)


if __name__ == '__main__':
  command.run(functools.partial(main, absl_flags.FLAGS))
