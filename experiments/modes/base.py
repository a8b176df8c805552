"""Base class of all modes: settings that they share, and their interface.

A mode is one way of training: a frozen dataclass of its settings. It builds the
mechanism, the feed and the learning process that belong together. It also
states its baseline without privacy and facts for an audit. A new mode is one
module and one line in `modes.MODES`.

Modes reach the library through `tff_medical`, which imports its parts at first
use. Wrong flags are therefore refused before TensorFlow is imported.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import typing
from typing import Any, ClassVar, Optional, TypeVar

from experiments.config import fields
import tff_medical as tfm
from tff_medical import InputError
from tff_medical import _validate
from tff_medical.privacy import limits

if typing.TYPE_CHECKING:
  import numpy as np
  import tensorflow as tf
  import tensorflow_federated as tff

  from tff_medical.privacy import class_counts
  from tff_medical.privacy import interface
  from tff_medical.privacy import mechanisms

# Value of class_weights for weights from a noised count.
NOISED = 'noised'
SCHEDULES = ('constant', 'linear', 'cosine')
AUGMENTATIONS = ('flip', 'rotate', 'crop', 'shift', 'brightness')

ModeT = TypeVar('ModeT', bound='Mode')
_T = TypeVar('_T')

_CLIPPED = {'clipping': ('adaptive', 'fixed')}


@dataclasses.dataclass(frozen=True)
class Mode(abc.ABC):
  """Settings that every mode has, and the interface of modes.

  `for_data` decides settings that are None, when the data is known.
  """

  # Name of the mode in --mechanism and in the ledger.
  name: ClassVar[str]
  # Privacy units that the mode can protect; the first is the default.
  units: ClassVar[tuple[str, ...]]
  # Number of clients if neither the data nor the user decides it.
  default_clients: ClassVar[int]
  # Reason why the training cannot be repeated with canaries; '' if it can.
  refuses_canaries: ClassVar[str] = ''
  # Reason why the noise of an update is not the same in every round; '' if it
  # is the same with fixed clipping.
  noise_varies: ClassVar[str] = ''
  # Whether an absent client must take part in a round without data.
  keeps_absent: ClassVar[bool] = False
  # Whether each site adds its own noise, and trusts nobody.
  sites_add_noise: ClassVar[bool] = False
  # Whether a release is the sum of clipped updates with one noise.
  has_one_noise: ClassVar[bool] = False
  # Runtimes that can run the mode.
  runtimes: ClassVar[tuple[str, ...]] = ('local', 'cluster', 'tff')

  privacy_unit: str = fields.setting(
    'client', 'unit that the guarantee protects: client, record or patient'
  )
  rounds: int = fields.setting(100, 'rounds of training', low=1, high=1_000_000)
  clipping: str = fields.setting(
    'fixed',
    'kind of clipping of contributions; none is training without privacy',
    choices=('fixed', 'none'),
  )
  clip_norm: float = fields.setting(
    1.0,
    'L2 norm to which contributions are clipped; with adaptive clipping the '
    'norm of the first round [adaptive: 0.1]',
    only_if=_CLIPPED,
    low=limits.MIN_CLIP_NORM,
    high=limits.MAX_CLIP_NORM,
  )
  noise_multiplier: Optional[float] = fields.setting(
    None,
    'standard deviation of the noise divided by the clip norm; 0 gives no '
    'guarantee',
    only_if=_CLIPPED,
    low=limits.MIN_NOISE_MULTIPLIER,
    high=limits.MAX_NOISE_MULTIPLIER,
    or_zero=True,
  )
  target_epsilon: Optional[float] = fields.setting(
    None,
    'ε of the whole training; the noise is calibrated to it',
    only_if=_CLIPPED,
    low=1e-6,
    high=1e4,
  )
  target_delta: Optional[float] = fields.setting(
    None,
    'δ of every ε [number of units ** -1.1]',
    only_if=_CLIPPED,
    low=1e-12,
    high=0.5,
  )
  epsilon_budget: Optional[float] = fields.setting(
    None,
    'largest ε; a round that would exceed it is refused [target_epsilon]',
    only_if=_CLIPPED,
    low=1e-6,
    high=1e9,
  )
  server_optimizer: str = fields.setting(
    'sgd',
    'optimizer that applies the aggregated update; adam_bc is Adam that '
    "subtracts the noise's variance from its second moment (DP-AdamBC)",
    choices=('sgd', 'adam', 'yogi', 'adam_bc'),
  )
  server_learning_rate: float = fields.setting(
    1.0, 'learning rate of the server optimizer', low=1e-10, high=1e30
  )
  server_learning_rate_schedule: str = fields.setting(
    'constant',
    "decay of the server optimizer's learning rate to 0 over the rounds",
    choices=SCHEDULES,
  )
  adam_bc_floor: float = fields.setting(
    0.5,
    "smallest second moment of adam_bc, as a fraction of the noise's variance",
    only_if={'server_optimizer': ('adam_bc',)},
    low=1e-6,
    high=1e6,
  )
  server_momentum: float = fields.setting(
    0.9,
    'momentum of the server optimizer, in [0, 1)',
    only_if={'server_optimizer': ('sgd',)},
    low=1e-6,
    high=0.9999,
    or_zero=True,
  )
  ema_decay: float = fields.setting(
    0.0,
    "decay of the moving average of the rounds' models that is exported, at no "
    'cost in privacy; 0 exports the last model',
    low=1e-6,
    high=0.99999,
    or_zero=True,
  )

  label_smoothing: float = fields.setting(
    0.0,
    'part of the uniform distribution in each label of the loss, in [0, 1)',
    low=1e-6,
    high=0.999,
    or_zero=True,
  )
  class_weights: Optional[str] = fields.setting(
    None,
    "weights of the classes in a record's loss, positive numbers with commas, "
    'which are scaled to a mean of 1; noised balances the classes by a noised '
    'count of the records or patients, which ε includes',
  )
  class_count_noise: Optional[float] = fields.setting(
    None,
    'standard deviation of the noise on each class count, in records or '
    'patients [half the square root of their number]',
    only_if={'class_weights': (NOISED,)},
    low=limits.MIN_NOISE_MULTIPLIER,
    high=limits.MAX_NOISE_MULTIPLIER,
  )
  augment: Optional[str] = fields.setting(
    None,
    'random transformations of training images, with commas, which leave ε as it '
    f'is: {", ".join(AUGMENTATIONS)}',
  )

  @property
  def augment_names(self) -> tuple[str, ...]:
    """Names of the transformations, of `AUGMENTATIONS`."""
    if self.augment is None:
      return ()
    return tuple(name.strip() for name in self.augment.split(','))

  @property
  def augments(self) -> str:
    """The setting that transforms training images, or ''."""
    return '' if self.augment is None else f'augment={self.augment}'

  @property
  def class_weight_values(self) -> tuple[float, ...] | None:
    """Weights of the classes as given; None if there are none yet.

    Raises:
      InputError: A weight is no positive number.
    """
    if self.class_weights in (None, NOISED):
      return None
    values = []
    for text in str(self.class_weights).split(','):
      try:
        value = float(text)
      except ValueError:
        value = math.nan
      if not 0 < value < math.inf:
        raise InputError(
          f'class_weights must be positive numbers, separated by commas, got '
          f'{text.strip()!r}'
        )
      values.append(value)
    return tuple(values)

  @property
  def publishes_broken_units(self) -> bool:
    """Whether each round publishes the number of units that it left out."""
    return bool(getattr(self, 'publish_broken_units', False))

  @property
  def draws_cohorts(self) -> bool:
    """Whether a seed decides which units take part in a round."""
    samplings = ('client_sampling', 'unit_sampling')
    return all(getattr(self, name, '') != 'all' for name in samplings)

  @property
  def is_private(self) -> bool:
    """Whether noise is added."""
    return bool(self.target_epsilon or self.noise_multiplier)

  @classmethod
  def read(cls: type[ModeT], given: dict[str, Any]) -> ModeT:
    """Returns the mode as the flags say.

    Args:
      given: Values of the given flags of this mode, by name.

    Raises:
      InputError: A value is not allowed, would be ignored, or is missing.
    """
    given = {**cls.defaults(given), **given}
    unit = given.setdefault('privacy_unit', cls.units[0])
    if unit not in cls.units:
      raise InputError(
        f'privacy_unit must be {" or ".join(cls.units)} with '
        f'mechanism={cls.name}, got {unit}'
      )
    if (
      given.get('clipping') == 'adaptive' and 'adaptive' not in cls.clippings()
    ):
      raise InputError(
        f'clipping must be {" or ".join(cls.clippings())} with '
        f'mechanism={cls.name}, got adaptive'
      )
    mode = fields.read(cls, given)
    mode.check()
    return mode

  @classmethod
  def clippings(cls) -> tuple[str, ...]:
    """Returns the kinds of clipping that the mode has."""
    choices: tuple[str, ...] = fields.of(cls)['clipping'].metadata['choices']
    return choices

  @classmethod
  def defaults(cls, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the defaults that depend on given flags.

    Args:
      given: Values of the given flags of this mode, by name.
    """
    clipping = given.get('clipping', fields.of(cls)['clipping'].default)
    return {'clip_norm': 0.1} if clipping == 'adaptive' else {}

  def check(self) -> None:
    """Raises `InputError` unless the settings fit together."""
    chosen = [self.target_epsilon, self.noise_multiplier]
    if self.clipping != 'none' and sum(v is not None for v in chosen) != 1:
      raise InputError(
        'exactly one of target_epsilon and noise_multiplier must be given with '
        f'clipping={self.clipping}, got target_epsilon={self.target_epsilon} '
        f'and noise_multiplier={self.noise_multiplier}; for training without '
        'privacy choose clipping=none'
      )
    for name in ('target_delta', 'epsilon_budget'):
      if getattr(self, name) is not None and not self.is_private:
        raise InputError(
          f'{name}={getattr(self, name)} would be ignored with no noise; leave '
          'it out'
        )
    if self.server_optimizer == 'adam_bc':
      self._check_adam_bc()
    _ = self.class_weight_values
    if self.class_weights == NOISED:
      self._check_noised_counts()
    for name in self.augment_names:
      _validate.one_of(AUGMENTATIONS, augment=name)
    if len(set(self.augment_names)) < len(self.augment_names):
      raise InputError(
        f'augment must name each transformation once, got {self.augment}'
      )

  def _check_noised_counts(self) -> None:
    """Refuses a noised count where it has no bound or no use."""
    remedy = 'give numbers with commas'
    if self.privacy_unit == 'client':
      raise InputError(
        f'class_weights must not be {NOISED} with privacy_unit=client: a client '
        f'changes the counts by all of its images; {remedy}'
      )
    if not self.is_private:
      raise InputError(
        f'class_weights must not be {NOISED} without privacy, where exact '
        f'weights cost nothing; {remedy}'
      )

  def _check_adam_bc(self) -> None:
    """Refuses to subtract the variance of noise that is not constant."""
    reason = self.noise_varies
    if not self.is_private:
      reason = 'there is no noise, whose variance it would subtract'
    elif self.clipping == 'adaptive':
      reason = 'the noise follows the adaptive clip norm'
    if reason:
      raise InputError(
        f'server_optimizer must not be adam_bc with mechanism={self.name} and '
        f'clipping={self.clipping}: {reason}; choose adam'
      )

  def check_clients(self, num_clients: int) -> None:
    """Raises `InputError` unless the settings fit a number of clients.

    The check is made before the data is loaded, if the number is known by then.

    Args:
      num_clients: Number of clients.
    """
    del num_clients

  def for_data(self: ModeT, num_clients: int, num_units: int) -> ModeT:
    """Returns the mode including settings that depend on the data.

    Args:
      num_clients: Number of clients.
      num_units: Number of units that the guarantee protects.

    Raises:
      InputError: A cohort is too large for the population, or `target_delta`
        has no allowed default.
    """
    if not self.is_private:
      return self
    delta = tfm.privacy.accounting.default_delta(num_units)
    largest = fields.of(type(self))['target_delta'].metadata['high']
    if self.target_delta is None and delta > largest:
      raise InputError(
        f'target_delta must be given where the population is {num_units}: its '
        f'default would be {delta:g}'
      )
    mode = self.with_default(
      target_delta=delta, epsilon_budget=self.target_epsilon
    )
    if mode.class_weights == NOISED:
      return mode.with_default(class_count_noise=num_units**0.5 / 2)
    return mode

  def class_count_release(
    self, num_clients: int
  ) -> class_counts.ClassCountRelease | None:
    """Returns the release before the first round, if the mode has one.

    Args:
      num_clients: Number of clients.
    """
    if self.class_weights != NOISED:
      return None
    return tfm.privacy.class_counts.ClassCountRelease(
      known(self.class_count_noise), num_clients if self.sites_add_noise else 1
    )

  def with_default(self: ModeT, **defaults: Any) -> ModeT:
    """Returns the mode with values for those settings that are None."""
    missing = {n: v for n, v in defaults.items() if getattr(self, n) is None}
    return dataclasses.replace(self, **missing)

  @abc.abstractmethod
  def feed(self, task: tfm.learning.tasks.Task) -> Feed:
    """Returns the feed: from units drawn for a round to client datasets."""

  @abc.abstractmethod
  def mechanism(self, num_units: int) -> interface.Mechanism:
    """Returns the mechanism before its noise is calibrated.

    Args:
      num_units: Number of units, the same as in `for_data`.
    """

  @abc.abstractmethod
  def process(
    self,
    task: tfm.learning.tasks.Task,
    mechanism: Any,
    server_optimizer: tff.learning.optimizers.Optimizer,
  ) -> tff.learning.templates.LearningProcess:
    """Returns the learning process.

    Args:
      task: Data and model.
      mechanism: Result of `mechanism`, with calibrated noise.
      server_optimizer: Optimizer that applies the aggregated update.
    """

  def averaged_process(
    self, task: tfm.learning.tasks.Task, mechanism: Any
  ) -> tff.learning.templates.LearningProcess:
    """Returns the process, with the moving average of models if it is set."""
    optimizer = tfm.learning.build_server_optimizer(
      self.server_optimizer,
      learning_rate=self.server_learning_rate,
      momentum=self.server_momentum if self.server_optimizer == 'sgd' else 0.0,
      noise_stddev=mechanism.mean_stddev
      if self.server_optimizer == 'adam_bc'
      else None,
      noise_floor=self.adam_bc_floor,
      schedule=tfm.learning.schedules.build_schedule(
        self.server_learning_rate_schedule,
        learning_rate=self.server_learning_rate,
        rounds=self.rounds,
      )
      if self.server_learning_rate_schedule != 'constant'
      else None,
    )
    if not self.ema_decay:
      return self.process(task, mechanism, optimizer)
    averaging = tfm.learning.weight_averaging.Averaging(
      optimizer, self.ema_decay
    )
    return tfm.learning.weight_averaging.with_averaged_model(
      self.process(task, mechanism, averaging)
    )

  @classmethod
  def baseline(cls) -> dict[str, Any]:
    """Returns the flags of the mode's baseline without privacy."""
    return {'clipping': 'none'}

  def with_canaries(self: ModeT, scale: float, present: float) -> ModeT:
    """Returns the mode with the same sampling rate for more units.

    Args:
      scale: Number of units with canaries, over the number without.
      present: Number of units that take part, including canaries, over the
        number without canaries.
    """
    del scale, present
    return self


class Feed(typing.Protocol):
  """Function that returns the datasets of a round; see `program.feeds`."""

  @property
  def num_units(self) -> int:
    """Population of the mechanism's sampling."""

  def without_data(self) -> list[tf.data.Dataset]:
    """Returns the datasets of a round without data."""

  def __call__(self, indices: np.ndarray, /) -> list[tf.data.Dataset]:
    """Returns the datasets of the units at `indices`."""


def known(value: _T | None) -> _T:
  """Returns a setting that `for_data` has decided."""
  if value is None:
    raise ValueError('the mode must be resolved by for_data first')
  return value


def check_below(name: str, value: float, num_clients: int) -> None:
  """Raises `InputError` unless a cohort is below the number of clients.

  Args:
    name: Name of the setting of the cohort.
    value: Expected cohort size.
    num_clients: Number of clients.
  """
  if value >= num_clients:
    raise InputError(
      f'{name} must be below the {num_clients} clients, got {value:g}; lower '
      'it or choose client_sampling=all'
    )


def fixed_clipping(mode: Mode) -> mechanisms.FixedClipping | None:
  """Returns the fixed clipping of a mode; None without clipping."""
  if mode.clipping == 'none':
    return None
  return tfm.privacy.mechanisms.FixedClipping(mode.clip_norm)
