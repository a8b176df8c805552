"""Settings of a run, resolved from its flags and checked.

`Flags` holds the given values by name; sweeps change them. `Flags.resolve`
turns them into `Settings`: data, own images, model, mode and run, each a frozen
dataclass of checked values. A flag that the chosen mode does not use is an
error. Nothing here imports TensorFlow.

>>> flags = Flags.of(target_epsilon=8.0, output_dir='runs/x')
>>> settings = flags.resolve()
>>> settings.mode.name, settings.data.num_clients
('dp_fed_avg', 300)
>>> flags.changed(privacy_unit='record', client_epochs=3).resolve()
Traceback (most recent call last):
...
tff_medical._validate.InputError: client_epochs=3 would be ignored with \
privacy_unit=record; leave it out
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any, Optional

from experiments import modes
from experiments.config import fields
from experiments.config import open_set_settings
from experiments.config import own_image_settings
from experiments.modes import base
from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data import loading
from tff_medical.data import own_images
from tff_medical.data import partition as partition_lib
from tff_medical.scoring import fitted

PRIVACY_UNITS = ('client', 'record', 'patient')
_MECHANISM = 'mechanism'


@dataclasses.dataclass(frozen=True)
class DataSettings:
  """Settings of the images, and of their partition over clients."""

  dataset: str = fields.setting(
    'synthetic',
    f'the images: {loading.names()}; synthetic ones are generated, without a '
    'download; folder and table are your own; tfds is the catalogue of TensorFlow '
    'Datasets, npz a file with the keys of MedMNIST',
  )
  data_dir: Optional[str] = fields.setting(
    None,
    'folder with NAME.npz, without which MedMNIST sets are downloaded; folder '
    'or archive of the images with --dataset=folder, file with --dataset=table, '
    'folder of FILE with npz:FILE, of files fetched by hand with tfds:NAME',
    may_change=True,
    is_path=True,
  )
  image_size: int = fields.setting(
    28,
    'height and width in pixels; 28, 64, 128 or 224 for MedMNIST',
    low=8,
    high=512,
  )
  partition: str = fields.setting(
    'iid', 'partition of images over clients', choices=partition_lib.KINDS
  )
  dirichlet_alpha: float = fields.setting(
    0.5,
    'Dirichlet concentration of labels or sizes; smaller values skew more',
    only_if={'partition': partition_lib.ALPHA_KINDS},
    low=1e-6,
    high=1e6,
  )
  num_clients: Optional[int] = fields.setting(
    None,
    'number of clients [300 where clients are protected, else 8 sites]',
    only_if={'partition': partition_lib.COUNTED_KINDS},
    low=1,
    high=1_000_000,
  )
  ordinal_labels: bool = fields.setting(
    False,
    'whether the classes are grades in the order of their names, which adds '
    'quadratic weighted kappa and mean absolute error; so known of retinamnist',
    may_change=True,
  )
  seed: int = fields.setting(
    0,
    'seed of data, partition and initial weights, never of the noise',
    low=0,
    high=2**31 - 1,
  )

  def __post_init__(self) -> None:
    loading.source(self.dataset)
    if self.dataset in own_images.NAMES and self.data_dir is None:
      raise _validate.InputError(
        f'data_dir must be given with dataset={self.dataset}: '
        '--data_dir=FOLDER or ARCHIVE, or FILE of a table'
      )


@dataclasses.dataclass(frozen=True)
class ModelSettings:
  """Settings of the network: a backbone with a new head, or a whole model."""

  backbone: Optional[str] = fields.setting(
    None,
    'frozen network whose features are computed once an image: scattering '
    '(wavelets), efficientnet-lite0, keras:NAME of keras.applications, '
    'savedmodel:FOLDER, or several joined by a plus',
  )
  backbone_weights: Optional[str] = fields.setting(
    None,
    "file of the backbone's weights [those of the backbone's authors]",
    only_if={'backbone': fields.GIVEN},
    may_change=True,  # The path may change, but not the digest of the weights.
    is_path=True,
  )
  backbone_layers: Optional[str] = fields.setting(
    None,
    'layers of the backbone whose features are taken, with commas [depends on '
    'the backbone]',
    only_if={'backbone': fields.GIVEN},
  )
  backbone_image_size: Optional[int] = fields.setting(
    None,
    'height and width in pixels to which images are resized for the backbone '
    '[96 to 224, by the size of the images]',
    only_if={'backbone': fields.GIVEN},
    low=8,
    high=1024,
  )
  trainable: str = fields.setting(
    'head',
    'part of the backbone that is trained: a dense head on its features, its '
    'last block, its norms, or all of it, with the head',
    only_if={'backbone': fields.GIVEN},
    choices=('head', 'last_block', 'norms', 'all'),
  )
  features_dir: Optional[str] = fields.setting(
    None,
    'folder that keeps the features of the images [~/.cache/tff_medical/'
    'features]',
    only_if={'backbone': fields.GIVEN, 'trainable': ('head', 'last_block')},
    may_change=True,
    is_path=True,
  )
  model: str = fields.setting(
    'cnn_small',
    'network: cnn_small, cnn or resnet; or module:function, your '
    'own function of (input_shape, num_outputs, seed) that returns a Keras '
    'model and is imported from the working directory',
    only_if={'backbone': (None,)},
  )
  initial_model: Optional[str] = fields.setting(
    None,
    'saved_model folder of an earlier run, public or paid for, whose weights '
    'training starts from',
    may_change=True,  # The path may change, but not the model's digest.
    is_path=True,
  )


@dataclasses.dataclass(frozen=True)
class RunSettings:
  """Settings of how and where the training runs, and of its output."""

  rounds_per_eval: int = fields.setting(
    10,
    'rounds between evaluations on the validation images',
    may_change=True,
    low=1,
    high=1_000_000,
  )
  eval_split: str = fields.setting(
    'validation',
    'split of the final metrics: validation while settings are chosen, test '
    'for the figures that are reported; rounds are never evaluated on test',
    choices=images.EVAL_SPLITS,
    may_change=True,
  )
  fixed_specificity: float = fields.setting(
    fitted.DEFAULT_SPECIFICITY,
    'specificity at which the sensitivity on test images is stated; validation '
    'images give the threshold',
    only_if={'eval_split': (images.TEST,)},
    may_change=True,
    low=0.01,
    high=0.999,
  )
  own_metrics: Optional[str] = fields.setting(
    None,
    'metrics of your own: module:function, more after commas; each a function '
    'of probabilities [N, K] and labels that returns a number',
    may_change=True,
  )
  cohort_seed: Optional[int] = fields.setting(
    None,
    'seed of the cohorts [secret, from the operating system]',
    low=0,
    high=2**128 - 1,
  )
  runtime: str = fields.setting(
    'local',
    'runtime of TFF computations: this process (local), the machines of a Ray '
    "cluster (cluster) or TFF's own (tff)",
    choices=('local', 'cluster', 'tff'),
    may_change=True,
  )
  cluster_address: str = fields.setting(
    'auto',
    'Ray cluster: auto for the one that this machine belongs to, HOST:PORT, or '
    'ray://HOST:PORT from outside of it',
    only_if={'runtime': ('cluster',)},
    may_change=True,
  )
  client_threads: Optional[int] = fields.setting(
    None,
    'clients that train at once on the CPU, with runtime=cluster on each node '
    '[one for each core]',
    only_if={'runtime': ('local', 'cluster')},
    may_change=True,
    low=1,
    high=256,
  )
  client_devices: Optional[str] = fields.setting(
    None,
    'devices that train clients, e.g. GPU:0,GPU:1 [all GPUs, or else the CPU]',
    only_if={'runtime': ('local',)},
    may_change=True,
  )
  clients_per_device: Optional[int] = fields.setting(
    None,
    'clients that train at once on each device [1]',
    only_if={'runtime': ('local',)},
    may_change=True,
    low=1,
    high=64,
  )
  precision: str = fields.setting(
    'float32',
    'numbers in forward and backward passes: bfloat16 is faster on processors '
    'that have it; weights, clipping, sums and noise stay float32',
    only_if={'runtime': ('local', 'cluster')},
    choices=('float32', 'bfloat16'),
  )
  data_ledger: Optional[str] = fields.setting(
    None,
    'file in which all runs on the same data are charged against one budget; '
    'started if it is missing',
    may_change=True,
    is_path=True,
  )
  data_budget: Optional[float] = fields.setting(
    None,
    'largest ε of all runs of the data_ledger together, with which the file is '
    'started; fixed from then on',
    may_change=True,
    low=1e-6,
    high=1e6,
  )
  export_diverged: bool = fields.setting(
    False,
    'whether to export even a model that has diverged, which is of no use',
    may_change=True,
  )
  output_dir: Optional[str] = fields.setting(
    None,
    'folder that gets all files of the run',
    may_change=True,
    is_path=True,
  )

  def __post_init__(self) -> None:
    if self.data_budget is not None and self.data_ledger is None:
      raise _validate.InputError(
        f'data_budget={self.data_budget} would be ignored without a '
        'data_ledger; leave it out'
      )


@dataclasses.dataclass(frozen=True)
class Settings:
  """All settings of a run, resolved.

  Attributes:
    data: Settings of the images, and of their partition over clients.
    own: Settings of own images, their labels and their decoding.
    open_set: Features and class names of sets that are open by name.
    model: Settings of the network.
    mode: Way of training, with its settings.
    run: Settings of how and where the training runs.
  """

  data: DataSettings
  own: own_image_settings.OwnImageSettings
  open_set: open_set_settings.OpenSetSettings
  model: ModelSettings
  mode: base.Mode
  run: RunSettings

  def for_data(self, num_clients: int, num_units: int) -> Settings:
    """Returns the settings including those that depend on the data.

    Args:
      num_clients: Number of clients.
      num_units: Number of units that the guarantee protects.
    """
    return dataclasses.replace(
      self,
      data=dataclasses.replace(self.data, num_clients=num_clients),
      mode=self.mode.for_data(num_clients, num_units),
    )

  def used(self) -> dict[str, Any]:
    """Returns every setting that has a use, by the name of its flag."""
    values: dict[str, Any] = {_MECHANISM: self.mode.name}
    others = {'dataset': loading.family(self.data.dataset)}
    for group in (
      self.data, self.own, self.open_set, self.model, self.mode, self.run
    ):  # fmt: skip
      values.update(fields.used(group, others))
    return values

  def published(self) -> dict[str, Any]:
    """Returns the settings as published: without the seed of the cohorts."""
    values = self.used()
    if self.run.cohort_seed is not None:
      values['cohort_seed'] = 'given; see checkpoints/cohort_seed.secret'
    return values

  def may_change(self) -> frozenset[str]:
    """Returns the names of the settings that may differ when the run goes on.

    They change where or how fast a computation runs, never its result. The
    number of rounds may also change, unless the noise or the learning rate
    depends on it.
    """
    decays = any(
      getattr(self.mode, f'{who}_learning_rate_schedule', 'constant')
      != 'constant'
      for who in ('client', 'server')
    )
    if self.mode.target_epsilon is None and not decays:
      return may_change() | {'rounds'}
    return may_change()


_GROUPS: tuple[type[Any], ...] = (
  DataSettings,
  own_image_settings.OwnImageSettings,
  open_set_settings.OpenSetSettings,
  ModelSettings,
  RunSettings,
)


# The functions below read `modes.MODES` at each call, so that a mode needs no
# other registration.
def owners() -> dict[str, list[type[Any]]]:
  """Returns the groups of each flag except --mechanism, which has no group."""
  groups_by_name: dict[str, list[type[Any]]] = {}
  for group in (*_GROUPS, *modes.MODES.values()):
    for name in fields.of(group):
      groups_by_name.setdefault(name, []).append(group)
  return groups_by_name


def names() -> tuple[str, ...]:
  """Returns the names of all flags of settings."""
  return (_MECHANISM, *owners())


def may_change() -> frozenset[str]:
  """Returns the names of the settings that may differ when any run goes on."""
  return frozenset(
    name
    for name, groups in owners().items()
    if any(fields.of(group)[name].metadata['may_change'] for group in groups)
  )


def field(name: str) -> dataclasses.Field[Any]:
  """Returns the setting of a name, from the first group that has it."""
  return fields.of(owners()[name][0])[name]


@dataclasses.dataclass(frozen=True)
class Flags:
  """Flags that were given.

  Attributes:
    given: Values of the flags by name; a flag that is missing has its default.
  """

  given: Mapping[str, Any]

  @classmethod
  def of(cls, **values: Any) -> Flags:
    """Returns flags with these values; those that are None are left out."""
    return cls({}).changed(**values)

  def __getattr__(self, name: str) -> Any:
    """Returns the value of a flag; its default if it was not given."""
    if name.startswith('_') or name not in names():
      raise AttributeError(name)
    if name in self.given:
      return self.given[name]
    if name == _MECHANISM:
      return None
    return field(name).default

  def changed(self, **values: Any) -> Flags:
    """Returns the flags with other values; None removes a flag.

    Raises:
      TypeError: There is no flag of a name.
    """
    flag_names = names()
    for name in values:
      if name not in flag_names:
        raise TypeError(f'there is no flag {name!r}')
    merged = open_set_settings.located({**self.given, **values})
    return Flags({n: v for n, v in merged.items() if v is not None})

  def mode(self) -> type[base.Mode]:
    """Returns the mode that the flags choose.

    Raises:
      InputError: There is no such mechanism or unit.
    """
    unit = self.given.get('privacy_unit')
    if unit is not None:
      _validate.one_of(PRIVACY_UNITS, privacy_unit=unit)
    mechanism = self.given.get(_MECHANISM)
    if mechanism is None:
      return modes.default(unit or PRIVACY_UNITS[0])
    _validate.one_of(tuple(modes.MODES), mechanism=mechanism)
    mode = modes.MODES[mechanism]
    if unit is None and PRIVACY_UNITS[0] not in mode.units:
      raise _validate.InputError(
        f'privacy_unit must be {" or ".join(mode.units)} with '
        f'mechanism={mechanism}, got {PRIVACY_UNITS[0]}'
      )
    return mode

  def resolve(self) -> Settings:
    """Returns the settings of a run.

    Settings that depend on the data are set by `Settings.for_data`.

    Raises:
      InputError: A value is not allowed, missing, or would be ignored.
    """
    mode = self.mode()
    for name in self.given:
      reason = self._ignored_by(mode, name)
      if reason:
        value = ' '.join(str(self.given[name]).split())  # It stays one line.
        raise _validate.InputError(
          f'{name}={value} would be ignored with {reason}; leave it out'
        )
    data, own, open_set = self.resolve_data()
    model = fields.read(ModelSettings, self._part(ModelSettings))
    run = fields.read(RunSettings, self._part(RunSettings))
    settings = Settings(
      data, own, open_set, model, mode.read(self._part(mode)), run
    )
    is_frozen = model.trainable in ('head', 'last_block')
    if model.backbone is not None and is_frozen and settings.mode.augments:
      raise _validate.InputError(
        f'{settings.mode.augments} would be ignored with '
        f'backbone={model.backbone}, whose features are computed once an image; '
        'leave it out'
      )
    if run.cohort_seed is not None and not settings.mode.draws_cohorts:
      raise _validate.InputError(
        f'cohort_seed={run.cohort_seed} would be ignored, as all units take '
        'part in every round; leave it out'
      )
    if settings.data.num_clients is not None:
      settings.mode.check_clients(settings.data.num_clients)
    if settings.run.data_ledger is not None and not settings.mode.is_private:
      raise _validate.InputError(
        f'data_ledger={settings.run.data_ledger} has no room for a run without '
        'noise, whose ε is infinite; leave it out, or add noise'
      )
    if settings.run.output_dir is None:
      raise _validate.InputError(
        'output_dir must be given: --output_dir=FOLDER'
      )
    if settings.run.runtime not in mode.runtimes:
      raise _validate.InputError(
        f'runtime must be {" or ".join(mode.runtimes)} with '
        f'mechanism={mode.name}, got {settings.run.runtime}'
      )
    return settings

  def resolve_data(
    self,
  ) -> tuple[
    DataSettings,
    own_image_settings.OwnImageSettings,
    open_set_settings.OpenSetSettings,
  ]:
    """Returns the settings of the data alone.

    Raises:
      InputError: A value is not allowed, missing, or would be ignored.
    """
    data = fields.read(DataSettings, self._part(DataSettings))
    others = {'dataset': loading.family(data.dataset)}
    own = fields.read(
      own_image_settings.OwnImageSettings,
      self._part(own_image_settings.OwnImageSettings),
      others,
    )
    open_set = fields.read(
      open_set_settings.OpenSetSettings,
      self._part(open_set_settings.OpenSetSettings),
      others,
    )
    return _with_clients(data, self.mode()), own, open_set

  def without_ignored(self) -> Flags:
    """Returns the flags without those that `resolve` refuses as ignored."""
    mode = self.mode()
    kept: dict[str, Any] = {}
    for group in (*_GROUPS, mode):
      values: dict[str, Any] = {'dataset': loading.family(self.dataset)}
      for name, field in fields.of(group).items():
        values[name] = self.given.get(name, _default(group, field, self.given))
        if name not in self.given:
          continue
        if fields.unused_because(group, values, name):
          values[name] = field.default
        else:
          kept[name] = self.given[name]
    if _MECHANISM in self.given:
      kept[_MECHANISM] = self.given[_MECHANISM]
    return Flags(kept)

  def for_reference(self) -> Flags:
    """Returns the flags that training without federation and privacy uses."""
    kept = {n: v for n, v in self.given.items() if n in REFERENCE_FLAGS}
    if self.partition in partition_lib.COUNTED_KINDS:
      kept.setdefault('num_clients', self.mode().default_clients)
    return Flags({**kept, 'clipping': 'none'})

  def as_reference(self) -> Flags:
    """Returns the flags as `for_reference` does, but refuses any other flag.

    Raises:
      InputError: A flag would be ignored.
    """
    for name, value in self.given.items():
      is_plain = (name, value) == ('clipping', 'none')
      if name not in REFERENCE_FLAGS and not is_plain:
        raise _validate.InputError(
          f'{name}={value} would be ignored by training without federation '
          'and privacy; leave it out'
        )
    return self.for_reference()

  def arguments(self) -> list[str]:
    """Returns the flags as arguments of a command."""
    return [f'--{name}={value}' for name, value in self._sorted()]

  def _sorted(self) -> Iterator[tuple[str, Any]]:
    for name in names():
      if name in self.given:
        yield name, self.given[name]

  def _part(self, group: type[Any]) -> dict[str, Any]:
    return {n: self.given[n] for n in fields.of(group) if n in self.given}

  def _ignored_by(self, mode: type[base.Mode], name: str) -> str:
    """Returns the setting that leaves a flag without a use, or ''."""
    if name == _MECHANISM or name in fields.of(mode):
      return ''
    if any(name in fields.of(group) for group in _GROUPS):
      return ''
    unit = self.given.get('privacy_unit', PRIVACY_UNITS[0])
    of_the_unit = any(
      unit in m.units and name in fields.of(m) for m in modes.MODES.values()
    )
    if of_the_unit or self.given.get(_MECHANISM):
      return f'mechanism={mode.name}'
    return f'privacy_unit={unit}'


DATA_FLAGS = (
  *fields.of(DataSettings),
  *fields.of(own_image_settings.OwnImageSettings),
  *fields.of(open_set_settings.OpenSetSettings),
)
REFERENCE_FLAGS = (
  *DATA_FLAGS,
  *fields.of(ModelSettings),
  'eval_split',
  'fixed_specificity',
  'own_metrics',
  'output_dir',
)


def _with_clients(data: DataSettings, mode: type[base.Mode]) -> DataSettings:
  """Returns the data settings with the mode's default number of clients."""
  if data.num_clients is not None:
    return data
  if data.partition not in partition_lib.COUNTED_KINDS:
    return data
  return dataclasses.replace(data, num_clients=mode.default_clients)


def _default(
  group: type[Any], field: dataclasses.Field[Any], given: Mapping[str, Any]
) -> Any:
  """Returns the default of a setting, which may depend on given settings."""
  if issubclass(group, base.Mode):
    return group.defaults(dict(given)).get(field.name, field.default)
  return field.default
