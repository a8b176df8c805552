"""The privacy guarantee: mechanisms, accounting, calibration, ledger, card.

A frozen mechanism states the clipping, the noise, the sampling, the privacy
unit and the neighbouring relation. The sampler that runs, the event that is
accounted for and the TFF aggregator are all derived from it, so that they
cannot disagree. Only the modules that execute a mechanism use TensorFlow:
`noise`, `clipping`, `aggregators` and `*_query`. The others are plain NumPy.
"""

from __future__ import annotations

import typing

from tff_medical import _lazy

__all__ = [
  'accounting',
  'aggregators',
  'calibration',
  'card',
  'class_counts',
  'data_ledger',
  'data_ledger_contents',
  'distributed_dp_mechanism',
  'dp_ftrl_mechanism',
  'events',
  'interface',
  'ledger',
  'ledger_contents',
  'local_dp_sgd_mechanism',
  'mechanisms',
  'planning',
  'sampling',
  'selection',
  'stated_epsilon',
]

if typing.TYPE_CHECKING:
  from tff_medical.privacy import accounting as accounting
  from tff_medical.privacy import aggregators as aggregators
  from tff_medical.privacy import calibration as calibration
  from tff_medical.privacy import card as card
  from tff_medical.privacy import class_counts as class_counts
  from tff_medical.privacy import data_ledger as data_ledger
  from tff_medical.privacy import data_ledger_contents as data_ledger_contents
  from tff_medical.privacy import (
    distributed_dp_mechanism as distributed_dp_mechanism,
  )
  from tff_medical.privacy import dp_ftrl_mechanism as dp_ftrl_mechanism
  from tff_medical.privacy import events as events
  from tff_medical.privacy import interface as interface
  from tff_medical.privacy import ledger as ledger
  from tff_medical.privacy import ledger_contents as ledger_contents
  from tff_medical.privacy import (
    local_dp_sgd_mechanism as local_dp_sgd_mechanism,
  )
  from tff_medical.privacy import mechanisms as mechanisms
  from tff_medical.privacy import planning as planning
  from tff_medical.privacy import sampling as sampling
  from tff_medical.privacy import selection as selection
  from tff_medical.privacy import stated_epsilon as stated_epsilon
else:  # A __getattr__ that type checkers see would allow any name.
  __getattr__, __dir__ = _lazy.attach(__name__, __all__)
