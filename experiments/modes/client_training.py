"""Base class of modes whose clients train on their own data by SGD."""

from __future__ import annotations

import abc
import dataclasses
import typing
from typing import Any, ClassVar, TypeVar

from experiments.config import fields
from experiments.modes import base
import tff_medical as tfm

if typing.TYPE_CHECKING:
  import tensorflow_federated as tff

# Largest number of passes over clients' images in one round.
_MAX_PASSES = 1_000_000

ClientTrainingT = TypeVar('ClientTrainingT', bound='ClientTraining')


@dataclasses.dataclass(frozen=True)
class ClientTraining(base.Mode, abc.ABC):
  """Clients take steps of SGD; the privacy unit is a client."""

  units: ClassVar[tuple[str, ...]] = ('client',)
  default_clients: ClassVar[int] = 300

  client_epochs: int = fields.setting(
    1, "epochs over a client's images in each round", low=1, high=10_000
  )
  client_batch_size: int = fields.setting(
    16, 'images in each step on a client', low=1, high=1_000_000
  )
  client_learning_rate: float = fields.setting(
    0.1, 'learning rate of SGD on a client', low=1e-10, high=1e6
  )
  client_learning_rate_schedule: str = fields.setting(
    'constant',
    "decay of the clients' learning rate to 0 over the rounds",
    choices=base.SCHEDULES,
  )
  proximal_strength: float = fields.setting(
    0.0,
    "FedProx's mu, which keeps clients near the global model",
    low=1e-10,
    high=1e6,
    or_zero=True,
  )

  def check_clients(self, num_clients: int) -> None:
    """Raises `InputError` unless the settings fit a number of clients."""
    cohort = getattr(self, 'clients_per_round', None)
    if cohort is not None:
      base.check_below('clients_per_round', cohort, num_clients)
    cohort_size = (
      {'num_clients': num_clients}
      if cohort is None
      else {'clients_per_round': cohort}
    )
    fields.check_product(
      _MAX_PASSES,
      'passes over clients per round',
      {'client_epochs': self.client_epochs, **cohort_size},
    )

  def for_data(
    self: ClientTrainingT, num_clients: int, num_units: int
  ) -> ClientTrainingT:
    """Returns the mode for the data; see the base class."""
    mode = super().for_data(num_clients, num_units)
    mode.check_clients(num_clients)
    return mode

  def feed(self, task: tfm.learning.tasks.Task) -> base.Feed:
    """Returns the feed of the whole data of each drawn client."""
    return tfm.program.feeds.ClientFeed(
      task.clients,
      batch_size=self.client_batch_size,
      epochs=self.client_epochs,
    )

  def process(
    self,
    task: tfm.learning.tasks.Task,
    mechanism: Any,
    server_optimizer: tff.learning.optimizers.Optimizer,
  ) -> tff.learning.templates.LearningProcess:
    """Returns DP-FedAvg with the mechanism's aggregator."""
    rate = self.learning_rate
    return tfm.learning.build_dp_fed_avg(
      task.tff_model,
      mechanism,
      client_optimizer=self._client_optimizer
      if callable(rate)
      else self._client_optimizer(rate),
      client_learning_rate=rate if callable(rate) else None,
      **self._shared_arguments(server_optimizer),
    )

  @property
  def learning_rate(self) -> Any:
    """Learning rate of the clients, or its schedule over the rounds."""
    if self.client_learning_rate_schedule == 'constant':
      return self.client_learning_rate
    return tfm.learning.schedules.build_schedule(
      self.client_learning_rate_schedule,
      learning_rate=self.client_learning_rate,
      rounds=self.rounds,
    )

  def _shared_arguments(
    self, server_optimizer: tff.learning.optimizers.Optimizer
  ) -> dict[str, Any]:
    """Returns the arguments of a process, whichever way its clients train."""
    return {
      'server_optimizer': server_optimizer,
      'count_broken': self.publishes_broken_units,
      'augmentation': tfm.learning.Augmentation(self.augment_names)
      if self.augment_names
      else None,
    }

  def _client_optimizer(
    self, learning_rate: Any
  ) -> tff.learning.optimizers.Optimizer:
    import tensorflow_federated as tff  # Late: see `modes.base`.

    return tfm.learning.client_training.with_proximal_term(
      tff.learning.optimizers.build_sgdm(learning_rate), self.proximal_strength
    )


def publish_broken_units() -> Any:
  """Returns the setting of modes that can count the units left out."""
  return fields.setting(
    False,
    'whether metrics.csv gets the number of clients, records or patients that '
    'a round left out as broken; it has no noise, so ε does not cover it',
  )


def clients_per_round(help_text: str, **extra: Any) -> Any:
  """Returns the setting of modes that draw a cohort of the clients."""
  return fields.setting(None, help_text, low=1e-3, high=1e6, **extra)
