"""Timing of several contenders in turn.

The contenders take turns within one process, so that a busy machine slows all
of them alike. Ratios are medians of the ratios within a turn.

>>> seconds = measure({'a': lambda: None, 'b': lambda: None}, 1, 3)
>>> {name: len(values) for name, values in seconds.items()}
{'a': 3, 'b': 3}
>>> median_ratio([3.0, 4.0, 90.0], [1.0, 2.0, 30.0])
3.0
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import json
import platform
import statistics
import time
from typing import Any

import tensorflow as tf

from tff_medical.runtime import devices


def measure(
  contenders: Mapping[str, Callable[[], object]], warm_up: int, turns: int
) -> dict[str, list[float]]:
  """Returns the seconds of each turn after the warm-up, by contender."""
  seconds: dict[str, list[float]] = {name: [] for name in contenders}
  for number in range(warm_up + turns):
    for name, run in contenders.items():
      start = time.perf_counter()
      run()
      if number >= warm_up:
        seconds[name].append(time.perf_counter() - start)
  return seconds


def median_ratio(a: Sequence[float], b: Sequence[float]) -> float:
  """Returns the median of a over b within each turn."""
  return statistics.median(x / y for x, y in zip(a, b))


def print_table(results: Mapping[str, Mapping[str, Any]]) -> None:
  """Prints the figures of each workload."""
  for name, summary in results.items():
    print(f'\n{name}')
    for key, value in summary.items():
      shown = f'{value:.4g}' if isinstance(value, float) else value
      print(f'  {key:28} {shown}')


def report(
  results: Mapping[str, Mapping[str, Any]], path: str | None, **settings: Any
) -> None:
  """Prints the figures, and writes them as `write_json` does if asked to.

  Args:
    results: Figures by name, of each workload by its name.
    path: File for the figures, if any.
    **settings: Settings of the measurement by name.
  """
  print_table(results)
  if path:
    write_json(path, results, **settings)


def write_json(
  path: str, results: Mapping[str, Mapping[str, Any]], **settings: Any
) -> None:
  """Writes the figures as JSON, with the machine and its devices."""
  report = {
    'machine': platform.processor() or platform.machine(),
    'devices': _devices(),
    **settings,
    'results': results,
  }
  with open(path, 'w', encoding='utf-8') as file:
    json.dump(report, file, indent=2)


def _devices() -> list[str]:
  """Returns the number of CPU cores and the names of the GPUs."""
  gpus = tf.config.list_physical_devices('GPU')
  details = [tf.config.experimental.get_device_details(g) for g in gpus]
  names = [d.get('device_name', 'GPU') for d in details]
  return [f'{devices.available_cores()} CPU cores', *names]
