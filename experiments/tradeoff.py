r"""Measures the accuracy that each privacy budget costs: a sweep with a report.

    python -m experiments.tradeoff --epsilons=1,2,4,8,inf --seeds=3 \
        --dataset=medmnist/pneumoniamnist --num_clients=470 \
        --output_dir=runs/sweep
    python -m experiments.tradeoff \
        --flagfile=experiments/presets/tradeoff_quick.flags \
        --output_dir=runs/quick

The flags of `experiments.train` are common to all cells. A cell is one ε and
one seed; ε inf is federated training without privacy. Each seed also has the
baselines of `experiments.references`, unless there is a data ledger, which has
no room for training without privacy. Started again with the same --output_dir,
the command skips finished cells and resumes stopped cells; epsilons and seeds
may be added. The folder gets results.csv, report.html, plots/, cells/NAME (each
a run's folder) and logs/.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
import pathlib
import shlex
import sys
from typing import Any

from absl import flags as absl_flags

from experiments import plan
from experiments.config import flags
from experiments.config import settings as settings_lib
from experiments.modes import base as base_mode
from experiments.running import cells as cells_lib
from experiments.running import command
from experiments.running import jobs
from tff_medical import _files
from tff_medical import _validate
from tff_medical.program import ending
from tff_medical.program import run_records
from tff_medical.reporting import report
from tff_medical.reporting import sweeps

_PLAIN_FLAGS = 'without_privacy_flags'

# Settings that the sweep decides, cell by cell.
_BY_CELL = (
  'target_epsilon',
  'noise_multiplier',
  'epsilon_budget',
  'cohort_seed',
)


@dataclasses.dataclass(frozen=True)
class _Planned:
  """A cell of the plan, with the flags of its training."""

  cell: sweeps.Cell
  flags: settings_lib.Flags

  def training(self) -> cells_lib.Training:
    """Returns the training of the cell."""
    kind = self.cell.kind
    if kind == sweeps.FEDERATED:
      return cells_lib.Training(self.cell.name, self.flags)
    return cells_lib.Training(
      self.cell.name, self.flags, 'references', (f'--kind={kind}',)
    )


def plan_cells(
  base: settings_lib.Flags,
  epsilons: Sequence[float],
  seeds: int,
  plain_flags: str = '',
) -> list[_Planned]:
  """Returns all cells of a sweep, seed after seed.

  Args:
    base: Flags common to all cells; `seed` is the first seed.
    epsilons: Privacy budgets; inf is no privacy.
    seeds: Number of seeds.
    plain_flags: Flags of the cells without privacy that override `base`, for
      settings that suit noise but not training without it.

  Raises:
    InputError: A setting cannot be used, or is decided by the sweep.
  """
  _validate.positive_int(seeds=seeds)
  for name in _BY_CELL:
    if name in base.given:
      raise _validate.InputError(
        f'{name} is decided for each cell, got {base.given[name]}; leave it '
        'out and give --epsilons'
      )
  if base.output_dir is None:
    raise _validate.InputError('output_dir must be given: --output_dir=FOLDER')
  kinds: tuple[str, ...] = sweeps.REFERENCES
  if base.data_ledger is not None:
    kinds = ()
    if math.inf in epsilons:
      raise _validate.InputError(
        'epsilons must be finite with a data_ledger, got inf, which is training '
        'without privacy; leave it out'
      )
  cells = []
  for seed in range(base.seed, base.seed + seeds):
    for kind in kinds:
      cells.append(sweeps.Cell(f'{kind}_seed_{seed}', kind, math.inf, seed))
    for epsilon in sorted(epsilons, reverse=True):
      name = f'eps_{epsilon:g}_seed_{seed}'
      cells.append(sweeps.Cell(name, sweeps.FEDERATED, epsilon, seed))
  planned = [_Planned(cell, _flags(base, cell, plain_flags)) for cell in cells]
  for planned_cell in planned:
    planned_cell.flags.resolve()
  return planned


def _flags(
  base: settings_lib.Flags, cell: sweeps.Cell, plain_flags: str
) -> settings_lib.Flags:
  """Returns the flags of one cell."""
  folder = cells_lib.cell_folder(pathlib.Path(base.output_dir), cell.name)
  common = base.changed(seed=cell.seed, output_dir=str(folder))
  if cell.kind != sweeps.FEDERATED:
    return common.for_reference()
  if math.isfinite(cell.epsilon):
    return common.changed(target_epsilon=cell.epsilon)
  plain = without_privacy(common)
  changed = flags.changed(plain, plain_flags)
  for name in ('seed', 'output_dir', 'clipping'):
    if getattr(changed, name) != getattr(plain, name):
      raise _validate.InputError(
        f'{_PLAIN_FLAGS}: {name} is decided for each cell, got '
        f'{getattr(changed, name)}; leave it out'
      )
  return changed


def without_privacy(given: settings_lib.Flags) -> settings_lib.Flags:
  """Returns flags without clipping, noise, and the settings that need them."""
  plain = given.changed(**given.mode().baseline())
  if plain.server_optimizer == 'adam_bc':  # It has no noise to subtract.
    plain = plain.changed(server_optimizer='adam')
  if (
    plain.class_weights == base_mode.NOISED
  ):  # There is no noise to count with.
    plain = plain.changed(class_weights=None, class_count_noise=None)
  return plain.without_ignored()


def check_strictest(planned: Sequence[_Planned]) -> None:
  """Loads the data and calibrates the noise of the strictest budget.

  Faults of all cells, or of the strictest alone, so stop the sweep at once. The
  check runs in a child process: forking after TensorFlow has started threads is
  unsafe.

  Raises:
    InputError: The data cannot be used, or the budget is out of reach.
  """
  strictest = min(planned, key=lambda planned_cell: planned_cell.cell.epsilon)
  jobs.call(_check, strictest.flags)


def _check(given: settings_lib.Flags) -> None:
  # These import TensorFlow, which only the child process may do.
  from experiments.config import assembly
  from tff_medical.runtime import tff_worker

  tff_worker.guard()  # Otherwise TFF prints a traceback when the process ends.
  settings = given.resolve()
  parts = assembly.assemble(settings)
  parts.task.data.eval_split(settings.run.eval_split)
  assembly.check_data_ledger(parts)


def claim(
  folder: pathlib.Path,
  base: settings_lib.Flags,
  planned: Sequence[_Planned],
  command: str,
  plain_flags: str,
) -> None:
  """Writes `sweep.json`, including the cells of earlier starts.

  Raises:
    InputError: The folder belongs to a sweep with other settings.
  """
  path = folder / sweeps.SWEEP_FILE
  settings = {**base.given, _PLAIN_FLAGS: plain_flags}
  entries = {p.cell.name: _entry(p.cell) for p in planned}
  if path.exists():
    filed = sweeps.read(folder).info
    _refuse_other_sweep(folder, filed.get('settings', {}), settings)
    entries = {**{c['name']: c for c in filed['cells']}, **entries}
  elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise _validate.InputError(
      f'output_dir {folder} holds other files (no {sweeps.SWEEP_FILE}); choose '
      'a new folder'
    )
  folder.mkdir(parents=True, exist_ok=True)
  _files.write_json(
    path,
    {
      'command': command,
      'settings': settings,
      'versions': run_records.versions(),
      'eval_split': base.eval_split,
      'cells': list(entries.values()),
    },
  )


def _entry(cell: sweeps.Cell) -> dict[str, Any]:
  return {
    'name': cell.name,
    'kind': cell.kind,
    'epsilon': cell.epsilon,
    'seed': cell.seed,
  }


def _refuse_other_sweep(
  folder: pathlib.Path, filed: dict[str, Any], now: dict[str, Any]
) -> None:
  changed = [
    f'--{name} ({filed.get(name)} there, {now.get(name)} now)'
    for name in sorted({*filed, *now})
    if name not in {*settings_lib.may_change(), 'seed'}
    and filed.get(name) != now.get(name)
  ]
  if changed:
    raise _validate.InputError(
      f'output_dir {folder} belongs to a sweep with another '
      f'{", ".join(changed)}; use the same or choose another output_dir'
    )


def run(
  base: settings_lib.Flags,
  *,
  epsilons: Sequence[float],
  seeds: int,
  jobs: int | None,
  command: str,
  plain_flags: str = '',
  cells_on: str = '',
) -> int:
  """Trains the cells that are missing, and writes results.csv and the report.

  Args:
    base: Flags common to all cells.
    epsilons: Privacy budgets; inf is no privacy.
    seeds: Number of seeds.
    jobs: Number of cells at once; by default one for each GPU, or else one for
      each core.
    command: Command line of the sweep, for `sweep.json`.
    plain_flags: Flags of the cells without privacy that override `base`.
    cells_on: Cluster that trains, as `cells.Place` says.

  Returns:
    Exit code, one of `exit_codes`.
  """
  planned = plan_cells(base, epsilons, seeds, plain_flags)
  place = cells_lib.Place(jobs, cells_on)
  folder = pathlib.Path(base.output_dir or '')
  place.check(base, folder)
  if not (folder / sweeps.SWEEP_FILE).exists():
    check_strictest(planned)
  claim(folder, base, planned, command, plain_flags)
  done = {c.name for c in sweeps.read(folder).cells if c.is_done}
  todo = [p.training() for p in planned if p.cell.name not in done]
  if len(todo) < len(planned):
    print(f'{len(planned) - len(todo)} of {len(planned)} cells are done.')
  ended = cells_lib.run(todo, folder, place, on_end=lambda: _write_csv(folder))
  return _finish(folder, ended)


def _write_csv(folder: pathlib.Path) -> None:
  sweeps.write_csv(sweeps.read(folder))


def _finish(folder: pathlib.Path, ended: cells_lib.Ended) -> int:
  """Writes and prints the results so far; returns the exit code."""
  sweep = sweeps.read(folder)
  with ending.deferred():
    sweeps.write_csv(sweep)
    path = report.write(sweep)
  print('\n'.join(report.headlines(sweep)))
  print(f'Results in {folder / "results.csv"}, report in {path}')
  for line in ended.failed:
    print(f'error: cell {line}', file=sys.stderr)
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
    epsilons=plan.parse_epsilons(values.epsilons),
    seeds=values.seeds,
    jobs=values.jobs,
    plain_flags=values[_PLAIN_FLAGS].value,
    cells_on=values.cells_on,
    command=shlex.join(['python', '-m', 'experiments.tradeoff', *sys.argv[1:]]),
  )


def define_flags(values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
  """Defines the flags of this command alone."""
  absl_flags.DEFINE_list(
    'epsilons',
    '1,2,4,8,inf',
    'privacy budgets; inf is no privacy',
    flag_values=values,
  )
  absl_flags.DEFINE_integer(
    'seeds',
    3,
    'number of runs of each budget; seeds count up from --seed',
    flag_values=values,
  )
  absl_flags.DEFINE_string(
    _PLAIN_FLAGS,
    '',
    'flags of the cells without privacy that override the common ones, e.g. '
    '"--server_learning_rate=0.1"',
    flag_values=values,
  )
  absl_flags.DEFINE_integer(
    'jobs',
    None,
    'cells at once [one for each GPU, or else for each core]',
    flag_values=values,
  )
  absl_flags.DEFINE_string(
    'cells_on', '', cells_lib.CELLS_ON_HELP, flag_values=values
  )


if __name__ == '__main__':
  define_flags()
  command.run(functools.partial(main, flags.define(), absl_flags.FLAGS))
