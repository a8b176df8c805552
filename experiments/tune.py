r"""Searches settings on validation images, and states what the search costs.

    python -m experiments.tune --target_epsilon=3 --privacy_unit=record \
        --dataset=medmnist/pneumoniamnist --data_dir=FOLDER_WITH_NPZ \
        --search='server_learning_rate=0.1,0.5,2' --search='clip_norm=0.5,1' \
        --output_dir=runs/tuned

The flags of `experiments.train` are common to all trials. Each trial is a
training in its own process, whose settings come from --search. ε is the price
of the whole search: the noise of each trial is calibrated so that all of them
together keep --target_epsilon. The best trial by --metric on validation images
is released as `saved_model`, whose card states that ε, and `best.flags`. With
--eval_split=test the best trial alone is evaluated on test images, at the end.

There are two prices:

- composition: every trial is charged in the --data_ledger, or else in one of
  the search's own. All trials may be published: results.csv, tuning.png.
- papernot_steinke: the number of trials is drawn secretly, with --trials as its
  mean, each from random candidates, and only the best one is released (Papernot
  and Steinke 2022). All else lies in `private/` and must stay secret.

The candidates must be given without a look at the data. docs/tuning.md says
what each price covers. Started again with the same folder, the command does the
missing trials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import functools
import math
import sys
from typing import Any

from absl import flags as absl_flags

from experiments.config import flags
from experiments.config import settings as settings_lib
from experiments.running import cells
from experiments.running import command
from experiments.running import exit_codes
from experiments.running import jobs as jobs_lib
from experiments.tuning import pricing
from experiments.tuning import releasing
from experiments.tuning import results
from experiments.tuning import search as search_lib
from experiments.tuning import trials as trials_lib
from experiments.tuning import tuning_folder
from tff_medical import _files
from tff_medical.privacy import data_ledger_contents
from tff_medical.program import ending
from tff_medical.program import run_records
from tff_medical.reporting import run_tables


def finish(
  tuning: tuning_folder.Tuning,
  trials: Sequence[search_lib.Candidate],
  trainings: Sequence[cells.Training],
  priced: pricing.Priced,
) -> int:
  """Writes the results and releases the best trial; returns the exit code."""
  search, folder = tuning.search, tuning.folder
  summaries = [s for s in map(results.ended, trainings) if s is not None]
  if len(summaries) < len(trainings):
    return exit_codes.FAILED
  runs = results.table(search, trials, summaries)
  with ending.deferred():
    run_tables.write(tuning.trials_folder / 'results.csv', runs)
    results.draw(search, runs, tuning.trials_folder)
  best = int(runs['trial'].iloc[0]) - 1
  if math.isinf(search.score(summaries[best])):
    print(
      'error: no trial has a model; nothing was released. Search smaller '
      'learning rates or clip norms in another folder',
      file=sys.stderr,
    )
    return exit_codes.FAILED
  chosen = trainings[best]
  if tuning.base.eval_split != search_lib.CHOOSING:
    chosen = releasing.on_test(tuning, chosen)
    tested = cells.run([chosen], tuning.trials_folder, cells.Place(1))
    if tested.exit_code:
      for line in tested.failed:
        print(f'error: {line}', file=sys.stderr)
      return tested.exit_code
  event, ledger = priced.event, tuning.base.data_ledger
  if not search.is_secret:
    ledger = str(tuning.data_ledger)
    run_ids = [summary.run_id for summary in summaries]
    event = repr(
      releasing.composed_event(data_ledger_contents.read(ledger), run_ids)
    )
  card = jobs_lib.call(
    releasing.release,
    chosen.flags.output_dir,
    str(folder / 'saved_model'),
    event,
    search.describe(),
    ledger,
  )
  text = releasing.flag_file(
    tuning, trainings[best], trials[best], card['epsilon']
  )
  _files.write_bytes(folder / 'best.flags', text.encode())
  _print_best(tuning, trials[best], summaries[best], card)
  return exit_codes.OK


def _print_best(
  tuning: tuning_folder.Tuning,
  candidate: search_lib.Candidate,
  summary: run_records.Summary,
  card: Mapping[str, Any],
) -> None:
  """Prints the best trial, its metrics, the price and where the model is."""
  search, folder = tuning.search, tuning.folder
  value = summary.metrics[search.metric]
  settings = ', '.join(f'{name}={value}' for name, value in candidate)
  print(f'Best by validation {search.metric}, {value:.4f}: {settings}')
  if search.metric in card['test_metrics']:
    print(f'test {search.metric} {card["test_metrics"][search.metric]:.4f}')
  print(
    f'ε {card["epsilon"]:.4f} at δ {card["delta"]:.3g} for the whole search by '
    f'{search.price}; a training alone has ε {summary.epsilon:.4f}'
  )
  print(f'Model in {folder / "saved_model"}, flags in {folder / "best.flags"}')
  if search.is_secret:
    print(f'Keep {tuning.trials_folder} secret, or remove it.')


def run(
  base: settings_lib.Flags,
  search: search_lib.Search,
  jobs: int | None,
  cells_on: str = '',
) -> int:
  """Does the missing trials and releases the best; returns the exit code."""
  trials_lib.check_base(base)
  place = cells.Place(jobs, cells_on)
  tuning = tuning_folder.Tuning(base, search)
  place.check(
    base,
    tuning.trials_folder,
    None if search.is_secret else str(tuning.data_ledger),
  )
  trials, priced = tuning.start()
  trainings = tuning.trainings(trials, priced)
  todo = [training for training in trainings if results.ended(training) is None]
  done = cells.run(todo, tuning.trials_folder, place)
  for line in done.failed:
    print(f'error: {line}', file=sys.stderr)
  if done.interrupted:
    print('Interrupted; start the same command again to go on.')
    return done.exit_code
  return finish(tuning, trials, trainings, priced)


def main(
  read_flags: Callable[[], settings_lib.Flags],
  values: absl_flags.FlagValues,
) -> int:
  """Runs the command; returns its exit code."""
  strategy = values.strategy
  if strategy is None:
    strategy = 'random' if values.trials is not None else 'grid'
  search = search_lib.Search(
    search_lib.parse_search(values.search),
    strategy,
    values.trials,
    values.price,
    values.metric,
    values.trials_shape,
  )
  return run(read_flags(), search, values.jobs, values.cells_on)


def define_flags(values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
  """Defines the flags of this command alone."""
  put = {'flag_values': values}
  absl_flags.DEFINE_multi_string(
    'search', [], "values to try of a flag, as 'NAME=VALUE,VALUE'", **put
  )
  absl_flags.DEFINE_string(
    'strategy',
    None,
    'grid (all candidates) or random [random if --trials is given]',
    **put,
  )
  absl_flags.DEFINE_float(
    'trials',
    None,
    'number of trials of a random search; its mean with '
    '--price=papernot_steinke',
    **put,
  )
  absl_flags.DEFINE_string(
    'price',
    search_lib.COMPOSITION,
    f'what is paid for: {" or ".join(search_lib.PRICES)}',
    **put,
  )
  absl_flags.DEFINE_string(
    'metric', 'auc', 'metric on validation images that chooses the best', **put
  )
  absl_flags.DEFINE_float(
    'trials_shape',
    None,
    'shape of the distribution of a secret number of trials; 1 is geometric, 0 '
    'logarithmic [1]',
    **put,
  )
  absl_flags.DEFINE_integer(
    'jobs',
    None,
    'trials at once [one for each GPU, or else for each core]',
    **put,
  )
  absl_flags.DEFINE_string('cells_on', '', cells.CELLS_ON_HELP, **put)


if __name__ == '__main__':
  define_flags()
  command.run(functools.partial(main, flags.define(), absl_flags.FLAGS))
