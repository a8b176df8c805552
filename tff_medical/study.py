"""What a sweep over privacy budgets left on disk, read for tables and figures.

A sweep's folder holds `sweep.json`, which names its cells and how they were
asked for, and a folder a cell in `cells/`, each a run's folder (see
`experiments.run_folder`) or that of a reference without federation. Reading is
lenient where others write (`audit.json`) and where a cell is not done, and
strict about `sweep.json`.

>>> Cell('eps_inf_seed_0', FEDERATED, math.inf, 0).label
'no privacy'
>>> Cell('eps_4_seed_1', FEDERATED, 4.0, 1).label
'ε 4'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import csv
import dataclasses
import json
import math
import os
import pathlib
from typing import Any

from tff_medical import _validate

FEDERATED = 'federated'
CENTRAL = 'central'
PER_SITE = 'per_site'
KINDS = (FEDERATED, CENTRAL, PER_SITE)
# What a reference is called in tables and figures.
LABELS = {CENTRAL: 'central', PER_SITE: 'per site'}

DONE = ('completed', 'budget_spent', 'skipped')
SWEEP_FILE = 'sweep.json'

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
    summary: Of `summary.json`, empty if the cell is not done.
    config: Of `config.json`.
    ledger: The header of the privacy ledger: the mechanism.
    rounds: Of `metrics.csv`, one mapping a round, without empty values.
    audit: Of `audit.json`, empty if there was none.
  """

  name: str
  kind: str
  epsilon: float
  seed: int
  summary: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  ledger: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rounds: Sequence[Mapping[str, float]] = ()
  audit: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def is_done(self) -> bool:
    """Whether the training came to its end."""
    return self.summary.get('stop_reason') in DONE

  @property
  def is_measured(self) -> bool:
    """Whether there are metrics: done, and not skipped."""
    return self.is_done and bool(self.summary.get('metrics'))

  @property
  def label(self) -> str:
    """The group of cells that differ in their seed alone."""
    return label(self.kind, self.epsilon)

  def metric(self, name: str) -> float:
    """Returns a metric on the test images, NaN where there is none."""
    return number(self.summary.get('metrics', {}).get(name))

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
      name[len(prefix) :]: number(value)
      for name, value in self.summary.get('metrics', {}).items()
      if name.startswith(prefix)
    }

  def row(self) -> dict[str, Any]:
    """Returns the cell as a line of results.csv, '' for what is not known."""
    private = self.kind == FEDERATED and math.isfinite(self.epsilon)
    values = {
      'cell': self.name,
      'kind': self.kind,
      'unit': self.ledger.get('privacy_unit', '') if private else 'none',
      'mechanism': self.ledger.get('mechanism', '') if private else 'none',
      'target_epsilon': self.epsilon,
      'epsilon': self.summary.get('epsilon_pld', ''),
      'delta': self.summary.get('delta', '') if private else '',
      'seed': self.seed,
      'noise_multiplier': self.summary.get('noise_multiplier', ''),
      'rounds': self.summary.get('rounds', ''),
      'worst_class_sensitivity': min(_known(self.by_class()), default=math.nan),
      'site_accuracy_gap': gap(self.by_site()),
      'seconds': number(self.summary.get('seconds')),
      'status': self.summary.get('stop_reason', 'missing'),
      'ledger_sha256': self.summary.get('ledger_sha256', ''),
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
    InputError: The folder is not that of a sweep.
  """
  path = pathlib.Path(folder)
  info = read_json(path / SWEEP_FILE)
  if not isinstance(info.get('cells'), list):
    raise _validate.InputError(
      f'sweep_dir {path} holds no sweep (no usable {SWEEP_FILE}); give the '
      '--output_dir of experiments.tradeoff'
    )
  cells = (read_cell(path / 'cells' / c['name'], c) for c in info['cells'])
  return Sweep(path, info, tuple(cells))


def read_cell(folder: pathlib.Path, named: Mapping[str, Any]) -> Cell:
  """Returns a cell from its folder and its entry in `sweep.json`."""
  return Cell(
    name=named['name'],
    kind=named['kind'],
    epsilon=float(named['epsilon']),
    seed=int(named['seed']),
    summary=read_json(folder / 'summary.json'),
    config=read_json(folder / 'config.json'),
    ledger=_first_line(folder / 'privacy_ledger.jsonl'),
    rounds=_rounds(folder / 'metrics.csv'),
    audit=read_json(folder / 'audit.json'),
  )


def write_csv(sweep: Sweep) -> pathlib.Path:
  """Writes results.csv, a line a cell, whole or not at all; returns it."""
  path = sweep.folder / 'results.csv'
  partial = path.with_name(path.name + '.partial')
  with open(partial, 'w', newline='', encoding='utf-8') as file:
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    writer.writerows(cell.row() for cell in sweep.cells)
  os.replace(partial, path)
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
    return value
  return '' if math.isnan(value) else f'{value:.6g}'


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns the mapping in a JSON file; empty if missing or damaged."""
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _first_line(path: pathlib.Path) -> dict[str, Any]:
  try:
    with open(path, encoding='utf-8') as file:
      found = json.loads(file.readline())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _rounds(path: pathlib.Path) -> list[dict[str, float]]:
  try:
    with open(path, newline='', encoding='utf-8') as file:
      rows = list(csv.DictReader(file))
  except OSError:
    return []
  return [
    {k: number(v) for k, v in row.items() if k and v not in ('', None)}
    for row in rows
  ]
