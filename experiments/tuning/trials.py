"""Flags of trials: those common to all, with the values of a candidate."""

from __future__ import annotations

import shlex

from experiments.config import flags
from experiments.config import settings as settings_lib
from experiments.tuning import search as search_lib
from tff_medical import _validate


def check_base(base: settings_lib.Flags) -> None:
  """Raises `InputError` unless flags can be common to all trials."""
  if base.output_dir is None:
    raise _validate.InputError('output_dir must be given: --output_dir=FOLDER')
  if not base.target_epsilon:
    raise _validate.InputError(
      'target_epsilon must be given: the price of the whole search'
    )
  for name in ('cohort_seed', 'epsilon_budget'):
    if name in base.given:
      raise _validate.InputError(
        f'{name} is decided for each trial, got {base.given[name]}; leave it '
        'out'
      )
  base.resolve()


def trial_flags(
  base: settings_lib.Flags, candidate: search_lib.Candidate
) -> settings_lib.Flags:
  """Returns the flags of a trial before its noise is known.

  Raises:
    InputError: A value cannot be used.
  """
  changed = base
  for name, value in candidate:
    changed = flags.changed(changed, f'--{name}={shlex.quote(value)}')
  used = changed.without_ignored()
  for name, value in candidate:
    if name not in used.given:
      raise _validate.InputError(
        f'search: {name}={value} would be ignored in the trial {candidate}; '
        'search what all candidates use'
      )
  used.resolve()
  return used
