"""What is searched: flags and their values, how trials are drawn and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import math
import random
from typing import Any

from experiments.config import settings as settings_lib
from tff_medical import _validate
from tff_medical.privacy import selection
from tff_medical.program import run_records

COMPOSITION, PAPERNOT_STEINKE = 'composition', 'papernot_steinke'
PRICES = (COMPOSITION, PAPERNOT_STEINKE)
STRATEGIES = ('grid', 'random')
# Split of the images by which the best is chosen.
CHOOSING = 'validation'
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

# Values of flags, each with the name of its flag.
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
    options = [value.strip() for value in parts]
    if not equals or not name or not all(options):
      raise _validate.InputError(
        f"search must be 'NAME=VALUE,VALUE', got {text!r}"
      )
    if name in search or len(set(options)) < len(options):
      raise _validate.InputError(
        f'search must name each flag and each value once, got {text!r}'
      )
    if name in _FIXED:
      raise _validate.InputError(
        f'search cannot change {name}, which all trials have in common; give '
        f'--{name} instead'
      )
    search[name] = options
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
    if summary.eval_split != CHOOSING or (
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
