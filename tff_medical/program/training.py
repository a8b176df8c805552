"""The training program: charge, run, save, publish, until a reason to stop.

The order is what the guarantee rests on. A round is charged in the ledger, on
disk, before it runs; it is saved before anything of it is published. A crash
can therefore cost a charge for a round that is run again, never a release that
was not charged.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import enum
import signal
import threading
import time
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical.privacy import aggregators
from tff_medical.privacy import interface
from tff_medical.privacy import ledger as ledger_lib
from tff_medical.program import checkpoints as checkpoints_lib

ClientDatasets = Callable[[np.ndarray], Sequence[tf.data.Dataset]]
Evaluate = Callable[[tff.learning.models.ModelWeights], Mapping[str, float]]


class StopReason(enum.Enum):
  """Why training ended."""

  COMPLETED = 'all planned rounds were run'
  BUDGET_SPENT = 'the next round would have exceeded the privacy budget'
  INTERRUPTED = 'interrupted by the user; start it again to go on'


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What training ended with.

  Attributes:
    rounds: Rounds done, over all starts of the run.
    reason: Why it stopped.
    weights: The global model's weights.
    metrics: The last evaluation, of the weights above; empty if interrupted.
    message: What the ledger said when it refused a round, or ''.
  """

  rounds: int
  reason: StopReason
  weights: tff.learning.models.ModelWeights
  metrics: Mapping[str, float]
  message: str = ''


@dataclasses.dataclass(frozen=True)
class RoundReport:
  """What a round gives to tell.

  Noise covers all that `values` has, but for `broken_units`, which is there on
  request. The seconds are not among them: they grow with the cohort, whose size
  is secret under Poisson sampling.

  Attributes:
    round_num: The round, 1 for the first.
    epsilon: Epsilon so far, this round included.
    clip_norm: The clip norm of the next round; None without clipping.
    round_secs: Seconds that the round took, saving included; for a progress
      line, not to be kept.
    metrics: The evaluation after the round, or empty.
    broken_units: How many units were left out, as they had no data, it could not
      be read, or their contribution was not finite; None unless asked for.
  """

  round_num: int
  epsilon: float
  clip_norm: float | None
  round_secs: float
  metrics: Mapping[str, float]
  broken_units: int | None = None

  def values(self) -> collections.OrderedDict[str, float]:
    """Returns what may be published, as flat named numbers."""
    values = collections.OrderedDict(epsilon=self.epsilon)
    if self.clip_norm is not None:
      values['clip_norm'] = self.clip_norm
    if self.broken_units is not None:
      values['broken_units'] = self.broken_units
    values.update(self.metrics)
    return values


def train(
  process: tff.learning.templates.LearningProcess,
  *,
  sampling: interface.Sampler,
  client_datasets: ClientDatasets,
  ledger: ledger_lib.PrivacyLedger,
  checkpoints: checkpoints_lib.Checkpoints,
  cohort_seed: int,
  rounds: int,
  evaluate: Evaluate,
  rounds_per_eval: int,
  release_managers: Sequence[tff.program.ReleaseManager] = (),
  on_round: Callable[[RoundReport], None] = lambda report: None,
  publish_broken_units: bool = False,
) -> Outcome:
  """Runs rounds from the newest checkpoint on, and returns how it ended.

  Args:
    process: The learning process; its noise is that of `ledger`'s mechanism.
    sampling: Draws each round's cohort, as the ledger's mechanism says.
    client_datasets: Returns the training data of clients given by their index,
      int64 [n].
    ledger: Is charged before each round; refuses what exceeds the budget.
    checkpoints: Holds the state after each round.
    cohort_seed: Makes the cohorts, with the round's number.
    rounds: How many rounds to reach, those before the last start included.
    evaluate: Metrics of model weights, on held-out data.
    rounds_per_eval: Evaluates after each multiple of it, and after the last.
    release_managers: Get each round's values, by round.
    on_round: Is called after each round, for a progress line.
    publish_broken_units: Publishes how many units each round left out, if the
      process was built with `count_broken`. The count has no noise: epsilon does
      not cover it.

  Raises:
    OSError: A charge or a checkpoint could not be written. What was saved
      before still loads.
  """
  initial = process.initialize()
  resumed = checkpoints.load_latest(initial)
  if resumed is None:
    checkpoints.save(0, initial)
  done, state = resumed or (0, initial)
  metrics: Mapping[str, float] = {}
  reason, message = StopReason.COMPLETED, ''
  with _interruptible() as interrupted:
    for round_num in range(done + 1, rounds + 1):
      started = time.monotonic()
      try:
        epsilon = ledger.charge(round_num)
      except ledger_lib.BudgetExceededError as error:
        reason, message = StopReason.BUDGET_SPENT, str(error)
        break
      cohort = sampling.draw(cohort_seed, round_num)
      output = process.next(state, list(client_datasets(cohort)))
      state = output.state
      checkpoints.save(round_num, state)
      done = round_num
      round_secs = time.monotonic() - started
      metrics = {}
      if round_num % rounds_per_eval == 0 or round_num == rounds:
        metrics = evaluate(process.get_model_weights(state))
      report = RoundReport(
        round_num,
        epsilon,
        aggregators.clip_norm(state.aggregator),
        round_secs,
        metrics,
        aggregators.broken_units(output.metrics)
        if publish_broken_units
        else None,
      )
      _release(release_managers, report)
      on_round(report)
      if interrupted.is_set() and round_num < rounds:
        reason = StopReason.INTERRUPTED
        break
  weights = process.get_model_weights(state)
  if not metrics and reason is not StopReason.INTERRUPTED:
    metrics = evaluate(weights)
  return Outcome(done, reason, weights, metrics, message)


def _release(
  managers: Sequence[tff.program.ReleaseManager], report: RoundReport
) -> None:
  async def release_all() -> None:
    for manager in managers:
      await manager.release(report.values(), report.round_num)

  asyncio.run(release_all())


@contextlib.contextmanager
def _interruptible() -> Any:
  """Lets the first Ctrl-C set the event it yields; a second one interrupts.

  Outside the main thread, where Python delivers no signals, it changes nothing.
  """
  event = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield event
    return

  def on_interrupt(signum: int, frame: Any) -> None:
    if event.is_set():
      raise KeyboardInterrupt
    event.set()

  previous = signal.signal(signal.SIGINT, on_interrupt)
  try:
    yield event
  finally:
    signal.signal(signal.SIGINT, previous)
