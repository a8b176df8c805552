"""Tables of finished runs: one row a run, statistics over seeds, CSV, Markdown.

Runs that differ in their seed alone form a group. A group has the mean and the
standard deviation of its runs. Both are NaN if one of the runs has no value, as
a mean of the runs that went well would flatter the group. Epsilon is rounded up,
so that no table promises more than was kept.

>>> import pandas as pd
>>> runs = pd.DataFrame({'name': ['a', 'a', 'b'], 'auc': [0.5, 0.75, 0.8]})
>>> runs.groupby('name')['auc'].agg(spread).to_dict()
{'a': '0.625 ± 0.177', 'b': '0.800'}
>>> round_up(7.9911, 2)
'8.00'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import decimal
import io
import math
import pathlib
from typing import Any

import pandas as pd
from scipy import special

from tff_medical import _files
from tff_medical import _validate
from tff_medical.data import images
from tff_medical.program import run_records

METRICS = ('auc', 'accuracy', 'balanced_accuracy')
# The columns of a table of runs that share a name over their seeds.
FIELDS = (
  'name',
  'seed',
  'privacy_unit',
  'epsilon',
  'delta',
  'noise_multiplier',
  *METRICS,
  'auc_low',
  'auc_high',
  'eval_split',
  'seconds',
  'ledger_sha256',
)
CONFIDENCE = 0.95
_TITLES = {'auc': 'AUC', 'f1': 'F1', 'ece': 'ECE'}
_TEXTS = frozenset(
  (
    'cell',
    'eval_split',
    'flags',
    'kind',
    'ledger_sha256',
    'mechanism',
    'name',
    'privacy_unit',
    'status',
    'unit',
  )
)
_INTEGERS = frozenset(('rounds', 'seed'))


def row(name: str, seed: int, summary: run_records.Summary) -> dict[str, Any]:
  """Returns the row of a run; a value that the run lacks is NaN."""
  values = {
    'name': name,
    'seed': seed,
    **{metric: summary.metrics.get(metric, math.nan) for metric in METRICS},
    **auc_interval(summary),
    **dataclasses.asdict(summary),
  }
  return {field: values[field] for field in FIELDS}


def auc_interval(summary: run_records.Summary) -> dict[str, float]:
  """Returns the ends of the AUC's interval over images, by their columns."""
  low, high = summary.intervals.get('auc', (math.nan, math.nan))
  return {'auc_low': low, 'auc_high': high}


def over_images(runs: pd.DataFrame, low: str, high: str) -> str:
  """Returns the interval over images of a group of runs, '' if not known.

  Args:
    runs: Runs that differ in their seed alone.
    low: Column of the low ends, whose mean is taken.
    high: Column of the high ends.
  """
  if low not in runs or runs[low].isna().any():
    return ''
  return interval((mean(runs[low]), mean(runs[high])))


def table(
  rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = FIELDS
) -> pd.DataFrame:
  """Returns a table with typed columns.

  Args:
    rows: Values of the runs by column; None where a run has no value.
    columns: The first columns, in this order. Further columns of the rows follow.

  Returns:
    Texts as strings ('' if missing), seeds and rounds as integers, and all other
    columns as floats (NaN if missing).

  Raises:
    ValueError: A value is no number, and its column holds numbers.
    TypeError: A seed or a number of rounds is no integer.
  """
  runs = pd.DataFrame(list(rows))
  more = [name for name in runs.columns if name not in columns]
  runs = runs.reindex(columns=[*columns, *more])
  for name in runs.columns:
    if name in _TEXTS:
      runs[name] = runs[name].fillna('').astype(str)
    else:
      runs[name] = runs[name].astype(float)
    if name in _INTEGERS:
      runs[name] = runs[name].astype('Int64')
  return runs


def read(path: pathlib.Path) -> pd.DataFrame:
  """Returns the table in a CSV file; an empty table if the file is missing.

  Raises:
    InputError: The file cannot be read, or a value is not of its column's type.
  """
  try:
    text = _files.read_text(path)
  except FileNotFoundError:
    return table([])
  try:
    runs = pd.read_csv(
      io.StringIO(text), dtype=str, keep_default_na=False, na_values=['']
    )
    if not isinstance(runs.index, pd.RangeIndex):
      raise ValueError('a row has more values than the header')
    return table(runs.to_dict('records'), list(runs.columns))
  except (ValueError, TypeError) as error:
    raise _validate.InputError(
      f'{path} is damaged ({str(error).splitlines()[0]:.200}); restore it'
    ) from None


def write(
  path: pathlib.Path, runs: pd.DataFrame, *, float_format: str | None = None
) -> None:
  """Writes a CSV file, whole or not at all.

  Args:
    path: The file; its folder is made.
    runs: The table.
    float_format: Format of floats, such as '%.6g'; by default all digits.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  text = runs.to_csv(
    index=False, lineterminator='\n', float_format=float_format
  )
  _files.write_bytes(path, text.encode())


def split_name(runs: pd.DataFrame) -> str:
  """Returns the split of the runs' metrics: 'validation' or 'test'.

  Tables without the column were written when all metrics were on test images.

  Raises:
    InputError: The runs have metrics on different splits.
  """
  column = runs['eval_split'] if 'eval_split' in runs else ()
  names = {name or images.TEST for name in column}
  if len(names) > 1:
    raise _validate.InputError(
      'runs in one table must have one eval_split, got validation and test; '
      'start the command that made them again, with one eval_split'
    )
  return names.pop() if names else images.TEST


def title(metric: str) -> str:
  """Returns the name of a metric as tables and pages show it.

  >>> title('balanced_accuracy'), title('auc')
  ('balanced accuracy', 'AUC')
  """
  return _TITLES.get(metric, metric.replace('_', ' '))


def interval(
  ends: tuple[float, float] | None, *, digits: int = 3, sign: str = ''
) -> str:
  """Returns an interval as text, '' if there is none.

  >>> interval((0.9, 0.95)), interval((-0.01, 0.2), sign='+'), interval(None)
  ('[0.900, 0.950]', '[-0.010, +0.200]', '')

  Args:
    ends: Low and high end, or None.
    digits: Number of decimals.
    sign: '+' to show the sign of positive ends.
  """
  if ends is None:
    return ''
  low, high = (f'{end:{sign}.{digits}f}' for end in ends)
  return f'[{low}, {high}]'


def mean(values: pd.Series) -> float:
  """Returns the mean, which is NaN if a run has no value."""
  return values.mean(skipna=False)


def spread(values: pd.Series) -> str:
  """Returns 'mean ± standard deviation'; a single run has no deviation."""
  text = f'{mean(values):.3f}'
  return text if len(values) < 2 else f'{text} ± {_deviation(values):.3f}'


def _deviation(values: pd.Series) -> float:
  return values.std(skipna=False)


def differences(
  runs: pd.DataFrame, base: pd.DataFrame, column: str
) -> pd.Series:
  """Returns a column minus that of `base`, by seed, for the seeds of both."""
  pairs = runs.merge(base, on='seed', suffixes=('', '_base'))
  return pd.Series(
    (pairs[column] - pairs[f'{column}_base']).to_numpy(float),
    index=pairs['seed'],
    dtype=float,
  )


def half_width(values: pd.Series, comparisons: int = 1) -> float:
  """Returns half the width of the confidence interval of a mean over seeds.

  The interval is Student's. It covers how runs vary with their seed and noise,
  but not the choice of the test images, which the runs have in common.

  Args:
    values: One value a seed.
    comparisons: Number of intervals that shall hold at once (Bonferroni).

  Returns:
    The half width at `CONFIDENCE`; NaN for fewer than two values.
  """
  if len(values) < 2:
    return math.nan
  tail = (1 - CONFIDENCE) / comparisons / 2
  quantile = special.stdtrit(len(values) - 1, 1 - tail)
  return float(quantile) * _deviation(values) / math.sqrt(len(values))


def round_up(epsilon: float, digits: int) -> str:
  """Returns epsilon with `digits` decimals, never below its value."""
  exact = decimal.Decimal(repr(float(epsilon)))
  step = decimal.Decimal(1).scaleb(-digits)
  return str(exact.quantize(step, rounding=decimal.ROUND_CEILING))


def markdown(texts: pd.DataFrame) -> str:
  """Returns a table of texts in Markdown, without its index.

  >>> print(markdown(pd.DataFrame({'a': ['1'], 'b': ['2']})))
  | a | b |
  |---|---|
  | 1 | 2 |
  """
  rows = [list(texts.columns), *texts.to_numpy().tolist()]
  lines = [f'| {" | ".join(cells)} |' for cells in rows]
  return '\n'.join([lines[0], '|' + '---|' * len(texts.columns), *lines[1:]])
