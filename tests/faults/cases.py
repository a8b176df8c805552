"""A count of faults that were tried, and what the long forms print."""

from __future__ import annotations

import collections
import dataclasses
import os
import sys
import time


@dataclasses.dataclass
class Tally:
  """How many faults were tried, and which of them lost something.

  Attributes:
    name: Of the harness.
    tried: How many.
    lost: A line for each that broke what must hold.
    kinds: How many of each kind were tried.
  """

  name: str
  tried: int = 0
  lost: list[str] = dataclasses.field(default_factory=list)
  kinds: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )

  def add(self, kind: str, count: int = 1) -> None:
    """Counts faults of a kind."""
    self.tried += count
    self.kinds[kind] += count

  def lose(self, line: str) -> None:
    """Keeps, and shows, what was lost."""
    self.lost.append(line)
    print(f'LOST {line}', file=sys.stderr, flush=True)

  def line(self) -> str:
    """Returns the line of figures."""
    lost = len(self.lost)
    return f'{self.name}: tried {self.tried}, survived {self.tried - lost}, lost {lost}'

  def show(self) -> int:
    """Prints the figures; returns the exit code."""
    kinds = ', '.join(f'{n} {kind}' for kind, n in sorted(self.kinds.items()))
    if kinds:
      print(f'{self.name}: {kinds}')
    print(self.line(), flush=True)
    return 1 if self.lost else 0


class Progress:
  """Shows on standard error, once in a while, how far a harness has come."""

  _SECS = 20.0

  def __init__(self, tally: Tally):
    self._tally = tally
    self._shown = time.monotonic()

  def show(self) -> None:
    """Shows the number tried, if it was not just shown."""
    now = time.monotonic()
    if now - self._shown < self._SECS:
      return
    self._shown = now
    print(f'{self._tally.line()} ...', file=sys.stderr, flush=True)


def one_line(text: str) -> bool:
  """Whether an error's text is what a command can print in one line."""
  return bool(text.strip()) and len(text) < 4000


def last_line(output: str) -> str:
  """Returns the last line of an output, for a line on what was lost."""
  lines = [line for line in output.splitlines() if line.strip()]
  return lines[-1] if lines else f'nothing was printed{os.linesep}'.strip()
