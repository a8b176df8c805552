"""The report of a sweep: one HTML file that needs nothing else.

The page opens from disk, on phones and screens, in light and dark mode, and
prints whole. It loads nothing: no script, no font and no other file, and a
content security policy in the file holds browsers to that. Whatever comes from
files is escaped. Beside the page, `plots/` holds each figure as PNG.

A difference from training without privacy is called one only if its confidence
interval over seeds and its bootstrap interval over images exclude zero. Runs of one seed share data, partition and
initial weights, so that differences are taken seed by seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import html
import math
import pathlib
import re
from typing import Any

import pandas as pd

from tff_medical import _files
from tff_medical.reporting import plots
from tff_medical.reporting import report_style
from tff_medical.reporting import run_tables
from tff_medical.reporting import score_plots
from tff_medical.reporting import sweep_plots
from tff_medical.reporting import sweeps
from tff_medical.scoring import intervals
from tff_medical.scoring import scored

# The columns of a cell's row that the report shows, with their headings.
_COLUMNS = {
  'cell': 'cell',
  'mechanism': 'mechanism',
  'epsilon': 'ε',
  'delta': 'δ',
  'noise_multiplier': 'noise',
  'auc': 'AUC',
  'accuracy': 'accuracy',
  'balanced_accuracy': 'balanced',
  'worst_class_sensitivity': 'worst class',
  'site_accuracy_gap': 'site gap',
  'seconds': 's',
  'status': 'status',
}
# Settings that are paths of a machine, which a report does not show.
_PATHS = ('data_dir', 'output_dir', 'initial_model')
# The values of an audit that the table shows, in this order, with their headings.
# All values are in the list below the table.
_AUDIT = {
  'upper_bound': 'ε stated',
  'lower_bound': 'ε proven',
  'confidence': 'confidence',
  'epsilon_estimate': 'ε estimated',
  'exceeds_upper_bound': 'disproved',
  'canary_auc.every_round': 'AUC of canaries, all models',
  'canary_auc.final_model': 'AUC of canaries, last model',
  'attack_auc': 'AUC of members',
  'tpr_at_1_fpr': 'TPR of members at 1 % FPR',
}
_AUDIT_NOTE = (
  '"ε stated" is the upper bound of the ledger, "ε proven" the lower bound that '
  'canaries in a repeated training show. An AUC says how well an attacker tells '
  'canaries or training images from other images; 0.5 is guessing. What an audit '
  'finds out about training images is not covered by any ε.'
)
_FINDINGS_NOTE = (
  'An AUC is the mean ± standard deviation over seeds. A difference has its 95 % '
  "confidence interval: Student's, over the differences within each seed. "
  'Intervals of classes hold for all classes at once. Intervals over images are '
  '95 % bootstrap intervals, by patient where patients are known; a difference '
  'is called one only if both of its intervals exclude zero.'
)
_REFERENCES = {
  sweeps.CENTRAL: 'Central training on pooled images',
  sweeps.PER_SITE: 'Training by each site alone',
}
# Inversion shows single training images, which a report must not.
_NOT_SHOWN = 'inversion'

_PARTS: dict[str, Callable[[sweeps.Cell], dict[str, float]]] = {
  'sensitivity to class': sweeps.Cell.by_class,
  'accuracy at site': sweeps.Cell.by_site,
}


def write(sweep: sweeps.Sweep) -> pathlib.Path:
  """Writes report.html and plots/ into the sweep's folder; returns the file."""
  figures = [*sweep_plots.all_plots(sweep), *_score_plots(sweep)]
  for plot in figures:
    plots.save(plot.figure, sweep.folder / 'plots', plot.name)
  path = sweep.folder / 'report.html'
  _files.write_bytes(path, render(sweep, figures).encode())
  return path


def _score_plots(sweep: sweeps.Sweep) -> list[sweep_plots.Plot]:
  """Returns figures of the scores of the strictest run of the first seed."""
  measured = sweep.measured()
  images = sweep.scores(measured[0]) if measured else None
  if images is None:
    return []
  which = f'The run {measured[0].name}.'
  return [
    plot._replace(caption=f'{which} {plot.caption}')
    for plot in score_plots.all_plots(images)
  ]


def headlines(sweep: sweeps.Sweep) -> list[str]:
  """Returns the findings about the cells measured so far, in sentences."""
  lines = [
    *_costs(sweep),
    *_references(sweep),
    _most_hurt(sweep),
  ]
  done = sum(cell.is_done for cell in sweep.cells)
  if done < len(sweep.cells):
    lines.append(f'{done} of {len(sweep.cells)} cells are done.')
  return [line for line in lines if line]


def _costs(sweep: sweeps.Sweep) -> list[str]:
  """Returns what each budget reaches, and what it costs if seeds can tell."""
  runs = sweeps.table(sweep.measured())
  free = runs[runs['target_epsilon'] == math.inf]
  lines = []
  for epsilon, group in runs.groupby('target_epsilon'):
    text = f'the {sweep.eval_split} AUC is {run_tables.spread(group["auc"])}'
    if math.isinf(epsilon):
      lines.append(f'Without privacy {text}.')
      continue
    if len(free):
      differences = run_tables.differences(group, free, 'auc')
      text += f', {_against(differences, _over_images(sweep, epsilon))}'
    lines.append(f'At ε {epsilon:g} {text}.')
  return lines


def _over_images(
  sweep: sweeps.Sweep, epsilon: float
) -> intervals.Interval | None:
  """Returns the interval over images of the AUC minus that without privacy.

  The runs of a seed are paired. None stands for scores that are missing, or of
  other images.
  """
  by_seed: dict[int, dict[float, scored.ScoredImages | None]] = {}
  for cell in sweep.measured():
    if cell.epsilon in (epsilon, math.inf):
      by_seed.setdefault(cell.seed, {})[cell.epsilon] = sweep.scores(cell)
  pairs = []
  for scores in by_seed.values():
    if len(scores) < 2:
      continue
    private, free = scores[epsilon], scores[math.inf]
    if private is None or free is None or not private.pairs_with(free):
      return None
    pairs.append((private, free))
  return intervals.differences(pairs, 'auc') if pairs else None


def _against(
  differences: pd.Series, over_images: intervals.Interval | None
) -> str:
  """Returns how far training without privacy is, or that nobody can tell.

  Args:
    differences: Differences of the AUC by seed.
    over_images: Interval of their mean over images, if known.
  """
  width = run_tables.half_width(differences)
  if math.isnan(width):
    return 'with too few seeds for a comparison with no privacy'
  difference = run_tables.mean(differences)
  images = ''
  if over_images is not None:
    images = f', over images {run_tables.interval(over_images, sign="+")}'
  is_certain = abs(difference) > width and (
    over_images is None or intervals.excludes_zero(over_images)
  )
  if not is_certain:
    return (
      'not distinguishable from no privacy '
      f'(difference {difference:+.3f} ± {width:.3f}{images})'
    )
  side = 'below' if difference < 0 else 'above'
  images = f' (difference{images[1:]})' if images else ''
  return f'{abs(difference):.3f} ± {width:.3f} {side} no privacy{images}'


def _references(sweep: sweeps.Sweep) -> list[str]:
  """Returns what each reference reaches, or why it was skipped."""
  lines = []
  for kind in sweeps.REFERENCES:
    runs = sweeps.table(sweep.measured(kind))
    if len(runs):
      lines.append(
        f'{_REFERENCES[kind]}, without privacy, reaches a '
        f'{sweep.eval_split} AUC of {run_tables.spread(runs["auc"])}.'
      )
    reasons = {
      c.summary.stop_message
      for c in sweep.cells
      if c.kind == kind and c.summary and c.summary.stop_reason == 'skipped'
    }
    lines += [f'{_REFERENCES[kind]} was skipped: {why}.' for why in reasons]
  return lines


def _most_hurt(sweep: sweeps.Sweep) -> str:
  """Returns the class that the strictest budget costs most, in words.

  As the class is the worst of several, intervals hold for all classes at once.
  """
  epsilons = sweep.epsilons()
  if len(epsilons) < 2 or not math.isinf(epsilons[-1]):
    return ''
  strict, free = (
    _by_seed([c for c in sweep.measured() if c.epsilon == epsilon])
    for epsilon in (epsilons[0], math.inf)
  )
  losses = (free - strict).dropna(how='all').dropna(axis='columns', how='all')
  if losses.empty:
    return ''
  means = losses.agg(run_tables.mean)
  widths = losses.agg(run_tables.half_width, comparisons=len(means))
  certain = means[means > widths]
  if certain.empty:
    return (
      f'No loss of sensitivity to a class at ε {epsilons[0]:g} is '
      f'distinguishable from chance (seeds: {len(losses)}).'
    )
  name = certain.idxmax()
  return (
    f'At ε {epsilons[0]:g} the class {name!r} loses most: its sensitivity falls '
    f'by {means[name]:.2f} ± {widths[name]:.2f} to {strict[name].mean():.2f}.'
  )


def _by_seed(cells: Sequence[sweeps.Cell]) -> pd.DataFrame:
  """Returns the sensitivity to each class, a row a seed."""
  values = sweeps.parts(cells, sweeps.Cell.by_class)
  return values.set_axis([cell.seed for cell in cells])


def render(sweep: sweeps.Sweep, figures: Sequence[sweep_plots.Plot]) -> str:
  """Returns the whole page."""
  settings = sweep.info.get('settings', {})
  dataset = str(settings.get('dataset_name') or settings.get('dataset', 'data'))
  sections = [
    report_style.section('Findings', _findings(sweep)),
    report_style.section('Figures', _figures(figures)),
    report_style.section('Every budget', _budget_table(sweep)),
    report_style.section('Whom the noise hurts', _part_tables(sweep)),
    report_style.section('What an attacker gets', _audits(sweep)),
    report_style.section('All cells', _cell_table(sweep)),
    report_style.section('How it was made', _provenance(sweep)),
  ]
  return report_style.page(
    title=f'Privacy and utility: {dataset}',
    subtitle=_subtitle(settings, sweep.eval_split),
    body='\n'.join(filter(None, sections)),
  )


def _subtitle(settings: Mapping[str, Any], split_name: str) -> str:
  """Returns the settings that were given and say most, in one line."""
  texts = {
    'privacy_unit': 'guarantee per {}',
    'model': 'model {}',
    'rounds': '{} rounds',
    'partition': 'partition {}',
    'num_clients': '{} clients',
  }
  parts = [
    text.format(settings[name])
    for name, text in texts.items()
    if settings.get(name)
  ]
  return ' · '.join([*parts, f'metrics on {split_name} images'])


def _findings(sweep: sweeps.Sweep) -> str:
  items = report_style.findings(headlines(sweep))
  return f'{items}{report_style.note(_FINDINGS_NOTE)}' if items else ''


def _figures(figures: Sequence[sweep_plots.Plot]) -> str:
  return report_style.figures(
    [(plots.image(plot.figure, _alt(plot)), plot.caption) for plot in figures]
  )


def _alt(plot: sweep_plots.Plot) -> str:
  """Returns the title of the figure, which its caption does not repeat."""
  return plot.figure.axes[0].get_title(loc='left')


def _budget_table(sweep: sweeps.Sweep) -> str:
  """Returns a row a budget or reference, with statistics over seeds."""
  cells = [c for kind in sweeps.KINDS for c in sweep.measured(kind)]
  if not cells:
    return ''
  runs = sweeps.table(cells)
  runs['label'] = [cell.label for cell in cells]
  groups = runs.groupby('label', sort=False)
  texts = pd.DataFrame({'seeds': groups.size().astype(str)})
  for name, title, text_of in _BUDGET_COLUMNS:
    texts[title] = groups[name].agg(text_of)
    if name == 'auc' and runs['auc_low'].notna().any():
      texts['95 % over images'] = [
        run_tables.over_images(group, 'auc_low', 'auc_high')
        for _, group in groups
      ]
  return report_style.table(
    ('', *texts.columns), texts.reset_index().to_numpy().tolist()
  ) + report_style.note(
    '± is the standard deviation over seeds. The interval over images is the mean '
    'over seeds of the bootstrap intervals.'
  )


def _part_tables(sweep: sweeps.Sweep) -> str:
  """Returns sensitivity by class and accuracy by site, a column a budget."""
  tables = []
  for what, values_of in _PARTS.items():
    values = sweeps.parts(sweep.measured(), values_of)
    if values.empty:
      continue
    means = values.groupby(level=0, sort=False).agg(run_tables.mean).T
    rows = [
      [str(name), *map(_decimals, row)]
      for name, row in zip(means.index, means.to_numpy())
    ]
    tables.append(report_style.table((what, *means.columns), rows))
  if not tables:
    return ''
  return '\n'.join((*tables, report_style.note('Values are means over seeds.')))


def _decimals(value: float) -> str:
  return '' if math.isnan(value) else f'{value:.3f}'


def _mean(values: pd.Series) -> str:
  return _decimals(run_tables.mean(values))


_BUDGET_COLUMNS: tuple[tuple[str, str, Callable[[pd.Series], str]], ...] = (
  ('noise_multiplier', 'noise', _mean),
  ('auc', 'AUC', run_tables.spread),
  ('balanced_accuracy', 'balanced accuracy', run_tables.spread),
  ('worst_class_sensitivity', 'worst class', _mean),
  ('site_accuracy_gap', 'site gap', _mean),
)


def _audits(sweep: sweeps.Sweep) -> str:
  """Returns the contents of each cell's audit.json, whatever its keys."""
  audited = {
    c.name: _flat({k: v for k, v in c.audit.items() if k != _NOT_SHOWN})
    for c in sweep.cells
    if c.audit
  }
  if not audited:
    return ''
  present = {key for values in audited.values() for key in values}
  keys = [key for key in _AUDIT if key in present]
  rows = [
    [name, *(_short(values.get(key)) for key in keys)]
    for name, values in audited.items()
  ]
  everything = (
    report_style.details(f'All values of the audit of {name}', _pairs(values))
    for name, values in audited.items()
  )
  return '\n'.join(
    (
      report_style.note(_AUDIT_NOTE),
      report_style.table(('cell', *(_AUDIT[key] for key in keys)), rows),
      *everything,
    )
  )


def _flat(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns nested mappings as one, by dotted keys, without lists."""
  flat: dict[str, Any] = {}
  for key, value in values.items():
    name = f'{prefix}{key}'
    if isinstance(value, Mapping):
      flat.update(_flat(value, f'{name}.'))
    elif not isinstance(value, (list, tuple)) and value is not None:
      flat[name] = value
  return flat


def _cell_table(sweep: sweeps.Sweep) -> str:
  rows = [cell.row() for cell in sweep.cells]
  return report_style.table(
    tuple(_COLUMNS.values()),
    [[_short(row[name]) for name in _COLUMNS] for row in rows],
  )


def _short(value: Any) -> str:
  """Returns a value of a table with four digits; '' if it is not known."""
  if value is None or isinstance(value, float) and math.isnan(value):
    return ''
  number = sweeps.number(value)
  if isinstance(value, bool) or math.isnan(number):
    return str(value)
  return '∞' if number == math.inf else f'{number:.4g}'


def _provenance(sweep: sweeps.Sweep) -> str:
  """Returns the command, versions, settings and every ledger's digest."""
  command = html.escape(_without_folders(str(sweep.info.get('command', ''))))
  versions = sweep.info.get('versions', {})
  settings = {
    k: v
    for k, v in sweep.info.get('settings', {}).items()
    if v not in (None, '') and k not in _PATHS
  }
  digests = [
    [c.name, c.summary.ledger_sha256]
    for c in sweep.cells
    if c.summary and c.summary.ledger_sha256
  ]
  data = sorted({c.config.data_digest for c in sweep.cells if c.config})
  return '\n'.join(
    (
      f'<pre><code>{command}</code></pre>',
      report_style.details(
        'Settings that cells have in common', _pairs(settings)
      ),
      report_style.details('Versions', _pairs(versions)),
      report_style.details(
        'Data, by digest',
        report_style.table(('digest',), [[d] for d in data if d]),
      ),
      report_style.details(
        'Privacy ledgers, by SHA-256',
        report_style.table(('cell', 'digest'), digests),
      ),
    )
  )


def _without_folders(command: str) -> str:
  """Returns the command with absolute paths cut to their last part.

  >>> _without_folders('python -m x --data_dir=/home/me/npz --flagfile=a/b')
  'python -m x --data_dir=npz --flagfile=a/b'
  """
  return re.sub(r"(?<=[=\s'])/(?:[^/\s']*/)*", '', command)


def _pairs(values: Mapping[str, Any]) -> str:
  return report_style.table(
    ('', ''), [[str(k), str(v)] for k, v in values.items()]
  )
