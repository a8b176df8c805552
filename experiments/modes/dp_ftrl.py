"""DP-FTRL: tree noise, which needs no secret random cohorts.

Kairouz et al. 2021 (arXiv 2103.00039); see `privacy.dp_ftrl_mechanism`.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, ClassVar, Optional

from experiments.config import fields
from experiments.modes import base
from experiments.modes import client_training
import tff_medical as tfm
from tff_medical import InputError

if typing.TYPE_CHECKING:
  from tff_medical.privacy import dp_ftrl_mechanism


@dataclasses.dataclass(frozen=True)
class DpFtrl(client_training.ClientTraining):
  """A client joins each tree at most once; rounds of a tree share its noise."""

  name: ClassVar[str] = 'dp_ftrl'
  noise_varies: ClassVar[str] = (
    'the noise of a tree is not independent from round to round'
  )

  clipping: str = fields.setting(
    'fixed', "kind of clipping of a client's update", choices=('fixed',)
  )
  clients_per_round: Optional[float] = client_training.clients_per_round(
    'cohort size, the same in every round [num_clients // 10]'
  )
  rounds_per_tree: Optional[int] = fields.setting(
    None,
    'rounds per tree, which each client joins at most once [min(rounds, '
    'num_clients // clients_per_round)]',
    low=1,
    high=1_000_000,
  )
  publish_broken_units: bool = client_training.publish_broken_units()

  def check(self) -> None:
    """Raises `InputError` unless the settings fit together."""
    super().check()
    cohort = self.clients_per_round
    if cohort is not None and cohort != int(cohort):
      raise InputError(
        f'clients_per_round must be a whole number with mechanism={self.name}, '
        f'got {cohort:g}'
      )

  def for_data(self, num_clients: int, num_units: int) -> DpFtrl:
    """Returns the mode with its cohort and tree; see the base class."""
    mode = super().for_data(num_clients, num_units)
    mode = mode.with_default(clients_per_round=float(max(1, num_clients // 10)))
    cohort = base.known(mode.clients_per_round)
    base.check_below('clients_per_round', cohort, num_clients)
    return mode.with_default(
      rounds_per_tree=min(self.rounds, int(num_clients // cohort))
    )

  def mechanism(self, num_units: int) -> dp_ftrl_mechanism.DpFtrlMechanism:
    """Returns the tree mechanism."""
    trees = tfm.privacy.dp_ftrl_mechanism
    return trees.DpFtrlMechanism(
      sampling=trees.DpFtrlSampling(
        num_units,
        int(base.known(self.clients_per_round)),
        base.known(self.rounds_per_tree),
      ),
      clipping=tfm.privacy.mechanisms.FixedClipping(self.clip_norm),
      noise_multiplier=self.noise_multiplier or 0.0,
    )

  @classmethod
  def baseline(cls) -> dict[str, Any]:
    """Returns the flags of DP-FedAvg without privacy, on the same cohorts."""
    return {'clipping': 'none', 'mechanism': 'dp_fed_avg'}

  def with_canaries(self, scale: float, present: float) -> DpFtrl:
    """Returns the mode for more clients, with a cohort of the same share."""
    return dataclasses.replace(
      self, clients_per_round=base.known(self.clients_per_round) * scale
    )
