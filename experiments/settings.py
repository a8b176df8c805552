"""The settings of a training run: one frozen object, validated and complete.

Every field is a flag of the same name (see `experiments.flags`). A field that
only some modes use says so in `used_with`: it is None until `resolve` gives it
its default, and set in a mode that would ignore it, it is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math
import os
from typing import Any, Optional

from tff_medical import _validate
from tff_medical.data import partition as partition_lib
from tff_medical.privacy import accounting
from tff_medical.privacy import limits
from tff_medical.privacy import mechanisms

# What `experiments.references` has use for.
REFERENCE_SETTINGS = (
  'dataset',
  'data_dir',
  'image_size',
  'model',
  'initial_model',
  'partition',
  'dirichlet_alpha',
  'num_clients',
  'seed',
  'output_dir',
)
# They change where or how fast the same computation runs, never what it is.
MAY_CHANGE = (
  'output_dir',
  'data_dir',
  'initial_model',  # Its digest must not.
  'rounds_per_eval',
  'runtime',
  'client_threads',
  'client_devices',
  'clients_per_device',
  'microbatch_size',
  'export_diverged',
)
MECHANISMS = ('gaussian', 'tree', 'distributed', 'local')
# What each mechanism can protect.
_UNITS = {
  'gaussian': ('client', 'record', 'patient'),
  'tree': ('client',),
  'distributed': ('client',),
  'local': ('record', 'patient'),
}
SAMPLINGS = ('poisson', 'all')
SCHEDULES = ('constant', 'linear', 'cosine')
CLIPPINGS = ('adaptive', 'fixed', 'none')
RUNTIMES = ('local', 'tff')

_CLIENT = {'privacy_unit': ('client',)}
_UNIT = {'privacy_unit': ('record', 'patient')}
_CLIPPED = {'clipping': ('adaptive', 'fixed')}

_COUNT = (1, 1_000_000)
_LEARNING_RATE = (1e-10, 1e6)
# What grows as a product of two flags has a limit of its own.
_MAX_CHARGES = 1_000_000  # The accountant's time.
_MAX_PASSES = 1_000_000  # Over clients' images, in one round.
_MAX_DRAWS = 100_000_000  # Random numbers of a round, in memory at once.
_MAX_IMAGES_AT_ONCE = 1_000_000
_PATHS = ('data_dir', 'initial_model', 'output_dir')


def _field(
  default: Any,
  help_text: str,
  choices: tuple[str, ...] = (),
  used_with: Mapping[str, tuple[Any, ...]] | None = None,
  then: Any = None,
  bounds: tuple[float, float] | None = None,
  zero: bool = False,
) -> Any:
  """Returns a field of `Settings`.

  Args:
    default: The value if the flag is not given.
    help_text: For --help.
    choices: The allowed values, or () for any.
    used_with: Fields and the values of them that make use of this one.
    then: The default where it is used, or a function that gives it for the
      settings whose earlier fields are resolved.
    bounds: The lowest and the highest value; every number has them. They keep
      what is computed within float32, int32, memory and hours, and are wide
      enough for whatever trains a model.
    zero: Whether 0 is allowed, too.
  """
  return dataclasses.field(
    default=default,
    metadata={
      'help': help_text,
      'choices': choices,
      'used_with': used_with or {},
      'then': then,
      'bounds': bounds,
      'zero': zero,
    },
  )


@dataclasses.dataclass(frozen=True)
class Settings:
  """What `experiments.train` needs to know. See each field's help."""

  dataset: str = _field(
    'synthetic',
    'synthetic (grey), synthetic_rgb, or medmnist/NAME for a MedMNIST v2 set',
  )
  data_dir: Optional[str] = _field(
    None, 'folder with NAME.npz; without it MedMNIST sets are downloaded'
  )
  image_size: int = _field(
    28,
    'pixels a side: 28, 64, 128 or 224',
    bounds=(8, 512),
  )
  model: str = _field('cnn_small', 'model name, see tff_medical.models')
  initial_model: Optional[str] = _field(
    None,
    'saved_model folder of an earlier run, public or paid for, whose weights '
    'training starts from',
  )
  partition: str = _field(
    'iid', 'how images go to clients', partition_lib.KINDS
  )
  dirichlet_alpha: Optional[float] = _field(
    None,
    'skew, less is more [0.5; --partition=dirichlet, quantity_skew]',
    used_with={'partition': partition_lib.ALPHA_KINDS},
    then=0.5,
    bounds=(1e-6, 1e6),
  )
  num_clients: Optional[int] = _field(
    None,
    'how many clients [300, or 8 sites if --privacy_unit=record, patient; '
    '--partition=natural_... takes it from the data]',
    used_with={'partition': partition_lib.COUNTED_KINDS},
    bounds=_COUNT,
  )
  privacy_unit: str = _field(
    'client',
    'whom the guarantee protects; client: DP-FedAvg, else DP-SGD over all '
    'clients',
    mechanisms.PRIVACY_UNITS,
  )
  mechanism: str = _field(
    'gaussian',
    'gaussian: the server adds the noise; tree: DP-FTRL, needs no secret '
    'sampling; distributed: clients add the noise, secure summation; local: '
    'sites add the noise, for records or patients',
    MECHANISMS,
  )
  rounds: int = _field(
    100,
    'rounds of training',
    bounds=_COUNT,
  )
  rounds_per_eval: int = _field(
    10,
    'rounds between evaluations',
    bounds=_COUNT,
  )
  client_sampling: Optional[str] = _field(
    None,
    'each client joins each round on its own, or all in every round [poisson; '
    '--mechanism=gaussian]',
    SAMPLINGS,
    used_with={**_CLIENT, 'mechanism': ('gaussian',)},
    then='poisson',
  )
  clients_per_round: Optional[float] = _field(
    None,
    'cohort, expected if Poisson [num_clients / 10; --client_sampling=poisson, '
    '--mechanism=tree]',
    used_with={'draws_cohorts': (True,)},
    bounds=(1e-3, 1e6),
  )
  max_clients_per_round: Optional[int] = _field(
    None,
    'cap on the cohort [no cap; --client_sampling=poisson]',
    used_with={'client_sampling': ('poisson',)},
    bounds=_COUNT,
  )
  rounds_per_tree: Optional[int] = _field(
    None,
    'each client joins a tree at most once [as many as the clients suffice for; '
    '--mechanism=tree]',
    used_with={'mechanism': ('tree',)},
    bounds=_COUNT,
  )
  client_epochs: Optional[int] = _field(
    None,
    "passes over a client's images a round [1; --privacy_unit=client]",
    used_with=_CLIENT,
    then=1,
    bounds=(1, 10_000),
  )
  client_batch_size: Optional[int] = _field(
    None,
    'images a step on a client [16; --privacy_unit=client]',
    used_with=_CLIENT,
    then=16,
    bounds=_COUNT,
  )
  client_learning_rate: Optional[float] = _field(
    None,
    'SGD step on a client [0.1; --privacy_unit=client, --mechanism=local]',
    used_with={'trains_on_clients': (True,)},
    then=0.1,
    bounds=_LEARNING_RATE,
  )
  client_learning_rate_schedule: Optional[str] = _field(
    None,
    'over the rounds, to 0 but for constant [constant; --privacy_unit=client]',
    SCHEDULES,
    used_with=_CLIENT,
    then='constant',
  )
  proximal_strength: Optional[float] = _field(
    None,
    "FedProx's mu: holds clients near the global model [0; "
    '--privacy_unit=client]',
    used_with=_CLIENT,
    then=0.0,
    bounds=(1e-10, 1e6),
    zero=True,
  )
  expected_batch_size: Optional[float] = _field(
    None,
    'records or patients expected in a step, over all clients [a twentieth '
    'of them; --privacy_unit=record, patient]',
    used_with=_UNIT,
    bounds=(1e-3, 1e6),
  )
  local_steps: Optional[int] = _field(
    None,
    'steps of a client in a round, each charged [5; --mechanism=local]',
    used_with={'mechanism': ('local',)},
    then=5,
    bounds=(1, 1_000),
  )
  microbatch_size: Optional[int] = _field(
    None,
    'records or patients whose gradients are held at once, bounds memory [32; '
    '--privacy_unit=record, patient]',
    used_with={**_UNIT, 'mechanism': ('gaussian',)},
    then=32,
    bounds=(1, 65_536),
  )
  augmentations: Optional[int] = _field(
    None,
    'shifted views of each image whose gradients are averaged before clipping, '
    '0 is none [0; --privacy_unit=record, patient]',
    used_with=_UNIT,
    then=0,
    bounds=(0, 1_000),
  )
  max_images_per_patient: Optional[int] = _field(
    None,
    'the rest is left out [4; --privacy_unit=patient]',
    used_with={'privacy_unit': ('patient',)},
    then=4,
    bounds=(1, 10_000),
  )
  server_optimizer: str = _field(
    'sgd', 'applies the aggregated update: sgd, adam or yogi'
  )
  server_learning_rate: Optional[float] = _field(
    None,
    "the server optimizer's step [1.0; 0.5 if --privacy_unit=record, patient]",
    used_with={'privacy_unit': mechanisms.PRIVACY_UNITS},
    then=lambda s: 1.0 if s.trains_on_clients else 0.5,
    bounds=(1e-10, 1e30),  # A run that diverges says so.
  )
  server_momentum: Optional[float] = _field(
    None,
    'in [0, 1) [0.9; --server_optimizer=sgd]',
    used_with={'server_optimizer': ('sgd',)},
    then=0.9,
    bounds=(1e-6, 0.9999),
    zero=True,
  )
  ema_decay: float = _field(
    0.0,
    "exports the moving average of the rounds' models, at no cost in privacy; "
    'below 1, 0 is the last model',
    bounds=(1e-6, 0.99999),
    zero=True,
  )
  clipping: Optional[str] = _field(
    None,
    'of what a unit contributes; none is no privacy [adaptive with clients and '
    '--mechanism=gaussian, else fixed]',
    CLIPPINGS,
    then=lambda s: 'adaptive' if s.client_sampling else 'fixed',
  )
  clip_norm: Optional[float] = _field(
    None,
    'L2 norm, the first one if adaptive [adaptive 0.1, fixed 1.0]',
    used_with=_CLIPPED,
    then=lambda s: {'adaptive': 0.1, 'fixed': 1.0}[s.clipping],
    bounds=(limits.MIN_CLIP_NORM, limits.MAX_CLIP_NORM),
  )
  target_unclipped_quantile: Optional[float] = _field(
    None,
    'fraction not clipped [0.5; --clipping=adaptive]',
    used_with={'clipping': ('adaptive',)},
    then=0.5,
    bounds=(1e-3, 0.999),
  )
  noise_multiplier: Optional[float] = _field(
    None,
    'noise over sensitivity; 0 is no noise, no guarantee',
    used_with=_CLIPPED,
    bounds=(limits.MIN_NOISE_MULTIPLIER, limits.MAX_NOISE_MULTIPLIER),
    zero=True,
  )
  target_epsilon: Optional[float] = _field(
    None,
    'calibrates the noise so that all rounds cost no more',
    used_with=_CLIPPED,
    bounds=(1e-6, 1e4),
  )
  target_delta: Optional[float] = _field(
    None,
    'the δ of every ε [number of units ** -1.1]',
    used_with={'is_private': (True,)},
    bounds=(1e-12, 0.5),
  )
  epsilon_budget: Optional[float] = _field(
    None,
    'a round that would exceed it is refused [target_epsilon]',
    used_with={'is_private': (True,)},
    bounds=(1e-6, 1e9),
  )
  seed: int = _field(
    0,
    'of data, partition and initial weights; never of the noise',
    bounds=(0, 2**31 - 1),
  )
  cohort_seed: Optional[int] = _field(
    None,
    'of who joins each round [secret, from the operating system]',
    bounds=(0, 2**128 - 1),
  )
  runtime: str = _field(
    'local', "this project's TFF runtime or TFF's own", RUNTIMES
  )
  client_threads: Optional[int] = _field(
    None,
    'clients that train at once on the CPU [one for each core; '
    '--runtime=local]',
    used_with={'runtime': ('local',)},
    bounds=(1, 256),
  )
  client_devices: Optional[str] = _field(
    None,
    'devices that train clients, as GPU:0,GPU:1 [all GPUs, or else the CPU; '
    '--runtime=local]',
    used_with={'runtime': ('local',)},
  )
  clients_per_device: Optional[int] = _field(
    None,
    'clients that train at once on each device [1; --runtime=local]',
    used_with={'runtime': ('local',)},
    bounds=(1, 64),
  )
  publish_broken_units: Optional[bool] = _field(
    None,
    'adds to metrics.csv how many clients, records or patients a round left out '
    'as broken; no noise, so ε does not cover it [no; --mechanism=gaussian, '
    'tree]',
    # With secure sums nobody sees more than sums; with local noise nothing is
    # left out that was not noised before.
    used_with={'mechanism': ('gaussian', 'tree')},
    then=False,
  )
  export_diverged: bool = _field(
    False, 'exports a model that has diverged, too: it is of no use'
  )
  output_dir: Optional[str] = _field(None, 'folder of the results')

  @property
  def draws_cohorts(self) -> bool:
    """Whether a round has some of the clients, by `clients_per_round`."""
    return self.client_sampling == 'poisson' or self.mechanism == 'tree'

  @property
  def trains_on_clients(self) -> bool:
    """Whether clients take steps, rather than sum gradients."""
    return self.privacy_unit == 'client' or self.mechanism == 'local'

  @property
  def is_private(self) -> bool:
    """Whether noise is added."""
    return bool(self.target_epsilon or self.noise_multiplier)

  def resolve(self) -> Settings:
    """Returns these settings with every default in place.

    Those that depend on the data come with `for_population`.

    Raises:
      InputError: A value is out of range, missing, or would be ignored.
    """
    settings = self
    for field in dataclasses.fields(self):
      settings = _resolve_field(settings, field)
    if settings.partition in partition_lib.COUNTED_KINDS:
      settings = _with_default(
        settings, 'num_clients', settings.num_clients_or_default()
      )
    settings = _with_default(
      settings, 'epsilon_budget', settings.target_epsilon
    )
    for name in _PATHS:
      if getattr(settings, name) is not None:
        expanded: Any = {name: local_path(**{name: getattr(settings, name)})}
        settings = dataclasses.replace(settings, **expanded)
    _check_values(settings)
    _check_mechanism(settings)
    _check_noise(settings)
    return settings

  def without_ignored(self) -> Settings:
    """Returns these settings without what `resolve` would refuse as ignored."""
    kept = resolved = self
    for field in dataclasses.fields(self):
      if _why_ignored(resolved, field.name):
        default: Any = {field.name: field.default}
        kept = dataclasses.replace(kept, **default)
        resolved = dataclasses.replace(resolved, **default)
      resolved = _resolve_field(resolved, field)
    return kept

  def for_reference(self) -> Settings:
    """Returns what training without federation and privacy has use for."""
    kept = {name: getattr(self, name) for name in REFERENCE_SETTINGS}
    if self.partition in partition_lib.COUNTED_KINDS:
      kept['num_clients'] = self.num_clients_or_default()
    return dataclasses.replace(Settings(clipping='none'), **kept)

  def num_clients_or_default(self) -> int:
    """Returns how many clients there are where data do not decide it."""
    if self.num_clients is not None:
      return self.num_clients
    return 300 if self.privacy_unit == 'client' else 8

  def published(self) -> dict[str, Any]:
    """Returns the settings as published: without the seed of the cohorts."""
    values = dataclasses.asdict(self)
    if self.cohort_seed is not None:
      values['cohort_seed'] = 'given; see checkpoints/cohort_seed.secret'
    return values

  def may_change(self) -> frozenset[str]:
    """Returns the settings that may differ when a run of these goes on."""
    constant = self.client_learning_rate_schedule in (None, 'constant')
    if self.target_epsilon is None and constant:
      # Nothing was chosen for the number of rounds.
      return frozenset((*MAY_CHANGE, 'rounds'))
    return frozenset(MAY_CHANGE)

  def for_population(self, num_clients: int, num_units: int) -> Settings:
    """Returns resolved settings with what depends on the data.

    Args:
      num_clients: How many clients there are.
      num_units: How many units the guarantee protects; as many, if each is a
        client.
    """
    settings = dataclasses.replace(self, num_clients=num_clients)
    if settings.draws_cohorts:
      cohort = num_clients / 10
      if settings.mechanism == 'tree':
        cohort = max(1, num_clients // 10)
      settings = _with_default(settings, 'clients_per_round', cohort)
      _check_below(settings, 'clients_per_round', num_clients, 'clients')
      cap, expected = settings.max_clients_per_round, settings.clients_per_round
      if cap is not None and expected is not None and cap < expected:
        raise _validate.InputError(
          'max_clients_per_round must be at least clients_per_round '
          f'({expected:g}), got {cap}'
        )
    if settings.mechanism == 'tree':
      enough = int(num_clients // (settings.clients_per_round or 1))
      settings = _with_default(
        settings, 'rounds_per_tree', min(settings.rounds, enough)
      )
    if settings.privacy_unit != 'client':
      settings = _with_default(settings, 'expected_batch_size', num_units / 20)
      what = f'{settings.privacy_unit}s'
      _check_below(settings, 'expected_batch_size', num_units, what)
    if settings.is_private:
      delta = accounting.default_delta(num_units)
      settings = _with_default(settings, 'target_delta', delta)
      if settings.target_delta == delta > bounds('target_delta')[1]:
        raise _validate.InputError(
          f'target_delta must be given where the population is {num_units}: its '
          f'default would be {delta:g}'
        )
    draws = (settings.local_steps or 1) * num_units
    if draws > _MAX_DRAWS:
      raise _validate.InputError(
        f'local_steps ({settings.local_steps}) x {num_units} '
        f'{settings.privacy_unit}s must be at most {_MAX_DRAWS:,} draws a '
        'round; lower local_steps'
      )
    return settings


_FIELDS = {field.name: field for field in dataclasses.fields(Settings)}


def _with_default(settings: Settings, name: str, value: Any) -> Settings:
  if getattr(settings, name) is not None:
    return settings
  return dataclasses.replace(settings, **{name: value})


def _resolve_field(
  settings: Settings, field: dataclasses.Field[Any]
) -> Settings:
  """Refuses the field where it would be ignored; else gives its default."""
  reason = _why_ignored(settings, field.name)
  if reason:
    value = getattr(settings, field.name)
    if value is None:
      return settings
    raise _validate.InputError(
      f'{field.name}={value} would be ignored with {reason}; leave it out'
    )
  then = field.metadata['then']
  if callable(then):
    then = then(settings)
  settings = _with_default(settings, field.name, then)
  if field.metadata['choices']:
    value = getattr(settings, field.name)
    _validate.one_of(field.metadata['choices'], **{field.name: value})
  return settings


def _why_ignored(settings: Settings, name: str) -> str:
  """Returns the mode that has no use for a field, or ''."""
  for other, allowed in _FIELDS[name].metadata['used_with'].items():
    mode = getattr(settings, other)
    if mode in allowed:
      continue
    if other == 'is_private':
      return 'no noise'
    if other == 'trains_on_clients':
      other = 'privacy_unit'
    if other == 'draws_cohorts':
      other = 'client_sampling'
    mode = getattr(settings, other)
    return (mode is None and _why_ignored(settings, other)) or f'{other}={mode}'
  return ''


def bounds(name: str) -> tuple[float, float]:
  """Returns the lowest and the highest value of a numeric setting."""
  low, high = _FIELDS[name].metadata['bounds']
  return low, high


def check_bounds(**named: Any) -> None:
  """Raises `InputError` unless values lie in the bounds of their settings.

  Args:
    **named: Values by the names of numeric settings; None is no value.
  """
  for name, value in named.items():
    metadata = _FIELDS[name].metadata
    if value is None or (metadata['zero'] and value == 0):
      continue
    low, high = bounds(name)
    if isinstance(low, int) and isinstance(high, int):
      _validate.whole(**{name: value})
    if low >= 0:
      positive = low > 0 and not metadata['zero']
      check = _validate.positive if positive else _validate.non_negative
      check(**{name: value})
    _validate.within(low, high, **{name: value})


def local_path(**named: str) -> str:
  """Returns a path with `~` expanded, of one flag.

  Raises:
    InputError: It is blank, of a home that is unknown, or no local path.
  """
  [(name, path)] = named.items()
  _validate.text(**{name: path})
  if '://' in path:
    raise _validate.InputError(
      f'{name} must be a folder of this machine, got {path!r}; copy or mount it'
    )
  expanded = os.path.expanduser(path)
  if expanded.startswith('~'):
    raise _validate.InputError(
      f'{name} names a home folder that is not there, got {path!r}; write the '
      'path in full, or ./ before it if it does begin with ~'
    )
  return expanded


def _check_values(settings: Settings) -> None:
  if settings.output_dir is None:
    raise _validate.InputError('output_dir must be given: --output_dir=FOLDER')
  for field in dataclasses.fields(settings):
    value = getattr(settings, field.name)
    if field.metadata['bounds']:
      check_bounds(**{field.name: value})
    elif isinstance(value, str):
      _validate.text(**{field.name: value})
  _check_products(settings)


def _check_products(settings: Settings) -> None:
  """Refuses numbers that are each in order, but too large together."""
  steps = settings.local_steps or 1
  _check_product(
    _MAX_CHARGES, 'charges', rounds=settings.rounds, local_steps=steps
  )
  _check_product(
    _MAX_PASSES,
    'passes over clients a round',
    client_epochs=settings.client_epochs or 1,
    clients_per_round=settings.clients_per_round or settings.num_clients or 1,
  )
  _check_product(
    _MAX_IMAGES_AT_ONCE,
    'images in memory at once',
    local_steps=steps,
    expected_batch_size=settings.expected_batch_size or 1,
  )
  _check_product(
    _MAX_IMAGES_AT_ONCE,
    'images in memory at once',
    microbatch_size=settings.microbatch_size or 1,
    max_images_per_patient=settings.max_images_per_patient or 1,
    augmentations=settings.augmentations or 1,
  )


def _check_product(limit: int, what: str, **factors: float) -> None:
  if math.prod(factors.values()) > limit:
    product = ' x '.join(f'{k} ({v:g})' for k, v in factors.items() if v != 1)
    raise _validate.InputError(
      f'{product} must be at most {limit:,} {what}; lower one of them'
    )


def _check_mechanism(settings: Settings) -> None:
  mechanism = settings.mechanism
  units = _UNITS[mechanism]
  if settings.privacy_unit not in units:
    raise _validate.InputError(
      f'privacy_unit must be {" or ".join(units)} with mechanism={mechanism}, '
      f'got {settings.privacy_unit}'
    )
  if mechanism == 'gaussian':
    return
  allowed = ('fixed', 'none') if mechanism == 'local' else ('fixed',)
  if settings.clipping not in allowed:
    raise _validate.InputError(
      f'clipping must be {" or ".join(allowed)} with mechanism={mechanism}, '
      f'got {settings.clipping}'
    )
  if mechanism == 'distributed' and settings.runtime != 'local':
    raise _validate.InputError(
      'runtime must be local with mechanism=distributed, got '
      f"{settings.runtime}: TFF's own runtime has no secure sums"
    )
  cohort = settings.clients_per_round
  if mechanism == 'tree' and cohort is not None and cohort != int(cohort):
    raise _validate.InputError(
      'clients_per_round must be a whole number with mechanism=tree, got '
      f'{cohort:g}'
    )


def _check_noise(settings: Settings) -> None:
  given = [settings.target_epsilon, settings.noise_multiplier]
  if settings.clipping != 'none' and sum(v is not None for v in given) != 1:
    raise _validate.InputError(
      'exactly one of target_epsilon and noise_multiplier must be given with '
      f'clipping={settings.clipping}, got target_epsilon='
      f'{settings.target_epsilon} and noise_multiplier='
      f'{settings.noise_multiplier}; for training without privacy choose '
      'clipping=none'
    )


def _check_below(settings: Settings, name: str, limit: int, what: str) -> None:
  if getattr(settings, name) >= limit:
    raise _validate.InputError(
      f'{name} must be below the {limit} {what}, got '
      f'{getattr(settings, name):g}; lower it'
      + (' or choose client_sampling=all' if what == 'clients' else '')
    )
