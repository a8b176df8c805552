"""What a sweep over privacy budgets left on disk, read for tables and figures.

A sweep's folder holds `sweep.json`, which names its cells and how they were
asked for, and a folder a cell in `cells/`, each a run's folder (see
`program.run_folder`) or that of a reference without federation. Reading is
lenient where others write (`audit.json`) and where a cell is not done, and
strict about `sweep.json`.

>>> Cell('eps_inf_seed_0', FEDERATED, math.inf, 0).label
'no privacy'
>>> Cell('eps_4_seed_1', FEDERATED, 4.0, 1).label
'ε 4'
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import csv
import dataclasses
import io
import math
import os
import pathlib
import re
from typing import Any, TypeVar

from tff_medical import _files
from tff_medical import _validate
from tff_medical.privacy import ledger as ledger_lib
from tff_medical.program import metrics_table
from tff_medical.program import run_folder

FEDERATED = 'federated'
CENTRAL = 'central'
PER_SITE = 'per_site'
# Training without federation and privacy.
REFERENCES = (CENTRAL, PER_SITE)
KINDS = (FEDERATED, *REFERENCES)
# What a reference is called in tables and figures.
LABELS = {CENTRAL: 'central', PER_SITE: 'per site'}

SWEEP_FILE = 'sweep.json'
# What a cell's folder may be called: never another folder, such as '..'.
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
  'accuracy',
  'balanced_accuracy',
  'worst_class_sensitivity',
  'site_accuracy_gap',
  'seconds',
  'status',
  'ledger_sha256',
)


@dataclasses.dataclass(frozen=True)
class Cell:
  """One training of a sweep.

  Attributes:
    name: Of its folder.
    kind: One of `KINDS`.
    epsilon: The budget that was asked for; inf without privacy.
    seed: Of data, partition and initial weights.
    summary: How the run ended; None if it has not.
    config: What the run was started with; None if it was not.
    ledger: The header of the privacy ledger, which describes the mechanism;
      empty without one.
    rounds: The values of metrics.csv by round, empty ones left out.
    audit: Of `audit.json`, empty if there was none.
  """

  name: str
  kind: str
  epsilon: float
  seed: int
  summary: run_folder.Summary | None = None
  config: run_folder.Config | None = None
  ledger: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rounds: Sequence[Mapping[str, float]] = ()
  audit: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def is_done(self) -> bool:
    """Whether the training came to its end."""
    return self.summary is not None and self.summary.has_ended

  @property
  def is_measured(self) -> bool:
    """Whether there are metrics: done, and not skipped."""
    return self.is_done and bool(self.metrics)

  @property
  def metrics(self) -> Mapping[str, float]:
    """The metrics on the test images; empty where there are none."""
    return self.summary.metrics if self.summary else {}

  @property
  def label(self) -> str:
    """The group of cells that differ in their seed alone."""
    return label(self.kind, self.epsilon)

  def metric(self, name: str) -> float:
    """Returns a metric on the test images, NaN where there is none."""
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
    """Returns the cell as a line of results.csv, '' for what is not known."""
    private = self.kind == FEDERATED and math.isfinite(self.epsilon)
    done = self.summary
    values = {
      'cell': self.name,
      'kind': self.kind,
      'unit': self.ledger.get('privacy_unit', '') if private else 'none',
      'mechanism': self.ledger.get('mechanism', '') if private else 'none',
      'target_epsilon': self.epsilon,
      'epsilon': done.epsilon if done else '',
      'delta': done.delta if done and private else '',
      'seed': self.seed,
      'noise_multiplier': done.noise_multiplier if done else '',
      'rounds': done.rounds if done else '',
      'worst_class_sensitivity': min(_known(self.by_class()), default=math.nan),
      'site_accuracy_gap': gap(self.by_site()),
      'seconds': done.seconds if done else '',
      'status': done.stop_reason if done else 'missing',
      'ledger_sha256': done.ledger_sha256 if done else '',
    }
    for name in ('auc', 'accuracy', 'balanced_accuracy'):
      values[name] = self.metric(name)
    return {name: _plain(values[name]) for name in COLUMNS}


@dataclasses.dataclass(frozen=True)
class Sweep:
  """A sweep as far as it has come.

  Attributes:
    folder: Where it is.
    info: What `sweep.json` says: command, settings, versions, cells.
    cells: In the order of `sweep.json`.
  """

  folder: pathlib.Path
  info: Mapping[str, Any]
  cells: tuple[Cell, ...]

  def measured(self, kind: str = FEDERATED) -> list[Cell]:
    """Returns the cells of a kind that have metrics, strictest first."""
    found = [c for c in self.cells if c.kind == kind and c.is_measured]
    return sorted(found, key=lambda c: (c.epsilon, c.seed))

  def epsilons(self) -> list[float]:
    """Returns the budgets that were measured, smallest first."""
    return sorted({c.epsilon for c in self.measured()})


def read(folder: str | os.PathLike[str]) -> Sweep:
  """Returns the sweep in a folder.

  Raises:
    InputError: The folder is not that of a sweep, or a file in it is damaged.
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
  return Sweep(path, info, tuple(_read_entry(path, entry) for entry in cells))


def _damaged(folder: pathlib.Path, why: str) -> _validate.InputError:
  return _validate.InputError(
    f'{folder / SWEEP_FILE} is damaged ({why}); restore it or start the sweep '
    'in another folder'
  )


def _read_entry(folder: pathlib.Path, entry: Any) -> Cell:
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
  return read_cell(folder / 'cells' / name, name, kind, epsilon, seed)


def read_cell(
  folder: pathlib.Path, name: str, kind: str, epsilon: float, seed: int
) -> Cell:
  """Returns a cell from its folder, as far as it has come.

  Raises:
    InputError: A file of it is damaged.
  """
  run = run_folder.RunFolder(folder)
  return Cell(
    name=name,
    kind=kind,
    epsilon=epsilon,
    seed=seed,
    summary=_if_there(run.read_summary),
    config=_if_there(run.read_config),
    ledger=_header(run.ledger),
    rounds=_rounds(run.metrics),
    audit=_if_there(lambda: _files.read_json(run.audit)) or {},
  )


def _if_there(read_file: Callable[[], _T]) -> _T | None:
  """Returns what a file holds; None if it is missing."""
  try:
    return read_file()
  except (FileNotFoundError, NotADirectoryError):
    return None


def write_csv(sweep: Sweep) -> pathlib.Path:
  """Writes results.csv, a line a cell, whole or not at all; returns it."""
  path = sweep.folder / 'results.csv'
  text = io.StringIO(newline='')
  writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
  writer.writeheader()
  writer.writerows(cell.row() for cell in sweep.cells)
  _files.write_bytes(path, text.getvalue().encode())
  return path


def label(kind: str, epsilon: float) -> str:
  """Returns what a group of cells is called in tables and figures."""
  if kind != FEDERATED:
    return LABELS[kind]
  return 'no privacy' if math.isinf(epsilon) else f'ε {epsilon:g}'


def groups(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
  """Returns the cells by their label, in the order in which they come."""
  found: dict[str, list[Cell]] = {}
  for cell in cells:
    found.setdefault(cell.label, []).append(cell)
  return found


def number(value: Any) -> float:
  """Returns a number as JSON holds it ('inf' is one), else NaN."""
  try:
    return float(value)
  except (TypeError, ValueError):
    return math.nan


def mean(values: Iterable[float]) -> float:
  """Returns the mean of what is not NaN, or NaN."""
  known = [v for v in values if not math.isnan(v)]
  return sum(known) / len(known) if known else math.nan


def gap(values: Mapping[str, float]) -> float:
  """Returns the highest minus the lowest known value, NaN if there is none."""
  known = _known(values)
  return max(known) - min(known) if known else math.nan


def _known(values: Mapping[str, float]) -> list[float]:
  return [v for v in values.values() if not math.isnan(v)]


def _plain(value: Any) -> Any:
  if not isinstance(value, float):
    return '' if value is None else value
  return '' if math.isnan(value) else f'{value:.6g}'


def _header(path: pathlib.Path) -> Mapping[str, Any]:
  found = _if_there(lambda: ledger_lib.read(path))
  return found.header if found else {}


def _rounds(path: pathlib.Path) -> list[dict[str, float]]:
  return [
    {'round': float(number), **values}
    for number, values in metrics_table.read(path).items()
  ]
