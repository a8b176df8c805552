"""Settings as fields of frozen dataclasses, with all that a flag needs.

A group of settings is a frozen dataclass whose fields are made by `setting`:
each has a default, a help text, and the values that it may have. `read` makes
the dataclass from the flags that were given, and refuses a flag that the group
would ignore.

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

from collections.abc import Mapping
import dataclasses
import typing
from typing import Any, TypeVar

from tff_medical import _validate

_T = TypeVar('_T')
_KINDS = (bool, int, float, str)


def setting(
  default: Any,
  help_text: str,
  *,
  choices: tuple[str, ...] = (),
  low: float | None = None,
  high: float | None = None,
  only_if: Mapping[str, tuple[Any, ...]] | None = None,
  may_change: bool = False,
) -> Any:
  """Returns a field of a group of settings.

  Args:
    default: The value if the flag is not given.
    help_text: What the setting decides, for --help.
    choices: The allowed values; () for any.
    low: The least number allowed, unless None.
    high: The largest number allowed, unless None.
    only_if: Earlier fields of the group, and the values of them with which this
      one has a use.
    may_change: Whether a run may go on with another value.
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
    },
  )


def redefine(group: type[Any], name: str, default: Any, **changed: Any) -> Any:
  """Returns a field of a parent group with another default.

  Args:
    group: The parent.
    name: The name of the field there.
    default: The new default.
    **changed: What else is different, as for `setting`.
  """
  field = of(group)[name]
  return dataclasses.field(
    default=default, metadata={**field.metadata, **changed}
  )


def of(group: type[Any]) -> dict[str, dataclasses.Field[Any]]:
  """Returns the settings of a group by name."""
  return {f.name: f for f in dataclasses.fields(group)}


def kind(group: type[Any], name: str) -> type[Any]:
  """Returns bool, int, float or str: the type of a setting's value."""
  hint = typing.get_type_hints(group)[name]
  return next(k for k in _KINDS if k in (*typing.get_args(hint), hint))


def read(group: type[_T], given: Mapping[str, Any]) -> _T:
  """Returns the group as the flags say; settings not given have defaults.

  Raises:
    InputError: A value is not allowed, or would be ignored.
  """
  values: dict[str, Any] = {}
  for name, field in of(group).items():
    default = field.default
    if name in given:
      reason = unused_because(group, values, name)
      if reason:
        raise _validate.InputError(
          f'{name}={given[name]} would be ignored with {reason}; leave it out'
        )
    values[name] = given.get(name, default)
    _check(field, values[name])
  return group(**values)


def used(group: Any) -> dict[str, Any]:
  """Returns the settings of a group that have a use, by name."""
  values = {name: getattr(group, name) for name in of(type(group))}
  return {
    name: value
    for name, value in values.items()
    if not unused_because(type(group), values, name)
  }


def unused_because(
  group: type[Any], values: Mapping[str, Any], name: str
) -> str:
  """Returns the setting that leaves another one without a use, or ''.

  Args:
    group: The group of both.
    values: The values of the settings before `name`.
    name: The setting that may have no use.
  """
  for other, allowed in of(group)[name].metadata['only_if'].items():
    if values[other] not in allowed:
      return f'{other}={values[other]}'
  return ''


def _check(field: dataclasses.Field[Any], value: Any) -> None:
  """Raises `InputError` unless a setting may have this value."""
  if value is None:
    return
  if field.metadata['choices']:
    _validate.one_of(field.metadata['choices'], **{field.name: value})
  low, high = field.metadata['low'], field.metadata['high']
  if low is not None or high is not None:
    _validate.within(
      -float('inf') if low is None else low,
      float('inf') if high is None else high,
      **{field.name: value},
    )
