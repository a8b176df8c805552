"""DP-SGD across sites: one noise for the sum of all clipped unit gradients.

Abadi et al. 2016 (arXiv 1607.00133) over the pooled units of all sites; see
`learning.dp_sgd`.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, ClassVar

from experiments.config import fields
from experiments.modes import base
from experiments.modes import client_training
from experiments.modes import dp_fed_avg
from experiments.modes import unit_training
import tff_medical as tfm

if typing.TYPE_CHECKING:
  import tensorflow_federated as tff

  from tff_medical.privacy import mechanisms
  from tff_medical.privacy import sampling


@dataclasses.dataclass(frozen=True)
class DpSgd(unit_training.UnitTraining):
  """Units join rounds independently or all; the server adds the noise."""

  name: ClassVar[str] = 'dp_sgd'
  has_one_noise: ClassVar[bool] = True

  clipping: str = fields.setting(
    'fixed',
    "kind of clipping of a unit's gradient; none is training without privacy",
    choices=('adaptive', 'fixed', 'none'),
  )
  target_unclipped_quantile: float = fields.redefine(
    dp_fed_avg.DpFedAvg, 'target_unclipped_quantile', 0.5
  )
  publish_broken_units: bool = client_training.publish_broken_units()

  def feed(self, task: tfm.learning.tasks.Task) -> base.Feed:
    """Returns the feed of the drawn units of every client."""
    units = self.units_of(task)
    return tfm.program.feeds.UnitFeed(
      task.data.train,
      units,
      num_clients=task.num_clients,
      microbatch_size=self.units_at_once(task, units.rows.shape[1]),
    )

  def mechanism(self, num_units: int) -> mechanisms.GaussianMechanism:
    """Returns the Gaussian mechanism for records or patients."""
    return tfm.privacy.mechanisms.GaussianMechanism(
      sampling=self._sampling(num_units),
      clipping=dp_fed_avg.clipping(self),
      noise_multiplier=self.noise_multiplier or 0.0,
      privacy_unit=self.privacy_unit,
    )

  def process(
    self,
    task: tfm.learning.tasks.Task,
    mechanism: Any,
    server_optimizer: tff.learning.optimizers.Optimizer,
  ) -> tff.learning.templates.LearningProcess:
    """Returns DP-SGD over all sites."""
    return tfm.learning.build_dp_sgd(
      task.tff_model,
      mechanism,
      server_optimizer=server_optimizer,
      augmentation=self.augmentation(),
      count_broken=self.publish_broken_units,
    )

  def with_canaries(self, scale: float, present: float) -> DpSgd:
    """Returns the mode for more units, most of which are not clipped."""
    mode = super().with_canaries(scale, present)
    return dataclasses.replace(
      mode,
      target_unclipped_quantile=self.target_unclipped_quantile / present,
    )

  def _sampling(self, num_units: int) -> sampling.Sampling:
    samplings = tfm.privacy.sampling
    if self.unit_sampling == 'all':
      return samplings.FullParticipation(num_units)
    return samplings.PoissonSampling(
      num_units, base.known(self.expected_batch_size)
    )
