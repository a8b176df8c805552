"""From absl flags to `Settings`; from bad input and signals to exit codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import os
import pathlib
import shlex
import sys
import typing
from typing import Any

from absl import app
from absl import flags
from absl import logging

from experiments import endings
from experiments import exit_codes
from experiments import settings as settings_lib
from tff_medical import _validate

_MAX_FLAGFILE_BYTES = 1_000_000

_DEFINE = {
  bool: flags.DEFINE_boolean,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
}


def define_settings(
  flag_values: flags.FlagValues = flags.FLAGS,
) -> Callable[[], settings_lib.Settings]:
  """Defines a flag for every setting; returns what reads them."""
  hints = typing.get_type_hints(settings_lib.Settings)
  fields = dataclasses.fields(settings_lib.Settings)
  for field in fields:
    help_text = field.metadata['help']
    if field.metadata['choices']:
      help_text += f' ({", ".join(field.metadata["choices"])})'
    define = _definer(hints[field.name])
    define(field.name, field.default, help_text, flag_values=flag_values)

  def read() -> settings_lib.Settings:
    return settings_lib.Settings(
      **{field.name: flag_values[field.name].value for field in fields}
    )

  return read


def changed(
  settings: settings_lib.Settings, arguments: str
) -> settings_lib.Settings:
  """Returns settings with what flags in a text say instead.

  Args:
    settings: What holds where the text says nothing.
    arguments: Flags as in a shell, e.g. `--rounds=5 --model=cnn`.

  Raises:
    InputError: The text has something else than flags of settings.
  """
  values = flags.FlagValues()
  read = define_settings(values)
  try:
    _check_flagfiles(shlex.split(arguments))
    rest = values(['', *shlex.split(arguments)])
  except (flags.Error, ValueError) as error:
    raise _validate.InputError(f'{arguments!r}: {error}') from None
  if len(rest) > 1:
    raise _validate.InputError(
      f'{arguments!r} must hold flags alone (--name=value), got {rest[1]!r}'
    )
  given = {
    field.name: getattr(read(), field.name)
    for field in dataclasses.fields(settings)
    if values[field.name].present
  }
  return dataclasses.replace(settings, **given)


def _definer(hint: Any) -> Callable[..., Any]:
  """Returns the absl function that defines a flag of a type hint."""
  return next(
    _DEFINE[t] for t in (*typing.get_args(hint), hint) if t in _DEFINE
  )


def run(
  main: Callable[..., int | None], *, takes_arguments: bool = False
) -> None:
  """Runs `main` with parsed flags, as a command.

  Bad input, of flags or found later, prints one line to stderr and exits with
  2; so does an argument that is no flag, unless `takes_arguments` says that
  `main` is given them. What cannot be written prints one line and exits with 1. A signal that asks the command to end interrupts `main`,
  unless that defers it, and gives the exit code (`endings`). `main` returns the
  exit code, or None for 0.
  """
  endings.install()

  def parse(argv: Sequence[str]) -> Sequence[str]:
    try:
      _check_flagfiles(argv[1:])
    except _validate.InputError as error:
      _fail(error)
    if any(arg.lstrip('-').startswith('help') for arg in argv[1:]):
      return app.parse_flags_with_usage(list(argv))
    try:
      rest = flags.FLAGS(list(argv))
      if len(rest) > 1 and not takes_arguments:
        raise _validate.InputError(
          f'unexpected argument {rest[1]!r}; flags are --name=value'
        )
      return rest
    except (flags.Error, _validate.InputError) as error:
      _fail(error)

  def run_main(argv: Sequence[str]) -> int | None:
    logging.set_verbosity(logging.WARNING)
    _guard_tff_worker()
    try:
      with endings.work():
        code = main(argv[1:]) if takes_arguments else main()
    except KeyboardInterrupt as error:
      return endings.stopped(error)
    except Exception as error:
      if endings.signum() is not None:
        # The interruption may have come out of TensorFlow as another error.
        return endings.stopped()
      if isinstance(error, _validate.InputError):
        _fail(error)
      if isinstance(error, OSError):
        # A full disk, or a folder where a file is to go.
        print(
          f'error: stopped: {" ".join(str(error).split())}', file=sys.stderr
        )
        return exit_codes.FAILED
      raise
    return endings.exit_code(code)

  app.run(run_main, flags_parser=parse)


def _check_flagfiles(
  arguments: Sequence[str], inside: tuple[str, ...] = ()
) -> None:
  """Raises `InputError` for flagfiles that absl would hang or fail on.

  Args:
    arguments: The command line without the program, or lines of a flagfile.
    inside: The real paths of the flagfiles that these lines are in.
  """
  pairs = zip(arguments, [*arguments[1:], ''])
  for argument, following in pairs:
    if argument == '--':
      return
    name, equals, value = argument.partition('=')
    if name not in ('-flagfile', '--flagfile'):
      continue
    path = pathlib.Path((value if equals else following).strip())
    text = _read_flagfile(path)
    real = os.path.realpath(path.expanduser())
    if real in inside:
      raise _validate.InputError(f'flagfile {path} includes itself')
    lines = [line.strip() for line in text.splitlines()]
    nested = [line for line in lines if line.startswith('-')]
    _check_flagfiles(nested, (*inside, real))


def _read_flagfile(path: pathlib.Path) -> str:
  try:
    expanded = path.expanduser()
    if not expanded.is_file():  # A pipe would be waited for.
      why = 'is no file' if expanded.exists() else 'does not exist'
      raise _validate.InputError(f'flagfile {path} {why}')
    if expanded.stat().st_size > _MAX_FLAGFILE_BYTES:
      raise _validate.InputError(f'flagfile {path} is too large for a flagfile')
    text = expanded.read_text(encoding='utf-8')
  except (OSError, RuntimeError) as error:  # RuntimeError: no such home.
    raise _validate.InputError(
      f'flagfile {path} cannot be read ({error})'
    ) from None
  except _validate.InputError:
    raise
  except ValueError:  # Not UTF-8, or a null byte in the name.
    text = '\0'
  if '\0' in text:
    raise _validate.InputError(
      f'flagfile {str(path)!r} is no text; it must hold a flag a line, '
      '--name=value'
    )
  return text


def _guard_tff_worker() -> None:
  """Has the worker process of TFF's runtime end with this command, if it uses TFF.

  Commands that do not use TFF are not made to import it.
  """
  if 'tensorflow_federated' in sys.modules:
    from tff_medical.runtime import tff_worker

    tff_worker.guard()
    endings.before_leaving(tff_worker.kill_all)


def _fail(error: Exception) -> typing.NoReturn:
  message = ' '.join(str(error).split())
  print(f'error: {message}', file=sys.stderr)
  sys.exit(endings.exit_code(exit_codes.BAD_INPUT))
