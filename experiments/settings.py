"""The settings of a training run: one frozen object, validated and complete.

Every field is a flag of the same name (see `experiments.flags`). A field that
only some modes use is None until `resolve` gives it that mode's default; set in
a mode that would ignore it, it is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any, Optional

from tff_medical import _validate
from tff_medical.data import partition as partition_lib

SAMPLINGS = ('poisson', 'all')
CLIPPINGS = ('adaptive', 'fixed', 'none')
PRIVACY_UNITS = ('client',)
RUNTIMES = ('local', 'tff')


def _field(default: Any, help_text: str, choices: tuple[str, ...] = ()) -> Any:
  return dataclasses.field(
      default=default, metadata={'help': help_text, 'choices': choices}
  )


@dataclasses.dataclass(frozen=True)
class Settings:
  """What `experiments.train` needs to know. See each field's help."""

  dataset: str = _field(
      'synthetic', 'synthetic, or medmnist/NAME for a MedMNIST v2 set'
  )
  data_dir: Optional[str] = _field(
      None, 'folder with NAME.npz; without it MedMNIST sets are downloaded'
  )
  image_size: int = _field(28, 'pixels a side: 28, 64, 128 or 224')
  model: str = _field('cnn_small', 'model name, see tff_medical.models')
  partition: str = _field(
      'iid', 'how images go to clients', partition_lib.KINDS
  )
  dirichlet_alpha: Optional[float] = _field(
      None, 'skew, less is more [0.5; --partition=dirichlet, quantity_skew]'
  )
  num_clients: Optional[int] = _field(
      None, 'the population [300; --partition=natural_... takes it from the data]'
  )
  clients_per_round: Optional[float] = _field(
      None, 'expected cohort [num_clients / 10; --client_sampling=poisson]'
  )
  client_sampling: str = _field(
      'poisson',
      'each client joins each round on its own, or all in every round',
      SAMPLINGS,
  )
  rounds: int = _field(100, 'rounds of training')
  rounds_per_eval: int = _field(10, 'rounds between evaluations')
  client_epochs: int = _field(1, "passes over a client's images a round")
  client_batch_size: int = _field(16, 'images a step on a client')
  client_learning_rate: float = _field(0.1, 'SGD step on a client')
  server_optimizer: str = _field(
      'sgd', 'applies the aggregated update: sgd, adam or yogi'
  )
  server_learning_rate: float = _field(1.0, "the server optimizer's step")
  server_momentum: Optional[float] = _field(
      None, 'in [0, 1) [0.9; --server_optimizer=sgd]'
  )
  clipping: str = _field(
      'adaptive', 'of client updates; none is plain FedAvg', CLIPPINGS
  )
  clip_norm: Optional[float] = _field(
      None, 'L2 norm, the first one if adaptive [adaptive 0.1, fixed 1.0]'
  )
  target_unclipped_quantile: Optional[float] = _field(
      None, 'fraction of updates not clipped [0.5; --clipping=adaptive]'
  )
  noise_multiplier: Optional[float] = _field(
      None, 'noise over sensitivity; 0 is no noise, no guarantee'
  )
  target_epsilon: Optional[float] = _field(
      None, 'calibrates the noise so that all rounds cost no more'
  )
  target_delta: Optional[float] = _field(
      None, 'the δ of every ε [num_clients ** -1.1]'
  )
  epsilon_budget: Optional[float] = _field(
      None, 'a round that would exceed it is refused [target_epsilon]'
  )
  privacy_unit: str = _field(
      'client', 'whom the guarantee protects', PRIVACY_UNITS
  )
  seed: int = _field(
      0, 'of data, partition and initial weights; never of the noise'
  )
  cohort_seed: Optional[int] = _field(
      None, 'of the cohorts [secret, from the operating system]'
  )
  runtime: str = _field(
      'local', "this project's TFF runtime or TFF's own", RUNTIMES
  )
  output_dir: Optional[str] = _field(None, 'folder of the results')

  @property
  def is_private(self) -> bool:
    """Whether noise is added."""
    return bool(self.target_epsilon or self.noise_multiplier)

  def resolve(self) -> Settings:
    """Returns these settings with every default in place.

    Raises:
      InputError: A value is out of range, missing, or would be ignored.
    """
    _check_values(self)
    _refuse_ignored(self)
    values: dict[str, Any] = {}
    if self.partition in partition_lib.COUNTED_KINDS:
      values['num_clients'] = _or(self.num_clients, 300)
    if self.partition in partition_lib.ALPHA_KINDS:
      values['dirichlet_alpha'] = _or(self.dirichlet_alpha, 0.5)
    if self.server_optimizer == 'sgd':
      values['server_momentum'] = _or(self.server_momentum, 0.9)
    if self.clipping != 'none':
      default = {'adaptive': 0.1, 'fixed': 1.0}[self.clipping]
      values['clip_norm'] = _or(self.clip_norm, default)
    if self.clipping == 'adaptive':
      quantile = _or(self.target_unclipped_quantile, 0.5)
      values['target_unclipped_quantile'] = quantile
    if self.epsilon_budget is None:
      values['epsilon_budget'] = self.target_epsilon
    return dataclasses.replace(self, **values)

  def for_population(self, num_clients: int) -> Settings:
    """Returns resolved settings with what depends on the number of clients."""
    values: dict[str, Any] = {'num_clients': num_clients}
    if self.client_sampling == 'poisson':
      values['clients_per_round'] = _or(self.clients_per_round, num_clients / 10)
      if values['clients_per_round'] >= num_clients:
        raise _validate.InputError(
            f'clients_per_round must be below the {num_clients} clients, got '
            f'{values["clients_per_round"]:g}; lower it or choose '
            'client_sampling=all'
        )
    if self.is_private and self.target_delta is None:
      values['target_delta'] = num_clients**-1.1
    return dataclasses.replace(self, **values)


def _or(value: Any, default: Any) -> Any:
  return default if value is None else value


def _check_values(settings: Settings) -> None:
  for field in dataclasses.fields(settings):
    value = getattr(settings, field.name)
    if field.metadata['choices']:
      _validate.one_of(field.metadata['choices'], **{field.name: value})
  if settings.output_dir is None:
    raise _validate.InputError('output_dir must be given: --output_dir=FOLDER')
  _validate.positive_int(
      rounds=settings.rounds,
      rounds_per_eval=settings.rounds_per_eval,
      client_epochs=settings.client_epochs,
      client_batch_size=settings.client_batch_size,
      image_size=settings.image_size,
  )
  _validate.positive(client_learning_rate=settings.client_learning_rate)
  for name in ('dirichlet_alpha', 'target_epsilon', 'epsilon_budget'):
    if getattr(settings, name) is not None:
      _validate.positive(**{name: getattr(settings, name)})
  if settings.num_clients is not None:
    _validate.positive_int(num_clients=settings.num_clients)
  if settings.target_delta is not None:
    _validate.in_range(0, 1, target_delta=settings.target_delta)


def _refuse_ignored(settings: Settings) -> None:
  """Raises `InputError` for a value that the chosen modes have no use for."""
  ignored: Mapping[str, tuple[bool, str]] = {
      'dirichlet_alpha': (
          settings.partition not in partition_lib.ALPHA_KINDS,
          f'partition={settings.partition}',
      ),
      'num_clients': (
          settings.partition not in partition_lib.COUNTED_KINDS,
          f'partition={settings.partition}',
      ),
      'clients_per_round': (
          settings.client_sampling == 'all',
          'client_sampling=all',
      ),
      'cohort_seed': (settings.client_sampling == 'all', 'client_sampling=all'),
      'server_momentum': (
          settings.server_optimizer != 'sgd',
          f'server_optimizer={settings.server_optimizer}',
      ),
      'target_unclipped_quantile': (
          settings.clipping != 'adaptive',
          f'clipping={settings.clipping}',
      ),
      **{
          name: (settings.clipping == 'none', 'clipping=none')
          for name in ('clip_norm', 'noise_multiplier', 'target_epsilon')
      },
      **{
          name: (not settings.is_private, 'no noise')
          for name in ('target_delta', 'epsilon_budget')
      },
      'data_dir': (settings.dataset == 'synthetic', 'dataset=synthetic'),
  }
  for name, (is_ignored, mode) in ignored.items():
    value = getattr(settings, name)
    if is_ignored and value is not None:
      raise _validate.InputError(
          f'{name}={value} would be ignored with {mode}; leave it out'
      )
  if settings.clipping == 'none':
    return
  given = [settings.target_epsilon, settings.noise_multiplier]
  if sum(value is not None for value in given) != 1:
    raise _validate.InputError(
        'exactly one of target_epsilon and noise_multiplier must be given with '
        f'clipping={settings.clipping}, got target_epsilon='
        f'{settings.target_epsilon} and noise_multiplier='
        f'{settings.noise_multiplier}; for training without privacy choose '
        'clipping=none'
    )
