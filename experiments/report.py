"""Writes a sweep's report.html, plots and results.csv again.

    python -m experiments.report --sweep_dir=runs/sweep

`experiments.tradeoff` writes the same files when it ends. Run this command
after audits of cells, or on a folder from another machine.
"""

from __future__ import annotations

import functools

from absl import flags as absl_flags

from experiments.running import command
from tff_medical import _validate
from tff_medical.program import ending
from tff_medical.reporting import report
from tff_medical.reporting import sweeps


def main(values: absl_flags.FlagValues) -> None:
  """Runs the command."""
  if values.sweep_dir is None:
    raise _validate.InputError('sweep_dir must be given: --sweep_dir=FOLDER')
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
  command.run(functools.partial(main, absl_flags.FLAGS))
