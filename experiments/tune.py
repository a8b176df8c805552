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
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import random
import secrets
import shlex
import shutil
import sys
from typing import Any

from absl import flags as absl_flags
import dp_accounting
import pandas as pd

from experiments.config import flags
from experiments.config import settings as settings_lib
from experiments.modes import base as base_mode
from experiments.running import cells
from experiments.running import command
from experiments.running import exit_codes
from experiments.running import jobs as jobs_lib
from tff_medical import _files
from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import data_ledger as data_ledger_lib
from tff_medical.privacy import data_ledger_contents
from tff_medical.privacy import events
from tff_medical.privacy import selection
from tff_medical.program import ending
from tff_medical.program import run_folder
from tff_medical.program import run_records
from tff_medical.reporting import plots
from tff_medical.reporting import run_tables

COMPOSITION, PAPERNOT_STEINKE = 'composition', 'papernot_steinke'
PRICES = (COMPOSITION, PAPERNOT_STEINKE)
STRATEGIES = ('grid', 'random')
# Split of the images by which the best is chosen.
_CHOOSING = 'validation'
# Name of the cell that evaluates a copy of the best trial on test images.
_ON_TEST = 'best_on_test'
# Metrics of which the smallest is best.
_SMALLER_IS_BETTER = ('loss', 'ece', 'mean_absolute_error')
# Settings that no candidate may change: trials would protect or measure others.
_FIXED = (
  *settings_lib.DATA_FLAGS,
  'mechanism',
  'privacy_unit',
  'clipping',
  'target_epsilon',
  'target_delta',
  'noise_multiplier',
  'epsilon_budget',
  'cohort_seed',
  'eval_split',
  'data_ledger',
  'data_budget',
  'output_dir',
)
_MAX_CANDIDATES = 100_000
_PRIVATE_NOTE = """Keep this folder secret.

ε of the released model holds if nothing else of the search is known: not the
number of trials, not their settings, not their models or metrics, and not how
long they took.
"""

Candidate = tuple[tuple[str, str], ...]


def parse_search(texts: Sequence[str]) -> dict[str, list[str]]:
  """Returns the values to try, by the name of their flag.

  >>> parse_search(['rounds=10,20', 'augment=flip|flip,rotate'])
  {'rounds': ['10', '20'], 'augment': ['flip', 'flip,rotate']}

  Args:
    texts: Texts `NAME=VALUE,VALUE`. Where values have commas, `|` divides them.

  Raises:
    InputError: A text is of another form, or a flag may not be searched.
  """
  search: dict[str, list[str]] = {}
  for text in texts:
    name, equals, values = text.partition('=')
    name = name.strip().lstrip('-')
    parts = values.split('|' if '|' in values else ',')
    found = [value.strip() for value in parts]
    if not equals or not name or not all(found):
      raise _validate.InputError(
        f"search must be 'NAME=VALUE,VALUE', got {text!r}"
      )
    if name in search or len(set(found)) < len(found):
      raise _validate.InputError(
        f'search must name each flag and each value once, got {text!r}'
      )
    if name in _FIXED:
      raise _validate.InputError(
        f'search cannot change {name}, which all trials have in common; give '
        f'--{name} instead'
      )
    search[name] = found
  if not search:
    raise _validate.InputError(
      "search must be given: --search='NAME=VALUE,VALUE'"
    )
  return search


@dataclasses.dataclass(frozen=True)
class Search:
  """What is searched, how, and by which metric.

  Attributes:
    values: Values to try, by the name of their flag.
    strategy: Strategy from `STRATEGIES`.
    trials: Number of trials of a random search, or its mean with
      `PAPERNOT_STEINKE`; None with a grid.
    price: Price from `PRICES`.
    metric: Metric on validation images by which the best is chosen.
    trials_shape: Shape of the distribution of a secret number of trials.
  """

  values: Mapping[str, Sequence[str]]
  strategy: str = 'grid'
  trials: float | None = None
  price: str = COMPOSITION
  metric: str = 'auc'
  trials_shape: float | None = None

  def __post_init__(self) -> None:
    _validate.one_of(STRATEGIES, strategy=self.strategy)
    _validate.one_of(PRICES, price=self.price)
    _validate.text(metric=self.metric)
    if self.size > _MAX_CANDIDATES:
      raise _validate.InputError(
        f'search must have at most {_MAX_CANDIDATES:,} candidates, got '
        f'{self.size:,}; leave values out'
      )
    if self.is_secret and self.strategy != 'random':
      raise _validate.InputError(
        f'strategy must be random with price={self.price}, whose trials are '
        f'drawn independently, got {self.strategy}'
      )
    if (self.strategy == 'random') == (self.trials is None):
      raise _validate.InputError(
        'trials must be given with strategy=random alone, got '
        f'trials={self.trials} with strategy={self.strategy}'
      )
    if self.trials_shape is not None and not self.is_secret:
      raise _validate.InputError(
        f'trials_shape={self.trials_shape} would be ignored with '
        f'price={self.price}; leave it out'
      )
    if self.is_secret:
      self.number  # noqa: B018  (it checks its values)
    elif self.trials is not None:
      if self.trials != int(self.trials) or not 1 <= self.trials <= self.size:
        raise _validate.InputError(
          f'trials must be a whole number up to the {self.size} candidates, '
          f'got {self.trials:g}'
        )

  @property
  def is_secret(self) -> bool:
    """Whether only the best trial may be known."""
    return self.price == PAPERNOT_STEINKE

  @property
  def size(self) -> int:
    """Number of candidates."""
    return math.prod(len(values) for values in self.values.values())

  @property
  def number(self) -> selection.NumberOfTrials:
    """Distribution of the secret number of trials."""
    shape = 1.0 if self.trials_shape is None else self.trials_shape
    return selection.NumberOfTrials(self.trials or 0.0, shape)

  def candidates(self) -> list[Candidate]:
    """Returns all candidates, each with a value of every flag."""
    named = [[(n, v) for v in values] for n, values in self.values.items()]
    return list(itertools.product(*named))

  def draw(self, seed: int) -> list[Candidate]:
    """Returns the candidates of all trials.

    A secret number of trials draws each candidate anew, from the operating
    system's entropy. Otherwise no candidate is tried twice.

    Args:
      seed: Seed of a random search that is not secret.
    """
    candidates = self.candidates()
    if self.is_secret:
      rng = random.SystemRandom()
      return [rng.choice(candidates) for _ in range(self.number.draw(rng))]
    if self.trials is None:
      return candidates
    return random.Random(seed).sample(candidates, int(self.trials))

  def describe(self) -> dict[str, Any]:
    """Returns the search as plain values for the card and `tuning.json`."""
    described: dict[str, Any] = {
      'search': {name: list(values) for name, values in self.values.items()},
      'strategy': self.strategy,
      'price': self.price,
      'metric': f'validation {self.metric}',
    }
    if self.is_secret:
      number = self.number
      described['mean_number_of_trials'] = number.mean
      described['shape_of_number_of_trials'] = number.shape
    elif self.trials is not None:
      described['trials'] = int(self.trials)
    else:
      described['trials'] = self.size
    return described

  def score(self, summary: run_records.Summary) -> float:
    """Returns the score of a trial, of which the largest is best.

    Raises:
      InputError: The trial has no such metric on validation images.
    """
    if summary.eval_split != _CHOOSING or (
      summary.metrics and self.metric not in summary.metrics
    ):
      raise _validate.InputError(
        f'metric {self.metric} is not among those of the trials on '
        f'{summary.eval_split} images ({", ".join(summary.metrics)})'
      )
    value = summary.metrics.get(self.metric, math.nan)
    if math.isnan(value):
      return -math.inf
    return -value if self.metric in _SMALLER_IS_BETTER else value


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
  base: settings_lib.Flags, candidate: Candidate
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


def price(
  search: Search,
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
  for split in {_CHOOSING, settings.run.eval_split}:
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


@dataclasses.dataclass(frozen=True)
class Tuning:
  """A search in its folder.

  Attributes:
    base: Flags common to all trials.
    search: What is searched.
  """

  base: settings_lib.Flags
  search: Search

  @property
  def folder(self) -> pathlib.Path:
    """Folder of the search and of what it releases."""
    return pathlib.Path(self.base.output_dir or '')

  @property
  def trials_folder(self) -> pathlib.Path:
    """Folder of the trials, which is private if they are secret."""
    return self.folder / 'private' if self.search.is_secret else self.folder

  @property
  def file(self) -> pathlib.Path:
    """File of the settings and the price."""
    return self.folder / 'tuning.json'

  @property
  def trials_file(self) -> pathlib.Path:
    """File of the candidates of all trials."""
    return self.trials_folder / 'trials.json'

  @property
  def data_ledger(self) -> pathlib.Path:
    """Ledger of the data set: the one given, or one of the search alone."""
    given = self.base.resolve().run.data_ledger
    return pathlib.Path(given or self.folder / 'data_ledger.jsonl')

  def start(self) -> tuple[list[Candidate], Priced]:
    """Returns the trials and their price; goes on with those of the folder.

    Raises:
      InputError: The folder holds something else, the target is out of reach,
        or the data ledger has no room.
    """
    identity = _files.plain_json(
      {'settings': self._identity(), 'search': self.search.describe()}
    )
    if self.file.exists():
      return self._read(identity)
    if self.folder.exists() and (
      not self.folder.is_dir() or any(self.folder.iterdir())
    ):
      raise _validate.InputError(
        f'output_dir {self.folder} holds other files (no {self.file.name}); '
        'choose a new folder'
      )
    candidates = self.search.candidates()
    trials = candidates if self.search.is_secret else self._draw()
    planned = [trial_flags(self.base, candidate) for candidate in trials]
    request = data_ledger_lib.Request(secrets.token_hex(16), 'tune', 1)
    priced = jobs_lib.call(price, self.search, planned, request)
    if self.search.is_secret:
      trials = self._draw()
    with ending.deferred():
      self.folder.mkdir(parents=True, exist_ok=True)
      if self.search.is_secret:
        self.trials_folder.mkdir(0o700)
        note = self.trials_folder / 'KEEP_SECRET.txt'
        _files.write_bytes(note, _PRIVATE_NOTE.encode(), private=True)
      listed = {'trials': [dict(candidate) for candidate in trials]}
      text = json.dumps(listed, indent=2) + '\n'
      _files.write_bytes(self.trials_file, text.encode(), private=True)
      _files.write_json(
        self.file,
        {
          **identity,
          'priced': dataclasses.asdict(priced),
          'versions': run_records.versions(),
        },
      )
    return trials, priced

  def _draw(self) -> list[Candidate]:
    return self.search.draw(self.base.seed)

  def _identity(self) -> dict[str, Any]:
    """Returns the given flags that a result depends on."""
    unfixed = settings_lib.may_change() - {'initial_model', 'data_ledger'}
    return dict(self.base.changed(**dict.fromkeys(unfixed)).given)

  def _read(
    self, identity: Mapping[str, Any]
  ) -> tuple[list[Candidate], Priced]:
    """Returns the trials and the price that the folder holds."""
    filed = _files.read_json(self.file)
    for name in identity:
      if filed.get(name) != identity[name]:
        raise _validate.InputError(
          f'output_dir {self.folder} belongs to a search with another {name} '
          f'({filed.get(name)} there, {identity[name]} now); use the same or '
          'choose another output_dir'
        )
    try:
      listed = _files.read_json(self.trials_file)['trials']
      trials = [tuple(candidate.items()) for candidate in listed]
      values = {**filed['priced']}
      for name in ('noise_multipliers', 'epsilons'):
        values[name] = tuple(values[name])
      return trials, Priced(**values)
    except (FileNotFoundError, KeyError, TypeError, AttributeError) as error:
      raise _validate.InputError(
        f'{self.folder} lacks its list of trials or its price '
        f'({type(error).__name__}); restore the files, as trials are never '
        'drawn again'
      ) from None

  def trainings(
    self, trials: Sequence[Candidate], priced: Priced
  ) -> list[cells.Training]:
    """Returns the training of each trial, with its noise and ledger."""
    trainings = []
    for number, candidate in enumerate(trials):
      # A secret trial may be any candidate, and all of them cost the same.
      index = 0 if self.search.is_secret else number
      name = f'trial_{number + 1:03d}'
      charged: dict[str, Any] = {'data_ledger': None, 'data_budget': None}
      if not self.search.is_secret:
        budget = self.base.data_budget
        if self.base.data_ledger is None:
          budget = self.base.target_epsilon
        charged = {'data_ledger': str(self.data_ledger), 'data_budget': budget}
      given = trial_flags(self.base, candidate).changed(
        target_epsilon=None,
        target_delta=priced.delta,
        noise_multiplier=priced.noise_multipliers[index],
        epsilon_budget=priced.epsilons[index],
        eval_split=_CHOOSING,
        output_dir=str(cells.cell_folder(self.trials_folder, name)),
        **charged,
      )
      trainings.append(cells.Training(name, given))
    return trainings


def ended(training: cells.Training) -> run_records.Summary | None:
  """Returns the summary of a trial; None if it has not ended."""
  folder = run_folder.RunFolder(pathlib.Path(training.flags.output_dir or ''))
  try:
    summary = folder.read_summary()
  except FileNotFoundError:
    return None
  return summary if summary.has_ended else None


def table(
  search: Search,
  trials: Sequence[Candidate],
  summaries: Sequence[run_records.Summary],
) -> pd.DataFrame:
  """Returns the trials, the best first."""
  rows = [
    {
      'trial': number,
      **dict(candidate),
      search.metric: summary.metrics.get(search.metric, math.nan),
      'score': search.score(summary),
      'epsilon': summary.epsilon,
      'noise_multiplier': summary.noise_multiplier,
      'rounds': summary.rounds,
      'seconds': summary.seconds,
    }
    for number, (candidate, summary) in enumerate(
      zip(trials, summaries), start=1
    )
  ]
  runs = pd.DataFrame(rows)
  # Of equal trials the first is the best.
  return runs.sort_values('score', ascending=False, kind='stable')


def draw(search: Search, runs: pd.DataFrame, folder: pathlib.Path) -> None:
  """Writes tuning.png: the metric by the values of each flag."""
  names = list(search.values)
  figure, panels = plots.grid(names, columns=min(3, len(names)))
  for name, axes in zip(names, panels):
    values = list(search.values[name])
    places = [values.index(value) for value in runs[name]]
    axes.plot(places, runs[search.metric], 'o', color=plots.color(0), alpha=0.6)
    best = runs.iloc[:1]
    axes.plot(
      places[:1], best[search.metric], 'o', color=plots.color(1), label='best'
    )
    axes.set_xticks(range(len(values)), values)
    axes.set_ylabel(f'validation {search.metric}')
  plots.save(figure, folder, 'tuning')


def on_test(tuning: Tuning, training: cells.Training) -> cells.Training:
  """Returns the training that evaluates a copy of a trial on test images.

  It goes on with a run that has ended, so that nothing is trained or charged.
  The trial itself stays as it was chosen.
  """
  source = pathlib.Path(training.flags.output_dir or '')
  target = cells.cell_folder(tuning.trials_folder, _ON_TEST)
  if not target.exists():
    partial = target.with_name(f'{target.name}{_files.PARTIAL_SUFFIX}')
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    partial.rename(target)
  changed = training.flags.changed(
    eval_split=tuning.base.eval_split, output_dir=str(target)
  )
  return cells.Training(_ON_TEST, changed)


def composed_event(
  book: data_ledger_contents.Book, run_ids: Sequence[str]
) -> dp_accounting.DpEvent:
  """Returns the event of all that runs were charged in a data ledger.

  Raises:
    InputError: The ledger lacks a run.
  """
  missing = [run_id for run_id in run_ids if run_id not in book.runs]
  if missing:
    raise _validate.InputError(
      f'the data_ledger lacks run {missing[0]}; restore the file'
    )
  return events.composed_event(
    cost for run_id in run_ids for cost in book.runs[run_id].costs()
  )


def release(
  cell: str,
  target: str,
  event: str,
  described: Mapping[str, Any],
  data_ledger: str | None,
) -> dict[str, Any]:
  """Copies the best model with the card of the search; returns the card.

  Args:
    cell: Folder of the best trial.
    target: Folder of the released model.
    event: Event of the whole search, as text.
    described: The search, for the card.
    data_ledger: File of the ledger of the data set, if there is one.
  """
  # These import TensorFlow, which only a child process may do.
  from tff_medical.privacy import card as card_lib
  from tff_medical.serving import export

  source = run_folder.RunFolder(pathlib.Path(cell)).saved_model
  card = card_lib.of_the_best(
    export.load_card(source),
    event=events.parse_event(event),
    tuning=described,
    data_ledger=data_ledger_contents.read(data_ledger) if data_ledger else None,
  )
  export.copy_with_card(source, target, card)
  return export.load_card(target)


def flag_file(
  tuning: Tuning, training: cells.Training, candidate: Candidate, epsilon: float
) -> str:
  """Returns best.flags: the settings of the best trial, as flags of train."""
  unfit = dict.fromkeys(
    ('output_dir', 'data_ledger', 'data_budget', 'epsilon_budget', 'eval_split')
  )
  chosen = ', '.join(f'{name}={value}' for name, value in candidate)
  return '\n'.join(
    [
      f'# Best by validation {tuning.search.metric}: {chosen}.',
      f'# The search cost ε {run_tables.round_up(epsilon, 4)}, which the model',
      '# beside this file states. Another training with these flags adds its ε.',
      *training.flags.changed(**unfit).arguments(),
      '',
    ]
  )


def finish(
  tuning: Tuning,
  trials: Sequence[Candidate],
  trainings: Sequence[cells.Training],
  priced: Priced,
) -> int:
  """Writes the results and releases the best trial; returns the exit code."""
  search, folder = tuning.search, tuning.folder
  summaries = [s for s in map(ended, trainings) if s is not None]
  if len(summaries) < len(trainings):
    return exit_codes.FAILED
  runs = table(search, trials, summaries)
  with ending.deferred():
    run_tables.write(tuning.trials_folder / 'results.csv', runs)
    draw(search, runs, tuning.trials_folder)
  best = int(runs['trial'].iloc[0]) - 1
  if math.isinf(search.score(summaries[best])):
    print(
      'error: no trial has a model; nothing was released. Search smaller '
      'learning rates or clip norms in another folder',
      file=sys.stderr,
    )
    return exit_codes.FAILED
  chosen = trainings[best]
  if tuning.base.eval_split != _CHOOSING:
    chosen = on_test(tuning, chosen)
    tested = cells.run([chosen], tuning.trials_folder, cells.Place(1))
    if tested.exit_code:
      for line in tested.failed:
        print(f'error: {line}', file=sys.stderr)
      return tested.exit_code
  event, ledger = priced.event, tuning.base.data_ledger
  if not search.is_secret:
    ledger = str(tuning.data_ledger)
    run_ids = [summary.run_id for summary in summaries]
    event = repr(composed_event(data_ledger_contents.read(ledger), run_ids))
  card = jobs_lib.call(
    release,
    chosen.flags.output_dir,
    str(folder / 'saved_model'),
    event,
    search.describe(),
    ledger,
  )
  text = flag_file(tuning, trainings[best], trials[best], card['epsilon'])
  _files.write_bytes(folder / 'best.flags', text.encode())
  value = summaries[best].metrics[search.metric]
  settings = ', '.join(f'{name}={value}' for name, value in trials[best])
  print(f'Best by validation {search.metric}, {value:.4f}: {settings}')
  if search.metric in card['test_metrics']:
    print(f'test {search.metric} {card["test_metrics"][search.metric]:.4f}')
  print(
    f'ε {card["epsilon"]:.4f} at δ {card["delta"]:.3g} for the whole search by '
    f'{search.price}; a training alone has ε {summaries[best].epsilon:.4f}'
  )
  print(f'Model in {folder / "saved_model"}, flags in {folder / "best.flags"}')
  if search.is_secret:
    print(f'Keep {tuning.trials_folder} secret, or remove it.')
  return exit_codes.OK


def run(
  base: settings_lib.Flags,
  search: Search,
  jobs: int | None,
  cells_on: str = '',
) -> int:
  """Does the missing trials and releases the best; returns the exit code."""
  check_base(base)
  place = cells.Place(jobs, cells_on)
  tuning = Tuning(base, search)
  place.check(
    base,
    tuning.trials_folder,
    None if search.is_secret else str(tuning.data_ledger),
  )
  trials, priced = tuning.start()
  trainings = tuning.trainings(trials, priced)
  todo = [training for training in trainings if ended(training) is None]
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
  search = Search(
    parse_search(values.search),
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
    'price', COMPOSITION, f'what is paid for: {" or ".join(PRICES)}', **put
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
