"""Signs of life of workers: which of them no longer answer.

A worker answers in a thread of its own, so that neither work on clients nor a
total on its way keeps it from answering.
"""

from __future__ import annotations

from collections.abc import Mapping
import time
from typing import Any

# Seconds after which a worker is asked for a sign of life, and after which one
# that does not answer is taken for dead.
_ASK_SECS = 10.0
_SILENT_SECS = 50.0
# Seconds that count between two looks, at most: a question is answered while the
# driver itself stands still, but the answer is not seen.
_LONGEST_LOOK_SECS = 2.0


class Signs:
  """Questions to workers and their answers, over all passes."""

  def __init__(self, ray: Any):
    """Has asked no worker yet.

    Args:
      ray: Module of Ray, connected to a cluster.
    """
    self._ray = ray
    # Question that a worker has not answered; seconds since it was asked, or
    # since the last answer.
    self._questions: dict[int, Any] = {}
    self._seconds: dict[int, float] = {}
    self._looked = time.monotonic()

  def silent(self, actors: Mapping[int, Any]) -> list[int]:
    """Asks workers from time to time; returns the numbers of the silent ones.

    Args:
      actors: Handles of all workers, by their number.
    """
    now = time.monotonic()
    passed = min(now - self._looked, _LONGEST_LOOK_SECS)
    self._looked = now
    for number in [n for n in self._seconds if n not in actors]:
      del self._seconds[number]
      self._questions.pop(number, None)
    for number in actors:
      self._seconds[number] = self._seconds.get(number, 0.0) + passed
    return [n for n, actor in actors.items() if not self._lives(n, actor)]

  def _lives(self, number: int, actor: Any) -> bool:
    question = self._questions.get(number)
    if question is None:
      if self._seconds[number] > _ASK_SECS:
        self._questions[number] = actor.answer.remote()
        self._seconds[number] = 0.0
      return True
    answered, _ = self._ray.wait([question], num_returns=1, timeout=0)
    if not answered:
      return self._seconds[number] <= _SILENT_SECS
    del self._questions[number]
    self._seconds[number] = 0.0
    try:
      self._ray.get(question)
    except self._ray.exceptions.RayError:
      return False
    return True
