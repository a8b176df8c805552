"""Price of a search: the noise of all trials, and the ε of all together."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

from experiments.config import settings as settings_lib
from experiments.modes import base as base_mode
from experiments.tuning import search as search_lib
from tff_medical.privacy import accounting
from tff_medical.privacy import data_ledger as data_ledger_lib
from tff_medical.privacy import selection


@dataclasses.dataclass(frozen=True)
class Priced:
  """The noise of all trials, and what they cost.

  Attributes:
    noise_multipliers: Noise multiplier of each trial.
    epsilons: Epsilon of each trial alone.
    epsilon: Epsilon of the whole search.
    delta: Delta of every epsilon.
    event: Event of the whole search, as text.
  """

  noise_multipliers: tuple[float, ...]
  epsilons: tuple[float, ...]
  epsilon: float
  delta: float
  event: str


def price(
  search: search_lib.Search,
  trials: Sequence[settings_lib.Flags],
  request: data_ledger_lib.Request | None,
) -> Priced:
  """Returns the noise of trials that keeps the price within the target.

  The call loads the data. It reserves the price of a secret search in the
  ledger of the data set, and only checks that of all other trials, which
  reserve for themselves.

  Args:
    search: What is searched.
    trials: Flags of all trials, or of all candidates of a secret search.
    request: Request of the whole search to the data ledger, if there is one.

  Raises:
    InputError: The data cannot be used, the target is out of reach, or the data
      ledger has no room.
  """
  # These import TensorFlow, which only a child process may do.
  from experiments.config import assembly
  from tff_medical.runtime import tff_worker

  tff_worker.guard()  # Otherwise TFF prints a traceback when the process ends.
  settings = trials[0].resolve()
  task = assembly.load_task(settings)
  for split in {search_lib.CHOOSING, settings.run.eval_split}:
    task.data.eval_split(split)
  prepared = []
  for given in trials:
    resolved = given.resolve()
    feed = resolved.mode.feed(task)
    resolved = resolved.for_data(task.num_clients, feed.num_units)
    counts = resolved.mode.class_count_release(task.num_clients)
    prepared.append(
      selection.Trial(
        resolved.mode.mechanism(feed.num_units),
        resolved.mode.rounds,
        counts.event() if counts else None,
      )
    )
  delta = base_mode.known(resolved.mode.target_delta)
  target = base_mode.known(resolved.mode.target_epsilon)
  choice: selection.Selected | selection.Together
  if search.is_secret:
    choice = selection.calibrate_selected(
      prepared, search.number, target_epsilon=target, delta=delta
    )
  else:
    choice = selection.calibrate_together(
      prepared, target_epsilon=target, delta=delta
    )
  event = choice.charge_event()
  ledger = assembly.data_ledger(settings.run)
  if ledger is not None and request is not None:
    parts = assembly.Assembly(resolved, task, feed, choice.trials[0].mechanism)
    units = assembly.units(parts)
    if search.is_secret:
      ledger.reserve(units, choice, request, delta=delta)
    else:
      ledger.check(units, choice, request, delta=delta)
  return Priced(
    noise_multipliers=tuple(
      t.mechanism.noise_multiplier for t in choice.trials
    ),
    epsilons=tuple(t.epsilon(delta) for t in choice.trials),
    epsilon=accounting.epsilon(event, rounds=1, delta=delta),
    delta=delta,
    event=repr(event),
  )
