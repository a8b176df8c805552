"""Measures what a training waits for besides its rounds.

- commands: the time of `train --help`, of a refused flag, of the imports of a
  training, and of the training of a preset that needs no download.
- charge: what a training spends on one charge, with its ε and the wait for the
  disk after a round of 10 ms, beside one fsync of the same disk. Figures are
  means over a whole run, and medians.
- draw: one cohort of a fixed expected size, from populations of several sizes.
  Figures are medians.

    python -m experiments.start_benchmark --json=start_benchmark.json
"""

from __future__ import annotations

import functools

from absl import flags as absl_flags

from experiments.running import command

if __name__ == '__main__':
  absl_flags.DEFINE_list(
    'workloads', ['commands', 'charge', 'draw'], 'what to measure'
  )
  absl_flags.DEFINE_integer('turns', 3, 'number of runs of each command')
  absl_flags.DEFINE_integer('charges', 10_000, 'number of charges of a run')
  absl_flags.DEFINE_string('preset', 'demo', 'preset of the training')
  absl_flags.DEFINE_string('json', None, 'file for the figures')
  command.parse()

from experiments.measuring import starting
from experiments.measuring import timing
from tff_medical import _validate


def main(values: absl_flags.FlagValues) -> None:
  """Runs the benchmark that the flags describe."""
  _validate.positive_int(turns=values.turns, charges=values.charges)
  workloads = {
    'commands': lambda: starting.commands(values.preset, values.turns),
    'charge': lambda: starting.charges(values.charges),
    'draw': starting.draws,
  }
  for name in values.workloads:
    _validate.one_of(workloads, workloads=name)
  results = {name: workloads[name]() for name in values.workloads}
  timing.report(
    results, values.json, turns=values.turns, charges=values.charges
  )


if __name__ == '__main__':
  command.run(functools.partial(main, absl_flags.FLAGS))
