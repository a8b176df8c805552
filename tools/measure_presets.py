r"""Measures presets over seeds: a CSV, the README's table, their own headers.

    python -m tools.measure_presets --data_dir=FOLDER_WITH_NPZ \
        --names=pneumoniamnist_fedavg,pneumoniamnist_dp_eps8 --seeds=3 \
        --output_dir=runs/presets

Each preset is run once a seed by the command in its header; a run that is
complete in --output_dir is not done again. results/presets.csv gets a line for
each run, the line "# reached:" in a preset's header the mean and spread.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
import pathlib
import re
import statistics
import sys

from absl import flags as absl_flags

from experiments.config import settings as settings_lib
from experiments.running import cells
from experiments.running import command
from experiments.running import results
from tff_medical import _validate
from tff_medical.program import ending
from tff_medical.program import run_folder

_ROOT = pathlib.Path(__file__).resolve().parents[1]
PRESETS = _ROOT / 'experiments' / 'presets'
RESULTS = _ROOT / 'results' / 'presets.csv'


def merge(old: Sequence[dict], new: Sequence[dict]) -> list[dict]:
  """Returns the lines of both by preset and seed; the new ones count."""
  both = {(r['name'], str(r['seed'])): r for r in (*old, *new)}
  return [both[key] for key in sorted(both)]


def reached(rows: Sequence[dict]) -> str:
  """Returns mean and spread over the seeds of one preset, in a line."""
  parts = [
    f'{name.replace("_", " ").replace("auc", "AUC")} '
    f'{results.spread(results.values(rows, name))}'
    for name in results.METRICS
  ]
  epsilon = max(results.values(rows, 'epsilon'))
  privacy = (
    'no privacy'
    if epsilon == float('inf')
    else f'ε {results.round_up(epsilon, 3)} at δ {float(rows[0]["delta"]):.3g}'
  )
  seconds = statistics.median(results.values(rows, 'seconds'))
  return (
    f'{privacy}; test {", ".join(parts)} (mean and standard deviation of '
    f'{len(rows)} seeds), {seconds:.0f} s'
  )


def table(rows: Sequence[dict]) -> str:
  """Returns the table of the README, in Markdown, a line for each preset."""
  lines = []
  for preset, own in sorted(results.by_name(rows).items()):
    epsilon = max(results.values(own, 'epsilon'))
    private = epsilon < float('inf')
    seconds = statistics.median(results.values(own, 'seconds'))
    lines.append(
      [
        f'`{preset}`',
        own[0]['privacy_unit'] if private else '-',
        results.round_up(epsilon, 2) if private else 'none',
        f'{float(own[0]["delta"]):.1e}' if private else '-',
        *(
          results.spread(results.values(own, name)) for name in results.METRICS
        ),
        f'{seconds:.0f}',
      ]
    )
  header = 'preset, unit, ε, δ, test AUC, accuracy, balanced accuracy, s'
  return results.markdown(header.split(', '), lines)


def write_header(path: pathlib.Path, line: str) -> None:
  """Puts what was reached into the header of a preset."""
  text = re.sub(
    r'^# reached: .*$', f'# reached: {line}', path.read_text(), flags=re.M
  )
  path.write_text(text)


def _run_folder(folder: pathlib.Path, name: str, seed: int) -> pathlib.Path:
  return folder / f'{name}.{seed}'


def _is_complete(run: pathlib.Path) -> bool:
  folder = run_folder.RunFolder(run)
  return folder.saved_model.exists() and folder.summary.exists()


def _run_all(
  names: Sequence[str], seeds: int, data_dir: str, folder: pathlib.Path
) -> cells.Ended:
  """Runs what is not complete yet."""
  todo = []
  for seed in range(seeds):
    for name in names:
      run = _run_folder(folder, name, seed)
      if not _is_complete(run):
        settings = settings_lib.Flags.of(
          data_dir=data_dir, seed=seed, output_dir=str(run)
        )
        preset = f'--flagfile={PRESETS / name}.flags'
        todo.append(cells.Training(run.name, settings, extra=(preset,)))
  return cells.run(todo, folder, jobs=None)


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
  found = [
    results.row(name, seed, run_folder.RunFolder(run).read_summary())
    for name in names
    for seed in range(values.seeds)
    if _is_complete(run := _run_folder(folder, name, seed))
  ]
  rows = merge(results.read(RESULTS), found)
  with ending.deferred():
    results.write(RESULTS, rows)
    for name in names:
      own = [r for r in rows if r['name'] == name]
      if own:
        write_header(PRESETS / f'{name}.flags', reached(own))
  print(table(rows))
  for line in ended.failed:
    print(f'error: {line}', file=sys.stderr)
  return ended.exit_code


if __name__ == '__main__':
  absl_flags.DEFINE_list('names', None, 'presets [all of MedMNIST]')
  absl_flags.DEFINE_integer('seeds', 3, 'runs of each preset')
  absl_flags.DEFINE_string('data_dir', None, 'folder with NAME.npz')
  absl_flags.DEFINE_string('output_dir', None, 'folder of the runs')
  command.run(functools.partial(main, absl_flags.FLAGS))
