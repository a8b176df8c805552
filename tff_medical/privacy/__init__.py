"""The truth about the guarantee: mechanisms, accounting, calibration, ledger.

A frozen mechanism says what is clipped, what noise is added, how clients are
drawn, what the privacy unit and the neighbouring relation are. From it come
the sampler that runs, the event that is accounted for and the TFF aggregator,
so that none of them can disagree. All but `noise`, `clipping`, the `*_query`
modules and `aggregators`, which carry a mechanism out, is plain NumPy.
"""

from __future__ import annotations

import typing

from tff_medical import _lazy

__all__ = [
  'accounting',
  'aggregators',
  'calibration',
  'card',
  'distributed_dp_mechanism',
  'dp_ftrl_mechanism',
  'interface',
  'ledger',
  'local_dp_sgd_mechanism',
  'mechanisms',
  'planning',
  'sampling',
]

if typing.TYPE_CHECKING:
  from tff_medical.privacy import accounting as accounting
  from tff_medical.privacy import aggregators as aggregators
  from tff_medical.privacy import calibration as calibration
  from tff_medical.privacy import card as card
  from tff_medical.privacy import (
    distributed_dp_mechanism as distributed_dp_mechanism,
  )
  from tff_medical.privacy import dp_ftrl_mechanism as dp_ftrl_mechanism
  from tff_medical.privacy import interface as interface
  from tff_medical.privacy import ledger as ledger
  from tff_medical.privacy import (
    local_dp_sgd_mechanism as local_dp_sgd_mechanism,
  )
  from tff_medical.privacy import mechanisms as mechanisms
  from tff_medical.privacy import planning as planning
  from tff_medical.privacy import sampling as sampling
else:  # A __getattr__ that type checkers see would allow any name.
  __getattr__, __dir__ = _lazy.attach(__name__, __all__)
