"""One-line checks of values that come from a user.

Every check raises `InputError` with the argument, its value and the remedy.
Commands turn this one exception into a single line and exit code 2.
`InputError` is a `ValueError`, so callers of the library need not know it.

>>> positive(clip_norm=0.5)
>>> positive(clip_norm=-1.0)
Traceback (most recent call last):
...
tff_medical._validate.InputError: clip_norm must be positive, got -1.0
"""

from __future__ import annotations

from collections.abc import Collection
import difflib
import math
import numbers


class InputError(ValueError):
  """A value from the user cannot be used; the message gives the remedy."""


def _number(name: str, value: object) -> float:
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    raise InputError(f'{name} must be a number, got {value!r}')
  try:
    number = float(value)
  except OverflowError:  # An integer beyond the range of floats.
    return -math.inf if value < 0 else math.inf
  if math.isnan(number):
    raise InputError(f'{name} must be a number, got nan')
  return number


def positive(**named: object) -> None:
  """Raises `InputError` unless every value is a finite number above 0."""
  for name, value in named.items():
    number = _number(name, value)
    if number <= 0 or math.isinf(number):
      raise InputError(f'{name} must be positive, got {value!r}')


def non_negative(**named: object) -> None:
  """Raises `InputError` unless every value is a finite number of 0 or more."""
  for name, value in named.items():
    number = _number(name, value)
    if number < 0 or math.isinf(number):
      raise InputError(f'{name} must be 0 or more, got {value!r}')


# Larger sizes overflow TensorFlow's int32.
_MAX_COUNT = 2**31 - 1


def whole(**named: object) -> None:
  """Raises `InputError` unless every value is an integer."""
  for name, value in named.items():
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
      raise InputError(f'{name} must be a whole number, got {value!r}')


def positive_int(**named: object) -> None:
  """Raises `InputError` unless every value is an integer in [1, 2**31 - 1]."""
  whole(**named)
  for name, value in named.items():
    if _number(name, value) <= 0:
      raise InputError(f'{name} must be positive, got {value!r}')
    if _number(name, value) > _MAX_COUNT:
      raise InputError(f'{name} must be at most {_MAX_COUNT}, got {value!r}')


def within(low: float, high: float, **named: object) -> None:
  """Raises `InputError` unless every value lies in the closed [low, high]."""
  for name, value in named.items():
    if not low <= _number(name, value) <= high:
      raise InputError(
        f'{name} must lie between {_plain(low)} and {_plain(high)}, got '
        f'{value!r}'
      )


def _plain(number: float) -> str:
  return f'{number:,}' if isinstance(number, int) else f'{number:g}'


def in_range(low: float, high: float, **named: object) -> None:
  """Raises `InputError` unless every value lies in the open (low, high)."""
  for name, value in named.items():
    if not low < _number(name, value) < high:
      raise InputError(
        f'{name} must lie between {low:g} and {high:g}, got {value!r}'
      )


def text(**named: object) -> None:
  """Raises `InputError` unless every value is one printable, non-blank line."""
  for name, value in named.items():
    if not isinstance(value, str) or not value.strip():
      raise InputError(f'{name} must not be blank, got {value!r}; leave it out')
    if not value.isprintable():
      raise InputError(f'{name} must be printable, got {value!r}')


def one_of(allowed: Collection[str], **named: object) -> None:
  """Raises `InputError`, with the nearest allowed name, for any other value."""
  for name, value in named.items():
    if value in allowed:
      continue
    near = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    raise InputError(
      f'{name} must be one of {", ".join(sorted(allowed))}, got {value!r}{hint}'
    )


def count(value: object, name: str = 'value') -> int:
  """Returns a value read from JSON if it is an integer of 0 or more.

  Raises:
    InputError: The value is anything else.
  """
  if isinstance(value, bool) or not isinstance(value, int) or value < 0:
    raise InputError(
      f'{name} must be a whole number of 0 or more, got {value!r}'
    )
  return value
