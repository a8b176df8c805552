"""Distributed DP: clients add the noise, and the server sees sums alone.

Agarwal, Kairouz, Liu 2021 (arXiv 2110.04995); see
`privacy.distributed_dp_mechanism`.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, ClassVar

from experiments.config import fields
from experiments.modes import client_training
import tff_medical as tfm

if typing.TYPE_CHECKING:
  from tff_medical.privacy import distributed_dp_mechanism


@dataclasses.dataclass(frozen=True)
class DistributedDp(client_training.ClientTraining):
  """All clients take part in every round, each with its share of the noise."""

  name: ClassVar[str] = 'distributed_dp'
  keeps_absent: ClassVar[bool] = True
  # TFF's own runtime has no secure aggregation.
  runtimes: ClassVar[tuple[str, ...]] = ('local', 'cluster')

  clipping: str = fields.setting(
    'fixed', "kind of clipping of a client's update", choices=('fixed',)
  )

  def mechanism(
    self, num_units: int
  ) -> distributed_dp_mechanism.DistributedDpMechanism:
    """Returns the distributed Skellam mechanism."""
    return tfm.privacy.distributed_dp_mechanism.DistributedDpMechanism(
      sampling=tfm.privacy.sampling.FullParticipation(num_units),
      clipping=tfm.privacy.mechanisms.FixedClipping(self.clip_norm),
      noise_multiplier=self.noise_multiplier or 0.0,
    )

  @classmethod
  def baseline(cls) -> dict[str, Any]:
    """Returns the flags of DP-FedAvg without privacy, on all clients."""
    return {
      'clipping': 'none',
      'mechanism': 'dp_fed_avg',
      'client_sampling': 'all',
    }
