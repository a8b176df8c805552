r"""Simulates rounds on clusters of many workers, and names their bottlenecks.

Costs come from measurements on a few workers: a JSON file with any of the
fields of `cluster_simulation.Costs`. What the file does not name has the
default there. A model is a number of parameters and the milliseconds that a
client takes on one worker. Each row of the table is a model and a cohort. Each
column is a number of workers, with the seconds of a round, the efficiency in
brackets, and the bottleneck.

    python -m experiments.cluster_scaling --models=225e3:30,1e9:4000 \
        --costs=costs.json --json=cluster_scaling.json
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from typing import Any

from absl import flags as absl_flags

from experiments.running import command

if __name__ == '__main__':
  absl_flags.DEFINE_list(
    'models',
    ['225e3:30', '11e6:60', '100e6:270', '1e9:4000'],
    'parameters of a model : milliseconds of a client',
  )
  absl_flags.DEFINE_list(
    'cohorts', ['1000', '10000', '100000', '1000000'], 'clients in a round'
  )
  absl_flags.DEFINE_list(
    'workers', ['1', '2', '10', '100', '1000'], 'workers of a cluster'
  )
  absl_flags.DEFINE_integer(
    'workers_per_node', 1, 'workers that share a node and its link'
  )
  absl_flags.DEFINE_integer(
    'portions_per_worker', 16, 'portions of the cohort for each worker'
  )
  absl_flags.DEFINE_integer('repeats', 3, 'number of simulated rounds of each')
  absl_flags.DEFINE_string('costs', None, 'JSON file of costs')
  absl_flags.DEFINE_string('json', None, 'file for the figures')
  command.parse()

from experiments.measuring import cluster_simulation
from tff_medical import _validate

_ENDLESS = 'does not end: failures'


def read_costs(path: str | None) -> cluster_simulation.Costs:
  """Returns the default costs, changed by those of a JSON file.

  Raises:
    InputError: The file cannot be read, or holds anything but costs.
  """
  if path is None:
    return cluster_simulation.Costs()
  try:
    with open(path, encoding='utf-8') as file:
      given = json.load(file)
  except (OSError, ValueError) as error:
    raise _validate.InputError(
      f'costs must be a JSON file, got {path!r}: {error}'
    ) from None
  if not isinstance(given, dict):
    raise _validate.InputError(
      f'costs must be a JSON object of numbers by name, got {path!r}'
    )
  names = [f.name for f in dataclasses.fields(cluster_simulation.Costs)]
  for name in given:
    _validate.one_of(names, costs=name)
  return cluster_simulation.Costs(**given)


def read_model(text: str) -> tuple[int, float]:
  """Returns parameters and milliseconds of a client.

  >>> read_model('11e6:60')
  (11000000, 60.0)

  Raises:
    InputError: The text has another form.
  """
  parameters, _, millis = text.partition(':')
  try:
    return int(float(parameters)), float(millis)
  except (ValueError, OverflowError):
    raise _validate.InputError(
      f'models must be PARAMETERS:MILLISECONDS, got {text!r}; give both, as '
      '11e6:60'
    ) from None


def _number(text: str, name: str) -> int:
  try:
    return int(text)
  except ValueError:
    raise _validate.InputError(
      f'{name} must be whole numbers, got {text!r}; separate them by commas'
    ) from None


def figures(
  work: cluster_simulation.Round,
  costs: cluster_simulation.Costs,
  repeats: int,
) -> dict[str, Any]:
  """Returns the figures of a round; without seconds if it does not end."""
  try:
    outcome = cluster_simulation.simulate(work, costs, repeats)
  except cluster_simulation.EndlessRoundError:
    return {**dataclasses.asdict(work), 'seconds': None}
  return {
    **dataclasses.asdict(work),
    **dataclasses.asdict(outcome),
    'bottleneck': outcome.bottleneck,
  }


def _cell(row: dict[str, Any]) -> str:
  if row['seconds'] is None:
    return _ENDLESS
  return f'{row["seconds"]:,.1f} ({row["efficiency"]:.2f}) {row["bottleneck"]}'


def _print_row(*cells: str) -> None:
  print(f'| {" | ".join(cells)} |', flush=True)


def main(values: absl_flags.FlagValues) -> None:
  """Simulates the rounds that the flags describe."""
  costs = read_costs(values.costs)
  models = [read_model(text) for text in values.models]
  cohorts = [_number(text, 'cohorts') for text in values.cohorts]
  workers = [_number(text, 'workers') for text in values.workers]
  results = []
  _print_row('parameters', 'cohort', *(f'workers: {n:,}' for n in workers))
  _print_row(*['---'] * (2 + len(workers)))
  for (parameters, millis), cohort in itertools.product(models, cohorts):
    rows = [
      figures(
        cluster_simulation.Round(
          cohort,
          parameters,
          millis,
          number,
          values.workers_per_node,
          values.portions_per_worker,
        ),
        costs,
        values.repeats,
      )
      for number in workers
    ]
    results += rows
    _print_row(f'{parameters:,}', f'{cohort:,}', *map(_cell, rows))
  if values.json:
    report = {'costs': dataclasses.asdict(costs), 'rounds': results}
    with open(values.json, 'w', encoding='utf-8') as file:
      json.dump(report, file, indent=2)


if __name__ == '__main__':
  command.run(functools.partial(main, absl_flags.FLAGS))
