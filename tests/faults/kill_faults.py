"""Runs that are killed at random and at aimed moments, and full disks.

    python -m tests.faults.kill_faults

Every case is a run that is ended a few times by `kill -9`, of its own aim in the
middle of what it writes or by a clock, or by a disk that is full, and is started
again by the same command until it is done. Then `inspection.finished` must find
nothing wrong: no release without a charge, no two under one, every round
published once with its values, summary, card and weights bound to the ledger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import pathlib
import random
import sys
import tempfile

from tests.faults import cases
from tests.faults import forks

START = 'tests.faults.numpy_process:start'
PRELOAD = ('tests.faults.numpy_process', 'tests.faults.inspection')
RANDOM_KILLS = 130
# A case is given up after so many starts: it would never come to its end.
_MAX_STARTS = 30
_ROUNDS = 6
# What there is only after a fault; elsewhere an aim would never be met.
_ON_RESUME = ('rename saved_model.old', 'rmtree saved_model.old')


@dataclasses.dataclass(frozen=True)
class Fault:
  """What ends one start of a run.

  Attributes:
    kind: 'aimed', 'random' or 'full disk'.
    aim: Of `numpy_process.Aim`, or None.
    after: Seconds until the kill, as a part of a whole start; or None.
    max_file_bytes: Of `numpy_process.start`, or None.
  """

  kind: str
  aim: tuple[str, int, str] | None = None
  after: float | None = None
  max_file_bytes: int | None = None

  def __str__(self) -> str:
    if self.aim:
      return f'{self.aim[2]} {self.aim[0]} {self.aim[1]}'
    if self.after is not None:
      return f'at {self.after:.2f} of a start'
    return f'files of at most {self.max_file_bytes} bytes'


def aimed(seen: dict[str, int]) -> Iterator[Fault]:
  """Yields a fault for each moment of a start.

  Args:
    seen: How often each thing happens in a start without faults.
  """
  for label, count in sorted(seen.items()):
    for number in sorted({1, (count + 1) // 2, count}):
      for fault in ('before', 'after'):
        yield Fault('aimed', (label, number, fault))
      if label.startswith('fsync') or label.endswith('metrics.csv'):
        yield Fault('aimed', (label, number, 'torn'))
      if label.startswith(
        ('fsync', 'replace', 'rename', 'write', 'save model')
      ):
        yield Fault('full disk', (label, number, 'fail'))


def limits() -> Iterator[Fault]:
  """Yields disks that take files up to a size."""
  for size in (1, 64, 300, 700, 1000, 1500, 2000, 3000, 4000, 8000, 20000):
    yield Fault('full disk', max_file_bytes=size)


def run_case(
  server: forks.Forks,
  faults: Sequence[Fault],
  tally: cases.Tally,
  whole_secs: float,
) -> None:
  """Runs a case: the faults in turn, starts until it is done, the checks."""
  with tempfile.TemporaryDirectory(prefix='kill_faults_') as name:
    base = pathlib.Path(name)
    places = dict(
      folder=str(base / 'run'),
      truth=str(base / 'truth'),
      temporary=str(base / 'temporary'),
    )
    told = '; '.join(map(str, faults))
    for fault in faults:
      ended = server.run(
        START,
        kill_after=None if fault.after is None else fault.after * whole_secs,
        aim=fault.aim,
        max_file_bytes=fault.max_file_bytes,
        **places,
      )
      if ended.was_killed or (ended.result or {}).get('code') == 1:
        tally.add(fault.kind)
      problem = _problem(ended, may_fail=fault.kind == 'full disk')
      if problem:
        tally.lose(f'[{told}] {fault}: {problem}')
        return
    ended = server.run(START, **places)
    problem = _problem(ended, may_fail=False)
    if not problem:
      checked = server.run(
        'tests.faults.inspection:finished', rounds=_ROUNDS, **places
      )
      problem = (
        '; '.join(checked.result)
        if checked.result is not None
        else checked.output
      )
    if problem:
      tally.lose(f'[{told}] {problem}')


def _problem(ended: forks.Ended, *, may_fail: bool) -> str:
  """Returns what is wrong with the way in which a start ended, or ''."""
  if ended.timed_out:
    return 'it did not come to an end'
  if ended.was_killed:
    return ''
  if ended.code or 'Traceback' in ended.output:
    return f'it ended with {ended.code}: {ended.output[-1500:]}'
  if 'refused' in ended.result:
    return f'it was refused: {ended.result["refused"]}'
  if ended.result['code'] and not (may_fail and ended.result['code'] == 1):
    return f'exit code {ended.result["code"]}: {ended.output[-500:]}'
  return ''


def measure(server: forks.Forks) -> tuple[dict[str, int], float]:
  """Returns what happens in a start without faults, and its seconds."""
  with tempfile.TemporaryDirectory() as name:
    for _ in range(2):  # The first one warms caches of the file system.
      ended = server.run(
        START,
        folder=f'{name}/run{_}',
        truth=f'{name}/truth',
        temporary=f'{name}/temporary',
      )
    if ended.code:
      raise RuntimeError(ended.output)
    return ended.result['seen'], ended.seconds


def groups(
  seen: dict[str, int], rng: random.Random, random_kills: int = RANDOM_KILLS
) -> list[list[Fault]]:
  """Returns all cases of the long form: each a few faults of one run."""
  exact = [*aimed(seen), *limits()]
  exact += [
    Fault('aimed', (label, 1, fault))
    for label in _ON_RESUME
    for fault in ('before', 'after')
  ]
  clocked = [
    Fault('random', after=rng.uniform(0, 1.1)) for _ in range(random_kills)
  ]
  rng.shuffle(exact)
  found = []
  while exact or clocked:
    case = [exact.pop() for _ in range(min(len(exact), 3))]
    case += [clocked.pop() for _ in range(min(len(clocked), 2))]
    rng.shuffle(case)
    found.append(case)
  return found


def main() -> int:
  """Runs the long form; returns its exit code."""
  tally = cases.Tally('kills and full disks')
  progress = cases.Progress(tally)
  with forks.Forks(*PRELOAD) as server:
    seen, secs = measure(server)
    for case in groups(seen, random.Random(0)):
      run_case(server, case, tally, secs)
      progress.show()
  return tally.show()


if __name__ == '__main__':
  sys.exit(main())
