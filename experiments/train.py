r"""Trains a private model: data, budget, rounds, summary and exported model.

    python -m experiments.train --target_epsilon=8 --output_dir=runs/first
    python -m experiments.train \
        --flagfile=experiments/presets/pneumoniamnist_dp_eps8.flags \
        --data_dir=FOLDER_WITH_NPZ --output_dir=runs/pneumonia

Started again with the same --output_dir, the command goes on after the last
saved round. With --dry_run it prints what would run and the expected time.
`tff_medical.program.run_folder` lists the files of the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import pathlib
import shutil
import sys
import time
from typing import Any

from absl import flags as absl_flags

from experiments.config import flags
from experiments.config import run_settings
from experiments.config import settings as settings_lib
from experiments.running import command
from experiments.running import exit_codes

if __name__ == '__main__':
  _DRY_RUN = absl_flags.DEFINE_boolean(
    'dry_run',
    False,
    'prints what would run (data, noise, ε by round, size, expected time) and '
    'writes nothing but caches of images and features; --output_dir is not '
    'needed',
  )
  _read = flags.define()

  def read_flags() -> settings_lib.Flags:
    """Returns the flags; a dry run needs no folder."""
    return _read().changed(output_dir='.') if _DRY_RUN.value else _read()

  command.parse(check=lambda: read_flags().resolve())

import tensorflow as tf
import tensorflow_federated as tff
import tqdm

from experiments.config import assembly
from experiments.config import feed_sources
from experiments.modes import base
from experiments.running import dry_run
from tff_medical import _validate
from tff_medical import runtime
from tff_medical.data import images
from tff_medical.learning import tasks
from tff_medical.privacy import card as card_lib
from tff_medical.privacy import class_counts
from tff_medical.privacy import data_ledger as data_ledger_lib
from tff_medical.privacy import data_ledger_contents
from tff_medical.privacy import ledger as ledger_lib
from tff_medical.privacy import ledger_contents
from tff_medical.program import checkpoints as checkpoints_lib
from tff_medical.program import ending
from tff_medical.program import lost_charges
from tff_medical.program import published
from tff_medical.program import run_folder as run_folder_lib
from tff_medical.program import run_records
from tff_medical.program import training
from tff_medical.reporting import run_tables
from tff_medical.runtime import cluster
from tff_medical.scoring import evaluation as scoring
from tff_medical.scoring import scored
from tff_medical.serving import export

# Part of the names of the metrics of a round, which are never on test images.
_ROUND_PREFIX = f'{images.VALIDATION}/'
# Settings that do not depend on the data, so that a folder of another run is
# refused before any is loaded, and its noise is not taken for this run's.
_INDEPENDENT = (
  'dataset',
  'privacy_unit',
  'mechanism',
  'clipping',
  'target_epsilon',
)


def run(given: settings_lib.Flags) -> training.Outcome:
  """Trains as the flags say and writes the run's folder.

  Raises:
    InputError: A setting, the data or the folder cannot be used; no file was
      written.
    OSError: The disk failed; earlier checkpoints still load.
  """
  started = time.monotonic()
  settings = given.resolve()
  folder = run_folder_lib.RunFolder(pathlib.Path(settings.run.output_dir or ''))
  folder.check()
  filed = settings.published()
  folder.check_settings({n: filed[n] for n in _INDEPENDENT if n in filed})
  set_runtime(settings.run)
  parts = _assemble(
    settings,
    counts=_earlier_counts(folder, settings),
    noise_multiplier=folder.noise_multiplier(),
  )
  parts = feed_sources.for_runtime(parts)
  settings, task, feed = parts.settings, parts.task, parts.feed
  mechanism = parts.mechanism
  if mechanism.is_private:
    assembly.warn_of_large_delta(parts.delta, feed.num_units)
  export.check(folder.saved_model, task.data.class_names, task.data.num_classes)
  task.data.eval_split(settings.run.eval_split)
  dry_run.check_round(parts.process, feed)
  data_ledger = assembly.data_ledger(settings.run)
  assembly.check_data_ledger(parts)
  with ending.deferred():
    config = assembly.claim(folder, settings, task)
  # The ledger charges class counts when it is started.
  reserve = functools.partial(_reserve, data_ledger, parts, config.run_id)
  reserve()
  with ledger_lib.PrivacyLedger(
    folder.ledger,
    mechanism,
    delta=parts.delta,
    epsilon_budget=settings.mode.epsilon_budget,
    run_id=config.run_id,
    counts=parts.counts,
  ) as ledger:
    folder.remove_leftovers()
    checkpoints = checkpoints_lib.Checkpoints(folder.checkpoints)
    lost_charges.restore(folder, ledger)
    done = checkpoints.latest_round() or 0
    granted = reserve(
      spent=ledger.charges,
      remaining=ledger.cost_between(done, settings.mode.rounds),
      ledger=ledger,
    )
    if granted is not None:
      ledger.limit(granted)
    export.trace_ahead(
      task.keras_model,
      decoding_policy=task.data.decoding_policy,
      transfer=task.transfer,
    )
    with tqdm.tqdm(total=settings.mode.rounds, unit='round', leave=True) as bar:
      outcome = training.train(
        parts.process,
        feed,
        ledger=ledger,
        checkpoints=checkpoints,
        cohort_seed=checkpoints.cohort_seed(
          settings.run.cohort_seed,
          must_be_there=ledger.rounds_charged > 0
          and not mechanism.sampling.draws_by_attempt,
        ),
        rounds=settings.mode.rounds,
        reporting=training.Reporting(
          functools.partial(_round_metrics, task),
          rounds_per_eval=settings.run.rounds_per_eval,
          release_managers=_release_managers(folder, checkpoints, ledger),
          on_round=lambda report: _show_round(bar, report),
          publish_broken_units=settings.mode.publishes_broken_units,
        ),
      )
    book = None
    if data_ledger is not None:
      # A run that was interrupted goes on with its reservation.
      interrupted = outcome.reason is training.StopReason.INTERRUPTED
      book = (
        data_ledger_contents.read(data_ledger.path)
        if interrupted
        else data_ledger.settle(ledger)
      )
    # What takes too long is abandoned; the next start repeats it.
    with ending.deferred() as end, end.abandonable():
      result, scores = _evaluation(task, outcome, settings.run)
      card = card_lib.build_card(
        mechanism,
        ledger,
        rounds=outcome.rounds,
        dataset=task.data.described,
        **card_lib.metrics_of(
          settings.run.eval_split,
          result.metrics,
          result.intervals,
          result.fitted,
        ),
        cohort_seed_was_given=settings.run.cohort_seed is not None,
        broken_units_are_published=settings.mode.publishes_broken_units,
        initial_model=task.provenance,
        backbone=task.backbone,
        data_digest=config.data_digest,
        largest_group=task.data.largest_group,
        data_ledger=book,
        precision=settings.run.precision,
      )
      seconds = time.monotonic() - started
      if scores is not None:
        folder.write_scores(scores, training.weights_digest(outcome.weights))
      _finish(folder, task, settings, outcome, result, card, seconds)
  return outcome


def _reserve(
  data_ledger: data_ledger_lib.DataLedger | None,
  parts: assembly.Assembly,
  run_id: str,
  spent: int = 0,
  remaining: int = 0,
  ledger: ledger_lib.PrivacyLedger | None = None,
) -> int | None:
  """Reserves the run in the ledger of its data, if there is one.

  Returns:
    Number of charges that the run may have; None without a data ledger.
  """
  if data_ledger is None:
    return None
  return data_ledger.reserve(
    assembly.units(parts),
    parts.mechanism,
    data_ledger_lib.Request(
      run_id,
      'train',
      parts.settings.mode.rounds,
      spent=spent,
      remaining=remaining,
      before=parts.event_before,
    ),
    delta=parts.delta,
    ledger=ledger,
  )


def _round_metrics(
  task: tasks.Task, weights: tff.learning.models.ModelWeights
) -> dict[str, float]:
  """Returns the published metrics of a round, none of them on test images.

  Their names say that they are on validation images. Without such images there
  are none.
  """
  if not task.data.has_validation:
    return {}
  metrics = task.evaluate(weights, images.VALIDATION)
  return {f'{_ROUND_PREFIX}{name}': value for name, value in metrics.items()}


def _evaluation(
  task: tasks.Task, outcome: training.Outcome, run: run_settings.RunSettings
) -> tuple[scoring.Evaluation, scored.ScoredImages | None]:
  """Returns the evaluation of the final model, and the scores behind it.

  If training is to go on there is none.
  """
  if outcome.reason is training.StopReason.INTERRUPTED:
    return scoring.Evaluation(), None
  return task.evaluation(
    task.load_weights(outcome.weights), run.eval_split, run.fixed_specificity
  )


def _earlier_counts(
  folder: run_folder_lib.RunFolder, settings: settings_lib.Settings
) -> class_counts.ClassCounts | None:
  """Returns the noised class counts that an earlier start has paid for.

  Raises:
    InputError: They are lost. New ones would be a second release, for which the
      run has not paid.
  """
  if settings.mode.class_weights != base.NOISED:
    return None
  try:
    header = ledger_contents.read(folder.ledger).header
  except FileNotFoundError:
    header = {}
  counts = class_counts.ClassCounts.of(dict(header))
  # The ledger is on disk before the folder of checkpoints is made.
  if counts is None and folder.checkpoints.exists():
    raise _validate.InputError(
      f'{folder.ledger} has lost the class counts of the run, which ε pays for '
      'once; restore the file or choose another output_dir'
    )
  return counts


def set_runtime(run: run_settings.RunSettings) -> None:
  """Sets the TFF runtime that the settings choose.

  Raises:
    InputError: There is no such device or cluster.
    ClusterError: The cluster has no worker.
  """
  if run.runtime == 'cluster':
    cluster.set_cluster_context(
      run.cluster_address,
      worker_cores=run.client_threads,
      precision=run.precision,
    )
  if run.runtime == 'local':
    runtime.set_local_context(
      client_threads=run.client_threads,
      client_devices=run.client_devices.split(',')
      if run.client_devices
      else None,
      clients_per_device=run.clients_per_device,
      precision=run.precision,
    )


def _finish(
  folder: run_folder_lib.RunFolder,
  task: tasks.Task,
  settings: settings_lib.Settings,
  outcome: training.Outcome,
  result: scoring.Evaluation,
  card: Mapping[str, Any],
  seconds: float,
) -> None:
  """Exports the model unless training is to go on, and writes the summary."""
  has_diverged = outcome.reason is training.StopReason.DIVERGED
  is_exported = outcome.reason is not training.StopReason.INTERRUPTED and (
    settings.run.export_diverged or not has_diverged
  )
  if is_exported:
    export.save(
      folder.saved_model,
      task.load_weights(outcome.weights),
      class_names=task.data.class_names,
      multi_label=task.data.multi_label,
      privacy_card=card,
      decoding_policy=task.data.decoding_policy,
      transfer=task.transfer,
    )
  elif has_diverged and folder.saved_model.exists():
    shutil.rmtree(folder.saved_model, ignore_errors=True)
  summary = run_records.Summary(
    rounds=outcome.rounds,
    stop_reason=outcome.reason.name.lower(),
    stop_message=outcome.message or outcome.reason.value,
    epsilon=card['epsilon'],
    accountant=card['accountant'],
    epsilon_rdp=card['epsilon_rdp'],
    delta=card['delta'],
    noise_multiplier=card['mechanism']['noise_multiplier'],
    privacy_unit=card['unit'],
    rounds_charged=card['rounds_charged'],
    charges=card['charges'],
    ledger_sha256=card['ledger_sha256'],
    weights_sha256=training.weights_digest(outcome.weights),
    run_id=card['run_id'],
    metrics=result.metrics,
    intervals=result.intervals,
    fitted=result.fitted,
    eval_split=settings.run.eval_split,
    seconds=seconds,
  )
  folder.write_summary(summary)
  _print_summary(folder, summary)
  if 'data_ledger' in card:
    print(data_line(card['data_ledger']))


def data_line(book: Mapping[str, Any]) -> str:
  """Returns the line on all runs on the data, of a card's `data_ledger`."""
  return (
    f'ε over all runs on this data: {book["epsilon"]:.4f} of '
    f'{book["budget"]:g} at δ {book["delta"]:.3g} ({book["runs"]} runs)'
  )


def _release_managers(
  folder: run_folder_lib.RunFolder,
  checkpoints: checkpoints_lib.Checkpoints,
  ledger: ledger_lib.PrivacyLedger,
) -> list[tff.program.ReleaseManager]:
  """Returns the publishers of each round, after repairing their files."""
  published.repair(
    folder.metrics,
    folder.tensorboard,
    done=checkpoints.latest_round(),
    entries=ledger.entries,
  )
  return [
    published.MetricsTable(folder.metrics),
    published.EventFiles(folder.tensorboard),
  ]


def _assemble(
  settings: settings_lib.Settings, **earlier: Any
) -> assembly.Assembly:
  """Returns the objects of the run; shows the calibration in one line."""
  shown: list[str] = []

  def show(line: str) -> None:
    shown.append(line)
    print(f'\rcalibrating: {line}  ', end='', file=sys.stderr, flush=True)

  try:
    return assembly.assemble(settings, progress=show, **earlier)
  finally:
    if shown:  # What follows, as an error, gets a line of its own.
      print(file=sys.stderr)


def _show_round(bar: tqdm.tqdm, report: training.RoundReport) -> None:
  shown = {'ε': f'{report.epsilon:.3f}'}
  if report.clip_norm is not None:
    shown['clip'] = f'{report.clip_norm:.3g}'
  auc = report.metrics.get(f'{_ROUND_PREFIX}auc')
  if auc is not None:
    bar.auc = f'{auc:.3f}'
  if hasattr(bar, 'auc'):
    shown['validation AUC'] = bar.auc
  shown['s/round'] = f'{report.round_secs:.2f}'
  bar.set_postfix(shown, refresh=False)
  bar.update(report.round_num - bar.n)


def _print_summary(
  folder: run_folder_lib.RunFolder, summary: run_records.Summary
) -> None:
  print(f'{summary.rounds} rounds: {summary.stop_message}.')
  print(
    f'ε {summary.epsilon:.4f} by {summary.accountant} (by RDP '
    f'{summary.epsilon_rdp:.4f}) at δ {summary.delta:.3g}, unit: '
    f'{summary.privacy_unit}, noise multiplier {summary.noise_multiplier:.4f}'
  )
  for name in ('auc', 'accuracy', 'balanced_accuracy', 'f1', 'ece'):
    if name in summary.metrics:
      interval = run_tables.interval(summary.intervals.get(name), digits=4)
      print(
        f'{summary.eval_split} {run_tables.title(name)} '
        f'{summary.metrics[name]:.4f} {interval}'.rstrip()
      )
  print(f'Results in {folder.path}')


def show(given: settings_lib.Flags) -> None:
  """Prints what the flags would run; writes nothing but caches of images.

  Raises:
    InputError: A setting or the data cannot be used.
  """
  settings = given.resolve()
  nowhere = dataclasses.replace(settings.run, output_dir=None)
  settings = dataclasses.replace(settings, run=nowhere)
  set_runtime(settings.run)
  parts = _assemble(settings)
  parts = feed_sources.for_runtime(parts)
  parts.task.data.eval_split(settings.run.eval_split)
  dry_run.check_round(parts.process, parts.feed)
  total = assembly.check_data_ledger(parts)
  print(dry_run.describe(parts, total))


def main(
  read_flags: Callable[[], settings_lib.Flags], is_dry: bool = False
) -> int:
  """Runs the command; returns its exit code."""
  if is_dry:
    show(read_flags())
    return exit_codes.OK
  try:
    outcome = run(read_flags())
  except (OSError, tf.errors.ResourceExhaustedError) as error:
    print(
      f'error: stopped, as the disk failed: {error}; the last saved round '
      'still loads: free some room and start the same command again',
      file=sys.stderr,
    )
    return exit_codes.FAILED
  except runtime.ComputationError as error:
    print(
      f'error: stopped: {" ".join(str(error).split())}; the last saved round '
      'still loads',
      file=sys.stderr,
    )
    return exit_codes.FAILED
  if outcome.reason is training.StopReason.DIVERGED:
    print(
      f'error: {outcome.reason.value}, after {outcome.rounds} rounds; nothing '
      'was exported unless --export_diverged was given. Start again in another '
      'folder with a smaller learning rate or clip norm',
      file=sys.stderr,
    )
    return exit_codes.FAILED
  interrupted = outcome.reason is training.StopReason.INTERRUPTED
  return exit_codes.INTERRUPTED if interrupted else exit_codes.OK


if __name__ == '__main__':
  command.run(functools.partial(main, read_flags, _DRY_RUN.value))
