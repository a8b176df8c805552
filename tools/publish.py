r"""Puts results into the repository and renews the tables and figure made of them.

    python -m tools.publish \
        --sweep_dirs=runs/pneumonia_client,runs/pneumonia_record \
        --comparison_dirs=runs/helps_client

Of each sweep (`experiments.tradeoff`) the report, its plots and results.csv go
to results/NAME, of each comparison (`experiments.compare`) results.csv and
figure; NAME is that of the folder. Without folders only the tables are renewed,
from what lies in results/. In the pages (README.md, docs/results.md) what
stands between `<!-- NAME -->` and `<!-- end -->` is written by this command,
and a test holds it against the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
import math
import pathlib
import re
import shutil

from absl import flags as absl_flags
from matplotlib import axes as axes_lib

from experiments import compare
from experiments.running import command
from experiments.running import results
from tff_medical import _validate
from tff_medical.program import ending
from tff_medical.reporting import plots
from tff_medical.reporting import report
from tff_medical.reporting import sweeps
from tools import measure_presets

_ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = (_ROOT / 'README.md', _ROOT / 'docs' / 'results.md')
RESULTS = _ROOT / 'results'
FIGURE = 'tradeoff'
_STUDY_FILES = ('results.csv', 'report.html', 'plots')
_COMPARISON_FILES = ('results.csv', 'comparison.png', 'comparison.svg')
# Columns that only the results of the one or the other have.
_OF_STUDY, _OF_COMPARISON = 'cell', 'flags'
_COLUMNS_OF_FIGURE = 2
_MARKED = r'(<!-- ([\w-]+) -->)(.*?)(<!-- end -->)'
_STUDY_MARKS = ['studies', 'studies_balanced_accuracy']


def check_study(folder: pathlib.Path) -> None:
  """Raises `InputError` unless the folder is that of a sweep that is done."""
  missing = [c.name for c in sweeps.read(folder).cells if not c.is_done]
  if missing:
    raise _validate.InputError(
      f'sweep_dirs: {folder} has {len(missing)} cells to do ({missing[0]}, '
      '...); start experiments.tradeoff again'
    )


def copy_study(folder: pathlib.Path, target: pathlib.Path) -> None:
  """Writes a sweep's report anew, and copies what is to be published."""
  sweep = sweeps.read(folder)
  sweeps.write_csv(sweep)
  report.write(sweep)
  _copy(folder, target, _STUDY_FILES)


def check_comparison(folder: pathlib.Path) -> None:
  """Raises `InputError` unless the folder is that of a comparison, all done."""
  if not all((folder / name).exists() for name in _COMPARISON_FILES):
    raise _validate.InputError(
      f'comparison_dirs: {folder} holds no comparison; give the --output_dir '
      'of experiments.compare'
    )
  groups = results.by_name(results.read(folder / 'results.csv'))
  seeds = {name: {one['seed'] for one in own} for name, own in groups.items()}
  if len(set(map(frozenset, seeds.values()))) > 1:
    raise _validate.InputError(
      f'comparison_dirs: {folder} has variants of which seeds are missing; '
      'start experiments.compare again'
    )


def copy_comparison(folder: pathlib.Path, target: pathlib.Path) -> None:
  """Copies what is to be published of a comparison."""
  _copy(folder, target, _COMPARISON_FILES)


def _copy(
  folder: pathlib.Path, target: pathlib.Path, names: Sequence[str]
) -> None:
  target.mkdir(parents=True, exist_ok=True)
  for name in names:
    if (folder / name).is_dir():
      shutil.rmtree(target / name, ignore_errors=True)
      shutil.copytree(folder / name, target / name)
    else:
      shutil.copy(folder / name, target / name)


def published(
  folder: pathlib.Path, column: str
) -> dict[str, list[dict[str, str]]]:
  """Returns the lines of each results.csv that has the column, by its name."""
  found = {}
  for path in sorted(folder.glob('*/results.csv')):
    lines = results.read(path)
    if lines and column in lines[0]:
      found[path.parent.name] = lines
  return found


def _groups(
  lines: Sequence[Mapping[str, str]], metric: str
) -> dict[tuple[str, float], list[float]]:
  """Returns the values of a metric by kind and ε."""
  found: dict[tuple[str, float], list[float]] = {}
  for line in lines:
    if line[metric]:
      key = (line['kind'], float(line['target_epsilon']))
      found.setdefault(key, []).append(float(line[metric]))
  return found


def study_table(
  found: Mapping[str, Sequence[Mapping[str, str]]], metric: str
) -> str:
  """Returns a line a study and a column a budget, in Markdown."""
  groups = {name: _groups(lines, metric) for name, lines in found.items()}
  keys = sorted({key for group in groups.values() for key in group}, key=_order)
  lines = [
    [
      f'`{name}`',
      *(results.spread(group[key]) if key in group else '' for key in keys),
    ]
    for name, group in groups.items()
  ]
  header = ['', *(sweeps.label(kind, epsilon) for kind, epsilon in keys)]
  return results.markdown(header, lines)


def _order(key: tuple[str, float]) -> tuple[int, float]:
  return sweeps.KINDS.index(key[0]), key[1]


def draw(
  found: Mapping[str, Sequence[Mapping[str, str]]], folder: pathlib.Path
) -> None:
  """Writes the figure of all studies: test AUC against ε."""
  figure, panels = plots.grid(len(found), _COLUMNS_OF_FIGURE)
  for axes, (name, lines) in zip(panels, found.items()):
    axes.set_title(name.replace('_', ' '))
    _draw_panel(axes, _groups(lines, 'auc'))
  plots.save(figure, folder, FIGURE)


def _draw_panel(
  axes: axes_lib.Axes, groups: Mapping[tuple[str, float], Sequence[float]]
) -> None:
  epsilons = sorted(e for kind, e in groups if kind == sweeps.FEDERATED)
  means = []
  for position, epsilon in enumerate(epsilons):
    aucs = groups[sweeps.FEDERATED, epsilon]
    means.append(sweeps.mean(aucs))
    axes.plot([position] * len(aucs), aucs, 'o', color=plots.color(0))
  axes.plot(range(len(epsilons)), means, color=plots.color(0))
  for index, kind in enumerate(sweeps.REFERENCES, start=1):
    if (kind, math.inf) in groups:
      level = sweeps.mean(groups[kind, math.inf])
      plots.level(axes, level, sweeps.LABELS[kind], plots.color(index))
  axes.set_xticks(
    range(len(epsilons)),
    [sweeps.label(sweeps.FEDERATED, epsilon) for epsilon in epsilons],
  )
  axes.set_ylabel('test AUC')


def blocks(folder: pathlib.Path) -> dict[str, str]:
  """Returns what belongs between the marks of the pages, by their name."""
  found = {
    'presets': measure_presets.table(results.read(folder / 'presets.csv'))
  }
  if all_studies := published(folder, _OF_STUDY):
    for name, metric in zip(_STUDY_MARKS, ('auc', 'balanced_accuracy')):
      found[name] = study_table(all_studies, metric)
  for name, lines in published(folder, _OF_COMPARISON).items():
    found[name] = compare.table(lines)
  return found


def fill(text: str, tables: Mapping[str, str]) -> str:
  """Returns a text with each table between its marks, where it has them.

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
    InputError: A table has its mark on none of them.
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
  sweeps = [pathlib.Path(path) for path in values.sweep_dirs]
  compared = [pathlib.Path(path) for path in values.comparison_dirs]
  for path in sweeps:
    check_study(path)
  for path in compared:
    check_comparison(path)
  wanted = [path.name for path in compared] + (_STUDY_MARKS if sweeps else [])
  fill_pages(PAGES, dict.fromkeys(wanted, ''))
  with ending.deferred():  # Pages and tables are to say the same.
    for path in sweeps:
      copy_study(path, RESULTS / path.name)
    for path in compared:
      copy_comparison(path, RESULTS / path.name)
    if found := published(RESULTS, _OF_STUDY):
      draw(found, RESULTS)
    for page, text in fill_pages(PAGES, blocks(RESULTS)).items():
      page.write_text(text, 'utf-8')


if __name__ == '__main__':
  absl_flags.DEFINE_list('sweep_dirs', [], 'folders of experiments.tradeoff')
  absl_flags.DEFINE_list('comparison_dirs', [], 'of experiments.compare')
  command.run(functools.partial(main, absl_flags.FLAGS))
