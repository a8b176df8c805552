"""The report of a sweep: one HTML file that needs nothing else.

It opens from disk, on a phone too, in light and in dark, and loads nothing: no
script, no font, no image of its own; a content security policy in the file
makes browsers hold it to that. Whatever comes from files is escaped. Beside it
`plots/` holds every figure as PNG and SVG.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import html
import math
import pathlib
import re
from typing import Any

from tff_medical import _files
from tff_medical.reporting import plots
from tff_medical.reporting import report_style
from tff_medical.reporting import sweep_plots
from tff_medical.reporting import sweeps

# Of a cell's row, the columns that the table of the report shows.
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
# Settings that are paths of the machine.
_PATHS = ('data_dir', 'output_dir', 'initial_model')
# What an audit may say, in this order; the rest is there to be opened.
_AUDIT = {
  'upper_bound': 'ε at most',
  'lower_bound': 'ε at least',
  'confidence': 'confidence',
  'epsilon_estimate': 'ε estimated',
  'exceeds_upper_bound': 'broken',
  'canary_auc.every_round': 'canaries AUC, every model',
  'canary_auc.final_model': 'last model',
  'attack_auc': 'members AUC',
  'tpr_at_1_fpr': 'found at 1 % FPR',
}
_AUDIT_NOTE = (
  'ε at most is what the ledger states, ε at least what canaries in a repeated '
  'training prove. AUC: how well an attacker tells canaries, or members among the '
  'training images, from others; .5 is guessing. No ε covers what an audit finds '
  'out about training images.'
)
# Of an audit, what is not shown: it tells of single images.
_NOT_SHOWN = 'inversion'

_PARTS: dict[str, Callable[[sweeps.Cell], dict[str, float]]] = {
  'sensitivity to class': sweeps.Cell.by_class,
  'accuracy at site': sweeps.Cell.by_site,
}


def write(sweep: sweeps.Sweep) -> pathlib.Path:
  """Writes report.html and plots/ into the sweep's folder; returns the file."""
  figures = sweep_plots.all_plots(sweep)
  for plot in figures:
    plots.save(plot.figure, sweep.folder / 'plots', plot.name)
  path = sweep.folder / 'report.html'
  _files.write_bytes(path, render(sweep, figures).encode())
  return path


def headlines(sweep: sweeps.Sweep) -> list[str]:
  """Returns the findings in sentences, of what was measured so far."""
  found = [_cost(cells, sweep) for cells in _by_epsilon(sweep)]
  found += _references(sweep)
  worst = _most_hurt(sweep)
  done = sum(cell.is_done for cell in sweep.cells)
  if done < len(sweep.cells):
    found.append(f'{done} of {len(sweep.cells)} cells are done.')
  return [line for line in (*found, worst) if line]


def _by_epsilon(sweep: sweeps.Sweep) -> list[list[sweeps.Cell]]:
  return list(sweeps.groups(sweep.measured()).values())


def _cost(cells: Sequence[sweeps.Cell], sweep: sweeps.Sweep) -> str:
  """Returns what one budget reaches and costs."""
  aucs = [c.metric('auc') for c in cells]
  text = f'{cells[0].label}: test AUC {_spread(aucs)}'
  free = sweeps.mean(
    c.metric('auc') for c in sweep.measured() if math.isinf(c.epsilon)
  )
  if math.isinf(cells[0].epsilon) or math.isnan(free):
    return f'{text}.'
  loss = free - sweeps.mean(aucs)
  return (
    f'{text}, {abs(loss):.3f} {"below" if loss >= 0 else "above"} no privacy.'
  )


def _references(sweep: sweeps.Sweep) -> list[str]:
  found = []
  for kind in sweeps.REFERENCES:
    cells = sweep.measured(kind)
    if cells:
      aucs = [c.metric('auc') for c in cells]
      found.append(
        f'{cells[0].label}, no federation, no privacy: test AUC '
        f'{_spread(aucs)}.'
      )
    skipped = {
      c.summary.stop_message
      for c in sweep.cells
      if c.kind == kind and c.summary and c.summary.stop_reason == 'skipped'
    }
    found += [f'{sweeps.LABELS[kind]} was skipped: {why}.' for why in skipped]
  return found


def _most_hurt(sweep: sweeps.Sweep) -> str:
  """Returns the class that the strictest budget costs most, in words."""
  groups = _by_epsilon(sweep)
  if len(groups) < 2 or not math.isinf(groups[-1][0].epsilon):
    return ''
  strict, free = _class_means(groups[0]), _class_means(groups[-1])
  losses = {
    name: free[name] - value
    for name, value in strict.items()
    if not math.isnan(free.get(name, math.nan) - value)
  }
  if not losses:
    return ''
  name = max(losses, key=lambda n: losses[n])
  return (
    f'{groups[0][0].label} costs the class {name!r} most: sensitivity '
    f'{strict[name]:.2f}, without privacy {free[name]:.2f}.'
  )


def _class_means(cells: Sequence[sweeps.Cell]) -> dict[str, float]:
  names = cells[0].by_class()
  return {
    n: sweeps.mean(c.by_class().get(n, math.nan) for c in cells) for n in names
  }


def _spread(values: Sequence[float]) -> str:
  """Returns the mean, and the range if there are several values."""
  text = f'{sweeps.mean(values):.3f}'
  known = [v for v in values if not math.isnan(v)]
  if len(known) > 1:
    text += f' ({min(known):.3f} to {max(known):.3f})'
  return text


def render(sweep: sweeps.Sweep, figures: Sequence[sweep_plots.Plot]) -> str:
  """Returns the whole page."""
  settings = sweep.info.get('settings', {})
  dataset = str(settings.get('dataset', 'data'))
  sections = [
    _section('Findings', _findings(sweep)),
    _section('Figures', _figures(figures)),
    _section('Every budget', _budget_table(sweep)),
    _section('Whom the noise hurts', _part_tables(sweep)),
    _section('What an attacker gets', _audits(sweep)),
    _section('All cells', _cell_table(sweep)),
    _section('How it was made', _provenance(sweep)),
  ]
  return report_style.page(
    title=f'Privacy and utility: {dataset}',
    subtitle=_subtitle(settings),
    body='\n'.join(filter(None, sections)),
    extra_css=plots.css(),
  )


def _subtitle(settings: Mapping[str, Any]) -> str:
  unit = settings.get('privacy_unit', 'client')
  parts = [
    f'guarantee per {unit}',
    f'model {settings.get("model", "?")}',
    f'{settings.get("rounds", "?")} rounds',
    f'partition {settings.get("partition", "?")}',
  ]
  if settings.get('num_clients'):
    parts.append(f'{settings["num_clients"]} clients')
  return ' · '.join(parts)


def _section(title: str, content: str) -> str:
  if not content:
    return ''
  return f'<section><h2>{html.escape(title)}</h2>\n{content}\n</section>'


def _findings(sweep: sweeps.Sweep) -> str:
  items = ''.join(f'<li>{html.escape(line)}</li>' for line in headlines(sweep))
  return f'<ul class="findings">{items}</ul>' if items else ''


def _figures(figures: Sequence[sweep_plots.Plot]) -> str:
  if not figures:
    return ''
  drawn = (
    f'<figure>{plots.inline_svg(plot.figure, plot.name)}'
    f'<figcaption>{html.escape(plot.caption)} '
    f'<span class="files">plots/{plot.name}.png, .svg</span>'
    '</figcaption></figure>'
    for plot in figures
  )
  return f'<div class="figures">{"".join(drawn)}</div>'


def _budget_table(sweep: sweeps.Sweep) -> str:
  """One line a budget or reference: means over seeds and their range."""
  header = ('', 'seeds', 'noise', 'AUC', 'balanced accuracy', 'worst class',
            'site gap')  # fmt: skip
  rows = []
  references = (
    sweep.measured(sweeps.CENTRAL),
    sweep.measured(sweeps.PER_SITE),
  )
  for cells in (*_by_epsilon(sweep), *references):
    if not cells:
      continue
    lines = [cell.row() for cell in cells]
    rows.append(
      [
        cells[0].label,
        str(len(cells)),
        _mean_of(lines, 'noise_multiplier'),
        _spread([c.metric('auc') for c in cells]),
        _spread([c.metric('balanced_accuracy') for c in cells]),
        _mean_of(lines, 'worst_class_sensitivity'),
        _mean_of(lines, 'site_accuracy_gap'),
      ]
    )
  return table(header, rows) if rows else ''


def _mean_of(lines: Iterable[Mapping[str, Any]], name: str) -> str:
  value = sweeps.mean(sweeps.number(line[name]) for line in lines)
  return '' if math.isnan(value) else f'{value:.3f}'


def _part_tables(sweep: sweeps.Sweep) -> str:
  """Sensitivity by class and accuracy by site, a column a budget."""
  groups = _by_epsilon(sweep)
  found = []
  for what, values_of in _PARTS.items():
    names = sorted({n for g in groups for c in g for n in values_of(c)})
    rows = [
      [name]
      + [
        f'{sweeps.mean(values_of(c).get(name, math.nan) for c in group):.3f}'
        for group in groups
      ]
      for name in names
    ]
    if rows:
      found.append(table((what, *(g[0].label for g in groups)), rows))
  return '\n'.join(found)


def _audits(sweep: sweeps.Sweep) -> str:
  """What was found in the audit.json of each cell, whatever its keys."""
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
    [name, *(_figure(values.get(key, '')) for key in keys)]
    for name, values in audited.items()
  ]
  everything = (
    _details(f'All of the audit of {name}', _pairs(values))
    for name, values in audited.items()
  )
  return '\n'.join(
    (
      f'<p class="note">{html.escape(_AUDIT_NOTE)}</p>',
      table(('cell', *(_AUDIT[key] for key in keys)), rows),
      *everything,
    )
  )


def _flat(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns nested mappings as one, by dotted keys, without lists."""
  found: dict[str, Any] = {}
  for key, value in values.items():
    name = f'{prefix}{key}'
    if isinstance(value, Mapping):
      found.update(_flat(value, f'{name}.'))
    elif not isinstance(value, (list, tuple)) and value is not None:
      found[name] = value
  return found


def _cell_table(sweep: sweeps.Sweep) -> str:
  rows = []
  for cell in sweep.cells:
    row = cell.row()
    rows.append([_figure(row[name]) for name in _COLUMNS])
  return table(tuple(_COLUMNS.values()), rows)


def _figure(value: Any) -> str:
  """Returns a value of a table, short."""
  if isinstance(value, bool) or value in ('', None):
    return str(value) if value not in ('', None) else ''
  found = sweeps.number(value)
  if math.isnan(found):
    return str(value)
  return '∞' if found == math.inf else f'{found:.4g}'


def _provenance(sweep: sweeps.Sweep) -> str:
  """The command, versions, settings and every ledger's digest."""
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
      _details('Settings that cells have in common', _pairs(settings)),
      _details('Versions', _pairs(versions)),
      _details('Data, by digest', table(('digest',), [[d] for d in data if d])),
      _details(
        'Privacy ledgers, by SHA-256', table(('cell', 'digest'), digests)
      ),
    )
  )


def _without_folders(command: str) -> str:
  """Returns the command with the last part alone of absolute paths.

  >>> _without_folders('python -m x --data_dir=/home/me/npz --flagfile=a/b')
  'python -m x --data_dir=npz --flagfile=a/b'
  """
  return re.sub(r"(?<=[=\s'])/(?:[^/\s']*/)*", '', command)


def _pairs(values: Mapping[str, Any]) -> str:
  return table(('', ''), [[str(k), str(v)] for k, v in values.items()])


def _details(title: str, content: str) -> str:
  return f'<details><summary>{html.escape(title)}</summary>{content}</details>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns an HTML table, escaped, that scrolls within itself.

  >>> table(('a',), [['<b>']])
  '<div class="table"><table><thead><tr><th>a</th></tr></thead>\
<tbody><tr><th>&lt;b&gt;</th></tr></tbody></table></div>'
  """
  head = ''.join(f'<th>{html.escape(name)}</th>' for name in header)
  body = ''.join(
    '<tr>'
    + ''.join(
      f'<{tag}>{html.escape(cell)}</{tag}>'
      for tag, cell in zip(('th', *['td'] * len(row)), row)
    )
    + '</tr>'
    for row in rows
  )
  columns = f'<thead><tr>{head}</tr></thead>' if any(header) else ''
  return (
    f'<div class="table"><table>{columns}<tbody>{body}</tbody></table></div>'
  )
