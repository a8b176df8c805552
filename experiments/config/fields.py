"""Settings as fields of frozen dataclasses, with all metadata of their flags.

A group of settings is a frozen dataclass whose fields are made by `setting`.
Each field has a default, a help text and its allowed values. `read` makes the
dataclass from the given flags, and refuses a flag that the group would ignore.

>>> @dataclasses.dataclass(frozen=True)
... class Server:
...   optimizer: str = setting('sgd', 'what steps', choices=('sgd', 'adam'))
...   momentum: float = setting(0.9, 'below 1', low=0, high=0.999,
...                             only_if={'optimizer': ('sgd',)})
>>> read(Server, {'momentum': 0.5})
Server(optimizer='sgd', momentum=0.5)
>>> read(Server, {'optimizer': 'adam', 'momentum': 0.5})
Traceback (most recent call last):
...
tff_medical._validate.InputError: momentum=0.5 would be ignored with \
optimizer=adam; leave it out
"""

from __future__ import annotations

from collections.abc import Container, Mapping
import dataclasses
import functools
import math
import os
import typing
from typing import Any, TypeVar

from tff_medical import _validate

_T = TypeVar('_T')
_KINDS = (bool, int, float, str)
_NONE: Mapping[str, Any] = {}


class _Given:
  """Every value but None, for `only_if`."""

  def __contains__(self, value: object) -> bool:
    return value is not None


GIVEN = _Given()


def setting(
  default: Any,
  help_text: str,
  *,
  choices: tuple[str, ...] = (),
  low: float | None = None,
  high: float | None = None,
  only_if: Mapping[str, Container[Any]] | None = None,
  may_change: bool = False,
  or_zero: bool = False,
  is_path: bool = False,
) -> Any:
  """Returns a field of a group of settings.

  Args:
    default: Value if the flag is not given.
    help_text: Description of the setting for --help.
    choices: Allowed values; () allows any.
    low: Smallest allowed number. Every number has both bounds. They keep the
      computation within float32, int32, memory and hours, and allow every value
      that trains a model.
    high: Largest allowed number.
    only_if: Values of other settings with which the setting has a use, by name.
      The others are earlier fields of the group, or settings of another group
      that `read` is given. `GIVEN` stands for every value but None.
    may_change: Whether a run may go on with another value.
    or_zero: Whether 0 is allowed as well.
    is_path: Whether the value is a path of this machine, whose `~` is expanded.
  """
  return dataclasses.field(
    default=default,
    metadata={
      'help': help_text,
      'choices': choices,
      'low': low,
      'high': high,
      'only_if': only_if or {},
      'may_change': may_change,
      'or_zero': or_zero,
      'is_path': is_path,
    },
  )


def redefine(group: type[Any], name: str, default: Any, **changed: Any) -> Any:
  """Returns a field of a parent group with another default.

  Args:
    group: Parent group.
    name: Name of the field in the parent group.
    default: New default.
    **changed: Other metadata that differs, as in `setting`.
  """
  field = of(group)[name]
  return dataclasses.field(
    default=default, metadata={**field.metadata, **changed}
  )


def of(group: type[Any]) -> Mapping[str, dataclasses.Field[Any]]:
  """Returns the settings of a group by name."""
  return _fields(group)  # type: ignore[arg-type]  # python/mypy#11469


# A command reads the name and kind of every setting hundreds of times.
@functools.cache
def _fields(group: type[Any]) -> Mapping[str, dataclasses.Field[Any]]:
  return {f.name: f for f in dataclasses.fields(group)}


@functools.cache
def _hints(group: type[Any]) -> dict[str, Any]:
  return typing.get_type_hints(group)


def kind(group: type[Any], name: str) -> type[Any]:
  """Returns bool, int, float or str: the type of a setting's value."""
  hint = _hints(group)[name]  # type: ignore[arg-type]  # python/mypy#11469
  return next(k for k in _KINDS if k in (*typing.get_args(hint), hint))


def read(
  group: type[_T], given: Mapping[str, Any], others: Mapping[str, Any] = _NONE
) -> _T:
  """Returns the group as the flags say; settings not given have defaults.

  Args:
    group: Dataclass of the group.
    given: Values of the given flags, by name; those of other groups are not
      read.
    others: Settings of other groups that `only_if` of this group names.

  Raises:
    InputError: A value is not allowed, or would be ignored.
  """
  values: dict[str, Any] = {}
  for name, field in of(group).items():
    default = field.default
    if name in given:
      check(field, given[name])  # Or the line below would show anything.
      reason = unused_because(group, {**others, **values}, name)
      if reason:
        raise _validate.InputError(
          f'{name}={given[name]} would be ignored with {reason}; leave it out'
        )
    values[name] = given.get(name, default)
    if field.metadata['is_path'] and values[name] is not None:
      values[name] = local_path(name, values[name])
    check(field, values[name])
  return group(**values)


def used(group: Any, others: Mapping[str, Any] = _NONE) -> dict[str, Any]:
  """Returns the settings of a group that have a use, by name.

  Args:
    group: Instance of the group.
    others: Settings of other groups, as in `read`.
  """
  values = {name: getattr(group, name) for name in of(type(group))}
  return {
    name: value
    for name, value in values.items()
    if not unused_because(type(group), {**others, **values}, name)
  }


def unused_because(
  group: type[Any], values: Mapping[str, Any], name: str
) -> str:
  """Returns the setting that leaves another setting without a use, or ''.

  Args:
    group: Group of the setting.
    values: Values of the settings that `only_if` may name.
    name: Name of the setting that may have no use.
  """
  for other, allowed in of(group)[name].metadata['only_if'].items():
    if values[other] not in allowed:
      value = values[other]
      return f'no {other}' if value is None else f'{other}={value}'
  return ''


def check(field: dataclasses.Field[Any], value: Any) -> None:
  """Raises `InputError` unless a setting may have a value; None is allowed."""
  if value is None:
    return
  metadata, named = field.metadata, {field.name: value}
  if metadata['choices']:
    _validate.one_of(metadata['choices'], **named)
  low, high = metadata['low'], metadata['high']
  if low is None or high is None:
    if isinstance(value, str):
      _validate.text(**named)
    return
  if metadata['or_zero'] and value == 0:
    return
  if isinstance(low, int) and isinstance(high, int):
    _validate.whole(**named)
  if low > 0 and not metadata['or_zero']:
    _validate.positive(**named)
  elif low >= 0:
    _validate.non_negative(**named)
  _validate.within(low, high, **named)


def check_product(
  limit: int, unit: str, values: Mapping[str, float | None]
) -> None:
  """Refuses numbers that are each allowed, but whose product is too large.

  Args:
    limit: Largest allowed product.
    unit: Unit of the product, for the message.
    values: Factors by the names of their settings; None and 0 count as 1.

  Raises:
    InputError: The product is above the limit.
  """
  factors = {name: value for name, value in values.items() if value}
  if math.prod(factors.values()) > limit:
    product = ' x '.join(f'{k} ({v:g})' for k, v in factors.items() if v != 1)
    raise _validate.InputError(
      f'{product} must be at most {limit:,} {unit}; lower one of them'
    )


def local_path(name: str, path: str) -> str:
  """Returns a path with `~` expanded.

  Raises:
    InputError: The path is blank, of an unknown home folder, or not local.
  """
  _validate.text(**{name: path})
  if '://' in path:
    raise _validate.InputError(
      f'{name} must be a folder of this machine, got {path!r}; copy or mount it'
    )
  expanded = os.path.expanduser(path)
  if expanded.startswith('~'):
    raise _validate.InputError(
      f'{name} names a home folder that does not exist, got {path!r}; write '
      'the path in full, or with ./ before a name that begins with ~'
    )
  return expanded
