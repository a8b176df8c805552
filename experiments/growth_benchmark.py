"""Measures how the cost of a round grows with its clients and with the model.

- clients: milliseconds a client, and the ratio to the floor, for cohorts of 20
  to 2,000 clients with 4 images each.
- parameters: the ratio to the floor for models of 225,352 to 11 million
  parameters, with 20 clients of 32 images.
- memory: the peak of a process after a round of each of these cohorts.

Contenders, floor and figures are those of `experiments.benchmark`.

    python -m experiments.growth_benchmark --json=growth_benchmark.json
"""

from __future__ import annotations

import functools
from typing import Any

from absl import flags as absl_flags

from experiments.running import command

if __name__ == '__main__':
  absl_flags.DEFINE_integer('rounds', 2, 'number of measured rounds')
  absl_flags.DEFINE_integer('warm_up', 1, 'number of rounds before them')
  absl_flags.DEFINE_list(
    'growth', ['clients', 'parameters', 'memory'], 'what to measure'
  )
  absl_flags.DEFINE_string('json', None, 'file for the figures')
  command.parse()

from experiments import benchmark
from experiments.measuring import growth
from experiments.measuring import timing
from tff_medical import _validate
from tff_medical import runtime

_CONTENDERS = ('local', 'floor')
COHORTS = (20, 200, 2000)
CLIENTS = {
  f'{clients} clients': benchmark.Workload(clients, images=4, batch_size=4)
  for clients in COHORTS
}
PARAMETERS = {
  f'{parameters} parameters': benchmark.Workload(20, 32, 32, hidden)
  for parameters, hidden in (
    ('225,352', 128),
    ('1,667,016', 1024),
    ('11,121,500', 6900),
  )
}


def main(values: absl_flags.FlagValues) -> None:
  """Runs the benchmark that the flags describe."""
  _validate.positive_int(rounds=values.rounds)
  _validate.non_negative(warm_up=values.warm_up)
  workloads = {'clients': CLIENTS, 'parameters': PARAMETERS, 'memory': {}}
  for name in values.growth:
    _validate.one_of(workloads, growth=name)
  results: dict[str, dict[str, Any]] = {}

  def add(title: str, figures: dict[str, Any]) -> None:
    results[title] = figures
    timing.print_table({title: figures})

  if 'memory' in values.growth:
    add('memory', growth.peaks(COHORTS))
  context = runtime.create_local_context()
  for name in values.growth:
    for title, work in workloads[name].items():
      add(
        title,
        benchmark.measure(
          work,
          {name: benchmark.CONTENDERS[name] for name in _CONTENDERS},
          context,
          warm_up=values.warm_up,
          rounds=values.rounds,
        ),
      )
  if values.json:
    timing.write_json(values.json, results, rounds=values.rounds)


if __name__ == '__main__':
  command.run(functools.partial(main, absl_flags.FLAGS))
