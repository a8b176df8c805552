"""Local DP-SGD: each site adds noise to its own steps, and trusts nobody.

See `privacy.local_dp_sgd_mechanism` and `learning.local_dp_sgd`.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, ClassVar

from experiments.config import fields
from experiments.modes import base
from experiments.modes import unit_training
import tff_medical as tfm
from tff_medical import InputError

if typing.TYPE_CHECKING:
  import tensorflow_federated as tff

  from tff_medical.privacy import local_dp_sgd_mechanism


# These limits bound the accountant's time and the random numbers of a round.
_MAX_CHARGES = 1_000_000
_MAX_DRAWS = 100_000_000


@dataclasses.dataclass(frozen=True)
class LocalDpSgd(unit_training.UnitTraining):
  """Sites draw their own batches and send models that are already private."""

  name: ClassVar[str] = 'local_dp_sgd'
  refuses_canaries: ClassVar[str] = 'each site adds its own noise'
  sites_add_noise: ClassVar[bool] = True
  noise_varies: ClassVar[str] = (
    'each site adds noise to its own steps, and which sites are averaged varies'
  )

  server_learning_rate: float = fields.redefine(
    base.Mode, 'server_learning_rate', 1.0
  )
  local_steps: int = fields.setting(
    5,
    'steps of a client in each round; each step is charged',
    low=1,
    high=1_000,
  )
  client_learning_rate: float = fields.setting(
    0.1, 'learning rate of SGD on a client', low=1e-10, high=1e6
  )

  def check(self) -> None:
    """Raises `InputError` unless the settings fit together."""
    super().check()
    fields.check_product(
      _MAX_CHARGES,
      'charges',
      {'rounds': self.rounds, 'local_steps': self.local_steps},
    )
    fields.check_product(
      unit_training.MAX_IMAGES_AT_ONCE,
      'images in memory at once',
      {
        'local_steps': self.local_steps,
        'expected_batch_size': self.expected_batch_size,
      },
    )

  def for_data(self, num_clients: int, num_units: int) -> LocalDpSgd:
    """Returns the mode with its expected batch; see the base class."""
    mode = super().for_data(num_clients, num_units)
    if mode.unit_sampling == 'all':
      fields.check_product(
        unit_training.MAX_IMAGES_AT_ONCE,
        'images in memory at once',
        {'local_steps': self.local_steps, 'number of units': num_units},
      )
    if self.local_steps * num_units > _MAX_DRAWS:
      raise InputError(
        f'local_steps ({self.local_steps}) x {num_units} {self.privacy_unit}s '
        f'must be at most {_MAX_DRAWS:,} draws per round; lower local_steps'
      )
    return mode

  def sampling(
    self, num_units: int
  ) -> local_dp_sgd_mechanism.LocalDpSgdSampling:
    """Returns the sampling of each step's units."""
    rate = 1.0
    if self.unit_sampling != 'all':
      rate = base.known(self.expected_batch_size) / num_units
    return tfm.privacy.local_dp_sgd_mechanism.LocalDpSgdSampling(
      num_units, rate, steps=self.local_steps
    )

  def feed(self, task: tfm.learning.tasks.Task) -> base.Feed:
    """Returns the feed of the drawn units of every client's steps."""
    units = self.units_of(task)
    mode = self.for_data(task.num_clients, len(units))
    return tfm.program.feeds.LocalStepsFeed(
      task.data.train,
      units,
      num_clients=task.num_clients,
      sampling=mode.sampling(len(units)),
    )

  def mechanism(
    self, num_units: int
  ) -> local_dp_sgd_mechanism.LocalDpSgdMechanism:
    """Returns the mechanism of a site's steps."""
    return tfm.privacy.local_dp_sgd_mechanism.LocalDpSgdMechanism(
      sampling=self.sampling(num_units),
      clipping=base.fixed_clipping(self),
      noise_multiplier=self.noise_multiplier or 0.0,
      privacy_unit=self.privacy_unit,
    )

  def process(
    self,
    task: tfm.learning.tasks.Task,
    mechanism: Any,
    server_optimizer: tff.learning.optimizers.Optimizer,
  ) -> tff.learning.templates.LearningProcess:
    """Returns local DP-SGD, whose models the server averages."""
    import tensorflow_federated as tff  # Late: see `modes.base`.

    per_patient = self.privacy_unit == 'patient'
    return tfm.learning.build_local_dp_sgd(
      task.tff_model,
      mechanism,
      client_optimizer=tff.learning.optimizers.build_sgdm(
        self.client_learning_rate
      ),
      server_optimizer=server_optimizer,
      augmentation=self.augmentation(),
      microbatch_size=self.units_at_once(
        task, self.max_images_per_patient if per_patient else 1
      ),
    )
