"""Training program: charge, draw, run, save and publish, round by round.

`training` is the program, and `feeds` provides the data of cohorts.
`run_folder` owns all files of a run: those of `run_records`, `checkpoints`,
`metrics_table`, `published` and the ledger of `tff_medical.privacy`.
`lost_charges` holds the files against the ledger. `ending` handles the signals
that ask a program to end.
"""

from __future__ import annotations

import typing

from tff_medical import _lazy

__all__ = [
  'checkpoints',
  'client_groups',
  'coroutines',
  'ending',
  'feeds',
  'lost_charges',
  'metrics_table',
  'published',
  'run_folder',
  'run_records',
  'training',
]

if typing.TYPE_CHECKING:
  from tff_medical.program import checkpoints as checkpoints
  from tff_medical.program import client_groups as client_groups
  from tff_medical.program import coroutines as coroutines
  from tff_medical.program import ending as ending
  from tff_medical.program import feeds as feeds
  from tff_medical.program import lost_charges as lost_charges
  from tff_medical.program import metrics_table as metrics_table
  from tff_medical.program import published as published
  from tff_medical.program import run_folder as run_folder
  from tff_medical.program import run_records as run_records
  from tff_medical.program import training as training
else:  # A __getattr__ that type checkers see would allow any name.
  __getattr__, __dir__ = _lazy.attach(__name__, __all__)
