"""The figures of a sweep over privacy budgets.

Each function takes a `sweeps.Sweep` and returns a `Plot`, or None where the
sweep has nothing to show in it. Lines are means over seeds, with a break where
a run has no value. Bands reach from the lowest to the highest seed, as a
standard error of three seeds would claim more than is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import math
from typing import NamedTuple

from matplotlib import figure as figure_lib
import pandas as pd

from tff_medical.reporting import plots
from tff_medical.reporting import run_tables
from tff_medical.reporting import sweeps

# More lines than this cannot be told apart.
_MAX_LINES = len(plots.SERIES)


class Plot(NamedTuple):
  """A figure with the name of its file and a caption."""

  name: str
  caption: str
  figure: figure_lib.Figure


def all_plots(sweep: sweeps.Sweep) -> list[Plot]:
  """Returns every figure that the sweep has something to show in."""
  candidates = [
    tradeoff(sweep, 'auc', 'AUC'),
    tradeoff(sweep, 'balanced_accuracy', 'balanced accuracy'),
    by_part(sweep, 'classes'),
    by_part(sweep, 'sites'),
    gaps(sweep),
    paths(
      sweep,
      'validation/auc',
      'Validation AUC during training',
      'validation AUC',
    ),
    paths(sweep, 'clip_norm', 'Clip norm during training', 'clip norm'),
    paths(sweep, 'epsilon', 'ε spent during training', 'ε spent'),
    audits(sweep),
  ]
  return [plot for plot in candidates if plot is not None]


def tradeoff(sweep: sweeps.Sweep, metric: str, title: str) -> Plot | None:
  """Returns the metric against ε, with the references as lines."""
  runs = sweeps.table(sweep.measured())
  if runs[metric].isna().all():
    return None
  figure, axes = plots.new(
    f'What privacy costs: {title}', x='', y=f'{sweep.eval_split} {title}'
  )
  position = plots.epsilon_axis(axes, sweep.epsilons())
  groups = runs.groupby('target_epsilon')[metric]
  means = groups.agg(run_tables.mean)
  xs = means.index.map(position)
  axes.fill_between(
    xs,
    groups.min(),
    groups.max(),
    where=means.notna(),
    color=plots.color(0),
    alpha=0.18,
    lw=0,
  )
  axes.plot(xs, means, color=plots.color(0), label='federated')
  axes.plot(
    runs['target_epsilon'].map(position), runs[metric], 'o',
    color=plots.color(0),
  )  # fmt: skip
  for index, kind in enumerate(sweeps.REFERENCES, start=1):
    value = run_tables.mean(sweeps.table(sweep.measured(kind))[metric])
    if not math.isnan(value):
      plots.level(axes, value, sweeps.LABELS[kind], plots.color(index))
  return Plot(
    f'tradeoff_{metric}',
    'Each dot is one seed. The line is their mean, the band their range. Dashed '
    'lines are training without privacy, on pooled images (central) and by each '
    'site alone (per site).',
    figure,
  )


def by_part(sweep: sweeps.Sweep, what: str) -> Plot | None:
  """Returns the figure of 'classes' or of 'sites' against ε."""
  title, y, values_of = _PARTS[what]
  cells = sweep.measured()
  values = sweeps.parts(cells, values_of)
  if len(values.columns) < 2:
    return None
  means = _means_by_epsilon(cells, values)
  figure, axes = plots.new(title, x='', y=y)
  position = plots.epsilon_axis(axes, sweep.epsilons())
  strictest = means.iloc[0].sort_values(kind='stable')  # NaN comes last.
  shown = sorted(strictest.index[:_MAX_LINES])
  for index, name in enumerate(shown):
    axes.plot(
      means.index.map(position),
      means[name],
      marker='o',
      color=plots.color(index),
      label=_short(name if what == 'classes' else f'site {name}'),
    )
  axes.set_ylim(-0.03, 1.03)
  plots.legend(figure)
  caption = 'Lines are means over seeds.'
  if len(shown) < len(means.columns):
    caption += (
      f' Shown are the {len(shown)} of {len(means.columns)} {what} with the '
      f'lowest {y}.'
    )
  return Plot(what, caption, figure)


def gaps(sweep: sweeps.Sweep) -> Plot | None:
  """Returns the gaps between the best and the worst class and site."""
  cells = sweep.measured()
  if not cells:
    return None
  figure, axes = plots.new(
    'Gap between best and worst', x='', y='best minus worst'
  )
  position = plots.epsilon_axis(axes, sweep.epsilons())
  for index, (what, (_, y, values_of)) in enumerate(_PARTS.items()):
    gap_of_cell = pd.DataFrame(
      {what: [sweeps.gap(values_of(cell)) for cell in cells]}, dtype=float
    )
    means = _means_by_epsilon(cells, gap_of_cell)[what]
    if means.isna().all():
      continue
    axes.plot(
      means.index.map(position),
      means,
      marker='o',
      color=plots.color(index),
      label=f'{y} of {what}',
    )
  if not axes.lines:
    return None
  plots.from_zero(axes)
  plots.legend(figure)
  return Plot(
    'gaps', 'Lines are means over seeds of the gap within each run.', figure
  )


def _means_by_epsilon(
  cells: Sequence[sweeps.Cell], values: pd.DataFrame
) -> pd.DataFrame:
  """Returns the mean of each column over the seeds of each budget."""
  epsilons = [cell.epsilon for cell in cells]
  return values.groupby(epsilons).agg(run_tables.mean)


_PARTS: dict[
  str, tuple[str, str, Callable[[sweeps.Cell], dict[str, float]]]
] = {
  'classes': (
    'Whom the noise hurts: classes',
    'sensitivity',
    sweeps.Cell.by_class,
  ),
  'sites': ('Whom the noise hurts: sites', 'accuracy', sweeps.Cell.by_site),
}


def paths(sweep: sweeps.Sweep, column: str, title: str, y: str) -> Plot | None:
  """Returns a column of metrics.csv by round, a line a cell."""
  figure, axes = plots.new(title, x='round', y=y)
  epsilons = sweep.epsilons()
  labelled: set[str] = set()
  drawn: list[float] = []
  for cell in sweep.measured():
    points = _points(cell.rounds, column)
    if not points:
      continue
    axes.plot(
      *zip(*points),
      color=plots.color(epsilons.index(cell.epsilon)),
      label='' if cell.label in labelled else cell.label,
      alpha=0.75,
      linewidth=1.4,
    )
    labelled.add(cell.label)
    drawn += [value for _, value in points]
  if not drawn:
    return None
  if column == 'clip_norm' and min(drawn) > 0:
    axes.set_yscale('log')
    plots.plain_ticks(axes.yaxis)
  plots.whole_numbers(axes.xaxis)
  plots.legend(figure)
  name = column.replace('/', '_')
  return Plot(f'path_{name}', 'Each line is one seed.', figure)


def audits(sweep: sweeps.Sweep) -> Plot | None:
  """Returns what the audits prove, beside what the ledgers state."""
  bounds = {
    name: [
      (sweeps.number(c.audit['upper_bound']), sweeps.number(c.audit.get(name)))
      for c in sweep.measured()
      if 'upper_bound' in c.audit
    ]
    for name in ('lower_bound', 'epsilon_estimate')
  }
  stated = [x for x, _ in bounds['lower_bound'] if math.isfinite(x)]
  if not stated:
    return None
  figure, axes = plots.new(
    'ε stated and ε proven',
    x='ε that the ledger states',
    y='ε that canaries show',
  )
  ends = [0, 1.05 * max(stated)]
  axes.plot(ends, ends, color=plots.color(6), label='stated: at most')
  for index, (name, label) in enumerate(
    (('epsilon_estimate', 'estimated'), ('lower_bound', 'proven: at least'))
  ):
    points = [(x, y) for x, y in bounds[name] if math.isfinite(y)]
    if points:
      axes.plot(*zip(*points), 'o', color=plots.color(index), label=label)
  plots.from_zero(axes)
  plots.legend(figure)
  return Plot(
    'audits',
    'Each dot is an audited cell, measured by canaries in a repeated training. A '
    'proven ε above the line would disprove the stated one. Estimates carry no '
    'confidence and may lie above the line.',
    figure,
  )


def _points(
  rounds: Sequence[Mapping[str, float]], column: str
) -> list[tuple[float, float]]:
  """Returns (round, value) where the value is known and finite."""
  return [
    (row.get('round', math.nan), row[column])
    for row in rounds
    if math.isfinite(row.get(column, math.nan))
  ]


def _short(name: str) -> str:
  return name if len(name) <= 22 else f'{name[:21]}…'
