"""Sweeps over privacy budgets, read from disk for tables and figures.

A sweep's folder holds `sweep.json`, which names the cells and the command that
asked for them. Its folder `cells/` holds a folder for each cell: a run's folder
(see `program.run_folder`) or the folder of a reference without federation.
Reading is strict about `sweep.json`. A cell that is not done has no values, and
`audit.json` may hold any keys.

>>> Cell('eps_inf_seed_0', FEDERATED, math.inf, 0).label
'no privacy'
>>> Cell('eps_4_seed_1', FEDERATED, 4.0, 1).label
'ε 4'
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import math
import os
import pathlib
import re
from typing import TYPE_CHECKING, Any, TypeVar

from tff_medical import _files
from tff_medical import _validate
from tff_medical.data import images
from tff_medical.privacy import ledger_contents
from tff_medical.program import metrics_table
from tff_medical.program import run_folder
from tff_medical.program import run_records
from tff_medical.scoring import scored

if TYPE_CHECKING:
  import pandas as pd

FEDERATED = 'federated'
CENTRAL = 'central'
PER_SITE = 'per_site'
# Training without federation and privacy.
REFERENCES = (CENTRAL, PER_SITE)
KINDS = (FEDERATED, *REFERENCES)
# Names of the references in tables and figures.
LABELS = {CENTRAL: 'central', PER_SITE: 'per site'}

SWEEP_FILE = 'sweep.json'
# The name of a cell's folder never leads to another folder, as '..' would.
_NAME = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}')

_T = TypeVar('_T')

COLUMNS = (
  'cell',
  'kind',
  'unit',
  'mechanism',
  'target_epsilon',
  'epsilon',
  'delta',
  'seed',
  'noise_multiplier',
  'rounds',
  'auc',
  'auc_low',
  'auc_high',
  'accuracy',
  'balanced_accuracy',
  'worst_class_sensitivity',
  'site_accuracy_gap',
  'eval_split',
  'seconds',
  'status',
  'ledger_sha256',
)
# Columns that the summary of a run has by the same name.
_OF_SUMMARY = (
  'epsilon',
  'noise_multiplier',
  'rounds',
  'eval_split',
  'seconds',
  'ledger_sha256',
)


@dataclasses.dataclass(frozen=True)
class Cell:
  """One training of a sweep.

  Attributes:
    name: Name of the cell's folder.
    kind: One of `KINDS`.
    epsilon: Budget that was asked for; inf without privacy.
    seed: Seed of data, partition and initial weights.
    eval_split: Split that the sweep has its metrics on.
    summary: Summary of the run; None if the run has none yet.
    config: Settings of the run; None if the run was never started.
    ledger: Header of the privacy ledger, which describes the mechanism; empty
      without a ledger.
    rounds: Values of metrics.csv by round, without the empty ones.
    audit: Contents of `audit.json`; empty without an audit.
  """

  name: str
  kind: str
  epsilon: float
  seed: int
  eval_split: str = images.TEST
  summary: run_records.Summary | None = None
  config: run_records.Config | None = None
  ledger: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rounds: Sequence[Mapping[str, float]] = ()
  audit: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def is_done(self) -> bool:
    """Whether the training has ended, with metrics on the sweep's split."""
    return (
      self.summary is not None
      and self.summary.has_ended
      and self.summary.eval_split == self.eval_split
    )

  @property
  def is_measured(self) -> bool:
    """Whether the training has ended with metrics, hence was not skipped."""
    return self.is_done and bool(self.metrics)

  @property
  def metrics(self) -> Mapping[str, float]:
    """The metrics on the sweep's split; empty if the cell has none."""
    if self.summary is None or self.summary.eval_split != self.eval_split:
      return {}
    return self.summary.metrics

  @property
  def label(self) -> str:
    """The group of cells that differ in their seed alone."""
    return label(self.kind, self.epsilon)

  def metric(self, name: str) -> float:
    """Returns a metric on the sweep's split; NaN if the cell has none."""
    return self.metrics.get(name, math.nan)

  def by_class(self) -> dict[str, float]:
    """Returns the sensitivity to each class."""
    return self._below('sensitivity/')

  def by_site(self, metric: str = 'accuracy') -> dict[str, float]:
    """Returns a metric at each site, by the site's name."""
    suffix = f'/{metric}'
    return {
      name[: -len(suffix)]: value
      for name, value in self._below('site/').items()
      if name.endswith(suffix) and name.count('/') == metric.count('/') + 1
    }

  def _below(self, prefix: str) -> dict[str, float]:
    return {
      name[len(prefix) :]: value
      for name, value in self.metrics.items()
      if name.startswith(prefix)
    }

  def row(self) -> dict[str, Any]:
    """Returns the cell as a row of results.csv; None for unknown values."""
    private = self.kind == FEDERATED and math.isfinite(self.epsilon)
    values: dict[str, Any] = {
      'cell': self.name,
      'kind': self.kind,
      'unit': self.ledger.get('privacy_unit') if private else 'none',
      'mechanism': self.ledger.get('mechanism') if private else 'none',
      'target_epsilon': self.epsilon,
      'seed': self.seed,
      'worst_class_sensitivity': min(_known(self.by_class()), default=math.nan),
      'site_accuracy_gap': gap(self.by_site()),
      'status': 'missing',
    }
    for name in ('auc', 'accuracy', 'balanced_accuracy'):
      values[name] = self.metric(name)
    if self.is_done and self.summary:
      low, high = self.summary.intervals.get('auc', (math.nan, math.nan))
      values.update(auc_low=low, auc_high=high)
    if self.summary:
      for name in _OF_SUMMARY:
        values[name] = getattr(self.summary, name)
      values['delta'] = self.summary.delta if private else None
      values['status'] = self.summary.stop_reason
    return {name: values.get(name) for name in COLUMNS}


@dataclasses.dataclass(frozen=True)
class Sweep:
  """A sweep as far as it has come.

  Attributes:
    folder: Folder of the sweep.
    info: Contents of `sweep.json`: command, settings, versions, cells.
    cells: Cells in the order of `sweep.json`.
  """

  folder: pathlib.Path
  info: Mapping[str, Any]
  cells: tuple[Cell, ...]

  @property
  def eval_split(self) -> str:
    """Split of the metrics: 'validation' or 'test'."""
    return _eval_split(self.info)

  def measured(self, kind: str = FEDERATED) -> list[Cell]:
    """Returns the cells of a kind that have metrics, strictest first."""
    cells = [c for c in self.cells if c.kind == kind and c.is_measured]
    return sorted(cells, key=lambda c: (c.epsilon, c.seed))

  def scores(self, cell: Cell) -> scored.ScoredImages | None:
    """Returns the scores behind a cell's metrics; None if they are missing.

    Raises:
      InputError: The file of the scores is damaged.
    """
    if not cell.is_measured:
      return None
    return run_folder.RunFolder(self.folder / 'cells' / cell.name).read_scores()

  def epsilons(self) -> list[float]:
    """Returns the budgets that were measured, smallest first."""
    return sorted({c.epsilon for c in self.measured()})


def read(folder: str | os.PathLike[str]) -> Sweep:
  """Returns the sweep in a folder.

  Raises:
    InputError: The folder holds no sweep, or a file in the folder is damaged.
  """
  path = pathlib.Path(folder)
  try:
    info = _files.read_json(path / SWEEP_FILE)
  except FileNotFoundError:
    info = {}
  cells = info.get('cells')
  if not isinstance(cells, list):
    raise _validate.InputError(
      f'sweep_dir {path} holds no sweep (no usable {SWEEP_FILE}); give the '
      '--output_dir of experiments.tradeoff'
    )
  for name, kind in (('settings', dict), ('versions', dict), ('command', str)):
    if not isinstance(info.get(name, kind()), kind):
      raise _damaged(path, f'{name} is {info[name]!r:.200}')
  split_name = _eval_split(info)
  if split_name not in images.EVAL_SPLITS:
    raise _damaged(path, f'eval_split is {split_name!r:.200}')
  return Sweep(
    path, info, tuple(_read_entry(path, entry, split_name) for entry in cells)
  )


def _eval_split(info: Mapping[str, Any]) -> Any:
  """Returns the split of the metrics; older sweeps had test metrics alone."""
  return info.get('eval_split', images.TEST)


def _damaged(folder: pathlib.Path, why: str) -> _validate.InputError:
  return _validate.InputError(
    f'{folder / SWEEP_FILE} is damaged ({why}); restore it or start the sweep '
    'in another folder'
  )


def _read_entry(folder: pathlib.Path, entry: Any, split_name: str) -> Cell:
  """Returns the cell of an entry of `sweep.json`."""
  try:
    name, kind = entry['name'], entry['kind']
    epsilon, seed = float(entry['epsilon']), int(entry['seed'])
  except (KeyError, TypeError, ValueError, OverflowError):
    name = kind = None
  if (
    not isinstance(name, str) or kind not in KINDS or not _NAME.fullmatch(name)
  ):
    raise _damaged(folder, f'it has the cell {entry!r:.200}')
  return read_cell(
    folder / 'cells' / name, name, kind, epsilon, seed, split_name
  )


def read_cell(
  folder: pathlib.Path,
  name: str,
  kind: str,
  epsilon: float,
  seed: int,
  eval_split: str = images.TEST,
) -> Cell:
  """Returns a cell as far as its folder shows it.

  Raises:
    InputError: A file of the cell is damaged.
  """
  run = run_folder.RunFolder(folder)
  return Cell(
    name=name,
    kind=kind,
    epsilon=epsilon,
    seed=seed,
    eval_split=eval_split,
    summary=_read_if_exists(run.read_summary),
    config=_read_if_exists(run.read_config),
    ledger=_header(run.ledger),
    rounds=_rounds(run.metrics),
    audit=_read_if_exists(lambda: _files.read_json(run.audit)) or {},
  )


def _read_if_exists(read_file: Callable[[], _T]) -> _T | None:
  """Returns the contents of a file; None if the file is missing."""
  try:
    return read_file()
  except (FileNotFoundError, NotADirectoryError):
    return None


def table(cells: Iterable[Cell]) -> pd.DataFrame:
  """Returns a table of runs with the `COLUMNS` of results.csv, a row a cell."""
  from tff_medical.reporting import run_tables  # pandas takes .4 s.

  return run_tables.table((cell.row() for cell in cells), COLUMNS)


def parts(
  cells: Iterable[Cell], values_of: Callable[[Cell], Mapping[str, float]]
) -> pd.DataFrame:
  """Returns values of classes or sites by cell.

  Args:
    cells: Cells of the rows.
    values_of: `Cell.by_class` or `Cell.by_site`.

  Returns:
    A table whose index is the label of each cell and whose columns are the names
    of classes or sites, sorted; NaN where a cell has no value.
  """
  import pandas as pd

  cells = list(cells)
  rows = pd.DataFrame(
    [values_of(cell) for cell in cells], index=[cell.label for cell in cells]
  )
  return rows.sort_index(axis='columns').astype(float)


def write_csv(sweep: Sweep) -> pathlib.Path:
  """Writes results.csv, a row a cell, whole or not at all; returns the file."""
  from tff_medical.reporting import run_tables

  path = sweep.folder / 'results.csv'
  run_tables.write(path, table(sweep.cells), float_format='%.6g')
  return path


def label(kind: str, epsilon: float) -> str:
  """Returns the name of a group of cells in tables and figures."""
  if kind != FEDERATED:
    return LABELS[kind]
  return 'no privacy' if math.isinf(epsilon) else f'ε {epsilon:g}'


def number(value: Any) -> float:
  """Returns the number that a JSON value stands for, 'inf' too; else NaN."""
  try:
    return float(value)
  except (TypeError, ValueError):
    return math.nan


def gap(values: Mapping[str, float]) -> float:
  """Returns the highest minus the lowest known value; NaN without any."""
  known = _known(values)
  return max(known) - min(known) if known else math.nan


def _known(values: Mapping[str, float]) -> list[float]:
  return [v for v in values.values() if not math.isnan(v)]


def _header(path: pathlib.Path) -> Mapping[str, Any]:
  ledger = _read_if_exists(lambda: ledger_contents.read(path))
  return ledger.header if ledger else {}


def _rounds(path: pathlib.Path) -> list[dict[str, float]]:
  return [
    {'round': float(number), **values}
    for number, values in metrics_table.read(path).items()
  ]
