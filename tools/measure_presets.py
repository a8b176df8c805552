r"""Measures presets over seeds, for a CSV, a table and the presets' headers.

    python -m tools.measure_presets --data_dir=FOLDER_WITH_NPZ \
        --names=pneumoniamnist_fedavg,pneumoniamnist_dp_eps8 --seeds=3 \
        --output_dir=runs/presets

Each preset is run once a seed by the command in its header. A run that is
complete in --output_dir is not repeated; one of other flags than the preset's now
is refused. results/presets.csv gets a row a run, and
the line "# reached:" in a preset's header gets mean and standard deviation. The
table is printed, and `tools.publish` puts it into docs/results.md.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
import math
import pathlib
import re
import sys

from absl import flags as absl_flags
import pandas as pd

from experiments.config import flags as flags_lib
from experiments.config import settings as settings_lib
from experiments.running import cells
from experiments.running import command
from tff_medical import _validate
from tff_medical.data import images
from tff_medical.program import ending
from tff_medical.program import run_folder
from tff_medical.reporting import run_tables

_ROOT = pathlib.Path(__file__).resolve().parents[1]
PRESETS = _ROOT / 'experiments' / 'presets'
RESULTS = _ROOT / 'results' / 'presets.csv'


def merge(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
  """Returns the runs of both, sorted; a new run replaces that of its seed."""
  both = pd.concat([old, new]).drop_duplicates(['name', 'seed'], keep='last')
  return both.sort_values(['name', 'seed'], ignore_index=True)


def reached(runs: pd.DataFrame) -> str:
  """Returns mean and standard deviation over the runs of a preset, in a line."""
  metrics = ', '.join(
    f'{name.replace("_", " ").replace("auc", "AUC")} '
    f'{run_tables.spread(runs[name])}'
    for name in run_tables.METRICS
  )
  epsilon = runs['epsilon'].max()
  privacy = (
    'no privacy'
    if math.isinf(epsilon)
    else f'ε {run_tables.round_up(epsilon, 3)} at δ {runs["delta"].iloc[0]:.3g}'
  )
  return (
    f'{privacy}; test {metrics} (mean and standard deviation of '
    f'{len(runs)} seeds), {runs["seconds"].median():.0f} s'
  )


def table(runs: pd.DataFrame) -> str:
  """Returns the table of presets in Markdown, a row a preset."""
  presets = runs.groupby('name')
  first = presets.first()
  epsilon = presets['epsilon'].max()
  private = epsilon < math.inf
  texts = pd.DataFrame(
    {
      'preset': '`' + first.index + '`',
      'unit': first['privacy_unit'].where(private, '-'),
      'ε': epsilon.map(
        lambda e: 'none' if math.isinf(e) else run_tables.round_up(e, 2)
      ),
      'δ': first['delta'].map('{:.1e}'.format).where(private, '-'),
      'test AUC': presets['auc'].agg(run_tables.spread),
      **(
        {
          '95 % over images': {
            name: run_tables.over_images(group, 'auc_low', 'auc_high')
            for name, group in presets
          }
        }
        if 'auc_low' in runs and runs['auc_low'].notna().any()
        else {}
      ),
      'accuracy': presets['accuracy'].agg(run_tables.spread),
      'balanced accuracy': presets['balanced_accuracy'].agg(run_tables.spread),
      's': presets['seconds'].median().map('{:.0f}'.format),
    },
    index=first.index,
  )
  return run_tables.markdown(texts)


def write_header(path: pathlib.Path, line: str) -> None:
  """Writes the line "# reached:" in the header of a preset."""
  text = re.sub(
    r'^# reached: .*$', f'# reached: {line}', path.read_text(), flags=re.M
  )
  path.write_text(text)


def _run_folder(folder: pathlib.Path, name: str, seed: int) -> pathlib.Path:
  return folder / f'{name}.{seed}'


def _is_complete(run: pathlib.Path) -> bool:
  folder = run_folder.RunFolder(run)
  if not (folder.saved_model.exists() and folder.summary.exists()):
    return False
  return folder.read_summary().eval_split == images.TEST


def check_flags(run: pathlib.Path, name: str) -> None:
  """Raises `InputError` if a complete run was not made by the preset's flags."""
  preset = f'--flagfile={PRESETS / name}.flags'
  given = flags_lib.changed(settings_lib.Flags.of(), preset).given
  ran = run_folder.RunFolder(run).read_config().settings
  for flag, value in given.items():
    if flag not in ran or ran[flag] != value:
      raise _validate.InputError(
        f'{run} ran with {flag} {ran.get(flag)!r}, but the preset {name} has '
        f'{value!r}; delete that run or choose another output_dir'
      )


def _run_all(
  names: Sequence[str], seeds: int, data_dir: str, folder: pathlib.Path
) -> cells.Ended:
  """Does the runs that are not complete yet."""
  todo = []
  for seed in range(seeds):
    for name in names:
      run = _run_folder(folder, name, seed)
      if _is_complete(run):
        check_flags(run, name)
      else:
        settings = settings_lib.Flags.of(
          data_dir=data_dir,
          seed=seed,
          eval_split=images.TEST,
          output_dir=str(run),
        )
        preset = f'--flagfile={PRESETS / name}.flags'
        todo.append(cells.Training(run.name, settings, extra=(preset,)))
  return cells.run(todo, folder, cells.Place())


def main(values: absl_flags.FlagValues) -> int:
  """Runs the command; returns its exit code."""
  known = sorted(p.stem for p in PRESETS.glob('*mnist*.flags'))
  names = values.names or known
  for name in names:
    _validate.one_of(known, names=name)
  _validate.positive_int(seeds=values.seeds)
  if values.data_dir is None or values.output_dir is None:
    raise _validate.InputError('data_dir and output_dir must be given')
  folder = pathlib.Path(values.output_dir)
  ended = _run_all(names, values.seeds, values.data_dir, folder)
  measured = [
    run_tables.row(name, seed, run_folder.RunFolder(run).read_summary())
    for name in names
    for seed in range(values.seeds)
    if _is_complete(run := _run_folder(folder, name, seed))
  ]
  runs = merge(run_tables.read(RESULTS), run_tables.table(measured))
  with ending.deferred():
    run_tables.write(RESULTS, runs)
    for name, group in runs.groupby('name'):
      if name in names:
        write_header(PRESETS / f'{name}.flags', reached(group))
  print(table(runs))
  for line in ended.failed:
    print(f'error: {line}', file=sys.stderr)
  return ended.exit_code


if __name__ == '__main__':
  absl_flags.DEFINE_list('names', None, 'presets [all of MedMNIST]')
  absl_flags.DEFINE_integer('seeds', 3, 'runs of each preset')
  absl_flags.DEFINE_string('data_dir', None, 'folder with NAME.npz')
  absl_flags.DEFINE_string('output_dir', None, 'folder of the runs')
  command.run(functools.partial(main, absl_flags.FLAGS))
