"""Repeats the training of a finished run with canaries, for the audit.

Noise multiplier, sampling rate, rounds and δ are those of the run, hence ε as
well. The canaries join the population, so cohorts grow. Canaries are always
clipped. With adaptive clipping the target quantile is lowered, so that the clip
norm follows the same quantile of all other units.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import pathlib
import secrets
import tempfile
from typing import Any

import tensorflow_federated as tff

from experiments.config import assembly
from experiments.config import flags as flags_lib
from experiments.config import model_settings
from experiments.config import settings as settings_lib
from experiments.modes import base
from tff_medical import _validate
from tff_medical.auditing import bounds
from tff_medical.auditing import canaries as canaries_lib
from tff_medical.auditing import canary_audit
from tff_medical.data import images as images_lib
from tff_medical.learning import tasks
from tff_medical.privacy import accounting
from tff_medical.privacy import card as card_lib
from tff_medical.privacy import class_counts
from tff_medical.privacy import data_ledger as data_ledger_lib
from tff_medical.privacy import interface
from tff_medical.privacy import ledger as ledger_lib
from tff_medical.privacy import ledger_contents
from tff_medical.program import checkpoints as checkpoints_lib
from tff_medical.program import feeds
from tff_medical.program import run_folder as run_folder_lib
from tff_medical.program import run_records
from tff_medical.program import training

CONFIDENCE = 0.95
AUDITED = (
  'This is an audited training: units with contributions of the auditor took '
  'part. Its model is of no use and was thrown away.'
)


@dataclasses.dataclass(frozen=True)
class FinishedRun:
  """A finished run, as read from its folder.

  Attributes:
    folder: Folder of the run.
    settings: Settings of the run, with the noise multiplier of its ledger
      instead of a target ε, and the number of rounds that were trained.
    summary: Result of the run.
    config: Configuration that the run was started with.
  """

  folder: run_folder_lib.RunFolder
  settings: settings_lib.Settings
  summary: run_records.Summary
  config: run_records.Config

  def build_task(self) -> tasks.Task:
    """Returns the task of the run.

    Raises:
      InputError: The data or the initial model is missing, or is not that of
        the run.
    """
    task = assembly.load_task(self.settings)
    self._check_data(task.data)
    if self.settings.mode.class_weights == base.NOISED:
      task = dataclasses.replace(task, class_weights=self._counts().weights())
    for name, filed, earlier in (
      ('initial model', self.config.initial_model_sha256, task.initial_model),
      ('backbone', self.config.backbone_sha256, task.transfer),
    ):
      now = earlier.digest if earlier else None
      if now != filed:
        raise self._other(name, filed, now)
    return task

  def _counts(self) -> class_counts.ClassCounts:
    """Returns the noised class counts, which the run has published."""
    try:
      header = ledger_contents.read(self.folder.ledger).header
    except FileNotFoundError:
      header = {}
    counts = class_counts.ClassCounts.of(dict(header))
    if counts is None:
      raise _validate.InputError(
        f'{self.folder.path} has lost the class counts of its ledger; restore '
        'the file'
      )
    return counts

  def load_data(self) -> images_lib.ImageData:
    """Returns the data of the run, without loading its initial model.

    Raises:
      InputError: The data is missing, or is not that of the run.
    """
    settings = dataclasses.replace(
      self.settings, model=model_settings.ModelSettings()
    )
    data = assembly.load_task(settings).data
    self._check_data(data)
    return data

  def _check_data(self, data: images_lib.ImageData) -> None:
    if not self.folder.holds_data(data.source_digest, self.config):
      raise self._other(
        'data_digest', self.config.data_digest, data.source_digest
      )

  def _other(
    self, name: str, filed: str | None, now: str | None
  ) -> _validate.InputError:
    return _validate.InputError(
      f'{self.folder.path} was trained with another {name} ({filed} there, '
      f'{now} now); restore what it was trained with'
    )

  @classmethod
  def load(cls, path: str) -> FinishedRun:
    """Reads config.json, summary.json and the noise of the ledger.

    Raises:
      InputError: A file is missing, damaged or of another version.
    """
    folder = run_folder_lib.RunFolder(pathlib.Path(path))
    try:
      config = folder.read_config()
      summary = folder.read_summary()
    except FileNotFoundError as error:
      raise _validate.InputError(
        f'{path} is not the folder of a run that has ended '
        f'({error.strerror}: {error.filename}); let experiments.train finish'
      ) from None
    given = flags_lib.given_back(config.settings).changed(
      output_dir=path, epsilon_budget=None, rounds=max(1, summary.rounds)
    )
    if given.given.get('clipping') != 'none':
      noise = folder.noise_multiplier()
      if noise is None:
        raise _validate.InputError(
          f'{path} has lost the noise multiplier of its ledger; restore '
          f'{folder.ledger.name}'
        )
      given = given.changed(noise_multiplier=noise, target_epsilon=None)
    settings = given.resolve()
    if summary.rounds < 1:
      raise _validate.InputError(
        f'{path} has no round that could be audited; let experiments.train run'
      )
    return cls(folder, settings, summary, config)


@dataclasses.dataclass(frozen=True, eq=False)
class _AuditedTask(tasks.Task):
  """A task whose model is wrapped, so that it also trains on canaries.

  Attributes:
    audited: Task without canaries.
    wrap: Function that returns the wrapped model.
  """

  audited: tasks.Task | None = None
  wrap: Callable[[Any], Any] = lambda model: model

  @property
  def base_model(self) -> tff.learning.models.FunctionalModel:
    return self.audited.tff_model if self.audited else super().base_model

  @functools.cached_property
  def tff_model(self) -> tff.learning.models.FunctionalModel:
    return self.wrap(super().tff_model)


@dataclasses.dataclass(frozen=True, eq=False)
class CanaryAudit:
  """Result of the repeated training.

  Attributes:
    canaries: Canaries, and which of them took part.
    scores: Scores of the canaries; a high score suggests that one took part.
    findings: Lower bounds on ε beside its upper bounds.
    delta: Delta at which the ledger states ε.
    epsilon: Epsilon of the ledger.
    card: Privacy card of the repeated training.
  """

  canaries: canaries_lib.Canaries
  scores: canary_audit.Scores
  findings: list[canary_audit.Finding]
  delta: float
  epsilon: float
  card: dict[str, Any]

  @property
  def is_violation(self) -> bool:
    """Whether a lower bound exceeds its upper bound."""
    return any(f.is_violation for f in self.findings)

  def describe(self) -> dict[str, Any]:
    """Returns the result as plain values; top-level bounds are at `delta`."""
    stated = [f for f in self.findings if f.delta == self.delta]
    best = max(stated, key=lambda f: f.lower)
    included = self.canaries.included
    by_view = {
      'final_model': self.scores.final,
      'every_round': self.scores.every_round,
      'best_round': self.scores.best_round,
    }
    return {
      'lower_bound': best.lower,
      'upper_bound': self.epsilon,
      'delta': self.delta,
      'confidence': CONFIDENCE,
      'exceeds_upper_bound': self.is_violation,
      'method': f'{best.method} on {best.statistic}: '
      f'{canary_audit.METHODS[best.method]}',
      'canaries': len(included),
      'canaries_included': int(included.sum()),
      'dimensions': self.scores.dimensions,
      'epsilon_estimate': bounds.gaussian_estimate(
        self.scores.standardized_final[included], self.delta
      ),
      'canary_auc': {
        k: bounds.attack_auc(v, included) for k, v in by_view.items()
      },
      'canary_tpr_at_1_fpr': {
        k: bounds.tpr_at_fpr(v, included, 0.01) for k, v in by_view.items()
      },
      'bounds': [dataclasses.asdict(f) for f in self.findings],
      'card': self.card,
    }


def repeat_with_canaries(
  run: FinishedRun,
  ledger_path: pathlib.Path,
  count: int,
  on_round: Callable[[training.RoundReport], None],
  data_ledger: data_ledger_lib.DataLedger | None = None,
) -> CanaryAudit:
  """Repeats a training with canaries, and attacks them.

  Args:
    run: Finished run with a guarantee to audit.
    ledger_path: Path of the repeated training's ledger; the file must be new.
    count: Number of canaries, of which about half take part.
    on_round: Callback after each round.
    data_ledger: Ledger of the data set, if the training is charged in one.

  Raises:
    InputError: The data ledger has no room for the training, the run has no
      guarantee, or its data is missing.
    KeyboardInterrupt: The user interrupted the training.
  """
  mode = run.settings.mode
  if not mode.is_private:
    raise _validate.InputError(
      f'{run.folder.path} was trained without noise, so there is no guarantee '
      'to audit; give --canaries=0 for membership inference alone'
    )
  if mode.refuses_canaries:
    raise _validate.InputError(
      f'canaries cannot be put into a run with mechanism={mode.name}, where '
      f'{mode.refuses_canaries}; give --canaries=0 for membership inference '
      'alone'
    )
  canaries = canaries_lib.Canaries.draw(count)
  parts = _with_canaries(run, canaries)
  mode, mechanism, process = parts.settings.mode, parts.mechanism, parts.process
  request = data_ledger_lib.Request(secrets.token_hex(16), 'audit', mode.rounds)
  units = assembly.units(parts)
  if data_ledger is not None:
    data_ledger.check(units, mechanism, request, delta=parts.delta)
  steps = canary_audit.UpdateRecorder(
    process.get_model_weights(process.initialize()),
    mode.server_momentum if mode.server_optimizer == 'sgd' else 0.0,
  )
  with ledger_lib.PrivacyLedger(
    ledger_path, mechanism, delta=parts.delta, run_id=request.run_id
  ) as ledger:
    if data_ledger is not None:
      ledger.limit(
        data_ledger.reserve(units, mechanism, request, delta=parts.delta)
      )
    with tempfile.TemporaryDirectory(dir=ledger_path.parent) as temporary:
      checkpoints = checkpoints_lib.Checkpoints(temporary)
      outcome = training.train(
        process,
        parts.feed,
        ledger=ledger,
        checkpoints=checkpoints,
        cohort_seed=checkpoints.cohort_seed(),
        rounds=mode.rounds,
        reporting=training.Reporting(
          steps, rounds_per_eval=1, on_round=on_round
        ),
      )
    # The repeated training cannot go on, so that what is left is given back.
    book = data_ledger.settle(ledger) if data_ledger is not None else None
    if outcome.reason is training.StopReason.INTERRUPTED:
      raise KeyboardInterrupt
    card = card_lib.build_card(
      mechanism,
      ledger,
      rounds=outcome.rounds,
      dataset=parts.task.data.described,
      test_metrics={},
      initial_model=parts.task.provenance,
      backbone=parts.task.backbone,
      largest_group=parts.task.data.largest_group,
      data_ledger=book,
      precision=parts.settings.run.precision,
    )
    epsilon = ledger.epsilon
  scores = canary_audit.scores(canaries, steps)
  return CanaryAudit(
    canaries=canaries,
    scores=scores,
    findings=canary_audit.findings(
      scores,
      canaries.included,
      upper=functools.partial(_epsilon_at, mechanism, mode.rounds),
      delta=parts.delta,
      confidence=CONFIDENCE,
    ),
    delta=parts.delta,
    epsilon=epsilon,
    card={**card, 'audited': AUDITED},
  )


def _epsilon_at(
  mechanism: interface.Mechanism, rounds: int, delta: float
) -> float:
  return accounting.epsilon(
    mechanism.charge_event(), rounds=mechanism.charges_for(rounds), delta=delta
  )


def _with_canaries(
  run: FinishedRun, canaries: canaries_lib.Canaries
) -> assembly.Assembly:
  """Returns the parts of the run for the population with canaries."""
  # An attacker may see the model of every round, which reveals more than the
  # moving average.
  mode = dataclasses.replace(run.settings.mode, ema_decay=0.0)
  task = run.build_task()
  inner: Any = mode.feed(task)
  audited = _AuditedTask(
    data=task.data,
    partition=task.partition,
    model=task.model,
    seed=task.seed,
    initial_model=task.initial_model,
    transfer=task.transfer,
    label_smoothing=task.label_smoothing,
    class_weights=task.class_weights,
    audited=task,
    wrap=functools.partial(
      canaries_lib.with_canaries,
      canaries=canaries,
      length=canaries_lib.gradient_length(
        mode.clip_norm, getattr(mode, 'client_learning_rate', 1.0)
      ),
      by_unit=not isinstance(inner, feeds.ClientFeed),
    ),
  )
  feed = canaries_lib.CanaryFeed(
    inner,
    canaries,
    task.data.input_shape,
    (task.data.num_classes,) if task.data.multi_label else (),
    keeps_absent=mode.keeps_absent,
  )
  others = inner.num_units
  mode = mode.with_canaries(
    scale=feed.num_units / others,
    present=(others + int(canaries.included.sum())) / others,
  )
  settings = dataclasses.replace(run.settings, mode=mode)
  mechanism = assembly.build_mechanism(settings, feed.num_units)
  return assembly.Assembly(settings, audited, feed, mechanism)
