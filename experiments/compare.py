r"""Compares variants of a setting at one privacy budget.

    python -m experiments.compare --target_epsilon=2 --seeds=3 \
        --dataset=medmnist/pneumoniamnist --num_clients=470 \
        --variant='larger cohort: --clients_per_round=94' \
        --variant='larger model: --model=cnn' --output_dir=runs/helps

The flags of `experiments.train` make the base. A variant is a name and the
flags that it changes; without a value, as in `--backbone=`, it takes the base's
flag back. The noise of each variant is calibrated for the same ε, so a variant
that needs less noise gets less. Variants of a seed share data, partition and,
where shapes are the same, initial weights. Started again with the same folder,
the command does the missing trainings. The folder gets results.csv, results.md,
comparison.png, cells/NAME (each a run's folder) and logs/.

The table shows each difference from the base with its 95 % confidence interval
over seeds and its bootstrap interval over images; "helps" needs both to be
above zero.
Variants are compared on validation images; --eval_split=test gives the figures
to report. To compare metrics of many variants is tuning, which no ε covers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
import pathlib
import re
import sys
from typing import Any

from absl import flags as absl_flags
import pandas as pd

from experiments.config import flags
from experiments.config import settings as settings_lib
from experiments.running import cells
from experiments.running import command
from tff_medical import _files
from tff_medical import _validate
from tff_medical.program import ending
from tff_medical.program import run_folder
from tff_medical.program import run_records
from tff_medical.reporting import plots
from tff_medical.reporting import run_tables
from tff_medical.scoring import intervals

BASE = 'base'
# Settings that a variant must not change. Otherwise ε would be another
# guarantee, or the runs would share a folder.
_SAME = (
  'target_epsilon',
  'target_delta',
  'privacy_unit',
  'seed',
  'output_dir',
  'cohort_seed',
  'data_ledger',
  'data_budget',
  'eval_split',
)


@dataclasses.dataclass(frozen=True)
class Variant:
  """A variant of the base.

  Attributes:
    name: Name of the variant.
    flags: Flags that differ from the base, as in a shell.
  """

  name: str
  flags: str = ''

  @classmethod
  def parse(cls, text: str) -> Variant:
    """Returns the variant of a text `NAME: FLAGS`.

    >>> Variant.parse('wide: --model=cnn --rounds=5')
    Variant(name='wide', flags='--model=cnn --rounds=5')
    """
    name, colon, changed = text.partition(':')
    if not colon or not name.strip() or not changed.strip():
      raise _validate.InputError(
        f"variant must be 'NAME: --flag=value ...', got {text!r}"
      )
    return cls(name.strip(), changed.strip())

  def settings(
    self, base: settings_lib.Flags, seed: int, folder: pathlib.Path
  ) -> settings_lib.Flags:
    """Returns the flags of one training of this variant.

    Flags of the base that the variant does not use are left out.

    Raises:
      InputError: A flag is unknown, or would be ignored.
    """
    changed = flags.changed(base, self.flags)
    for name in _SAME:
      if getattr(changed, name) != getattr(base, name):
        raise _validate.InputError(
          f'variant {self.name!r} must have the {name} of the base '
          f'({getattr(base, name)}), got {getattr(changed, name)}'
        )
    used = changed.without_ignored()
    for name, value in changed.given.items():
      if name not in used.given and base.given.get(name) != value:
        raise _validate.InputError(
          f'variant {self.name!r}: {name}={value} would be ignored; leave it '
          'out'
        )
    used = used.changed(
      seed=seed, output_dir=str(cells.cell_folder(folder, self.cell(seed)))
    )
    used.resolve()
    return used

  def cell(self, seed: int) -> str:
    """Returns the name of the training of a seed, hence of its folder."""
    return f'{re.sub("[^0-9a-z]+", "_", self.name.lower())}_seed_{seed}'


def plan(
  base: settings_lib.Flags, variants: Sequence[Variant], seeds: int
) -> dict[str, cells.Training]:
  """Returns all trainings by the name of their cell, seed after seed.

  Raises:
    InputError: A setting or variant cannot be used.
  """
  _validate.positive_int(seeds=seeds)
  if base.output_dir is None:
    raise _validate.InputError('output_dir must be given: --output_dir=FOLDER')
  if not base.target_epsilon:
    raise _validate.InputError(
      'target_epsilon must be given: variants are compared at one ε'
    )
  if base.cohort_seed is not None:
    raise _validate.InputError(
      'cohort_seed must be left out: each training has its own, kept secret'
    )
  base.resolve()
  folder = pathlib.Path(base.output_dir)
  planned: dict[str, cells.Training] = {}
  for seed in range(base.seed, base.seed + seeds):
    for variant in variants:
      name = variant.cell(seed)
      if name in planned:
        raise _validate.InputError(
          'variant names must differ in letters or digits, got '
          f'{variant.name!r} and another name with the same folder'
        )
      planned[name] = cells.Training(name, variant.settings(base, seed, folder))
  return planned


def claim(folder: pathlib.Path, planned: Mapping[str, cells.Training]) -> None:
  """Claims the folder for this comparison, or checks its cells' flags.

  Raises:
    InputError: The folder holds other files, or a cell with other flags.
  """
  path = folder / 'comparison.json'
  asked = {name: _identity(t.flags) for name, t in planned.items()}
  earlier = {}
  if path.exists():
    earlier = _files.read_json(path)
  elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise _validate.InputError(
      f'output_dir {folder} holds other files (no {path.name}); choose a new '
      'folder'
    )
  for name, used in earlier.items():
    if not isinstance(used, list) or not all(isinstance(x, str) for x in used):
      raise _validate.InputError(
        f'{path} is damaged (the cell {name!r:.200} has the flags '
        f'{used!r:.200}); restore it or choose another output_dir'
      )
  for name in sorted(earlier.keys() & asked.keys()):
    # A cell that has no folder yet may still change its flags.
    if (
      earlier[name] != asked[name] and cells.cell_folder(folder, name).exists()
    ):
      raise _validate.InputError(
        f'output_dir {folder} has a cell {name} with other flags '
        f'({" ".join(earlier[name])}); name the variant differently or choose '
        'another output_dir'
      )
  folder.mkdir(parents=True, exist_ok=True)
  _files.write_json(path, {**earlier, **asked})


def _identity(given: settings_lib.Flags) -> list[str]:
  """Returns the flags that the result of a training depends on."""
  unfixed = settings_lib.may_change() - {'initial_model'}
  return given.changed(**dict.fromkeys(unfixed)).arguments()


def _summary(
  folder: pathlib.Path, cell: str, split_name: str
) -> run_records.Summary | None:
  """Returns the summary of a training; None before its metrics on the split."""
  try:
    run = run_folder.RunFolder(cells.cell_folder(folder, cell))
    summary = run.read_summary()
  except FileNotFoundError:
    return None
  is_done = summary.has_ended and summary.eval_split == split_name
  return summary if is_done else None


def _config(folder: pathlib.Path, cell: str) -> run_records.Config:
  """Returns the settings of a training that has ended."""
  run = run_folder.RunFolder(cells.cell_folder(folder, cell))
  try:
    return run.read_config()
  except FileNotFoundError:
    raise _validate.InputError(
      f'{run.path} lacks its config.json; restore that file, or remove the '
      'folder and start again'
    ) from None


def rows(
  folder: pathlib.Path,
  variants: Sequence[Variant],
  seeds: Sequence[int],
  split_name: str,
) -> pd.DataFrame:
  """Returns the table of results.csv: the ended trainings, by variant.

  Args:
    folder: Folder of the comparison.
    variants: Variants, and the base.
    seeds: Seeds of each variant.
    split_name: Split of the metrics.

  Raises:
    InputError: A variant's trainings started from different initial models.
  """
  lines = []
  for variant in variants:
    initial = set()
    for seed in seeds:
      cell = variant.cell(seed)
      summary = _summary(folder, cell, split_name)
      if summary:
        initial.add(_config(folder, cell).initial_model_sha256)
        line = run_tables.row(variant.name, seed, summary)
        lines.append({**line, 'flags': variant.flags})
    low, high = _over_images(folder, variant, seeds, split_name)
    for line in lines:
      if line['name'] == variant.name:
        line.update(difference_low=low, difference_high=high)
    if len(initial) > 1:
      raise _validate.InputError(
        f'the trainings of variant {variant.name!r} started from different '
        'initial models, since the model in initial_model was replaced; remove '
        f'their folders in {folder / "cells"} and start again'
      )
  return run_tables.table(lines)


def _over_images(
  folder: pathlib.Path,
  variant: Variant,
  seeds: Sequence[int],
  split_name: str,
) -> intervals.Interval:
  """Returns the interval over images of the AUC minus that of the base.

  The runs of a seed are paired. Both ends are NaN for the base itself, and where
  scores are missing or of other images.
  """
  pairs = []
  for seed in seeds:
    cell_names = [v.cell(seed) for v in (variant, Variant(BASE))]
    if not all(_summary(folder, name, split_name) for name in cell_names):
      continue
    model, base = (
      run_folder.RunFolder(cells.cell_folder(folder, name)).read_scores()
      for name in cell_names
    )
    if model is None or base is None or not model.pairs_with(base):
      return math.nan, math.nan
    pairs.append((model, base))
  if not pairs or variant.name == BASE:
    return math.nan, math.nan
  return intervals.differences(pairs, 'auc')


def _best_first(runs: pd.DataFrame) -> list[str]:
  """Returns variants by their mean AUC; those that diverged come last."""
  means = runs.groupby('name', sort=False)['auc'].agg(run_tables.mean)
  return list(means.sort_values(ascending=False, kind='stable').index)


def _against_base(runs: pd.DataFrame, name: str) -> str:
  """Returns a variant's AUC minus the base's, and its confidence interval."""
  base, variant = (runs[runs['name'] == n] for n in (BASE, name))
  differences = run_tables.differences(variant, base, 'auc')
  if name == BASE or differences.empty:
    return ''
  text = f'{run_tables.mean(differences):+.3f}'
  width = run_tables.half_width(differences)
  return text if math.isnan(width) else f'{text} ± {width:.3f}'


def _verdict(runs: pd.DataFrame, name: str) -> str:
  """Returns 'helps' or 'hurts' if both intervals of a variant exclude zero."""
  if name == BASE:
    return ''
  base, variant = (runs[runs['name'] == n] for n in (BASE, name))
  differences = run_tables.differences(variant, base, 'auc')
  ends = variant[['difference_low', 'difference_high']].iloc[0]
  difference = run_tables.mean(differences)
  # A comparison with the NaN of an unknown interval is false.
  if abs(difference) > run_tables.half_width(
    differences
  ) and intervals.excludes_zero((ends.iloc[0], ends.iloc[1])):
    return 'helps' if difference > 0 else 'hurts'
  return 'not shown'


def table(runs: pd.DataFrame) -> str:
  """Returns the comparison in Markdown, the best variants first.

  A variant is said to help or to hurt only if its difference from the base has
  an interval over seeds and one over images that both exclude zero.
  """
  split_name = run_tables.split_name(runs)
  variants = runs.groupby('name')
  texts = pd.DataFrame(
    {
      'flags': variants['flags'].first().map(lambda f: f'`{f}`' if f else ''),
      'noise': variants['noise_multiplier']
      .agg(run_tables.mean)
      .map('{:.2f}'.format),
      f'{split_name} AUC': variants['auc'].agg(run_tables.spread),
      **_images_column(variants, '95 % over images', 'auc'),
      'AUC minus base': {n: _against_base(runs, n) for n in variants.groups},
      **_images_column(variants, 'difference over images', 'difference'),
      **(
        {'verdict': {n: _verdict(runs, n) for n in variants.groups}}
        if 'difference_low' in runs
        else {}
      ),
      'balanced accuracy': variants['balanced_accuracy'].agg(run_tables.spread),
      's': variants['seconds'].median().map('{:.0f}'.format),
    }
  ).loc[_best_first(runs)]
  texts.insert(0, 'variant', texts.index)
  return run_tables.markdown(texts.replace({'variant': {BASE: f'**{BASE}**'}}))


def _images_column(
  variants: Any, title: str, name: str
) -> dict[str, dict[str, str]]:
  """Returns a column of intervals over images; none if none is known."""
  texts = {
    variant: run_tables.over_images(group, f'{name}_low', f'{name}_high')
    for variant, group in variants
  }
  return {title: texts} if any(texts.values()) else {}


def draw(runs: pd.DataFrame, epsilon: float, folder: pathlib.Path) -> None:
  """Writes comparison.png: one line per variant, one dot per seed."""
  names = _best_first(runs)[::-1]  # The best is at the top.
  label = f'{run_tables.split_name(runs)} AUC'
  figure, axes = plots.new(f'What helps at ε {epsilon:g}', x=label, y='')
  figure.set_size_inches(6.4, 1.0 + 0.27 * len(names))
  for height, name in enumerate(names):
    aucs = runs.loc[runs['name'] == name, 'auc']
    mean = run_tables.mean(aucs)
    shade = plots.color(1 if name == BASE else 0)
    axes.plot(aucs, [height] * len(aucs), 'o', color=shade, alpha=0.55)
    axes.plot([mean], [height], '|', color=shade,
              markersize=13, markeredgewidth=2)  # fmt: skip
    if name == BASE:
      axes.axvline(mean, color=shade, linestyle='--', linewidth=1)
  axes.set_yticks(range(len(names)), names)
  plots.save(figure, folder, 'comparison')


def run(
  base: settings_lib.Flags,
  variants: Sequence[Variant],
  seeds: int,
  jobs: int | None,
  cells_on: str = '',
) -> int:
  """Runs the missing trainings, writes the results, returns the exit code."""
  variants = [Variant(BASE), *variants]
  planned = plan(base, variants, seeds)
  place = cells.Place(jobs, cells_on)
  folder = pathlib.Path(base.output_dir or '')
  place.check(base, folder)
  claim(folder, planned)
  split_name = base.eval_split
  todo = [
    training
    for name, training in planned.items()
    if not _summary(folder, name, split_name)
  ]
  if len(todo) < len(planned):
    print(f'{len(planned) - len(todo)} of {len(planned)} trainings are done.')
  ended = cells.run(todo, folder, place)
  seeds_run = range(base.seed, base.seed + seeds)
  runs = rows(folder, variants, seeds_run, split_name)
  if len(runs):
    text = table(runs)
    with ending.deferred():
      run_tables.write(folder / 'results.csv', runs)
      _files.write_bytes(folder / 'results.md', f'{text}\n'.encode())
      draw(runs, base.target_epsilon or 0.0, folder)
    print(text)
  for line in ended.failed:
    print(f'error: {line}', file=sys.stderr)
  print(f'Results in {folder}')
  if ended.interrupted:
    print('Interrupted; start the same command again to go on.')
  return ended.exit_code


def main(
  read_flags: Callable[[], settings_lib.Flags],
  values: absl_flags.FlagValues,
) -> int:
  """Runs the command; returns its exit code."""
  return run(
    read_flags(),
    [Variant.parse(text) for text in values.variant],
    values.seeds,
    values.jobs,
    values.cells_on,
  )


if __name__ == '__main__':
  absl_flags.DEFINE_multi_string(
    'variant',
    [],
    "variant as 'NAME: --flag=value ...', which overrides the base's flags",
  )
  absl_flags.DEFINE_integer(
    'seeds', 3, 'number of runs of each variant; seeds count up from --seed'
  )
  absl_flags.DEFINE_integer(
    'jobs', None, 'runs at once [one for each GPU, or else for each core]'
  )
  absl_flags.DEFINE_string('cells_on', '', cells.CELLS_ON_HELP)
  command.run(functools.partial(main, flags.define(), absl_flags.FLAGS))
