r"""Audits a finished run: what an attacker really gets, beside what is promised.

    python -m experiments.audit --run_dir=runs/first
    python -m experiments.audit --run_dir=runs/first --canaries=1000 \
        --reference_run_dir=runs/without_privacy
    python -m experiments.audit --run_dir=runs/first --canaries=0 \
        --inversion_images=4

Attacks of three kinds. Canaries: the training is repeated, with the same noise,
sampling rate and number of rounds, and with units that send random directions,
of which half take part; how well they are found proves a lower bound on ε,
which must not exceed the ledger's upper bound. Membership inference: on the
exported model, and on that of a run without privacy if there is one to compare
with. On request, gradient inversion: what a client's update shows of an image
(`inversion_audit`).

It writes audit.json into the run's folder, and beside it the folder `audit`
with roc.png and the ledger of the repeated training: that one costs
the data its ε once more, and its model is thrown away. With --inversion_images
there is inversion.png, which shows training images: keep it
secret. Exit code 1 says that a lower bound exceeds its upper bound, so that the
promise is not kept.
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
    'canaries', 400, 'how many, about half take part; 0 does not train again'
  )
  absl_flags.DEFINE_string(
    'reference_run_dir',
    None,
    'folder of a run without privacy on the same data, to compare with',
  )
  absl_flags.DEFINE_integer(
    'inversion_images',
    0,
    'how many training images to reconstruct from updates; the figure that is '
    'written shows them',
  )
  command.parse()

import numpy as np
import tqdm

from experiments.auditing import audited_run
from experiments.auditing import inversion_audit
from experiments.running import exit_codes
from tff_medical import _files
from tff_medical import _validate
from tff_medical import runtime
from tff_medical.auditing import membership
from tff_medical.data import images as images_lib
from tff_medical.program import ending
from tff_medical.program import training
from tff_medical.reporting import plots


def audit(
  run_dir: str,
  canaries: int,
  reference_run_dir: str | None = None,
  inversion_images: int = 0,
) -> dict[str, Any]:
  """Audits a run and writes audit.json; returns what is in it.

  Args:
    run_dir: The run's folder.
    canaries: How many; with 0 the training is not repeated.
    reference_run_dir: Of a run without privacy, or None.
    inversion_images: How many training images to reconstruct.

  Raises:
    InputError: A folder is not that of a finished run, or was audited before.
    KeyboardInterrupt: The user interrupted the training; nothing is left.
  """
  _validate.non_negative(canaries=canaries, inversion_images=inversion_images)
  run = audited_run.FinishedRun.load(run_dir)
  runs = {'run': run}
  if reference_run_dir is not None:
    runs['reference'] = audited_run.FinishedRun.load(reference_run_dir)
  folder = run.folder.audit_files
  if folder.exists():
    raise _validate.InputError(
      f'{folder} is there from an earlier audit, which cost its own ε; rename '
      'it to keep its ledger, then audit again'
    )
  data = {name: of.load_data() for name, of in runs.items()}
  if inversion_images:
    inversion_audit.check(run, data['run'].train, inversion_images)
  unfinished = folder.with_name('audit.partial')
  shutil.rmtree(unfinished, ignore_errors=True)
  unfinished.mkdir()
  try:
    found = _find(runs, data, unfinished, canaries, inversion_images)
    # The folder without audit.json would be an audit that cannot be repeated.
    with ending.deferred():
      unfinished.rename(folder)
      _files.write_json(run.folder.audit, found)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)
  return found


def _find(
  runs: Mapping[str, audited_run.FinishedRun],
  data: Mapping[str, images_lib.ImageData],
  folder: pathlib.Path,
  canaries: int,
  inversion_images: int,
) -> dict[str, Any]:
  """Returns the results of all attacks; writes ledger and plots."""
  run = runs['run']
  found: dict[str, Any] = {
    'claimed_epsilon': run.summary.epsilon,
    'ledger_sha256': run.summary.ledger_sha256,
  }
  if canaries:
    found.update(_audit_canaries(run, folder, canaries))
  attacks = {n: _attack_members(of, data[n]) for n, of in runs.items()}
  _plot(attacks, folder)
  best = next(iter(attacks['run'].values()))
  found.update(attack_auc=best.auc, tpr_at_1_fpr=best.tpr_at_1_fpr)
  found['membership_inference'] = {
    name: {split: _describe(best) for split, best in by_split.items()}
    for name, by_split in attacks.items()
  }
  if inversion_images:
    found['inversion'] = inversion_audit.invert(run, folder, inversion_images)
  return found


def _audit_canaries(
  run: audited_run.FinishedRun, folder: pathlib.Path, canaries: int
) -> dict[str, Any]:
  if run.settings.run.runtime == 'local':
    runtime.set_local_context()
  with tqdm.tqdm(total=run.settings.mode.rounds, unit='round') as bar:

    def on_round(report: training.RoundReport) -> None:
      bar.set_postfix({'ε': f'{report.epsilon:.3f}'}, refresh=False)
      bar.update()

    found = audited_run.repeat_with_canaries(
      run, folder / 'privacy_ledger.jsonl', canaries, on_round
    )
  return found.describe()


def _attack_members(
  run: audited_run.FinishedRun, data: images_lib.ImageData
) -> dict[str, membership.MembershipResult]:
  """Returns the best attack by where the others come from.

  Validation images come from where training images do; the test set of some
  data sets does not, and then tells less of membership.
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
  """Draws the ROC curves, on axes where low false positive rates show."""
  figure, axes = plots.new(
    'Membership inference',
    x='others taken for members (false positive rate)',
    y='members found (true positive rate)',
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


def summary_lines(found: Mapping[str, Any]) -> list[str]:
  """Returns what to print of audit.json, aligned."""
  rows = [('claimed ε', f'{float(found["claimed_epsilon"]):.4f}')]
  if 'lower_bound' in found:
    rows += _canary_rows(found)
  for run, by_split in found['membership_inference'].items():
    for split, attack in by_split.items():
      rows.append(
        (
          f'membership, {run}',
          f'AUC {attack["auc"]:.3f}, {attack["tpr_at_1_fpr"]:.1%} found at 1 % '
          f'false alarms; {attack["members"]} members, {attack["others"]} '
          f'{split} images ({attack["attack"]})',
        )
      )
  if 'inversion' in found:
    rows += inversion_audit.summary_rows(found['inversion'])
  width = max(len(name) for name, _ in rows)
  lines = [f'{name:<{width}}  {text}' for name, text in rows]
  if 'lower_bound' in found:
    lines.append(_verdict(found))
  return lines


def _canary_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
  rows = [
    (
      'ε proven',
      f'at least {found["lower_bound"]:.4f}, at most '
      f'{float(found["upper_bound"]):.4f} at δ {found["delta"]:.3g} '
      f'({found["confidence"]:.0%} confidence)',
    )
  ]
  for bound in found['bounds']:
    rows.append(
      (
        f'  {bound["method"]}, {bound["statistic"]}',
        f'{bound["lower"]:.4f} <= ε <= {float(bound["upper"]):.4f} at δ '
        f'{bound["delta"]:.3g}',
      )
    )
  auc, found_at = found['canary_auc'], found['canary_tpr_at_1_fpr']
  rows.append(('ε estimated', f'{float(found["epsilon_estimate"]):.4f}'))
  for view, text in (
    ('final_model', 'canaries, final model'),
    ('every_round', 'canaries, every round'),
    ('best_round', 'canaries, best round'),
  ):
    rows.append(
      (
        text,
        f'AUC {auc[view]:.3f}, {found_at[view]:.1%} found at 1 % false alarms; '
        f'{found["canaries_included"]} of {found["canaries"]} took part',
      )
    )
  return rows


def _verdict(found: Mapping[str, Any]) -> str:
  if found['exceeds_upper_bound']:
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
) -> int:
  """Runs the command; returns its exit code."""
  if not run_dir:
    raise _validate.InputError('run_dir must be given: --run_dir=FOLDER')
  try:
    found = audit(run_dir, canaries, reference, inversion_images)
  except KeyboardInterrupt as error:
    print('interrupted; nothing was left', file=sys.stderr)
    return exit_codes.of_interrupt(error)
  print('\n'.join(summary_lines(found)))
  print(f'Results in {run_dir}/audit.json and {run_dir}/audit')
  is_broken = found.get('exceeds_upper_bound')
  return exit_codes.FAILED if is_broken else exit_codes.OK


if __name__ == '__main__':
  _FLAGS = absl_flags.FLAGS
  command.run(
    lambda: main(
      _FLAGS.run_dir,
      _FLAGS.canaries,
      _FLAGS.reference_run_dir,
      _FLAGS.inversion_images,
    )
  )
