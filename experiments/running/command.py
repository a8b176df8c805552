"""Runs a command: flags, help, bad input, signals and exit codes.

A command that imports TensorFlow has two blocks `if __name__ == '__main__'`. The
block before its slow imports defines the flags and calls `parse`, so that --help
and wrong flags are answered at once. The block at its end calls `run`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
import gc
import sys
import typing

from absl import flags
from absl import logging

from experiments.config import flags as flags_lib
from experiments.config import settings as settings_lib
from experiments.running import endings
from experiments.running import exit_codes
from experiments.running import late_imports
from tff_medical import _validate

_HELP = ('h', '?', 'help', 'helpshort', 'helpfull', 'helpxml')
# The arguments that `parse` left over.
_parsed: Sequence[str] | None = None


def parse(
  *,
  takes_arguments: bool = False,
  check: Callable[[], object] = lambda: None,
  settings: Collection[str] = (),
) -> Sequence[str]:
  """Parses the command line, once; returns the program and its arguments.

  With --help the function prints the help and exits with 0. Bad input prints one
  line to stderr and exits with 2.

  Args:
    takes_arguments: Whether the command has arguments beside its flags.
    check: Function that is called with the flags parsed; it raises `InputError`
      if they cannot be used together.
    settings: Settings of a run that --help shows; () for all of them.
  """
  global _parsed
  if _parsed is not None:
    return _parsed
  endings.install()
  if _asks_for_help(sys.argv[1:]):
    # Commands without settings may have flags with the names of settings.
    has_settings = 'mechanism' in flags.FLAGS
    shown = settings or settings_lib.names()
    _print_help(sys.argv[0], shown if has_settings else ())
  try:
    flags_lib.check_flagfiles(sys.argv[1:])
    rest = flags.FLAGS(flags_lib.with_configs(sys.argv))
    if len(rest) > 1 and not takes_arguments:
      raise _validate.InputError(
        f'unexpected argument {rest[1]!r}; flags are --name=value'
      )
    check()
  except flags.UnrecognizedFlagError as error:
    owner = flags_lib.owner_of(error.flagname, sys.argv[0], sys.argv[1:])
    unknown = f'{error.flagname} is no flag of this command'
    sys.exit(_refuse(flags.Error(f'{unknown}: {owner}') if owner else error))
  except (flags.Error, _validate.InputError) as error:
    sys.exit(_refuse(error))
  _parsed = rest
  # The imports that follow make a million objects that live to the end. To look
  # through them for garbage, again and again, takes a quarter of their time.
  gc.disable()
  late_imports.install()
  return rest


def run(
  main: Callable[..., int | None], *, takes_arguments: bool = False
) -> None:
  """Runs `main` with parsed flags, as a command.

  Bad input prints one line to stderr and exits with 2, as does an argument
  beside the flags unless `takes_arguments` hands it to `main`. A file that cannot
  be written prints one line and exits with 1. A signal that asks the command to
  end interrupts `main`, unless `main` defers it, and decides the exit code
  (`endings`). `main` returns the exit code, or None for 0.
  """
  endings.install()
  rest = parse(takes_arguments=takes_arguments)[1:]
  gc.freeze()
  gc.enable()
  logging.use_absl_handler()
  # Not by absl's app.run, within which Keras models cannot be built if `main` is
  # the first to import TensorFlow.
  sys.exit(call(main, rest) if takes_arguments else call(main))


def call(main: Callable[..., int | None], *arguments: Sequence[str]) -> int:
  """Calls `main`; returns the exit code, as `run` says."""
  logging.set_verbosity(logging.WARNING)
  _guard_tff_worker()
  try:
    with endings.work():
      code = main(*arguments)
  except KeyboardInterrupt as error:
    return endings.stopped(error)
  except Exception as error:
    if endings.signum() is not None:
      # The interruption may have come out of TensorFlow as another error.
      return endings.stopped()
    if isinstance(error, _validate.InputError):
      return _refuse(error)
    if isinstance(error, OSError):
      # The disk is full, or a folder is in the place of a file.
      print(f'error: stopped: {_in_a_line(error)}', file=sys.stderr)
      return endings.exit_code(exit_codes.FAILED)
    raise
  return endings.exit_code(code)


def _asks_for_help(arguments: Sequence[str]) -> bool:
  for argument in arguments:
    if argument == '--':
      return False
    name = argument.partition('=')[0]
    if name.startswith('-') and name.lstrip('-') in _HELP:
      return True
  return False


def _print_help(program: str, settings: Collection[str]) -> typing.NoReturn:
  """Prints the command's doc and flags, and ends with exit code 0.

  absl would show the flags of the command's own module alone.
  """
  doc = sys.modules['__main__'].__doc__ or ''
  command_flags = flags.FLAGS.flags_by_module_dict().get(program, [])
  print(flags_lib.help_text(doc, command_flags, settings), end='')
  sys.exit(exit_codes.OK)


def _guard_tff_worker() -> None:
  """Makes the worker process of TFF's runtime end with this command.

  A command that has not imported TFF has no such process.
  """
  if sys.modules.get('tensorflow_federated') is not None:
    from tff_medical.runtime import tff_worker

    tff_worker.guard()
    endings.before_leaving(tff_worker.kill_all)


def _refuse(error: Exception) -> int:
  """Prints the line of bad input; returns the exit code."""
  print(f'error: {_in_a_line(error)}', file=sys.stderr)
  return endings.exit_code(exit_codes.BAD_INPUT)


def _in_a_line(error: Exception) -> str:
  return ' '.join(str(error).split())
