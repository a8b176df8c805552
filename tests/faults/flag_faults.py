"""Flags with values that nobody means, and what becomes of them.

    python -m tests.faults.flag_faults

For every numeric setting, in a mode that uses it, values from both ends of
floats, int32 and int64; for every setting that is text, text that is none. Each
is read as a flag, resolved, and made a mechanism. It survives if that works, or
is refused in one line that names the flag, in bounded time; it is lost if
anything else is raised. The command prints how many were tried, survived and
lost, and each that was lost; with the argument `account` it also computes the
epsilon of all rounds of what was accepted, which takes minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import functools
import math
import sys
import time
from typing import NamedTuple

from absl import flags as absl_flags

from experiments.config import assembly
from experiments.config import fields
from experiments.config import flags
from experiments.config import settings as settings_lib
from tff_medical import _validate
from tff_medical.privacy import accounting

NUM_CLIENTS = 300
NUM_UNITS = 3000
# What may be asked for, at most, without training.
MAX_SECONDS = 60.0

INTEGERS = (
  -(10**30), -(2**63) - 1, -(2**63), -(2**31), -1, 0, 1, 2, 3, 10, 999, 10**6,
  10**6 + 1, 10**9, 2**31 - 1, 2**31, 2**32 + 1, 2**53 + 1, 2**63 - 1, 2**63,
  2**64, 2**128, 10**30, 10**400,
)  # fmt: skip
FLOATS = (
  -math.inf, -1e308, -1.0, -1e-320, -0.0, 0.0, 1e-320, 1e-300, 1e-45, 1e-38,
  1e-30, 1e-20, 1e-16, 1e-10, 1e-5, 1e-3, 0.1, 0.5, 0.9999999, 0.9999999999,
  1.0, 1.0000000001, 1.5, 3.7, 29.999, 300.0, 1e3, 1e6, 1e9, 1e20, 3.4e38, 1e39,
  1e308, math.inf, math.nan,
)  # fmt: skip
TEXTS = (
  '', ' ', '\t', '\n', 'a\nb', 'a\x00b', 'gs://bucket/x', 's3://b', 'file:///x',
  '~nobody_has_this_name/x', '\udcff',
)  # fmt: skip

_MODES = (
  ('noise_multiplier=1',),
  ('noise_multiplier=1', 'clipping=fixed'),
  ('target_epsilon=8',),
  ('noise_multiplier=1', 'partition=dirichlet'),
  ('noise_multiplier=1', 'clients_per_round=20'),
  ('noise_multiplier=1', 'clipping=fixed', 'server_optimizer=adam_bc'),
  ('noise_multiplier=1', 'backbone=scattering'),
  ('noise_multiplier=1', 'eval_split=test'),
  ('noise_multiplier=1', 'privacy_unit=record', 'class_weights=noised'),
  ('noise_multiplier=1', 'privacy_unit=record'),
  ('noise_multiplier=1', 'privacy_unit=patient'),
  ('noise_multiplier=1', 'privacy_unit=record', 'mechanism=local_dp_sgd'),
  ('noise_multiplier=1', 'mechanism=dp_ftrl'),
  ('noise_multiplier=1', 'mechanism=distributed_dp'),
  ('noise_multiplier=1', 'dataset=folder', 'data_dir=scans'),
  ('noise_multiplier=1', 'server_optimizer=adam'),
  ('clipping=none',),
)


class Case(NamedTuple):
  """A flag with a value, beside other flags."""

  name: str
  text: str
  beside: tuple[str, ...]

  @property
  def arguments(self) -> list[str]:
    """The command line without the program."""
    others = [
      f'--{flag}' for flag in self.beside if flag.split('=')[0] != self.name
    ]
    if 'noise_multiplier' in self.name:  # Not both.
      others = [flag for flag in others if 'epsilon' not in flag]
    given = [] if self.name == 'output_dir' else ['--output_dir=run']
    return [*given, *others, f'--{self.name}={self.text}']


class Result(NamedTuple):
  """What became of a case.

  Attributes:
    settings: The resolved settings, or None if they were refused.
    refusal: Why, or ''.
    problem: What else was raised, or ''.
    seconds: Of computing, whatever else the machine does.
  """

  settings: settings_lib.Settings | None
  refusal: str
  problem: str
  seconds: float

  @property
  def survived(self) -> bool:
    """Whether a user could live with it."""
    return not self.problem and self.seconds < MAX_SECONDS


def kind_of(name: str) -> type:
  """Returns int, float, bool or str: the type of a setting."""
  return fields.kind(settings_lib.owners()[name][0], name)


def numeric_names() -> list[str]:
  """Returns the settings that are numbers."""
  return [n for n in settings_lib.owners() if kind_of(n) in (int, float)]


def modes_of(name: str) -> list[tuple[str, ...]]:
  """Returns the flags of the modes that use a setting: two at most."""
  found = []
  for mode in _MODES:
    if name == 'target_epsilon' and 'target_epsilon=8' not in mode:
      continue
    given = read([f'--{flag}' for flag in ('output_dir=run', *mode)])
    if name in given.changed(**{name: 1}).without_ignored().given:
      found.append(mode)
  return [*found[:1], *found[-1:]] if len(found) > 1 else found


def cases() -> Iterator[Case]:
  """Yields every case."""
  for name in numeric_names():
    values = INTEGERS if kind_of(name) is int else (*FLOATS, *INTEGERS[-3:])
    for mode in modes_of(name):
      for value in values:
        yield Case(name, repr(value), mode)
  for name in settings_lib.owners():
    if kind_of(name) is str:
      for text in TEXTS:
        yield Case(name, text, _MODES[0])


def read(arguments: list[str]) -> settings_lib.Flags:
  """Returns the settings of a command line, not resolved."""
  values, reader = _defined()
  for name in values:
    values[name].unparse()
  values(['train', *arguments])
  return reader()


@functools.cache
def _defined() -> tuple[
  absl_flags.FlagValues, Callable[[], settings_lib.Flags]
]:
  """Returns the flags of all settings; they are defined once for all cases."""
  values = absl_flags.FlagValues()
  return values, flags.define(values)


def attempt(case: Case, account: bool = False) -> Result:
  """Takes a case as far as it goes without data."""
  started = time.process_time()
  settings, refusal, problem = None, '', ''
  try:
    settings = read(case.arguments).resolve()
    clients = settings.data.num_clients or NUM_CLIENTS
    client_level = settings.mode.privacy_unit == 'client'
    units = clients if client_level else NUM_UNITS
    settings = settings.for_data(clients, units)
    settings_for_mechanism = settings
    if settings.mode.target_epsilon is not None and not account:
      settings_for_mechanism = dataclasses.replace(
        settings,
        mode=dataclasses.replace(
          settings.mode, target_epsilon=None, noise_multiplier=1.0
        ),
      )
    mechanism = assembly.build_mechanism(settings_for_mechanism, units)
    mechanism.describe()
    event = mechanism.charge_event()
    if account and mechanism.is_private:
      epsilon = accounting.epsilon(
        event,
        rounds=mechanism.charges_for(settings.mode.rounds),
        delta=settings.mode.target_delta,
      )
      if not 0 <= epsilon < math.inf:
        problem = f'epsilon {epsilon}'
  except (_validate.InputError, absl_flags.Error) as error:
    settings, refusal = None, str(error)
  except Exception as error:  # noqa: BLE001 - whatever it is, it is counted.
    settings, problem = None, f'{type(error).__name__}: {error}'
  return Result(settings, refusal, problem, time.process_time() - started)


def main(account: bool) -> int:
  """Prints the count and whatever was lost; returns the exit code."""
  tried, refused, lost = 0, 0, []
  for case in cases():
    result = attempt(case, account)
    tried += 1
    refused += bool(result.refusal)
    if not result.survived:
      lost.append(case)
      print(f'lost: {case} {result.problem} after {result.seconds:.1f} s')
  print(
    f'tried {tried}, survived {tried - len(lost)} ({refused} refused), lost '
    f'{len(lost)}'
  )
  return bool(lost)


if __name__ == '__main__':
  sys.exit(main('account' in sys.argv[1:]))
