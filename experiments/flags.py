"""From absl flags to `Settings`, and from bad input to one line and exit 2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import sys
import typing
from typing import Any

from absl import app
from absl import flags
from absl import logging

from experiments import settings as settings_lib
from tff_medical import _validate

EXIT_BAD_INPUT = 2

_DEFINE = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def define_settings() -> Callable[[], settings_lib.Settings]:
  """Defines a flag for every setting; returns what reads them."""
  hints = typing.get_type_hints(settings_lib.Settings)
  fields = dataclasses.fields(settings_lib.Settings)
  for field in fields:
    help_text = field.metadata['help']
    if field.metadata['choices']:
      help_text += f' ({", ".join(field.metadata["choices"])})'
    _define(hints[field.name])(field.name, field.default, help_text)

  def read() -> settings_lib.Settings:
    return settings_lib.Settings(
        **{field.name: flags.FLAGS[field.name].value for field in fields}
    )

  return read


def _define(hint: Any) -> Callable[..., Any]:
  """Returns the absl function that defines a flag of a type hint."""
  kind = next(
      t for t in (*typing.get_args(hint), hint) if t in _DEFINE
  )
  return _DEFINE[kind]


def run(main: Callable[[], int | None]) -> None:
  """Runs `main` with parsed flags, as a command.

  Bad input, of flags or found later, prints one line to stderr and exits with
  2; so does an argument that is no flag. `main` returns the exit code, or None
  for 0.
  """

  def parse(argv: Sequence[str]) -> Sequence[str]:
    try:
      rest = app.parse_flags_with_usage(list(argv)) if _wants_help(argv) else (
          flags.FLAGS(list(argv))
      )
      if len(rest) > 1:
        raise _validate.InputError(
            f'unexpected argument {rest[1]!r}; flags are --name=value'
        )
      return rest
    except (flags.Error, _validate.InputError) as error:
      _fail(error)
      raise  # Not reached.

  def run_main(argv: Sequence[str]) -> int | None:
    del argv
    logging.set_verbosity(logging.WARNING)
    try:
      return main()
    except _validate.InputError as error:
      return _fail(error)

  app.run(run_main, flags_parser=parse)


def _wants_help(argv: Sequence[str]) -> bool:
  return any(a.lstrip('-').startswith('help') for a in argv[1:])


def _fail(error: Exception) -> typing.NoReturn:
  message = ' '.join(str(error).split())
  print(f'error: {message}', file=sys.stderr)
  sys.exit(EXIT_BAD_INPUT)
