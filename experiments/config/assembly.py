"""From settings to the objects of a run: task, feed, mechanism, process.

Every command that trains, or repeats a training, gets these objects from
`assemble`. A mode contributes the parts that depend on the way of training.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools

from absl import logging
import tensorflow_federated as tff

from experiments.config import client_images
from experiments.config import settings as settings_lib
from experiments.modes import base
from tff_medical import _validate
from tff_medical import models
from tff_medical.data import own_images
from tff_medical.learning import tasks
from tff_medical.privacy import accounting
from tff_medical.privacy import calibration
from tff_medical.privacy import interface
from tff_medical.program import run_folder
from tff_medical.serving import pretrained


@dataclasses.dataclass(frozen=True, eq=False)
class Assembly:
  """The objects of a run that belong together.

  Attributes:
    settings: Settings, including those that depend on the data.
    task: Images of the clients, and the model.
    feed: Feed that turns the units drawn for a round into client datasets.
    mechanism: Mechanism with calibrated noise.
  """

  settings: settings_lib.Settings
  task: tasks.Task
  feed: base.Feed
  mechanism: interface.Mechanism

  @property
  def delta(self) -> float:
    """Delta at which every epsilon of the run is stated."""
    return self.settings.mode.target_delta or accounting.default_delta(
      self.feed.num_units
    )

  @functools.cached_property
  def process(self) -> tff.learning.templates.LearningProcess:
    """Learning process of the run."""
    return self.settings.mode.averaged_process(self.task, self.mechanism)


def assemble(
  settings: settings_lib.Settings,
  task: tasks.Task | None = None,
  progress: Callable[[str], None] = lambda line: None,
) -> Assembly:
  """Returns the objects of a run; its noise is calibrated to a target ε.

  Args:
    settings: Resolved settings.
    task: Task of the run; None loads it.
    progress: Function that is called with a line after every step of the
      calibration.

  Raises:
    InputError: The data cannot be used, or the target is out of reach.
  """
  task = task or load_task(settings)
  feed = settings.mode.feed(task)
  settings = settings.for_data(task.num_clients, feed.num_units)
  mechanism = build_mechanism(settings, feed.num_units, progress)
  parts = Assembly(settings, task, feed, mechanism)
  _refuse_epsilon_zero(parts)
  return parts


def build_mechanism(
  settings: settings_lib.Settings,
  num_units: int,
  progress: Callable[[str], None] = lambda line: None,
) -> interface.Mechanism:
  """Returns the mechanism, its noise calibrated to a target ε.

  Args:
    settings: Settings that `Settings.for_data` returned.
    num_units: Number of units, the population of the mechanism's sampling.
    progress: Function for lines of progress, as in `assemble`.
  """
  mode = settings.mode
  mechanism = mode.mechanism(num_units)
  if mode.target_epsilon is None:
    return mechanism
  return calibration.calibrate(
    mechanism,
    target_epsilon=mode.target_epsilon,
    delta=base.known(mode.target_delta),
    rounds=mode.rounds,
    progress=progress,
  )


def claim(
  folder: run_folder.RunFolder,
  settings: settings_lib.Settings,
  task: tasks.Task,
) -> run_folder.Config:
  """Claims a folder for the run, or checks that the run owns it.

  Args:
    folder: Folder of the run.
    settings: Settings, including those that depend on the data.
    task: Task, whose data and initial model are identified by digests.

  Raises:
    InputError: The folder belongs to another run, or cannot be made.
  """
  return folder.claim(
    settings=settings.published(),
    may_change=settings.may_change(),
    data_digest=task.data.source_digest,
    data_is_public=task.data.is_public,
    initial_model_digest=task.initial_model.digest
    if task.initial_model
    else None,
  )


def _refuse_epsilon_zero(parts: Assembly) -> None:
  """Refuses a δ at which the planned rounds would state ε 0.

  A card may not state ε 0, as a trained model depends on its data.
  """
  mechanism, rounds = parts.mechanism, parts.settings.mode.rounds
  if not mechanism.is_private:
    return
  epsilon = accounting.epsilon(
    mechanism.charge_event(),
    rounds=mechanism.charges_for(rounds),
    delta=parts.delta,
  )
  if epsilon == 0:
    raise _validate.InputError(
      f'target_delta must be smaller for {parts.feed.num_units} units: at '
      f'{parts.delta:.3g}, {rounds} rounds would state ε 0, which no trained '
      f'model has; give --target_delta far below {1 / parts.feed.num_units:.3g}'
    )


def warn_of_large_delta(delta: float, population: int) -> None:
  """Warns unless delta is below one over the population."""
  if delta >= 1 / population:
    logging.warning(
      'target_delta %.3g is not below one over the population (%.3g): a '
      'mechanism that publishes the data of a random unit would satisfy it',
      delta,
      1 / population,
    )


def load_task(settings: settings_lib.Settings) -> tasks.Task:
  """Loads the data, spreads it over clients and combines it with the model.

  Raises:
    InputError: Data, partition or initial model cannot be used.
  """
  data_settings = settings.data
  models.find(settings.model.model)  # A wrong name is refused before the data.
  initial_model = None
  if settings.model.initial_model is not None:
    initial_model = pretrained.load(settings.model.initial_model)
    if settings.mode.is_private:
      _refuse_same_data(
        initial_model,
        own_images.stated_name(
          data_settings.dataset, settings.own.dataset_name
        ),
      )
  data = client_images.load(data_settings, settings.own, settings.open_set)
  return tasks.Task(
    data=data,
    partition=client_images.partition(data_settings, data),
    model=settings.model.model,
    seed=data_settings.seed,
    initial_model=initial_model,
  )


def _refuse_same_data(initial: models.InitialModel, dataset: str) -> None:
  """Refuses to state an epsilon for data that was trained on before."""
  for earlier in initial.datasets:
    shown, hint = dataset, ''
    if own_images.may_be_same(earlier, dataset):
      shown = earlier
      hint = ' (two sets of own images need a different --dataset_name each)'
    # A card may append to the name that the file is not the official one.
    elif not f'{earlier} '.startswith(f'{dataset} '):
      continue
    raise _validate.InputError(
      f'initial_model {initial.name} was trained on {shown} as well{hint}, so '
      'the ε of this run alone would not hold; start from a model of other data, '
      'go on in the output_dir of that run, or give up privacy with clipping=none'
    )
