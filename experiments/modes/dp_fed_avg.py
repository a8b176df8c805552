"""DP-FedAvg: the server adds one noise to the sum of clipped client updates.

McMahan et al. 2018 (arXiv 1710.06963), with the adaptive clipping of Andrew et
al. 2021 (arXiv 1905.03871).
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
  import tensorflow_federated as tff

  from tff_medical.privacy import mechanisms
  from tff_medical.privacy import sampling

_POISSON = {'client_sampling': ('poisson',)}


@dataclasses.dataclass(frozen=True)
class DpFedAvg(client_training.ClientTraining):
  """Randomly drawn clients train; the server adds the noise."""

  name: ClassVar[str] = 'dp_fed_avg'
  has_one_noise: ClassVar[bool] = True

  clipping: str = fields.setting(
    'adaptive',
    "kind of clipping of a client's update; none is training without privacy",
    choices=('adaptive', 'fixed', 'none'),
  )
  target_unclipped_quantile: float = fields.setting(
    0.5,
    'fraction of contributions that adaptive clipping leaves unclipped',
    only_if={'clipping': ('adaptive',)},
    low=1e-3,
    high=0.999,
  )
  client_sampling: str = fields.setting(
    'poisson',
    'sampling of clients. poisson: each client joins each round independently; '
    'all: all clients join every round',
    choices=('poisson', 'all'),
  )
  clients_per_round: Optional[float] = client_training.clients_per_round(
    'expected clients in a round [num_clients / 10]', only_if=_POISSON
  )
  max_clients_per_round: Optional[int] = fields.setting(
    None,
    'largest allowed cohort of a round [no cap]',
    only_if=_POISSON,
    low=1,
    high=1_000_000,
  )
  publish_broken_units: bool = client_training.publish_broken_units()

  def for_data(self, num_clients: int, num_units: int) -> DpFedAvg:
    """Returns the mode with its cohort; see the base class."""
    mode = super().for_data(num_clients, num_units)
    if mode.client_sampling != 'poisson':
      return mode
    mode = mode.with_default(clients_per_round=num_clients / 10)
    base.check_below(
      'clients_per_round', base.known(mode.clients_per_round), num_clients
    )
    cap, expected = (
      mode.max_clients_per_round,
      base.known(mode.clients_per_round),
    )
    if cap is not None and cap < expected:
      raise InputError(
        'max_clients_per_round must be at least clients_per_round '
        f'({expected:g}), got {cap}'
      )
    return mode

  def mechanism(self, num_units: int) -> mechanisms.GaussianMechanism:
    """Returns the Gaussian mechanism for clients."""
    return tfm.privacy.mechanisms.GaussianMechanism(
      sampling=self._sampling(num_units),
      clipping=clipping(self),
      noise_multiplier=self.noise_multiplier or 0.0,
      privacy_unit=self.privacy_unit,
    )

  def feed(self, task: tfm.learning.tasks.Task) -> base.Feed:
    """Returns the feed of clients, or of groups of them; see `process`."""
    feed: Any = super().feed(task)
    if not self._trains_in_one_batch(task):
      return feed
    size = tfm.learning.batched_clients.group_size(
      task.base_model, self._work(task).is_one_step
    )
    return tfm.program.client_groups.ClientGroupFeed(feed, size)

  def process(
    self,
    task: tfm.learning.tasks.Task,
    mechanism: Any,
    server_optimizer: tff.learning.optimizers.Optimizer,
  ) -> tff.learning.templates.LearningProcess:
    """Returns DP-FedAvg, with many clients in one batch where that is faster.

    Both forms have the same results up to rounding, and the same state.
    """
    if not self._trains_in_one_batch(task):
      return super().process(task, mechanism, server_optimizer)
    # From the start, where a single step is taken, FedProx's term is 0.
    steps = None
    if not self._work(task).is_one_step:
      steps = tfm.learning.batched_steps.LocalSteps(
        self.client_batch_size, self.client_epochs, self.proximal_strength
      )
    return tfm.learning.build_batched_dp_fed_avg(
      task.tff_model,
      mechanism,
      client_learning_rate=self.learning_rate,
      client_steps=steps,
      **self._shared_arguments(server_optimizer),
    )

  def _trains_in_one_batch(self, task: tfm.learning.tasks.Task) -> bool:
    import tensorflow as tf  # Late: see `modes.base`.

    return tfm.learning.batched_clients.is_faster(
      task.base_model,
      self._work(task),
      on_gpu=bool(tf.config.list_physical_devices('GPU')),
    )

  def _work(
    self, task: tfm.learning.tasks.Task
  ) -> tfm.learning.batched_clients.ClientWork:
    clients = tfm.data.partition.ClientRows.of(task.partition)
    return tfm.learning.batched_clients.ClientWork(
      largest_client=int(clients.sizes.max()),
      batch_size=self.client_batch_size,
      epochs=self.client_epochs,
    )

  def with_canaries(self, scale: float, present: float) -> DpFedAvg:
    """Returns the mode for more clients, most of whom are not clipped."""
    cap = self.max_clients_per_round
    return dataclasses.replace(
      self,
      target_unclipped_quantile=self.target_unclipped_quantile / present,
      clients_per_round=self.clients_per_round
      and self.clients_per_round * scale,
      max_clients_per_round=cap and -int(-cap * scale // 1),
    )

  def _sampling(self, num_clients: int) -> sampling.Sampling:
    samplings = tfm.privacy.sampling
    if self.client_sampling == 'all':
      return samplings.FullParticipation(num_clients)
    cohort = base.known(self.clients_per_round)
    if self.max_clients_per_round is None:
      return samplings.PoissonSampling(num_clients, cohort)
    return samplings.TruncatedPoissonSampling(
      num_clients, cohort, self.max_clients_per_round
    )


def clipping(mode: Any) -> mechanisms.Clipping | None:
  """Returns the clipping of a mode that may be adaptive."""
  if mode.clipping != 'adaptive':
    return base.fixed_clipping(mode)
  return tfm.privacy.mechanisms.AdaptiveClipping(
    clip_norm=mode.clip_norm,
    target_unclipped_quantile=mode.target_unclipped_quantile,
  )
