r"""Puts results into the repository, and renews its tables and its figure.

    python -m tools.publish \
        --sweep_dirs=runs/pneumonia_client,runs/pneumonia_record \
        --comparison_dirs=runs/helps_client

A sweep (`experiments.tradeoff`) leaves its report and results.csv in results/NAME,
a comparison (`experiments.compare`) its figure and results.csv; NAME is the name of
its folder. Without folders, tables and figure are renewed from the files in
results/. This command writes the text between `<!-- NAME -->` and `<!-- end -->`
in the pages (README.md, docs/results.md), and a test holds it against the files.

A sweep of `SEPARATE` leaves results.csv alone, and has a table of its own. Its
costs.csv is written by hand: phases with their seconds and peak memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
import pathlib
import re
import shutil

from absl import flags as absl_flags
from matplotlib import axes as axes_lib
import pandas as pd

from experiments import compare
from experiments.running import command
from tff_medical import _validate
from tff_medical.data import images
from tff_medical.program import ending
from tff_medical.reporting import plots
from tff_medical.reporting import report
from tff_medical.reporting import run_tables
from tff_medical.reporting import sweeps as sweeps_lib
from tools import measure_presets

_ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = (_ROOT / 'README.md', _ROOT / 'docs' / 'results.md')
RESULTS = _ROOT / 'results'
FIGURE = 'tradeoff'
_SWEEP_FILES = ('results.csv', 'report.html')
_COMPARISON_FILES = ('results.csv', 'comparison.png')
# Sweeps of other images than those of MedMNIST.
SEPARATE = ('large_record',)
_COSTS = 'costs.csv'
# Columns that only sweeps have, or only comparisons.
_OF_SWEEP, _OF_COMPARISON = 'cell', 'flags'
_COLUMNS_OF_FIGURE = 2
_REFERENCES = {
  sweeps_lib.CENTRAL: 'pooled images, no privacy',
  sweeps_lib.PER_SITE: 'each site alone, no privacy',
}
# The marks of the tables of sweeps, with the metric that each table shows.
_SWEEP_MARKS = {
  'studies': 'auc',
  'studies_balanced_accuracy': 'balanced_accuracy',
}
_MARKED = r'(<!-- ([\w-]+) -->)(.*?)(<!-- end -->)'


def check_sweep(folder: pathlib.Path) -> None:
  """Raises `InputError` unless the folder holds a sweep whose cells are done."""
  sweep = sweeps_lib.read(folder)
  _require_test('sweep_dirs', folder, sweep.eval_split)
  missing = [c.name for c in sweep.cells if not c.is_done]
  if missing:
    raise _validate.InputError(
      f'sweep_dirs: {folder} has {len(missing)} cells to do ({missing[0]}, '
      '...); start experiments.tradeoff again'
    )


def _require_test(flag: str, folder: pathlib.Path, split_name: str) -> None:
  if split_name != images.TEST:
    raise _validate.InputError(
      f'{flag}: {folder} has metrics on {split_name} images, and published '
      'tables are of test images; start its command again with '
      '--eval_split=test, which evaluates the trained models'
    )


def _require_costs(path: pathlib.Path) -> None:
  if not path.exists():
    raise _validate.InputError(
      f'sweep_dirs: {path} must say what {path.parent.name} cost; write it with '
      'the columns phase, seconds and peak_bytes'
    )


def copy_sweep(folder: pathlib.Path, target: pathlib.Path) -> None:
  """Writes a sweep's report anew, and copies the files to be published."""
  sweep = sweeps_lib.read(folder)
  sweeps_lib.write_csv(sweep)
  if target.name in SEPARATE:
    _copy(folder, target, ['results.csv'])
    return
  report.write(sweep)
  _copy(folder, target, _SWEEP_FILES)


def check_comparison(folder: pathlib.Path) -> None:
  """Raises `InputError` unless the folder holds a comparison that is done."""
  if not all((folder / name).exists() for name in _COMPARISON_FILES):
    raise _validate.InputError(
      f'comparison_dirs: {folder} holds no comparison; give the --output_dir '
      'of experiments.compare'
    )
  runs = run_tables.read(folder / 'results.csv')
  _require_test('comparison_dirs', folder, run_tables.split_name(runs))
  if runs.groupby('name')['seed'].agg(frozenset).nunique() > 1:
    raise _validate.InputError(
      f'comparison_dirs: {folder} has variants of which seeds are missing; '
      'start experiments.compare again'
    )


def copy_comparison(folder: pathlib.Path, target: pathlib.Path) -> None:
  """Copies the files of a comparison that are to be published."""
  _copy(folder, target, _COMPARISON_FILES)


def _copy(
  folder: pathlib.Path, target: pathlib.Path, names: Sequence[str]
) -> None:
  target.mkdir(parents=True, exist_ok=True)
  for name in names:
    shutil.copy(folder / name, target / name)


def published(folder: pathlib.Path, column: str) -> dict[str, pd.DataFrame]:
  """Returns the table of each results.csv that has the column, by its name."""
  tables = {
    path.parent.name: run_tables.read(path)
    for path in sorted(folder.glob('*/results.csv'))
  }
  return {name: runs for name, runs in tables.items() if column in runs}


def _measured(sweeps: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
  """Returns the runs of all sweeps; skipped references have no metrics."""
  runs = pd.concat(sweeps, names=['sweep']).reset_index('sweep')
  return runs[runs['status'] != 'skipped']


def sweep_table(sweeps: Mapping[str, pd.DataFrame], metric: str) -> str:
  """Returns a row a sweep and a column a budget, in Markdown.

  The AUC is followed by its interval over images, where that is known.
  """
  groups = _measured(sweeps).groupby(['sweep', 'kind', 'target_epsilon'])
  cells = groups[metric].agg(run_tables.spread)
  if metric == 'auc':
    cells += pd.Series(
      {
        key: f' {run_tables.over_images(group, "auc_low", "auc_high")}'.rstrip()
        for key, group in groups
      }
    )
  texts = cells.unstack(['kind', 'target_epsilon'])
  texts = texts[sorted(texts.columns, key=_order)].fillna('')
  texts.columns = [sweeps_lib.label(*key) for key in texts.columns]
  texts.insert(0, '', '`' + texts.index + '`')
  return run_tables.markdown(texts)


def budget_table(runs: pd.DataFrame) -> str:
  """Returns a row a budget of one sweep, in Markdown."""
  groups = _measured({'': runs}).groupby(['kind', 'target_epsilon'])
  rows = []
  for key in sorted(groups.groups, key=_order):
    group = groups.get_group(key)
    rows.append(
      {
        'trained': sweeps_lib.label(*key),
        'noise': _noise(group),
        'test AUC': run_tables.spread(group['auc']),
        '95 % over images': run_tables.over_images(
          group, 'auc_low', 'auc_high'
        ),
        'accuracy': run_tables.spread(group['accuracy']),
        'balanced accuracy': run_tables.spread(group['balanced_accuracy']),
        's': f'{group["seconds"].median():.0f}',
      }
    )
  return run_tables.markdown(pd.DataFrame(rows))


def _noise(runs: pd.DataFrame) -> str:
  """Returns the noise multiplier of runs of one budget, '' without noise."""
  noise = run_tables.mean(runs['noise_multiplier'])
  return f'{noise:.2f}' if noise > 0 else ''


def cost_table(path: pathlib.Path) -> str:
  """Returns the phases of a costs.csv, in Markdown."""
  costs = pd.read_csv(path)
  costs['peak memory'] = [
    f'{size / 1e9:.2f} GB' for size in costs.pop('peak_bytes')
  ]
  return run_tables.markdown(costs.astype(str))


def _order(key: tuple[str, float]) -> tuple[int, float]:
  return sweeps_lib.KINDS.index(key[0]), key[1]


def draw(sweeps: Mapping[str, pd.DataFrame], folder: pathlib.Path) -> None:
  """Writes the figure of all sweeps: test AUC against ε, a panel a data set.

  Sweeps of one data set have the name DATA_UNIT. Each panel has its own y axis.
  """
  runs = _measured(sweeps)
  units = {name: _unit(table) for name, table in sweeps.items()}
  runs['unit'] = runs['sweep'].map(units)
  datasets = runs.groupby(
    [name.removesuffix(f'_{units[name]}') for name in runs['sweep']]
  )
  titles = [str(data).replace('_', ' ').capitalize() for data, _ in datasets]
  figure, panels = plots.grid(titles, _COLUMNS_OF_FIGURE)
  for axes, (_, group) in zip(panels, datasets):
    _draw_panel(axes, group)
  plots.legend(figure)
  plots.save(figure, folder, FIGURE)


def _unit(runs: pd.DataFrame) -> str:
  """Returns the privacy unit of a sweep, which only its private runs state."""
  private = runs.loc[~runs['unit'].isin(['none', '']), 'unit']
  return 'none' if private.empty else private.iloc[0]


def _draw_panel(axes: axes_lib.Axes, runs: pd.DataFrame) -> None:
  """Draws a line a privacy unit, a dot a run, and a level a reference."""
  federated = runs[runs['kind'] == sweeps_lib.FEDERATED]
  position = plots.epsilon_axis(
    axes, sorted(federated['target_epsilon'].unique())
  )
  units = federated.groupby('unit')
  for index, (unit, group) in enumerate(units):
    shift = 0.1 * (index - (len(units) - 1) / 2)  # Dots side by side.
    shade = plots.color(index)
    dots = group['target_epsilon'].map(position) + shift
    axes.plot(dots, group['auc'], 'o', color=shade, alpha=0.55)
    means = group.groupby('target_epsilon')['auc'].agg(run_tables.mean)
    axes.plot(
      means.index.map(position) + shift, means, color=shade,
      label=f'federated, ε per {unit}',
    )  # fmt: skip
  for index, kind in enumerate(sweeps_lib.REFERENCES, start=len(units)):
    reference = runs[runs['kind'] == kind]
    if len(reference):
      axes.axhline(
        run_tables.mean(reference['auc']), linestyle='--', linewidth=1.2,
        color=plots.color(index), label=_REFERENCES[kind],
      )  # fmt: skip
  axes.set_ylabel('test AUC')


def blocks(folder: pathlib.Path) -> dict[str, str]:
  """Returns the tables of the pages, by the names of their marks."""
  presets = run_tables.read(folder / 'presets.csv')
  tables = {'presets': measure_presets.table(presets)}
  sweeps = published(folder, _OF_SWEEP)
  for name in SEPARATE:
    if name in sweeps:
      tables[name] = budget_table(sweeps.pop(name))
      tables[f'{name}_costs'] = cost_table(folder / name / _COSTS)
  if sweeps:
    for name, metric in _SWEEP_MARKS.items():
      tables[name] = sweep_table(sweeps, metric)
  for name, runs in published(folder, _OF_COMPARISON).items():
    tables[name] = compare.table(runs)
  return tables


def fill(text: str, tables: Mapping[str, str]) -> str:
  """Returns a text with each table between the table's marks, if it has them.

  >>> print(fill('<!-- a -->old<!-- end -->', {'a': '| 1 |', 'b': '| 2 |'}))
  <!-- a -->
  | 1 |
  <!-- end -->
  """

  def between(match: re.Match[str]) -> str:
    if match[2] not in tables:
      return match[0]
    return f'{match[1]}\n{tables[match[2]]}\n{match[4]}'

  return re.sub(_MARKED, between, text, flags=re.S)


def fill_pages(
  pages: Sequence[pathlib.Path], tables: Mapping[str, str]
) -> dict[pathlib.Path, str]:
  """Returns the new text of each page.

  Raises:
    InputError: No page has the mark of a table.
  """
  texts = {page: page.read_text('utf-8') for page in pages}
  marked = {m[2] for t in texts.values() for m in re.finditer(_MARKED, t, re.S)}
  for name in tables:
    if name not in marked:
      raise _validate.InputError(
        f'no page has <!-- {name} --> ... <!-- end --> to fill: '
        f'{", ".join(page.name for page in pages)}'
      )
  return {page: fill(text, tables) for page, text in texts.items()}


def main(values: absl_flags.FlagValues) -> None:
  """Runs the command."""
  sweep_dirs = [pathlib.Path(path) for path in values.sweep_dirs]
  comparison_dirs = [pathlib.Path(path) for path in values.comparison_dirs]
  for path in sweep_dirs:
    check_sweep(path)
    if path.name in SEPARATE:
      _require_costs(RESULTS / path.name / _COSTS)
  for path in comparison_dirs:
    check_comparison(path)
  names = {path.name for path in sweep_dirs}
  marks = [path.name for path in comparison_dirs]
  marks += [name for name in SEPARATE if name in names]
  marks += _SWEEP_MARKS if names.difference(SEPARATE) else []
  fill_pages(PAGES, dict.fromkeys(marks, ''))
  with ending.deferred():  # Pages and tables are to say the same.
    for path in sweep_dirs:
      copy_sweep(path, RESULTS / path.name)
    for path in comparison_dirs:
      copy_comparison(path, RESULTS / path.name)
    sweeps = published(RESULTS, _OF_SWEEP)
    if drawn := {n: s for n, s in sweeps.items() if n not in SEPARATE}:
      draw(drawn, RESULTS)
    for page, text in fill_pages(PAGES, blocks(RESULTS)).items():
      page.write_text(text, 'utf-8')


if __name__ == '__main__':
  absl_flags.DEFINE_list('sweep_dirs', [], 'folders of experiments.tradeoff')
  absl_flags.DEFINE_list(
    'comparison_dirs', [], 'folders of experiments.compare'
  )
  command.run(functools.partial(main, absl_flags.FLAGS))
