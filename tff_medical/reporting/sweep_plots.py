"""The figures of a sweep over privacy budgets.

Each function takes a `sweeps.Sweep` and returns a `Plot`, or None where the
sweep has nothing to show in it. Lines are means over seeds; bands and whiskers
reach from the lowest to the highest seed, as with three seeds a standard error
would claim more than is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import math
from typing import NamedTuple

from matplotlib import axes as axes_lib
from matplotlib import figure as figure_lib

from tff_medical.reporting import plots
from tff_medical.reporting import sweeps

# More lines than this cannot be told apart.
_MAX_LINES = len(plots.SERIES)


class Plot(NamedTuple):
  """A figure with the name of its files and what to read from it."""

  name: str
  caption: str
  figure: figure_lib.Figure


def all_plots(sweep: sweeps.Sweep) -> list[Plot]:
  """Returns every figure that the sweep has something to show in."""
  found = [
    tradeoff(sweep, 'auc', 'AUC'),
    tradeoff(sweep, 'balanced_accuracy', 'balanced accuracy'),
    by_part(sweep, 'classes'),
    by_part(sweep, 'sites'),
    gaps(sweep),
    paths(sweep, 'auc', 'Test AUC during training', 'test AUC'),
    paths(sweep, 'clip_norm', "The clip norm's path", 'clip norm'),
    paths(sweep, 'epsilon', 'ε against rounds', 'ε spent'),
    audits(sweep),
  ]
  return [plot for plot in found if plot is not None]


def tradeoff(sweep: sweeps.Sweep, metric: str, title: str) -> Plot | None:
  """Returns the metric against ε, with the references as lines."""
  cells = [c for c in sweep.measured() if not math.isnan(c.metric(metric))]
  if not cells:
    return None
  figure, axes = plots.new(
    f'What privacy costs: {title}', x='ε (∞: no privacy)', y=f'test {title}'
  )
  position = _epsilon_axis(axes, sweep)
  found = [
    (position[group[0].epsilon], [c.metric(metric) for c in group])
    for group in sweeps.groups(cells).values()
  ]
  xs, means = [x for x, _ in found], [sweeps.mean(v) for _, v in found]
  lows, highs = [min(v) for _, v in found], [max(v) for _, v in found]
  axes.fill_between(xs, lows, highs, color=plots.color(0), alpha=0.18, lw=0)
  axes.plot(xs, means, color=plots.color(0), label='federated')
  for x, values in found:
    axes.plot([x] * len(values), values, 'o', color=plots.color(0))
  for index, kind in enumerate((sweeps.CENTRAL, sweeps.PER_SITE), start=1):
    value = sweeps.mean(c.metric(metric) for c in sweep.measured(kind))
    if not math.isnan(value):
      plots.level(axes, value, sweeps.LABELS[kind], plots.color(index))
  return Plot(
    f'tradeoff_{metric}',
    'A dot is one seed, the line their mean, the band their range. Dashed: '
    'trained on pooled images, and by each site alone, without privacy.',
    figure,
  )


def by_part(sweep: sweeps.Sweep, what: str) -> Plot | None:
  """Returns the figure of 'classes' or of 'sites' against ε."""
  title, y, values_of = _PARTS[what]
  groups = sweeps.groups(sweep.measured()).values()
  names = {name for group in groups for c in group for name in values_of(c)}
  if len(names) < 2:
    return None
  found = [
    (
      group[0].epsilon,
      {n: sweeps.mean(values_of(c).get(n, math.nan) for c in group)
       for n in names},
    )
    for group in groups
  ]  # fmt: skip
  figure, axes = plots.new(title, x='ε (∞: no privacy)', y=y)
  position = _epsilon_axis(axes, sweep)
  shown = sorted(names, key=lambda n: (_at(found[0][1], n), n))[:_MAX_LINES]
  for index, name in enumerate(sorted(shown)):
    axes.plot(
      [position[epsilon] for epsilon, _ in found],
      [values[name] for _, values in found],
      marker='o',
      color=plots.color(index),
      label=_short(name if what == 'classes' else f'site {name}'),
    )
  axes.set_ylim(-0.03, 1.03)
  plots.legend(axes)
  caption = 'Means over seeds.'
  if len(shown) < len(names):
    caption += f' The {len(shown)} of {len(names)} that fare worst.'
  return Plot(what, caption, figure)


def gaps(sweep: sweeps.Sweep) -> Plot | None:
  """Returns the gaps between the best and the worst class and site."""
  figure, axes = plots.new(
    'Gap between best and worst', x='ε (∞: no privacy)', y='best minus worst'
  )
  position = _epsilon_axis(axes, sweep)
  groups = list(sweeps.groups(sweep.measured()).values())
  for index, (what, (_, y, values_of)) in enumerate(_PARTS.items()):
    means = [
      sweeps.mean(sweeps.gap(values_of(cell)) for cell in group)
      for group in groups
    ]
    if all(map(math.isnan, means)):
      continue
    axes.plot(
      [position[group[0].epsilon] for group in groups],
      means,
      marker='o',
      color=plots.color(index),
      label=f'{y} of {what}',
    )
  if not axes.lines:
    return None
  axes.set_ylim(bottom=0)
  plots.legend(axes)
  return Plot('gaps', 'Means over seeds of the gap within each run.', figure)


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
  plots.legend(axes)
  return Plot(f'path_{column}', 'A line is one seed.', figure)


def audits(sweep: sweeps.Sweep) -> Plot | None:
  """Returns what the audits prove, beside what the ledgers state."""
  found = {
    name: [
      (sweeps.number(c.audit['upper_bound']), sweeps.number(c.audit.get(name)))
      for c in sweep.measured()
      if 'upper_bound' in c.audit
    ]
    for name in ('lower_bound', 'epsilon_estimate')
  }
  stated = [x for x, _ in found['lower_bound'] if math.isfinite(x)]
  if not stated:
    return None
  figure, axes = plots.new(
    'Promised and proven',
    x='ε that the ledger states',
    y='ε that canaries show',
  )
  ends = [0, 1.05 * max(stated)]
  axes.plot(ends, ends, color=plots.color(6), label='stated: at most')
  for index, (name, label) in enumerate(
    (('epsilon_estimate', 'estimated'), ('lower_bound', 'proven: at least'))
  ):
    points = [(x, y) for x, y in found[name] if math.isfinite(y)]
    if points:
      axes.plot(*zip(*points), 'o', color=plots.color(index), label=label)
  axes.set_ylim(bottom=0)
  plots.legend(axes)
  return Plot(
    'audits',
    'A dot is an audited cell: what canaries in its repeated training show. A '
    'proven ε above the line would disprove the promise; estimates carry no '
    'confidence and may lie above it.',
    figure,
  )


def _points(
  rounds: Sequence[Mapping[str, float]], column: str
) -> list[tuple[float, float]]:
  """Returns (round, value) where the value is known and finite."""
  found = []
  for row in rounds:
    if math.isfinite(row.get(column, math.nan)):
      found.append((row.get('round', math.nan), row[column]))
  return found


def _epsilon_axis(
  axes: axes_lib.Axes, sweep: sweeps.Sweep
) -> dict[float, float]:
  """Labels the x axis with the budgets; returns where each is.

  Finite ones are spaced by their logarithm, infinity is a step to their right.
  """
  epsilons = sweep.epsilons()
  finite = [e for e in epsilons if math.isfinite(e)]
  position = {e: math.log2(e) for e in finite}
  right = max(position.values(), default=0.0)
  if len(finite) < len(epsilons):
    position[math.inf] = right + 1.0
  axes.set_xticks(list(position.values()))
  axes.set_xticklabels(['∞' if math.isinf(e) else f'{e:g}' for e in position])
  return position


def _at(values: dict[str, float], name: str) -> float:
  return math.inf if math.isnan(values[name]) else values[name]


def _short(name: str) -> str:
  return name if len(name) <= 22 else f'{name[:21]}…'
