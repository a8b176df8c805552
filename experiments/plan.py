r"""Plans a privacy budget: the noise that it takes, before anything is trained.

    python -m experiments.plan --dataset=medmnist/pneumoniamnist \
        --num_clients=470 --clients_per_round=47 --rounds=100
    python -m experiments.plan --num_clients=20 --clients_per_round=10 \
        --num_records=50000 --expected_batch_size=500 --output_dir=plan

For client and record level and for each ε, the command prints the noise
multiplier, and the noise relative to what training could move. Where the noise
is too large, it prints the cohort or population that would be needed. It takes
seconds. `tff_medical.privacy.planning` explains the columns. With --output_dir
the command writes plan.csv and plan.png.
"""

from __future__ import annotations

from collections.abc import Sequence
import csv
import dataclasses
import functools
import math
import pathlib
import textwrap
from typing import Any, NamedTuple

from absl import flags as absl_flags
from matplotlib import figure as figure_lib

from experiments import modes
from experiments.config import fields
from experiments.config import settings as settings_lib
from experiments.running import command
from tff_medical import _validate
from tff_medical.data import loading
from tff_medical.privacy import accounting
from tff_medical.privacy import planning
from tff_medical.program import ending
from tff_medical.reporting import plots

_DEFAULTS = settings_lib.Flags.of()
_UNITS = ('client', 'record')


class Row(NamedTuple):
  """One line of the table."""

  scenario: planning.Scenario
  outlook: planning.Outlook


def count_parameters(model: str, image_size: int, data: loading.Source) -> int:
  """Returns the number of parameters of a model, by building it.

  Args:
    model: Name of the model.
    image_size: Height and width in pixels.
    data: Data set, whose channels and classes the model is built for.

  Raises:
    InputError: Channels and classes are known only after loading.
  """
  if data.channels is None or data.class_names is None:
    raise _validate.InputError(
      'num_parameters must be given for a data set whose channels and classes '
      'are known only when it is loaded'
    )
  from tff_medical import models  # Late, as it imports TensorFlow.

  built = models.build(
    model,
    input_shape=(image_size, image_size, data.channels),
    num_outputs=len(data.class_names),
    seed=0,
  )
  return int(built.count_params())


def parse_epsilons(values: Sequence[str]) -> list[float]:
  """Returns the distinct epsilons, sorted.

  Raises:
    InputError: A value is no positive number, or there is none.
  """
  epsilons = set()
  for value in values:
    try:
      epsilon = float(value)
    except ValueError:
      epsilon = math.nan
    if not epsilon > 0:
      raise _validate.InputError(
        f'epsilons must be positive numbers, separated by commas, got {value!r}'
      )
    epsilons.add(epsilon)
  if not epsilons:
    raise _validate.InputError(
      'epsilons must name at least one value, got none'
    )
  return sorted(epsilons)


def scenarios(
  values: absl_flags.FlagValues, data: loading.Source
) -> list[planning.Scenario]:
  """Returns the scenarios of the flags: client level and record level."""
  for name in (
    'rounds', 'num_clients', 'clients_per_round', 'expected_batch_size',
    'target_delta', 'max_clients_per_round', 'image_size',
  ):  # fmt: skip
    fields.check(settings_lib.field(name), values[name].value)
  if values.num_records is None and data.num_train is None:
    raise _validate.InputError(
      f'num_records must be given with dataset={values.dataset}, whose images '
      'are counted only when they are loaded'
    )
  num_records = int(values.num_records or data.num_train or 0)
  populations = (values.num_clients, num_records)
  cohorts = (
    values.clients_per_round or populations[0] / 10,
    values.expected_batch_size or populations[1] / 20,
  )
  _validate.positive_int(num_clients=populations[0], num_records=populations[1])
  for name, cohort, population in zip(
    ('clients_per_round', 'expected_batch_size'), cohorts, populations
  ):
    _validate.positive(**{name: cohort})
    if cohort > population:
      raise _validate.InputError(
        f'{name} must be at most the population of {population}, got {cohort:g}'
      )
  return [
    planning.Scenario(
      unit,
      population,
      cohort,
      rounds=values.rounds,
      delta=values.target_delta or accounting.default_delta(population),
      adaptive=_clipping(values, unit) == 'adaptive',
      max_cohort=values.max_clients_per_round if unit == 'client' else None,
    )
    for unit, population, cohort in zip(_UNITS, populations, cohorts)
  ]


def _clipping(values: absl_flags.FlagValues, unit: str) -> str:
  """Returns the kind of clipping; by default that of the unit's mode."""
  default = fields.of(modes.default(unit))['clipping'].default
  return str(values.clipping or default)


def table(rows: Sequence[Row]) -> str:
  """Returns the table as aligned text."""
  header = (
    'unit', 'ε', 'δ', 'noise mult.', 'noise/clip', 'over run', 'verdict',
    'cohort needed', 'population needed',
  )  # fmt: skip
  cells = [header]
  for scenario, outlook in rows:
    needed = outlook.cohort_needed
    cells.append(
      (
        scenario.unit,
        f'{outlook.epsilon:g}',
        f'{scenario.delta:.2g}',
        _figure(outlook.noise_multiplier, 3),
        _figure(outlook.noise_per_round, 2),
        _figure(outlook.noise_over_run, 2),
        outlook.verdict.value,
        'none is enough' if needed is None else f'{needed:,}',
        f'{outlook.population_needed:,}',
      )
    )
  widths = [max(map(len, column)) for column in zip(*cells)]
  return '\n'.join(
    '  '.join(
      cell.ljust(width) if index in (0, 6) else cell.rjust(width)
      for index, (cell, width) in enumerate(zip(line, widths))
    ).rstrip()
    for line in cells
  )


def costs_of_cap(
  scenarios: Sequence[planning.Scenario], epsilons: Sequence[float]
) -> str:
  """Returns one line per epsilon with the cost of a cap on the cohort."""
  lines = []
  for scenario in scenarios:
    if scenario.max_cohort is None:
      continue
    for epsilon in epsilons:
      start = f'A cap of {scenario.max_cohort:,} {scenario.unit}s at ε '
      try:
        cost = scenario.cost_of_cap(epsilon)
      except _validate.InputError:
        lines.append(f'{start}{epsilon:g}: no noise is enough.')
        continue
      lines.append(
        f'{start}{epsilon:g} takes a noise multiplier of '
        f'{cost.noise_multiplier:.3f} instead of '
        f'{cost.noise_multiplier_without:.3f}; at the latter ε would be '
        f'{cost.epsilon_at_that_noise:.2f}.'
      )
  return '\n'.join(
    textwrap.fill(line, 80, subsequent_indent='  ') for line in lines
  )


def _figure(value: float, digits: int) -> str:
  return '-' if math.isinf(value) else f'{value:.{digits}f}'


def advice(rows: Sequence[Row], parameters: int) -> str:
  """Returns one line of advice for each setting that is not usable."""
  lines = []
  for scenario, outlook in rows:
    ways = planning.advice(scenario, outlook, parameters)
    if ways:
      lines.append(
        f'{scenario.unit} level, ε {outlook.epsilon:g} is '
        f'{outlook.verdict.value}. What would help: {ways}.'
      )
  return '\n'.join(
    textwrap.fill(line, 80, subsequent_indent='  ') for line in lines
  )


def write_csv(path: pathlib.Path, rows: Sequence[Row], parameters: int) -> None:
  """Writes every figure as CSV, one line per row of the table."""
  with open(path, 'w', newline='', encoding='utf-8') as file:
    writer: csv.DictWriter[str] | None = None
    for scenario, outlook in rows:
      line: dict[str, Any] = {
        **dataclasses.asdict(scenario),
        'parameters': parameters,
        **dataclasses.asdict(outlook),
        'verdict': outlook.verdict.value,
      }
      if writer is None:
        writer = csv.DictWriter(file, list(line))
        writer.writeheader()
      writer.writerow(line)


def draw(rows: Sequence[Row]) -> figure_lib.Figure:
  """Returns the figure: noise over the run against ε, with the limits."""
  figure, axes = plots.new(
    'Noise against what training could move',
    x='ε of the whole training',
    y='noise over the run',
  )
  axes.set_xscale('log')
  axes.set_yscale('log')
  for index, unit in enumerate(_UNITS):
    points = [
      (o.epsilon, o.noise_over_run)
      for s, o in rows
      if s.unit == unit and math.isfinite(o.noise_over_run)
    ]
    if points:
      axes.plot(
        *zip(*points),
        marker='o',
        label=f'{unit} level',
        color=plots.color(index),
      )
  for limit, text in (
    (planning.USABLE_NOISE, 'usable below'),
    (planning.HOPELESS_NOISE, 'hopeless above'),
  ):
    plots.level(axes, limit, text, plots.color(6))
  plots.plain_ticks(axes.xaxis, sorted({o.epsilon for _, o in rows}))
  plots.plain_ticks(axes.yaxis)
  plots.legend(figure)
  return figure


def main(values: absl_flags.FlagValues) -> None:
  """Runs the command."""
  if values.clipping is not None:
    _validate.one_of(('adaptive', 'fixed'), clipping=values.clipping)
  epsilons = parse_epsilons(values.epsilons)
  if math.inf in epsilons:
    raise _validate.InputError(
      'epsilons must be finite here, got inf, which needs no noise; leave it '
      'out'
    )
  bounds = settings_lib.field('target_epsilon').metadata
  for epsilon in epsilons:
    _validate.within(bounds['low'], bounds['high'], epsilons=epsilon)
  if values.output_dir is not None:
    values.output_dir = fields.local_path('output_dir', values.output_dir)
  data = loading.source(values.dataset)
  planned = scenarios(values, data)
  parameters = values.num_parameters or count_parameters(
    values.model, values.image_size, data
  )
  rows = [
    Row(s, s.outlook(epsilon=epsilon, parameters=parameters))
    for s in planned
    for epsilon in epsilons
  ]
  for s in planned:
    cohort = (
      f'all {s.population:,} {s.unit}s'
      if s.expected_cohort == s.population
      else f'{s.expected_cohort:g} of {s.population:,} {s.unit}s expected'
    )
    print(
      f'{s.unit} level: {cohort} '
      f'in each of {s.rounds} rounds, {_clipping(values, s.unit)} '
      f'clipping, '
      f'{parameters:,} parameters'
    )
  print(f'\n{table(rows)}\n')
  print(
    "noise/clip: the noise's norm over the clip norm, in one round; over run: "
    'the noise\nof all rounds over the longest way that they could move the '
    f'weights, usable up\nto {planning.USABLE_NOISE:g}, hopeless above '
    f'{planning.HOPELESS_NOISE:g}.'
  )
  capped = costs_of_cap(planned, epsilons)
  if capped:
    print(f'\n{capped}')
  advised = advice(rows, parameters)
  if advised:
    print(f'\n{advised}')
  if values.output_dir:
    folder = pathlib.Path(values.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with ending.deferred():
      write_csv(folder / 'plan.csv', rows, parameters)
      plots.save(draw(rows), folder, 'plan')
    print(f'\nplan.csv and plan.png in {folder}')


def define_flags(values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
  """Defines the flags; flags of `experiments.train` mean the same there."""
  put = {'flag_values': values}
  absl_flags.DEFINE_list('epsilons', '1,2,4,8', 'privacy budgets', **put)
  absl_flags.DEFINE_string(
    'dataset',
    _DEFAULTS.dataset,
    f'data set that decides records, channels and classes: {loading.names()}',
    **put,
  )
  absl_flags.DEFINE_integer(
    'image_size', _DEFAULTS.image_size, 'height and width in pixels', **put
  )
  absl_flags.DEFINE_string(
    'model',
    _DEFAULTS.model,
    'network, whose number of parameters decides the noise',
    **put,
  )
  absl_flags.DEFINE_integer(
    'num_parameters',
    None,
    'number of parameters, instead of --model',
    lower_bound=1,
    **put,
  )
  absl_flags.DEFINE_integer('num_clients', 300, 'number of clients', **put)
  absl_flags.DEFINE_float(
    'clients_per_round',
    None,
    'expected cohort, up to all clients [num_clients / 10]',
    **put,
  )
  absl_flags.DEFINE_integer(
    'max_clients_per_round',
    None,
    'cap on the cohort, whose cost is printed [no cap]',
    **put,
  )
  absl_flags.DEFINE_integer(
    'num_records',
    None,
    'number of training images [that of the data set]',
    **put,
  )
  absl_flags.DEFINE_float(
    'expected_batch_size',
    None,
    'expected records in a round, up to all of them [num_records / 20]',
    **put,
  )
  absl_flags.DEFINE_integer(
    'rounds', _DEFAULTS.rounds, 'rounds of training', **put
  )
  absl_flags.DEFINE_float(
    'target_delta', None, 'δ [number of units ** -1.1]', **put
  )
  absl_flags.DEFINE_string(
    'clipping',
    None,
    'kind of clipping: adaptive or fixed [client: adaptive, record: fixed]',
    **put,
  )
  absl_flags.DEFINE_string(
    'output_dir', None, 'folder that gets plan.csv and plan.png', **put
  )


if __name__ == '__main__':
  define_flags()
  command.run(functools.partial(main, absl_flags.FLAGS))
