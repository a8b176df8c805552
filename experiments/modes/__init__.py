"""Ways of training, one module each, by the value of --mechanism.

>>> [name for name, mode in MODES.items() if 'record' in mode.units]
['dp_sgd', 'local_dp_sgd']
"""

from __future__ import annotations

from experiments.modes import base
from experiments.modes import distributed_dp
from experiments.modes import dp_fed_avg
from experiments.modes import dp_ftrl
from experiments.modes import dp_sgd
from experiments.modes import local_dp_sgd

_ALL: tuple[type[base.Mode], ...] = (
  dp_fed_avg.DpFedAvg,
  dp_sgd.DpSgd,
  dp_ftrl.DpFtrl,
  distributed_dp.DistributedDp,
  local_dp_sgd.LocalDpSgd,
)
MODES = {mode.name: mode for mode in _ALL}


def default(privacy_unit: str) -> type[base.Mode]:
  """Returns the default mode for a privacy unit: the first that protects it."""
  return next(m for m in MODES.values() if privacy_unit in m.units)
