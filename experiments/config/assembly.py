"""From settings to the objects of a run: task, feed, mechanism, process.

Every command that trains, or repeats a training, gets these objects from
`assemble`. A mode contributes the parts that depend on the way of training.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import pathlib
from typing import Any

from absl import logging
import dp_accounting
import tensorflow_federated as tff

from experiments.config import backbone_features
from experiments.config import client_images
from experiments.config import run_settings
from experiments.config import settings as settings_lib
from experiments.modes import base
from tff_medical import _validate
from tff_medical.data import own_images
from tff_medical.data import partition as partition_lib
from tff_medical.learning import feature_cache
from tff_medical.learning import tasks
from tff_medical.models import own
from tff_medical.privacy import accounting
from tff_medical.privacy import calibration
from tff_medical.privacy import class_counts
from tff_medical.privacy import data_ledger as data_ledger_lib
from tff_medical.privacy import events
from tff_medical.privacy import interface
from tff_medical.program import run_folder
from tff_medical.program import run_records
from tff_medical.scoring import evaluation as scoring
from tff_medical.serving import pretrained


@dataclasses.dataclass(frozen=True, eq=False)
class Assembly:
  """The objects of a run that belong together.

  Attributes:
    settings: Settings, including those that depend on the data.
    task: Images of the clients, and the model.
    feed: Feed that turns the units drawn for a round into client datasets.
    mechanism: Mechanism with calibrated noise.
    counts: Noised class counts that decide the loss, if any. A ledger charges
      them before anything that depends on them is published.
  """

  settings: settings_lib.Settings
  task: tasks.Task
  feed: base.Feed
  mechanism: interface.Mechanism
  counts: class_counts.ClassCounts | None = None

  @property
  def delta(self) -> float:
    """Delta at which every epsilon of the run is stated."""
    return self.settings.mode.target_delta or accounting.default_delta(
      self.feed.num_units
    )

  @property
  def event_before(self) -> dp_accounting.DpEvent | None:
    """Event that is paid for once before the first round, if any."""
    return self.counts.release.event() if self.counts else None

  @functools.cached_property
  def process(self) -> tff.learning.templates.LearningProcess:
    """Learning process of the run."""
    return self.settings.mode.averaged_process(self.task, self.mechanism)


def assemble(
  settings: settings_lib.Settings,
  task: tasks.Task | None = None,
  progress: Callable[[str], None] = lambda line: None,
  counts: class_counts.ClassCounts | None = None,
  noise_multiplier: float | None = None,
) -> Assembly:
  """Returns the objects of a run; its noise is calibrated to a target ε.

  Args:
    settings: Resolved settings.
    task: Task of the run; None loads it.
    progress: Function that is called with a line after every step of the
      calibration.
    counts: Noised class counts of an earlier start of the run; None draws them
      anew if the settings ask for them.
    noise_multiplier: Noise multiplier that an earlier start of the run has
      calibrated; None calibrates it.

  Raises:
    InputError: The data cannot be used, or the target is out of reach.
  """
  task = task or load_task(settings)
  feed = settings.mode.feed(task)
  settings = settings.for_data(task.num_clients, feed.num_units)
  mechanism = build_mechanism(
    settings, feed.num_units, progress, noise_multiplier
  )
  release = settings.mode.class_count_release(task.num_clients)
  if release is None:
    parts = Assembly(settings, task, feed, mechanism)
    _check_epsilon(parts)
    return parts
  if counts is None:
    counts = _draw_counts(release, settings.mode, task)
  task = dataclasses.replace(task, class_weights=counts.weights())
  parts = Assembly(settings, task, feed, mechanism, counts)
  _check_epsilon(parts)
  return parts


def _draw_counts(
  release: class_counts.ClassCountRelease, mode: Any, task: tasks.Task
) -> class_counts.ClassCounts:
  """Returns freshly noised counts of the units of each class.

  Raises:
    InputError: The task is multi-label.
  """
  data = task.data
  if data.multi_label:
    raise _validate.InputError(
      f'class_weights must not be {base.NOISED} for a multi-label task, whose '
      'records have no single class; leave them out'
    )
  exact = mode.units_of(task).class_counts(
    data.train.labels, data.num_classes, task.num_clients
  )
  if release.num_noises == 1:
    exact = exact.sum(axis=0, keepdims=True)
  return release.draw(exact)


def build_mechanism(
  settings: settings_lib.Settings,
  num_units: int,
  progress: Callable[[str], None] = lambda line: None,
  noise_multiplier: float | None = None,
) -> interface.Mechanism:
  """Returns the mechanism, its noise calibrated to a target ε.

  Args:
    settings: Settings that `Settings.for_data` returned.
    num_units: Number of units, the population of the mechanism's sampling.
    progress: Function for lines of progress, as in `assemble`.
    noise_multiplier: Noise multiplier that was calibrated before, if any.
  """
  mode = settings.mode
  # The number of sites changes the counts' noise, never their event.
  release = mode.class_count_release(num_clients=1)
  mechanism = mode.mechanism(num_units)
  if mode.target_epsilon is None:
    return mechanism
  if noise_multiplier is not None:
    return mechanism.with_noise(noise_multiplier)
  return calibration.calibrate(
    mechanism,
    target_epsilon=mode.target_epsilon,
    delta=base.known(mode.target_delta),
    rounds=mode.rounds,
    before=release.event() if release else None,
    progress=progress,
  )


def claim(
  folder: run_folder.RunFolder,
  settings: settings_lib.Settings,
  task: tasks.Task,
) -> run_records.Config:
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
    backbone_digest=task.transfer.digest if task.transfer else None,
  )


def _check_epsilon(parts: Assembly) -> None:
  """Refuses a δ that would state ε 0, and a budget of no round.

  A card may not state ε 0, as a trained model depends on its data.
  """
  mechanism, mode = parts.mechanism, parts.settings.mode
  if not mechanism.is_private:
    return

  all_rounds = accounting.epsilon(
    mechanism.charge_event(),
    rounds=mechanism.charges_for(mode.rounds),
    delta=parts.delta,
  )
  if all_rounds == 0:
    raise _validate.InputError(
      f'target_delta must be smaller for {parts.feed.num_units} units: at '
      f'{parts.delta:.3g}, {mode.rounds} rounds would state ε 0, which no '
      'trained model has; give --target_delta far below '
      f'{1 / parts.feed.num_units:.3g}'
    )
  if mode.epsilon_budget is None or mode.epsilon_budget == mode.target_epsilon:
    return  # The noise is calibrated to all rounds.
  first = events.with_before(
    mechanism.charge_event(), mechanism.charges_for(1), parts.event_before
  )
  cost = 0.0
  for tight in (False, True):  # The ledger would admit a round by either.
    cost = accounting.composed_epsilon(first, delta=parts.delta, tight=tight)
    if cost <= mode.epsilon_budget:
      return
  raise _validate.InputError(
    f'epsilon_budget {mode.epsilon_budget:.6g} has no room for a round, which '
    f'costs ε {cost:.6g} at δ {parts.delta:.3g}; raise it or the noise'
  )


def data_ledger(
  run: run_settings.RunSettings,
) -> data_ledger_lib.DataLedger | None:
  """Returns the ledger of the data set that the settings name, or None."""
  if run.data_ledger is None:
    return None
  return data_ledger_lib.DataLedger(
    pathlib.Path(run.data_ledger), run.data_budget
  )


def units(parts: Assembly) -> data_ledger_lib.Units:
  """Returns the units of a run, which all runs of a data ledger share."""
  task, mechanism = parts.task, parts.mechanism
  clients = ''
  if mechanism.privacy_unit == 'client':
    clients = partition_lib.ClientRows.of(task.partition).digest()
  return data_ledger_lib.Units(
    data_digest=task.data.source_digest,
    data_is_public=task.data.is_public,
    dataset=task.data.described,
    privacy_unit=mechanism.privacy_unit,
    neighboring_relation=mechanism.neighboring_relation.name.lower(),
    clients_digest=clients,
  )


def check_data_ledger(parts: Assembly) -> float | None:
  """Returns ε over all runs on the data with this run; None without a ledger.

  Raises:
    InputError: The data ledger has no room for the run, or is of other data, or
      the run was started with a data ledger that is not given now.
  """
  run = parts.settings.run
  ledger, folder = (
    data_ledger(run),
    run_folder.RunFolder(pathlib.Path(run.output_dir or '')),
  )
  # A dry run has no folder; the working directory may hold any config.json.
  has_begun = run.output_dir is not None and folder.config.exists()
  filed = folder.read_config() if has_begun else None
  if ledger is None:
    path = filed.settings.get('data_ledger') if filed else None
    if path is not None:
      raise _validate.InputError(
        f'data_ledger must be given, as the run was started with {path}'
      )
    return None
  return ledger.check(
    units(parts),
    parts.mechanism,
    data_ledger_lib.Request(
      filed.run_id if filed else '',
      'train',
      parts.settings.mode.rounds,
      before=parts.event_before,
    ),
    delta=parts.delta,
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
  # A wrong name is refused before the data is loaded.
  backbone_features.check(settings)
  own_metrics = _own_metrics(settings.run.own_metrics)
  initial_model = None
  if settings.model.initial_model is not None:
    initial_model = pretrained.load(settings.model.initial_model)
    if settings.mode.is_private:
      backbone_features.refuse_same_data(
        f'initial_model {initial_model.name}',
        initial_model.datasets,
        own_images.stated_name(
          data_settings.dataset, settings.own.dataset_name
        ),
      )
  data = client_images.load(data_settings, settings.own, settings.open_set)
  transfer = backbone_features.load(settings, data)
  if initial_model is not None:
    backbone_features.check_initial_model(initial_model, transfer)
  if transfer is not None and transfer.frozen is not None:
    data = feature_cache.with_features(
      data, transfer, settings.model.features_dir
    )
  return tasks.Task(
    data=data,
    partition=client_images.partition(data_settings, data),
    model=settings.model.model,
    seed=data_settings.seed,
    initial_model=initial_model,
    transfer=transfer,
    label_smoothing=settings.mode.label_smoothing,
    class_weights=settings.mode.class_weight_values,
    own_metrics=own_metrics,
  )


def _own_metrics(names: str | None) -> dict[str, scoring.OwnMetric]:
  """Returns the functions of a list `module:function,...` by their names."""
  functions: dict[str, scoring.OwnMetric] = {}
  for name in names.split(',') if names else ():
    function = own.find(name.strip(), 'own_metrics', '(probabilities, labels)')
    metric = f'own/{name.strip().rpartition(":")[2]}'
    if metric in functions:
      raise _validate.InputError(
        f'own_metrics must have functions of different names, got {names!r}; '
        'rename one of them'
      )
    functions[metric] = function
  return functions
