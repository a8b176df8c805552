"""A run of thousands of rounds: what a round costs must not grow with them.

    python -m tests.faults.long_run

Counted are memory, bytes written and calls to write, by the operating system's
own figures (`/proc/self`), and how often metrics.csv is written anew. Seconds
are printed beside them, not judged: they depend on who else is at work.
"""

from __future__ import annotations

import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any
from unittest import mock

from tests.faults import cases
from tests.faults import forks
from tests.faults import kill_faults
from tests.faults import numpy_process
from tff_medical.privacy import accounting
from tff_medical.program import metrics_table

ROUNDS = 2000
# From here on memory is at rest: everything was loaded and traced once.
SETTLED = 200
MAX_GROWTH = 0.05
# A number of a later round may have more digits.
_MAX_MORE_WORK = 0.05


def measure(folder: str, truth: str, rounds: int) -> dict[str, Any]:
  """Runs all rounds; runs in a forked child.

  Returns:
    Lists over the rounds, as they ended: `memory` in bytes, `written` bytes,
    `calls` to write, `seconds`; and `rewritten`, how often metrics.csv was.
  """
  found: dict[str, list[float]] = {
    name: [] for name in ('memory', 'written', 'calls', 'seconds')
  }
  rewritten = 0
  write = metrics_table.write

  def count_and_write(*args: Any, **named: Any) -> None:
    nonlocal rewritten
    rewritten += 1
    write(*args, **named)

  show = numpy_process.train._show_round

  def show_and_measure(bar: Any, report: Any) -> None:
    show(bar, report)
    io = _figures('/proc/self/io')
    found['memory'].append(_figures('/proc/self/status')['VmRSS'] * 1024)
    found['written'].append(io['wchar'])
    found['calls'].append(io['syscw'])
    found['seconds'].append(time.monotonic())

  with (
    mock.patch.object(metrics_table, 'write', count_and_write),
    mock.patch.object(numpy_process.train, '_show_round', show_and_measure),
  ):
    ended = numpy_process.start(
      folder, truth, changed={'rounds': rounds, 'rounds_per_eval': 10}
    )
  if ended.get('code') != 0:
    raise RuntimeError(str(ended))
  return {**found, 'rewritten': rewritten}


def _figures(path: str) -> dict[str, int]:
  """Returns the numbers of a file of `NAME: NUMBER` lines."""
  found = {}
  for line in pathlib.Path(path).read_text().splitlines():
    name, _, value = line.partition(':')
    words = value.split()
    if words and words[0].isdigit():
      found[name] = int(words[0])
  return found


def charges(rounds: tuple[int, ...] = (100, 1000, 2000)) -> dict[str, float]:
  """Returns the processor's seconds of epsilon after so many rounds."""
  found = {}
  for number in rounds:
    times = []
    for extra in range(7):
      started = time.process_time()
      accounting.epsilon(
        numpy_process.event(), rounds=number + extra, delta=1e-3
      )
      times.append(time.process_time() - started)
    found[str(number)] = statistics.median(times)
  return found


def problems(found: dict[str, Any], *, settled: int, span: int) -> list[str]:
  """Returns what grows with the rounds.

  Args:
    found: What `measure` returned.
    settled: The round from which on memory must be at rest.
    span: How many rounds at both ends are compared.
  """
  lost = []
  memory = found['memory']
  growth = memory[-1] / memory[settled - 1] - 1
  if growth > MAX_GROWTH:
    lost.append(f'memory grew by {growth:.1%} from round {settled} on')
  for name in ('written', 'calls'):
    first, last = _spans(found[name], settled, span)
    if last > first * (1 + _MAX_MORE_WORK):
      lost.append(f'{name} a round: {first:g} at first, {last:g} at last')
  # Once for the first columns, once for those of the first evaluation.
  if found['rewritten'] > 2:
    lost.append(f'metrics.csv was written anew {found["rewritten"]} times')
  return lost


def _spans(totals: list[float], settled: int, span: int) -> tuple[float, float]:
  """Returns the median cost of a round after `settled` and at the end."""
  costs = [b - a for a, b in zip(totals, totals[1:])]
  first = costs[settled : settled + span]
  return statistics.median(first), statistics.median(costs[-span:])


def run(
  server: forks.Forks, tally: cases.Tally, rounds: int, settled: int, span: int
) -> dict[str, Any]:
  """Runs so many rounds, counts them, and returns what was measured."""
  with tempfile.TemporaryDirectory(prefix='long_run_') as name:
    ended = server.run(
      'tests.faults.long_run:measure',
      folder=f'{name}/run',
      truth=f'{name}/truth',
      rounds=rounds,
      timeout=3600.0,
    )
    tally.add('rounds', rounds)
    if ended.result is None:
      tally.lose(ended.output)
      return {}
    for line in problems(ended.result, settled=settled, span=span):
      tally.lose(line)
    checked = server.run(
      'tests.faults.inspection:finished',
      folder=f'{name}/run',
      truth=f'{name}/truth',
      rounds=rounds,
    )
    for line in checked.result or [checked.output][: checked.code]:
      tally.lose(line)
    return ended.result


def main() -> int:
  """Runs the long form; returns its exit code."""
  tally = cases.Tally('long run')
  with forks.Forks(*kill_faults.PRELOAD, 'tests.faults.long_run') as server:
    found = run(server, tally, ROUNDS, SETTLED, 500)
    seconds = server.run('tests.faults.long_run:charges').result
  if found:
    memory = found['memory']
    print(
      f'long run: {memory[SETTLED - 1] / 2**20:.1f} MiB after {SETTLED} '
      f'rounds, {memory[-1] / 2**20:.1f} MiB after {ROUNDS}'
    )
    for name, unit in (
      ('written', 'bytes written'),
      ('calls', 'calls to write'),
      ('seconds', 's'),
    ):
      first, last = _spans(found[name], SETTLED, 500)
      print(f'long run: a round {first:.4g} {unit}, the last 500 {last:.4g}')
  print(
    'long run: ε of a charge takes '
    + ', '.join(f'{v * 1e3:.1f} ms at {n}' for n, v in seconds.items())
  )
  return tally.show()


if __name__ == '__main__':
  sys.exit(main())
