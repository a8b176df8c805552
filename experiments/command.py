"""Runs a command: flags, help, bad input, signals and exit codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import sys
import typing

from absl import app
from absl import flags
from absl import logging

from experiments import endings
from experiments import exit_codes
from experiments.config import flags as flags_lib
from tff_medical import _validate


def run(
  main: Callable[..., int | None], *, takes_arguments: bool = False
) -> None:
  """Runs `main` with parsed flags, as a command.

  Bad input, of flags or found later, prints one line to stderr and exits with
  2; so does an argument that is no flag, unless `takes_arguments` says that
  `main` is given them. What cannot be written prints one line and exits with 1.
  A signal that asks the command to end interrupts `main`, unless that defers it,
  and gives the exit code (`endings`). `main` returns the exit code, or None for
  0.
  """
  endings.install()

  def parse(argv: Sequence[str]) -> Sequence[str]:
    if any(arg in ('--help', '-help', '-h', '--h') for arg in argv[1:]):
      _print_help(argv[0])
    try:
      flags_lib.check_flagfiles(argv[1:])
      rest = flags.FLAGS(flags_lib.with_configs(argv))
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


def _print_help(program: str) -> typing.NoReturn:
  """Prints the command's doc and flags, and ends with exit code 0.

  absl would show no flag of a module but the command's own.
  """
  doc = sys.modules['__main__'].__doc__ or ''
  own = flags.FLAGS.flags_by_module_dict().get(program, [])
  has_settings = 'mechanism' in flags.FLAGS
  print(flags_lib.help_text(doc, own, has_settings=has_settings), end='')
  sys.exit(exit_codes.OK)


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
  sys.exit(exit_codes.BAD_INPUT)
