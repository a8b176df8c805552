"""Checks before a training begins: a round without data, and a dry run.

`check_round` finds faults that no check of a setting finds. `describe` returns
the text of `train --dry_run`: the data, the noise, ε by round, sizes and the
expected time. Neither writes a file or charges a ledger; before them, images and
features are prepared into their caches. Of the images, only their numbers and
the time of a round leave these functions.
"""

from __future__ import annotations

from collections.abc import Iterator
import math
import secrets
import time
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from experiments.config import assembly
from experiments.modes import base
from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data import partition as partition_lib
from tff_medical.privacy import accounting

# Rounds whose ε is shown, as fractions of all rounds.
_SHARES = (0.1, 0.25, 0.5, 1.0)
_BYTES_A_WEIGHT = 4


def check_round(
  process: tff.learning.templates.LearningProcess, feed: base.Feed
) -> None:
  """Runs a round without data, and discards its result.

  The round finds faults that no check finds: a size that overflows, a graph
  that cannot be built, lack of memory. It runs before the folder is claimed and
  anything is charged. Its result cannot depend on the data.

  Raises:
    InputError: The round failed.
  """
  try:
    process.next(process.initialize(), feed.without_data())
  except _validate.InputError:
    raise
  except (
    ArithmeticError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    tf.errors.OpError,
  ) as error:
    raise _validate.InputError(
      'a round without data fails with these settings: '
      f'{str(error).splitlines()[0] if str(error) else type(error).__name__}; '
      'nothing was charged or written'
    ) from error


def describe(
  parts: assembly.Assembly, total_epsilon: float | None = None
) -> str:
  """Returns the description of a training, one line per topic.

  Two rounds, on cohorts drawn for this purpose, and one evaluation are run and
  timed. Their results are discarded, so they cost no privacy.

  Args:
    parts: Objects of the training.
    total_epsilon: Epsilon of all runs on the data with this one, if there is a
      data ledger.
  """
  lines = [
    ('data', _data(parts)),
    ('model', _model(parts)),
    ('training', _training(parts)),
    ('noise', _noise(parts)),
    ('ε by round', _epsilons(parts)),
    ('time', _time(parts)),
  ]
  if total_epsilon is not None:
    line = f'ε {total_epsilon:.4f} over all runs on this data with this one'
    lines.insert(-1, ('data ledger', line))
  width = max(len(title) for title, _ in lines)
  text = '\n'.join(f'{title:{width}}  {line}' for title, line in lines)
  return (
    f'{text}\nA dry run: nothing was trained or charged, and only the caches '
    'of images and features may have been written.'
  )


def _data(parts: assembly.Assembly) -> str:
  data, task = parts.task.data, parts.task
  sizes = partition_lib.ClientRows.of(task.partition).sizes
  height, width, channels = data.image_shape
  counts = ', '.join(f'{len(split):,} {name}' for name, split in data.splits())
  return (
    f'{data.described}: {counts} images of {height} x {width} x {channels}, '
    f'{data.num_classes} {"findings" if data.multi_label else "classes"}; '
    f'{task.num_clients:,} clients with {sizes.min():,} to {sizes.max():,} '
    f'images, {np.median(sizes):g} in the median'
  )


def _model(parts: assembly.Assembly) -> str:
  weights = parts.task.keras_model.trainable_weights
  number = sum(math.prod(w.shape) for w in weights)
  model = parts.task.model
  backbone = parts.task.backbone
  if backbone is not None:
    model = f'{backbone["trained_part"]} of {backbone["name"]}'
  return (
    f'{model}: {number:,} trainable weights, '
    f'{_size(number * _BYTES_A_WEIGHT)} as float32 each way'
  )


def _training(parts: assembly.Assembly) -> str:
  mode, sampling = parts.settings.mode, parts.mechanism.sampling
  population = f'{parts.feed.num_units:,} {mode.privacy_unit}s'
  cohort = (
    f'all {population} in every round, without amplification by sampling'
    if sampling.expected_cohort == parts.feed.num_units
    else f'{sampling.name} sampling of {sampling.expected_cohort:g} of '
    f'{population} per round'
  )
  return f'{mode.name}, {mode.rounds:,} rounds; {cohort}'


def _noise(parts: assembly.Assembly) -> str:
  mode, mechanism = parts.settings.mode, parts.mechanism
  if not mechanism.is_private:
    return 'none: no ε can be stated'
  budget = f', budget ε {mode.epsilon_budget:g}' if mode.epsilon_budget else ''
  return (
    f'noise multiplier {mechanism.noise_multiplier:.4f}, {mode.clipping} '
    f'clipping at {mode.clip_norm:g}, δ {parts.delta:.3g}{budget}'
    f'{_counts(parts)}'
  )


def _counts(parts: assembly.Assembly) -> str:
  """Returns the cost of the class counts; the counts themselves are secret."""
  if parts.counts is None:
    return ''
  release = parts.counts.release
  spent = accounting.epsilon(release.event(), rounds=1, delta=parts.delta)
  return (
    f'; class counts with noise of {release.stddev:.3g}, which alone cost ε '
    f'{spent:.3f}'
  )


def _epsilons(parts: assembly.Assembly) -> str:
  mechanism, rounds = parts.mechanism, parts.settings.mode.rounds
  if not mechanism.is_private:
    return 'none'
  event = mechanism.charge_event()
  before = parts.counts.release.event() if parts.counts else None
  shown = sorted({max(1, round(rounds * share)) for share in _SHARES})
  values = (
    accounting.epsilon(
      event,
      rounds=mechanism.charges_for(number),
      delta=parts.delta,
      before=before,
    )
    for number in shown
  )
  return ', '.join(
    f'{number:,}: {math.ceil(value * 1000) / 1000:.3f}'
    for number, value in zip(shown, values)
  )


def _time(parts: assembly.Assembly) -> str:
  settings = parts.settings
  first, later = _round_seconds(parts)
  started = time.monotonic()
  parts.task.evaluate(
    parts.process.get_model_weights(parts.process.initialize()),
    images.VALIDATION if parts.task.data.has_validation else images.TEST,
  )
  evaluation = time.monotonic() - started
  evaluations = -(-settings.mode.rounds // settings.run.rounds_per_eval)
  total = first + later * (settings.mode.rounds - 1) + evaluation * evaluations
  return (
    f'{later:.2f} s per round, {evaluation:.2f} s per evaluation; about '
    f'{_duration(total)} for {settings.mode.rounds:,} rounds and '
    f'{evaluations:,} evaluations on this machine at its present load'
  )


def _round_seconds(parts: assembly.Assembly) -> Iterator[float]:
  """Yields the seconds of the first round (with set-up) and of a later round."""
  sampling = parts.mechanism.sampling
  seed = secrets.randbits(128)
  state: Any = parts.process.initialize()
  for round_num in (1, 2):
    started = time.monotonic()
    cohort = sampling.draw(seed, round_num, round_num)
    state = parts.process.next(state, list(parts.feed(cohort))).state
    yield time.monotonic() - started


def _size(number: float) -> str:
  for unit in ('bytes', 'kB', 'MB'):
    if number < 1000:
      return f'{number:.3g} {unit}'
    number /= 1000
  return f'{number:.3g} GB'


def _duration(seconds: float) -> str:
  if seconds < 100:
    return f'{seconds:.0f} s'
  minutes = seconds / 60
  return f'{minutes:.0f} min' if minutes < 100 else f'{minutes / 60:.1f} h'
