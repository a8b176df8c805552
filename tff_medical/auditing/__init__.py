"""Audits: attacks on a training, and checks of a run's files.

`canary_audit` bounds epsilon from below by planted canaries (`canaries`,
`bounds`). `membership` attacks a model, `inversion` a shared update.
`verification` checks the files of a finished run against each other,
`data_verification` those of runs against the ledger of their data.
"""

from __future__ import annotations

import typing

from tff_medical import _lazy

__all__ = [
  'bounds',
  'canaries',
  'canary_audit',
  'data_verification',
  'inversion',
  'membership',
  'verification',
]

if typing.TYPE_CHECKING:
  from tff_medical.auditing import bounds as bounds
  from tff_medical.auditing import canaries as canaries
  from tff_medical.auditing import canary_audit as canary_audit
  from tff_medical.auditing import data_verification as data_verification
  from tff_medical.auditing import inversion as inversion
  from tff_medical.auditing import membership as membership
  from tff_medical.auditing import verification as verification
else:  # A __getattr__ that type checkers see would allow any name.
  __getattr__, __dir__ = _lazy.attach(__name__, __all__)
