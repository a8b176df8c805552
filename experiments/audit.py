r"""Audits a finished run: what an attacker gets, beside what is guaranteed.

    python -m experiments.audit --run_dir=runs/first
    python -m experiments.audit --run_dir=runs/first --canaries=1000 \
        --reference_run_dir=runs/without_privacy
    python -m experiments.audit --run_dir=runs/first --canaries=0 \
        --inversion_images=4

There are three attacks:

- Canaries. The training is repeated with the same noise, sampling rate and
  number of rounds. Added units send random directions; about half of them take
  part. How well an attacker tells the two halves apart proves a lower bound on
  ε, which must not exceed the ledger's upper bound.
- Membership inference. The exported model is attacked, and the model of a run
  without privacy as well if there is one to compare with.
- Gradient inversion, on request. It shows what a client's update reveals of an
  image (`inversion_audit`).

An audit with canaries trains a second model on the same data. Its ε adds to the
first, and the model is thrown away. A data ledger is charged for it.

The command writes audit.json into the run's folder. The folder `audit` beside
it gets roc.png and the ledger of the repeated training. With --inversion_images
it gets inversion.png, which shows training images and must be kept secret. Exit
code 1 says that a lower bound exceeds its upper bound: the guarantee does not
hold.
"""

from __future__ import annotations

from collections.abc import Mapping
import pathlib
import shutil
import sys
from typing import Any

from absl import flags as absl_flags

from experiments.running import command

if __name__ == '__main__':
  absl_flags.DEFINE_string(
    'run_dir', None, 'folder of the run to audit, which must have ended'
  )
  absl_flags.DEFINE_integer(
    'canaries',
    400,
    'number of canaries, of which about half take part; 0 does not repeat the '
    'training',
  )
  absl_flags.DEFINE_string(
    'reference_run_dir',
    None,
    'folder of a run without privacy on the same data, to compare with',
  )
  absl_flags.DEFINE_integer(
    'inversion_images',
    0,
    'number of training images to reconstruct from updates; the figure that is '
    'written shows them',
  )
  absl_flags.DEFINE_string(
    'data_ledger',
    None,
    'ledger of the data set, in which the repeated training is charged [that of '
    'the run]',
  )
  command.parse()

import numpy as np
import tqdm

from experiments.auditing import audited_run
from experiments.auditing import inversion_audit
from experiments.config import fields
from experiments.running import exit_codes
from tff_medical import _files
from tff_medical import _validate
from tff_medical import runtime
from tff_medical.auditing import membership
from tff_medical.data import images as images_lib
from tff_medical.privacy import data_ledger as data_ledger_lib
from tff_medical.program import ending
from tff_medical.program import training
from tff_medical.reporting import plots


def audit(
  run_dir: str,
  canaries: int,
  reference_run_dir: str | None = None,
  inversion_images: int = 0,
  data_ledger: str | None = None,
) -> dict[str, Any]:
  """Audits a run and writes audit.json; returns its content.

  Args:
    run_dir: Folder of the run.
    canaries: Number of canaries; with 0 the training is not repeated.
    reference_run_dir: Folder of a run without privacy, or None.
    inversion_images: Number of training images to reconstruct.
    data_ledger: File of the ledger of the data set, in which the repeated
      training is charged; None is that of the run, if it has one.

  Raises:
    InputError: A folder is not that of a finished run, or was audited before.
    KeyboardInterrupt: The user interrupted the training; no file is left.
  """
  _validate.non_negative(canaries=canaries, inversion_images=inversion_images)
  if data_ledger is not None and not canaries:
    raise _validate.InputError(
      f'data_ledger={data_ledger} would be ignored with canaries=0, which repeat '
      'no training; leave it out'
    )
  run = audited_run.FinishedRun.load(run_dir)
  if data_ledger is not None:
    data_ledger = fields.local_path('data_ledger', data_ledger)
  path = data_ledger or run.settings.run.data_ledger
  book = data_ledger_lib.DataLedger(pathlib.Path(path)) if path else None
  runs = {'run': run}
  if reference_run_dir is not None:
    runs['reference'] = audited_run.FinishedRun.load(reference_run_dir)
  folder = run.folder.audit_files
  if folder.exists():
    raise _validate.InputError(
      f'{folder} is there from an earlier audit, which cost its own ε; rename '
      'it to keep its ledger, then audit again'
    )
  if canaries and run.settings.run.runtime != 'tff':
    # Loading runs TensorFlow, which fixes its threads. The repetitions of a run
    # on a cluster are small, and run here.
    runtime.set_local_context(precision=run.settings.run.precision)
  data = {name: finished.load_data() for name, finished in runs.items()}
  if inversion_images:
    inversion_audit.check(run, data['run'].train, inversion_images)
  unfinished = folder.with_name('audit.partial')
  shutil.rmtree(unfinished, ignore_errors=True)
  unfinished.mkdir()
  try:
    results = _attack(runs, data, unfinished, canaries, inversion_images, book)
    # With the folder but no audit.json, the audit could not be repeated.
    with ending.deferred():
      unfinished.rename(folder)
      _files.write_json(run.folder.audit, results)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)
  return results


def _attack(
  runs: Mapping[str, audited_run.FinishedRun],
  data: Mapping[str, images_lib.ImageData],
  folder: pathlib.Path,
  canaries: int,
  inversion_images: int,
  data_ledger: data_ledger_lib.DataLedger | None,
) -> dict[str, Any]:
  """Returns the results of all attacks; writes ledger and plots."""
  run = runs['run']
  results: dict[str, Any] = {
    'claimed_epsilon': run.summary.epsilon,
    'ledger_sha256': run.summary.ledger_sha256,
  }
  if canaries:
    results.update(_audit_canaries(run, folder, canaries, data_ledger))
  attacks = {
    name: _attack_members(finished, data[name])
    for name, finished in runs.items()
  }
  _plot(attacks, folder)
  best = next(iter(attacks['run'].values()))
  results.update(attack_auc=best.auc, tpr_at_1_fpr=best.tpr_at_1_fpr)
  results['membership_inference'] = {
    name: {split: _describe(best) for split, best in by_split.items()}
    for name, by_split in attacks.items()
  }
  if inversion_images:
    results['inversion'] = inversion_audit.invert(run, folder, inversion_images)
  return results


def _audit_canaries(
  run: audited_run.FinishedRun,
  folder: pathlib.Path,
  canaries: int,
  data_ledger: data_ledger_lib.DataLedger | None,
) -> dict[str, Any]:
  with tqdm.tqdm(total=run.settings.mode.rounds, unit='round') as bar:

    def on_round(report: training.RoundReport) -> None:
      bar.set_postfix({'ε': f'{report.epsilon:.3f}'}, refresh=False)
      bar.update()

    canary_audit = audited_run.repeat_with_canaries(
      run, folder / 'privacy_ledger.jsonl', canaries, on_round, data_ledger
    )
  return canary_audit.describe()


def _attack_members(
  run: audited_run.FinishedRun, data: images_lib.ImageData
) -> dict[str, membership.MembershipResult]:
  """Returns the best attack, by the split of the non-members.

  Validation images have the same source as training images. The test images of
  some data sets have another; an attack may then detect the source rather than
  membership.
  """
  others: dict[str, images_lib.Split] = {
    'validation': data.validation,
    'test': data.test,
  }
  return {
    name: membership.attack_model(run.folder.saved_model, data.train, split)[0]
    for name, split in others.items()
    if len(split)
  }


def _describe(attack: membership.MembershipResult) -> dict[str, Any]:
  return {
    'attack': attack.name,
    'auc': attack.auc,
    'tpr_at_1_fpr': attack.tpr_at_1_fpr,
    'members': attack.members,
    'others': attack.others,
  }


def _plot(
  attacks: Mapping[str, Mapping[str, membership.MembershipResult]],
  folder: pathlib.Path,
) -> None:
  """Draws the ROC curves on logarithmic axes, which show low rates."""
  figure, axes = plots.new(
    'Membership inference',
    x='non-members taken for members (false positive rate)',
    y='members recognized (true positive rate)',
  )
  lowest = 1e-3
  chance = np.geomspace(lowest, 1, 50)
  axes.plot(chance, chance, color='#888888', linewidth=1, label='chance')
  for index, (name, by_split) in enumerate(attacks.items()):
    for style, (split, attack) in zip('-:', by_split.items()):
      axes.plot(
        np.maximum(attack.false_positive_rates, lowest),
        np.maximum(attack.true_positive_rates, lowest),
        linestyle=style,
        color=plots.color(index),
        label=f'{name}, {split} ({attack.auc:.3f})',
      )
  axes.set_xscale('log')
  axes.set_yscale('log')
  axes.set_xlim(lowest, 1)
  axes.set_ylim(lowest, 1)
  # Curves better than chance leave this corner empty.
  axes.legend(loc='lower right', fontsize=8, frameon=False)
  plots.save(figure, folder, 'roc')


def summary_lines(results: Mapping[str, Any]) -> list[str]:
  """Returns the lines to print of audit.json, aligned."""
  rows = [('claimed ε', f'{float(results["claimed_epsilon"]):.4f}')]
  if 'lower_bound' in results:
    rows += _canary_rows(results)
  for run, by_split in results['membership_inference'].items():
    for split, attack in by_split.items():
      rows.append(
        (
          f'membership, {run}',
          f'AUC {attack["auc"]:.3f}, {attack["tpr_at_1_fpr"]:.1%} found at 1 % '
          f'false alarms; {attack["members"]} members, {attack["others"]} '
          f'{split} images ({attack["attack"]})',
        )
      )
  if 'inversion' in results:
    rows += inversion_audit.summary_rows(results['inversion'])
  width = max(len(name) for name, _ in rows)
  lines = [f'{name:<{width}}  {text}' for name, text in rows]
  if 'lower_bound' in results:
    lines.append(_verdict(results))
  return lines


def _canary_rows(results: Mapping[str, Any]) -> list[tuple[str, str]]:
  rows = [
    (
      'ε proven',
      f'at least {results["lower_bound"]:.4f}, at most '
      f'{float(results["upper_bound"]):.4f} at δ {results["delta"]:.3g} '
      f'({results["confidence"]:.0%} confidence)',
    )
  ]
  for bound in results['bounds']:
    rows.append(
      (
        f'  {bound["method"]}, {bound["statistic"]}',
        f'{bound["lower"]:.4f} <= ε <= {float(bound["upper"]):.4f} at δ '
        f'{bound["delta"]:.3g}',
      )
    )
  auc, tpr = results['canary_auc'], results['canary_tpr_at_1_fpr']
  rows.append(('ε estimated', f'{float(results["epsilon_estimate"]):.4f}'))
  for view, text in (
    ('final_model', 'canaries, final model'),
    ('every_round', 'canaries, every round'),
    ('best_round', 'canaries, best round'),
  ):
    rows.append(
      (
        text,
        f'AUC {auc[view]:.3f}, {tpr[view]:.1%} found at 1 % false alarms; '
        f'{results["canaries_included"]} of {results["canaries"]} took part',
      )
    )
  return rows


def _verdict(results: Mapping[str, Any]) -> str:
  if results['exceeds_upper_bound']:
    return (
      'BROKEN: a lower bound exceeds the upper bound. The training leaks more '
      'than its ledger says; do not release this model.'
    )
  return 'No lower bound exceeds its upper bound.'


def main(
  run_dir: str | None,
  canaries: int,
  reference: str | None,
  inversion_images: int = 0,
  data_ledger: str | None = None,
) -> int:
  """Runs the command; returns its exit code."""
  if not run_dir:
    raise _validate.InputError('run_dir must be given: --run_dir=FOLDER')
  try:
    results = audit(run_dir, canaries, reference, inversion_images, data_ledger)
  except KeyboardInterrupt as error:
    print('interrupted; nothing was left', file=sys.stderr)
    return exit_codes.of_interrupt(error)
  print('\n'.join(summary_lines(results)))
  print(f'Results in {run_dir}/audit.json and {run_dir}/audit')
  is_broken = results.get('exceeds_upper_bound')
  return exit_codes.FAILED if is_broken else exit_codes.OK


if __name__ == '__main__':
  _FLAGS = absl_flags.FLAGS
  command.run(
    lambda: main(
      _FLAGS.run_dir,
      _FLAGS.canaries,
      _FLAGS.reference_run_dir,
      _FLAGS.inversion_images,
      _FLAGS.data_ledger,
    )
  )
