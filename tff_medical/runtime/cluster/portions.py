"""Portions of a cohort, their order, and the tree in which totals are merged.

A cohort is cut into portions of about equal work: consecutive clients, as many
portions as the caller says. Which worker runs a portion is decided while the
round runs. The totals of two neighbouring portions are merged, then those of
two neighbouring pairs, and so on. Portions and tree depend on the cohort alone.
So a sum has the same bits whichever workers computed it, in whichever order,
and however many of them were lost meanwhile. A portion may be run twice at once;
one of the runs counts.

>>> cut([1, 1, 1, 1, 4], portions=2)
[range(0, 4), range(4, 5)]
>>> Tree(3).children(Span(0, 3))
(Span(first=0, end=2), Span(first=2, end=3))
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
import itertools
from typing import Generic, NamedTuple, TypeVar

TotalT = TypeVar('TotalT')
WorkerT = TypeVar('WorkerT', bound=Hashable)


class Span(NamedTuple):
  """A node of the tree: the portions `first` to `end - 1`."""

  first: int
  end: int


def cut(costs: Sequence[float], portions: int) -> list[range]:
  """Returns consecutive ranges of clients of about equal cost, none empty.

  Args:
    costs: Expected work on each client, positive.
    portions: Largest number of ranges, at least 1.
  """
  total = sum(costs)
  middles = (
    end - cost / 2 for cost, end in zip(costs, itertools.accumulate(costs))
  )
  shares = [int(portions * middle / total) for middle in middles]
  ends = [
    position
    for position in range(1, len(shares) + 1)
    if position == len(shares) or shares[position] != shares[position - 1]
  ]
  return [range(start, end) for start, end in zip([0, *ends], ends)]


class Tree:
  """Binary tree over portions.

  Attributes:
    root: Span of all portions.
  """

  def __init__(self, portions: int):
    """Builds the tree over so many portions, at least 1."""
    self.root = Span(0, portions)
    self._children: dict[Span, tuple[Span, Span]] = {}
    self._parents: dict[Span, Span] = {}
    todo = [self.root]
    while todo:
      span = todo.pop()
      size = span.end - span.first
      if size == 1:
        continue
      middle = span.first + (1 << (size - 1).bit_length() - 1)
      halves = Span(span.first, middle), Span(middle, span.end)
      self._children[span] = halves
      self._parents.update(dict.fromkeys(halves, span))
      todo.extend(halves)

  def children(self, span: Span) -> tuple[Span, Span]:
    """Returns the halves of a span of several portions."""
    return self._children[span]

  def parent(self, span: Span) -> Span | None:
    """Returns the span of which a span is a half; None for the root."""
    return self._parents.get(span)

  def sibling(self, span: Span) -> Span:
    """Returns the other half of the parent of a span that is not the root."""
    left, right = self._children[self._parents[span]]
    return right if span == left else left


class Totals(Generic[TotalT]):
  """Totals of spans in one place, merged as far as their halves are there.

  A worker holds totals. The driver follows what each worker holds, with None in
  the place of a total.
  """

  def __init__(self, tree: Tree, merge: Callable[[TotalT, TotalT], TotalT]):
    """Holds nothing yet.

    Args:
      tree: Tree of the spans.
      merge: Function of the totals of two halves, in their order.
    """
    self._tree = tree
    self._merge = merge
    self._totals: dict[Span, TotalT] = {}

  @property
  def spans(self) -> list[Span]:
    """Spans that are held; none is the half of another one."""
    return list(self._totals)

  def add(self, span: Span, total: TotalT) -> list[Span]:
    """Adds the total of a span, and merges it upwards.

    Returns:
      The span and those that were merged from it; the last one is held.
    """
    self._totals[span] = total
    way = [span]
    while (parent := self._tree.parent(way[-1])) is not None:
      left, right = self._tree.children(parent)
      if left not in self._totals or right not in self._totals:
        break
      merged = self._merge(self._totals.pop(left), self._totals.pop(right))
      self._totals[parent] = merged
      way.append(parent)
    return way

  def take(self, span: Span) -> TotalT:
    """Returns the total of a span that is held, and forgets it."""
    return self._totals.pop(span)


class Results(Generic[TotalT]):
  """Results of runs at a worker; those that count are merged into totals.

  Whether a run counts is decided by the driver, as another worker may have been
  quicker. Until then its total is set aside.
  """

  def __init__(self, totals: Totals[TotalT]):
    """Merges into totals of this worker."""
    self._totals = totals
    self._aside: dict[int, tuple[Span, TotalT]] = {}

  def put(self, run: int, span: Span, total: TotalT) -> None:
    """Sets the total of a run aside."""
    self._aside[run] = span, total

  def keep(self, runs: Iterable[int]) -> None:
    """Merges runs that count; those that were merged before are left alone."""
    for run in runs:
      if run in self._aside:
        self._totals.add(*self._aside.pop(run))

  def add(self, span: Span, total: TotalT) -> None:
    """Merges the total of a span that another worker had."""
    self._totals.add(span, total)

  def take(self, span: Span) -> TotalT:
    """Returns the total of a span that is held, and forgets it."""
    return self._totals.take(span)


class Assignment(Generic[WorkerT]):
  """Portions that wait for a worker.

  A portion waits for the worker that had it in the last round, which may still
  hold its data. A worker takes its own portions first, the longest of them
  first. Then it helps the worker with the most work left.
  """

  def __init__(
    self,
    costs: Sequence[float],
    homes: Mapping[int, WorkerT],
    workers: Sequence[WorkerT],
  ):
    """Deals the portions out.

    Args:
      costs: Expected work on each portion.
      homes: Worker of each portion in the last round.
      workers: Workers that are there. Portions without a home are dealt to them
        in consecutive blocks of about equal cost.
    """
    self._costs = costs
    self._number = len(costs)
    blocks = cut(costs, len(workers)) if workers else []
    dealt = {p: worker for worker, block in zip(workers, blocks) for p in block}
    # Portions by the worker that they wait for, the longest last; None is any.
    self._waiting: dict[WorkerT | None, list[int]] = {}
    for portion in sorted(range(len(costs)), key=lambda p: (costs[p], -p)):
      home = homes[portion] if portion in homes else dealt.get(portion)
      self._waiting.setdefault(home if home in workers else None, []).append(
        portion
      )
    self._work = {
      home: sum(costs[portion] for portion in waiting)
      for home, waiting in self._waiting.items()
    }

  def __len__(self) -> int:
    return self._number

  def take(self, worker: WorkerT) -> int | None:
    """Returns the next portion for a worker; None if none is left."""
    if not self._waiting:
      return None
    home: WorkerT | None = worker
    if home not in self._waiting:
      # Those of nobody come before those of another worker.
      home = None if None in self._waiting else self._busiest()
    portion = self._waiting[home].pop()
    self._number -= 1
    self._work[home] -= self._costs[portion]
    if not self._waiting[home]:
      del self._waiting[home], self._work[home]
    return portion

  def put_back(self, portion: int) -> None:
    """Lets a portion wait for any worker, as its worker was lost."""
    self._number += 1
    self._waiting.setdefault(None, []).append(portion)
    self._work[None] = self._work.get(None, 0.0) + self._costs[portion]

  def _busiest(self) -> WorkerT | None:
    return max(self._work, key=lambda home: self._work[home])
