"""Settings of a run, resolved from its flags and checked.

`Flags` holds the given values by name; sweeps change them. `Flags.resolve`
turns them into `Settings`: data, own images, model, mode and run, each a frozen
dataclass of checked values in a module of its own. A flag that the chosen mode
does not use is an error. Nothing here imports TensorFlow.

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
from typing import Any

from experiments import modes
from experiments.config import data_settings
from experiments.config import fields
from experiments.config import model_settings
from experiments.config import open_set_settings
from experiments.config import own_image_settings
from experiments.config import run_settings
from experiments.modes import base
from tff_medical import _validate
from tff_medical.data import loading
from tff_medical.data import partition as partition_lib

PRIVACY_UNITS = ('client', 'record', 'patient')
_MECHANISM = 'mechanism'


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

  data: data_settings.DataSettings
  own: own_image_settings.OwnImageSettings
  open_set: open_set_settings.OpenSetSettings
  model: model_settings.ModelSettings
  mode: base.Mode
  run: run_settings.RunSettings

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
  data_settings.DataSettings,
  own_image_settings.OwnImageSettings,
  open_set_settings.OpenSetSettings,
  model_settings.ModelSettings,
  run_settings.RunSettings,
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
    model = fields.read(model_settings.ModelSettings, self.given)
    run = fields.read(run_settings.RunSettings, self.given)
    settings = Settings(
      data, own, open_set, model, mode.read(self._given_of(mode)), run
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
    data_settings.DataSettings,
    own_image_settings.OwnImageSettings,
    open_set_settings.OpenSetSettings,
  ]:
    """Returns the settings of the data alone.

    Raises:
      InputError: A value is not allowed, missing, or would be ignored.
    """
    data = fields.read(data_settings.DataSettings, self.given)
    others = {'dataset': loading.family(data.dataset)}
    own = fields.read(
      own_image_settings.OwnImageSettings,
      self.given,
      others,
    )
    open_set = fields.read(
      open_set_settings.OpenSetSettings,
      self.given,
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

  def _given_of(self, group: type[Any]) -> dict[str, Any]:
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
  *fields.of(data_settings.DataSettings),
  *fields.of(own_image_settings.OwnImageSettings),
  *fields.of(open_set_settings.OpenSetSettings),
)
REFERENCE_FLAGS = (
  *DATA_FLAGS,
  *fields.of(model_settings.ModelSettings),
  'eval_split',
  'fixed_specificity',
  'own_metrics',
  'output_dir',
)


def _with_clients(
  data: data_settings.DataSettings, mode: type[base.Mode]
) -> data_settings.DataSettings:
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
