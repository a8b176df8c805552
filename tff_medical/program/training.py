"""The training program: charge, draw, run, save and publish, round by round.

The guarantee rests on this order. A round is charged in the ledger before it
runs. Its cohort is drawn for the number of that charge, so that a repeated
round has a new cohort. While the round runs, the disk takes the charge. The
charge is on disk before the round is saved, and the round is saved, together
with the values to publish, before any of them is published. A crash may
therefore charge a round twice, but it never causes a release that was not
charged. No published line is lost: the next start publishes the last saved
round again.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import enum
import math
import time
from typing import Any

from absl import logging
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical.privacy import aggregators
from tff_medical.privacy import ledger as ledger_lib
from tff_medical.program import checkpoints as checkpoints_lib
from tff_medical.program import coroutines
from tff_medical.program import ending

ClientDatasets = Callable[[np.ndarray], Sequence[tf.data.Dataset]]
Evaluate = Callable[[tff.learning.models.ModelWeights], Mapping[str, float]]

# Products of larger weights overflow in float32, and the model is useless.
_LARGEST_WEIGHT = 1e15


class StopReason(enum.Enum):
  """Reason of the end of a training."""

  COMPLETED = 'all planned rounds were run'
  BUDGET_SPENT = 'the next round would have exceeded the privacy budget'
  DIVERGED = (
    'the model has diverged: its weights are far too large, or metrics are NaN'
  )
  INTERRUPTED = 'interrupted by the user; start it again to go on'


@dataclasses.dataclass(frozen=True)
class Outcome:
  """Result of a training.

  Attributes:
    rounds: Number of completed rounds, over all starts of the run.
    reason: Reason of the end.
    weights: Weights of the global model.
    metrics: Metrics of these weights; they may be empty after an interruption.
    message: Details of the reason, such as the ledger's refusal, or ''.
  """

  rounds: int
  reason: StopReason
  weights: tff.learning.models.ModelWeights
  metrics: Mapping[str, float]
  message: str = ''


@dataclasses.dataclass(frozen=True)
class RoundReport:
  """Values of one round that may be published.

  Epsilon covers all of `values()` except `broken_units`, which is opt-in. The
  round's duration is not among them: it grows with the cohort size, which is
  secret under Poisson sampling.

  Attributes:
    round_num: Number of the round, 1 for the first.
    epsilon: Epsilon of all rounds so far, including this one.
    clip_norm: Clip norm of the next round; None without clipping.
    round_secs: Duration of the round without saving, in seconds; only for a
      progress line, never for a file.
    metrics: Metrics of the model after the round; empty without evaluation.
    broken_units: Number of units that were left out, as their data was missing
      or unreadable or their contribution was not finite; None unless requested.
  """

  round_num: int
  epsilon: float
  clip_norm: float | None
  round_secs: float
  metrics: Mapping[str, float]
  broken_units: int | None = None

  def values(self) -> collections.OrderedDict[str, float]:
    """Returns the values to publish, as flat named numbers."""
    values = collections.OrderedDict(epsilon=self.epsilon)
    if self.clip_norm is not None:
      values['clip_norm'] = self.clip_norm
    if self.broken_units is not None:
      values['broken_units'] = self.broken_units
    values.update(self.metrics)
    return values


@dataclasses.dataclass(frozen=True)
class Reporting:
  """Receivers of a training's values, and how often metrics are computed.

  Attributes:
    evaluate: Function that returns metrics of model weights on held-out data.
    rounds_per_eval: Number of rounds between evaluations; the last round is
      evaluated as well.
    release_managers: Receivers of each round's values, by round. After a
      restart they get the values of the last round again.
    on_round: Callback after each round, for a progress line, or None.
    publish_broken_units: Whether to publish the number of units that each round
      left out, if the process was built with `count_broken`. The count has no
      noise: epsilon does not cover it.
  """

  evaluate: Evaluate
  rounds_per_eval: int = 10
  release_managers: Sequence[tff.program.ReleaseManager] = ()
  on_round: Callable[[RoundReport], None] | None = None
  publish_broken_units: bool = False

  def __post_init__(self) -> None:
    _validate.positive_int(rounds_per_eval=self.rounds_per_eval)


def train(
  process: tff.learning.templates.LearningProcess,
  client_datasets: ClientDatasets,
  *,
  ledger: ledger_lib.PrivacyLedger,
  checkpoints: checkpoints_lib.Checkpoints,
  cohort_seed: int,
  rounds: int,
  reporting: Reporting,
) -> Outcome:
  """Runs rounds from the newest checkpoint on, and returns the outcome.

  Args:
    process: Learning process with the noise of `ledger`'s mechanism.
    client_datasets: Function that returns the training data of the units with
      the given indices, int64 [n].
    ledger: Ledger that is charged before each round. It refuses a round that
      exceeds the budget. Its mechanism's sampler draws the cohorts.
    checkpoints: Checkpoints of the state after each round.
    cohort_seed: Seed of the cohorts, together with the number of the charge.
    rounds: Total number of rounds to reach, including those of earlier starts.
    reporting: Receivers of the values of each round, and the evaluation.

  Raises:
    InputError: Ledger and checkpoint do not belong together, or were changed.
    OSError: A charge or a checkpoint could not be written. The round was
      neither saved nor published. Earlier checkpoints still load.
  """
  initial = process.initialize()
  saved = checkpoints.load_latest(initial)
  if saved is None:
    saved = _start(process, initial, ledger, checkpoints)
  else:
    _reconcile(ledger, saved, process.get_model_weights(saved.state))
  if ledger.sampling.draws_by_attempt:
    cohort_seed = ledger.seed_of_draws(cohort_seed)
  state, digest, done = saved.state, saved.digest, saved.record.round_num
  weights = process.get_model_weights(state)
  metrics: Mapping[str, float] = {}
  if done:
    # A crash may have come between saving and publishing the last round.
    metrics = reporting.evaluate(weights) if saved.record.evaluates else {}
    _release(
      reporting.release_managers, {**saved.record.values, **metrics}, done
    )
  reason, message = StopReason.COMPLETED, ''
  with ending.deferred() as end:
    for round_num in range(done + 1, rounds + 1):
      started = time.monotonic()
      if end.requested.is_set():
        reason = StopReason.INTERRUPTED
        break
      if _has_diverged(weights, metrics):
        break
      try:
        epsilon = ledger.charge(round_num, state_digest=digest, wait=False)
      except ledger_lib.BudgetExceededError as error:
        reason, message = StopReason.BUDGET_SPENT, str(error)
        break
      cohort = ledger.sampling.draw(
        cohort_seed, round_num, ledger.rounds_charged
      )
      try:
        with end.abandonable():
          output = process.next(state, list(client_datasets(cohort)))
      except ending.Abandoned:
        reason = StopReason.INTERRUPTED
        message = (
          f'round {round_num} took too long to be finished; it was charged and '
          'is run again'
        )
        break
      state = output.state
      weights = process.get_model_weights(state)
      report = RoundReport(
        round_num,
        epsilon,
        aggregators.clip_norm(state.aggregator),
        time.monotonic() - started,
        {},
        aggregators.broken_units(output.metrics)
        if reporting.publish_broken_units
        else None,
      )
      evaluates = (
        round_num % reporting.rounds_per_eval == 0 or round_num == rounds
      )
      record = _record(ledger, round_num, weights, report.values(), evaluates)
      digest = checkpoints.save(state, record)
      done = round_num
      try:
        with end.abandonable():
          metrics = reporting.evaluate(weights) if evaluates else {}
      except ending.Abandoned:
        # The next start evaluates and publishes this round.
        reason = StopReason.INTERRUPTED
        break
      report = dataclasses.replace(report, metrics=metrics)
      _release(reporting.release_managers, report.values(), round_num)
      if reporting.on_round is not None:
        reporting.on_round(report)
  if not metrics and reason is not StopReason.INTERRUPTED:
    metrics = reporting.evaluate(weights)
  if _has_diverged(weights, metrics):
    reason = StopReason.DIVERGED
  return Outcome(done, reason, weights, metrics, message)


def _start(
  process: tff.learning.templates.LearningProcess,
  initial: Any,
  ledger: ledger_lib.PrivacyLedger,
  checkpoints: checkpoints_lib.Checkpoints,
) -> checkpoints_lib.Saved:
  """Saves and returns the state before the first round."""
  if ledger.rounds_charged:
    logging.warning(
      'there is no checkpoint: the run starts again at round 1, and the %d '
      'rounds that were charged before stay charged',
      ledger.rounds_charged,
    )
  record = _record(ledger, 0, process.get_model_weights(initial), {}, False)
  digest = checkpoints.save(initial, record)
  return checkpoints_lib.Saved(initial, record, digest)


def _record(
  ledger: ledger_lib.PrivacyLedger,
  round_num: int,
  weights: tff.learning.models.ModelWeights,
  values: Mapping[str, float],
  evaluates: bool,
) -> checkpoints_lib.Record:
  """Returns the record of a round, whose charge is on disk then.

  Raises:
    OSError: The charge could not be written; the round must not be saved.
  """
  # The checkpoint is a release, and a machine may lose its power at any time.
  ledger.flush()
  return checkpoints_lib.Record(
    run_id=ledger.run_id,
    round_num=round_num,
    attempt=ledger.rounds_charged,
    charges=ledger.charges,
    ledger_digests=ledger.last_digests(),
    weights_digest=weights_digest(weights),
    values={
      name: value if isinstance(value, int) else float(value)
      for name, value in values.items()
    },
    evaluates=evaluates,
  )


def weights_digest(weights: tff.learning.models.ModelWeights) -> str:
  """Returns the digest that identifies a model in checkpoints and cards."""
  return checkpoints_lib.weights_digest(
    [
      *tf.nest.flatten(weights.trainable),
      *tf.nest.flatten(weights.non_trainable),
    ]
  )


def _reconcile(
  ledger: ledger_lib.PrivacyLedger,
  saved: checkpoints_lib.Saved,
  weights: tff.learning.models.ModelWeights,
) -> None:
  """Checks the ledger against the checkpoint and restores lost charges.

  Raises:
    InputError: Ledger and checkpoint do not belong together, or the state was
      changed.
  """
  record = saved.record
  name = f'the checkpoint of round {record.round_num}'
  remedy = 'restore the files of one run or choose another output_dir'
  if record.run_id != ledger.run_id:
    raise _validate.InputError(
      f'{name} is of another run than the ledger ({record.run_id} and '
      f'{ledger.run_id}); {remedy}'
    )
  if record.weights_digest != weights_digest(weights):
    raise _validate.InputError(
      f'{name} has other weights than were saved; {remedy}'
    )
  if not ledger.is_one_history(record.ledger_digests):
    raise _validate.InputError(
      f'{name} and the ledger went different ways after a copy was made of '
      f'one of them: what was charged up to {record.attempt} is another thing '
      f'there; {remedy}'
    )
  following = ledger.entry_of(record.attempt + 1)
  if (
    following is not None
    and following.round_num == record.round_num + 1
    and following.state_digest not in ('', saved.digest)
  ):
    raise _validate.InputError(
      f'{name} is not the state that the ledger says round '
      f'{following.round_num} started from; {remedy}'
    )
  # Rounds whose checkpoints cannot be read may have been released.
  newest = max((record.round_num, *saved.newer_rounds))
  if ledger.restore(
    round_num=newest,
    attempt=record.attempt + newest - record.round_num,
    charges=record.charges + ledger.cost_between(record.round_num, newest),
    evidence=name,
  ):
    logging.warning(
      'the ledger had lost charges that %s shows; they were put back: %d '
      'charges, ε %.4f',
      name,
      ledger.charges,
      ledger.epsilon,
    )


def _has_diverged(
  weights: tff.learning.models.ModelWeights, metrics: Mapping[str, float]
) -> bool:
  """Returns whether a model is useless, judged by released values only."""
  if metrics and all(math.isnan(value) for value in metrics.values()):
    return True
  # A comparison with NaN is false.
  return not all(
    np.all(np.abs(w) < _LARGEST_WEIGHT)
    for w in tf.nest.flatten(weights.trainable)
  )


def _release(
  managers: Sequence[tff.program.ReleaseManager],
  values: Mapping[str, float],
  round_num: int,
) -> None:
  async def release_all() -> None:
    for manager in managers:
      await manager.release(values, round_num)

  coroutines.run(release_all())
