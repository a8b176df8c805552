"""Tables, figures and a report of many runs, read from their folders."""

from __future__ import annotations

import typing

from tff_medical import _lazy

__all__ = [
  'plots',
  'report',
  'run_report',
  'run_tables',
  'score_plots',
  'sweep_plots',
  'sweeps',
]

if typing.TYPE_CHECKING:
  from tff_medical.reporting import plots as plots
  from tff_medical.reporting import report as report
  from tff_medical.reporting import run_report as run_report
  from tff_medical.reporting import run_tables as run_tables
  from tff_medical.reporting import score_plots as score_plots
  from tff_medical.reporting import sweep_plots as sweep_plots
  from tff_medical.reporting import sweeps as sweeps
else:  # A __getattr__ that type checkers see would allow any name.
  __getattr__, __dir__ = _lazy.attach(__name__, __all__)
