"""Writes the report of a sweep or of a run, with its plots, again.

    python -m experiments.report --sweep_dir=runs/sweep
    python -m experiments.report --run_dir=runs/first

The first writes report.html, plots/ and results.csv, as `experiments.tradeoff`
does when it ends: run it after audits of cells, or on a folder from another
machine. The second writes report.html and plots/ of one run from its scores:
metrics with intervals, ROC, reliability, confusion.
"""

from __future__ import annotations

import functools
import pathlib

from absl import flags as absl_flags

from experiments.running import command
from tff_medical import _validate
from tff_medical.program import ending
from tff_medical.program import run_folder
from tff_medical.reporting import report
from tff_medical.reporting import run_report
from tff_medical.reporting import sweeps


def main(values: absl_flags.FlagValues) -> None:
  """Runs the command."""
  if (values.sweep_dir is None) == (values.run_dir is None):
    raise _validate.InputError(
      'sweep_dir or run_dir must be given, one of them: --sweep_dir=FOLDER'
    )
  if values.run_dir is not None:
    with ending.deferred():
      path = run_report.write(
        run_folder.RunFolder(pathlib.Path(values.run_dir))
      )
    print(f'Report in {path}')
    return
  sweep = sweeps.read(values.sweep_dir)
  with ending.deferred():
    sweeps.write_csv(sweep)
    path = report.write(sweep)
  print('\n'.join(report.headlines(sweep)))
  print(f'Report in {path}')


if __name__ == '__main__':
  absl_flags.DEFINE_string(
    'sweep_dir',
    None,
    'folder of the sweep: --output_dir of experiments.tradeoff',
  )
  absl_flags.DEFINE_string(
    'run_dir', None, 'folder of one run: --output_dir of experiments.train'
  )
  command.run(functools.partial(main, absl_flags.FLAGS))
