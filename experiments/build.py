"""From settings to the library's objects: data, task, mechanism, process."""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any, TypeVar, Union

from absl import logging
import numpy as np
import tensorflow_federated as tff

from experiments import settings as settings_lib
from tff_medical import _validate
from tff_medical import feeds
from tff_medical import learning
from tff_medical import models
from tff_medical import pretrained
from tff_medical import tasks
from tff_medical.data import loading
from tff_medical.data import partition as partition_lib
from tff_medical.data import units as units_lib
from tff_medical.learning import client_training
from tff_medical.learning import weight_averaging
from tff_medical.privacy import calibration
from tff_medical.privacy import distributed_mechanism
from tff_medical.privacy import local_mechanism
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling as sampling_lib
from tff_medical.privacy import tree_mechanism

Mechanism = Union[
  mechanisms.GaussianMechanism,
  tree_mechanism.TreeMechanism,
  distributed_mechanism.DistributedMechanism,
  local_mechanism.LocalGaussianMechanism,
]

Feed = Union[feeds.ClientFeed, feeds.UnitFeed, feeds.LocalStepsFeed]

_T = TypeVar('_T')


def _resolved(value: _T | None) -> _T:
  if value is None:
    raise ValueError('settings must be resolved, with their population')
  return value


def warn_of_large_delta(delta: float, population: int) -> None:
  """Warns unless delta is below one over the population."""
  if delta >= 1 / population:
    logging.warning(
      'target_delta %.3g is not below one over the population (%.3g): a '
      'mechanism that publishes one of them at random would satisfy it',
      delta,
      1 / population,
    )


def build_task(settings: settings_lib.Settings) -> tasks.Task:
  """Loads the data, spreads it over clients and binds it to the model."""
  initial_model = None
  if settings.initial_model is not None:
    initial_model = pretrained.load(settings.initial_model)
    if settings.is_private:
      _refuse_same_data(initial_model, settings.dataset)
  data = loading.load(
    settings.dataset,
    image_size=settings.image_size,
    data_dir=settings.data_dir,
    seed=settings.seed,
  )
  if data.duplicates:
    logging.warning('%s has duplicates: %s', data.name, data.duplicates)
  partition = partition_lib.partition(
    settings.partition,
    data.train,
    num_clients=settings.num_clients,
    alpha=settings.dirichlet_alpha,
    rng=np.random.default_rng(settings.seed),
  )
  return tasks.Task(
    data=data,
    partition=partition,
    model=settings.model,
    seed=settings.seed,
    initial_model=initial_model,
  )


def _refuse_same_data(initial: models.InitialModel, dataset: str) -> None:
  """Refuses to state an epsilon for data that was trained on before."""
  # A card may add to the name that the file is not the official one.
  if any(f'{name} '.startswith(f'{dataset} ') for name in initial.datasets):
    raise _validate.InputError(
      f'initial_model {initial.name} was trained on {dataset}, too, so that the '
      'ε of this run alone would not hold; start from a model of other data, go '
      'on in the output_dir of that run, or give up privacy with clipping=none'
    )


def build_feed(settings: settings_lib.Settings, task: tasks.Task) -> Feed:
  """Returns what turns the units drawn for a round into client datasets.

  With mechanism=local its sampling is that of `build_mechanism`.
  """
  if settings.privacy_unit == 'client':
    return feeds.ClientFeed(
      task.clients,
      batch_size=_resolved(settings.client_batch_size),
      epochs=_resolved(settings.client_epochs),
    )
  if settings.privacy_unit == 'record':
    units = units_lib.record_units(task.partition)
  else:
    units = units_lib.patient_units(
      task.data.train,
      task.partition,
      max_images=_resolved(settings.max_images_per_patient),
    )
    if units.left_out:
      logging.warning(
        '%d of %d training images are left out: max_images_per_patient is %d',
        units.left_out,
        len(task.data.train),
        settings.max_images_per_patient,
      )
  if settings.mechanism == 'local':
    return feeds.LocalStepsFeed(
      task.data.train,
      units,
      num_clients=task.num_clients,
      sampling=_build_local_sampling(
        settings.for_population(task.num_clients, len(units)), len(units)
      ),
    )
  return feeds.UnitFeed(
    task.data.train,
    units,
    num_clients=task.num_clients,
    microbatch_size=_resolved(settings.microbatch_size),
  )


def build_mechanism(
  settings: settings_lib.Settings,
  population: int,
  progress: Callable[[str], None],
) -> Mechanism:
  """Returns the mechanism, its noise calibrated if an epsilon is the target.

  Args:
    settings: Resolved, with the population.
    population: How many units there are.
    progress: Called with a line after every step of the calibration.
  """
  mechanism = _build_mechanism(settings, population)
  if settings.target_epsilon is None:
    return mechanism
  return calibration.calibrate(
    mechanism,
    target_epsilon=settings.target_epsilon,
    delta=_resolved(settings.target_delta),
    rounds=settings.rounds,
    progress=progress,
  )


def _build_mechanism(
  settings: settings_lib.Settings, population: int
) -> Mechanism:
  noise_multiplier = settings.noise_multiplier or 0.0
  if settings.mechanism == 'tree':
    return tree_mechanism.TreeMechanism(
      sampling=tree_mechanism.TreeSampling(
        population,
        int(_resolved(settings.clients_per_round)),
        _resolved(settings.rounds_per_tree),
      ),
      clipping=mechanisms.FixedClipping(_resolved(settings.clip_norm)),
      noise_multiplier=noise_multiplier,
    )
  if settings.mechanism == 'distributed':
    return distributed_mechanism.DistributedMechanism(
      sampling=sampling_lib.FullParticipation(population),
      clipping=mechanisms.FixedClipping(_resolved(settings.clip_norm)),
      noise_multiplier=noise_multiplier,
    )
  if settings.mechanism == 'local':
    clip_norm = settings.clip_norm
    return local_mechanism.LocalGaussianMechanism(
      sampling=_build_local_sampling(settings, population),
      clipping=mechanisms.FixedClipping(clip_norm) if clip_norm else None,
      noise_multiplier=noise_multiplier,
      privacy_unit=settings.privacy_unit,
    )
  return mechanisms.GaussianMechanism(
    sampling=_build_sampling(settings, population),
    clipping=_build_clipping(settings),
    noise_multiplier=noise_multiplier,
    privacy_unit=settings.privacy_unit,
  )


def _build_local_sampling(
  settings: settings_lib.Settings, population: int
) -> local_mechanism.LocalPoissonSampling:
  return local_mechanism.LocalPoissonSampling(
    population,
    rate=_resolved(settings.expected_batch_size) / population,
    steps=_resolved(settings.local_steps),
  )


def _build_sampling(
  settings: settings_lib.Settings, population: int
) -> sampling_lib.Sampling:
  if settings.privacy_unit != 'client':
    return sampling_lib.PoissonSampling(
      population, _resolved(settings.expected_batch_size)
    )
  if settings.client_sampling == 'all':
    return sampling_lib.FullParticipation(population)
  cohort = _resolved(settings.clients_per_round)
  if settings.max_clients_per_round is None:
    return sampling_lib.PoissonSampling(population, cohort)
  return sampling_lib.TruncatedPoissonSampling(
    population, cohort, settings.max_clients_per_round
  )


def _build_clipping(
  settings: settings_lib.Settings,
) -> mechanisms.Clipping | None:
  if settings.clipping == 'adaptive':
    return mechanisms.AdaptiveClipping(
      clip_norm=_resolved(settings.clip_norm),
      target_unclipped_quantile=_resolved(settings.target_unclipped_quantile),
    )
  if settings.clipping == 'fixed':
    return mechanisms.FixedClipping(_resolved(settings.clip_norm))
  return None


def build_process(
  settings: settings_lib.Settings, task: tasks.Task, mechanism: Mechanism
) -> tff.learning.templates.LearningProcess:
  """Returns the learning process that the settings describe."""
  server_optimizer = learning.build_server_optimizer(
    settings.server_optimizer,
    learning_rate=_resolved(settings.server_learning_rate),
    momentum=settings.server_momentum or 0.0,
  )
  if not settings.ema_decay:
    return _build_process(settings, task, mechanism, server_optimizer)
  averaging = weight_averaging.Averaging(server_optimizer, settings.ema_decay)
  return weight_averaging.with_averaged_model(
    _build_process(settings, task, mechanism, averaging)
  )


def _build_process(
  settings: settings_lib.Settings,
  task: tasks.Task,
  mechanism: Mechanism,
  server_optimizer: tff.learning.optimizers.Optimizer,
) -> tff.learning.templates.LearningProcess:
  views = settings.augmentations
  augmentation = learning.Augmentation(views) if views else None
  if isinstance(mechanism, local_mechanism.LocalGaussianMechanism):
    return learning.build_local_dp_sgd(
      task.tff_model,
      mechanism,
      client_optimizer=tff.learning.optimizers.build_sgdm(
        _resolved(settings.client_learning_rate)
      ),
      server_optimizer=server_optimizer,
      augmentation=augmentation,
    )
  if (
    isinstance(mechanism, mechanisms.GaussianMechanism)
    and mechanism.privacy_unit != 'client'
  ):
    return learning.build_dp_sgd(
      task.tff_model,
      mechanism,
      server_optimizer=server_optimizer,
      augmentation=augmentation,
      count_broken=bool(settings.publish_broken_units),
    )
  learning_rate = _resolved(settings.client_learning_rate)
  schedule = _resolved(settings.client_learning_rate_schedule)
  scheduled = schedule != 'constant'
  return learning.build_dp_fed_avg(
    task.tff_model,
    mechanism,
    client_optimizer=functools.partial(_client_optimizer, settings)
    if scheduled
    else _client_optimizer(settings, learning_rate),
    client_learning_rate=client_training.build_schedule(
      schedule, learning_rate=learning_rate, rounds=settings.rounds
    )
    if scheduled
    else None,
    server_optimizer=server_optimizer,
    count_broken=bool(settings.publish_broken_units),
  )


def _client_optimizer(
  settings: settings_lib.Settings, learning_rate: Any
) -> tff.learning.optimizers.Optimizer:
  return client_training.with_proximal_term(
    tff.learning.optimizers.build_sgdm(learning_rate),
    settings.proximal_strength or 0.0,
  )
