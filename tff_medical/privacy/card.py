"""The privacy card: what a model's guarantee covers, and what it does not.

The card is stored inside the exported model. Its plain JSON values are all that
an auditor needs to recompute epsilon: mechanism, sampling, number of charges
and the event of one charge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import datetime
import math
from typing import Any

import dp_accounting
from dp_accounting import dp_event

from tff_medical import _validate
from tff_medical.privacy import accounting
from tff_medical.privacy import data_ledger_contents
from tff_medical.privacy import interface
from tff_medical.privacy import ledger as ledger_lib

NOT_COVERED = (
  'Choosing settings by looking at runs on the same data; each such run has '
  'its own epsilon, and they add up.',
  'A patient whose images are held by several clients.',
  'The noise generator, which is seeded by the operating system but is not '
  'cryptographic, and computes in floating point (Mironov 2012).',
  'The test and validation metrics and the numbers fitted on validation images '
  '(thresholds, temperature), which are computed on held-out images without '
  'noise.',
  'The exact number of units, which this card and the ledger state and which '
  'differs between neighbouring data sets, and the seconds that a run took, '
  'which grow with the cohorts.',
)

# What a backbone without learned weights was trained on.
NOTHING = 'nothing'
NOTHING_PROMISED = 'Everything: no noise was added, so nothing is promised.'


def build_card(
  mechanism: interface.Mechanism,
  ledger: ledger_lib.PrivacyLedger,
  *,
  rounds: int,
  dataset: str,
  test_metrics: Mapping[str, float],
  validation_metrics: Mapping[str, float] | None = None,
  metric_intervals: Mapping[str, tuple[float, float]] | None = None,
  fitted_on_validation: Mapping[str, float] | None = None,
  cohort_seed_was_given: bool = False,
  broken_units_are_published: bool = False,
  initial_model: Mapping[str, Any] | None = None,
  backbone: Mapping[str, Any] | None = None,
  data_digest: str = '',
  largest_group: int | None = None,
  data_ledger: data_ledger_contents.Book | None = None,
  precision: str = 'float32',
) -> dict[str, Any]:
  """Returns the card of a model.

  Args:
    mechanism: Mechanism of the training.
    ledger: Ledger of the run; its epsilon is the stated one.
    rounds: Number of rounds of training. The ledger may hold more, if rounds
      were repeated.
    dataset: Name of the data set.
    test_metrics: Metrics on the test images; empty unless the model was
      evaluated on them.
    validation_metrics: Metrics on the validation images, if given.
    metric_intervals: 95 % bootstrap intervals of the metrics, by name.
    fitted_on_validation: Numbers fitted on validation images, by name.
    cohort_seed_was_given: Whether the user chose the cohort seed, so that
      somebody may draw the cohorts again.
    broken_units_are_published: Whether the number of units that each round left
      out was published.
    initial_model: `models.InitialModel.provenance` of the model that training
      started from, if any. That model comes from other data: epsilon does not
      cover its training.
    backbone: `models.Transfer.provenance` of the frozen layers, if any.
      Epsilon does not cover their training.
    data_digest: Digest that identifies the training data; keyed if private.
    largest_group: Number of images in the largest group of nearly equal images,
      if it is known.
    data_ledger: Contents of the ledger of the data set, in which the run is
      charged, if there is one.
    precision: Number format of the forward and backward passes in training.
      Clipping, sums and noise are float32.

  Raises:
    InputError: The ledger holds fewer charges than the rounds cost.
  """
  if ledger.charges < mechanism.charges_for(rounds):
    raise _validate.InputError(
      f'a model of {rounds} rounds needs {mechanism.charges_for(rounds)} '
      f'charges, and its ledger holds {ledger.charges}; charge each round '
      'before it runs'
    )
  not_covered = [*NOT_COVERED, *mechanism.caveats]
  if data_ledger is not None:
    not_covered[0] = _other_runs(data_ledger)
  if cohort_seed_was_given and mechanism.sampling.amplifies:
    not_covered.append(
      'This run was given its cohort seed by the user: for anybody who knows '
      'it, epsilon is that of a run without amplification by sampling.'
    )
  if broken_units_are_published:
    not_covered.append(
      'The counts of broken units by round: they were published without noise.'
    )
  if (
    mechanism.privacy_unit == 'record'
    and largest_group is not None
    and largest_group > 1
  ):
    not_covered.append(_copies(largest_group))
  not_covered.extend(_of_earlier_data(initial_model))
  if backbone is not None and backbone['trained_on'] != NOTHING:
    not_covered.append(
      f'The data that the backbone {backbone["name"]} was trained on '
      f'({backbone["trained_on"]}).'
    )
  if not mechanism.is_private:
    not_covered = [NOTHING_PROMISED]
  return {
    'epsilon': ledger.epsilon,
    'epsilon_rdp': ledger.rdp_epsilon(),
    'delta': ledger.delta,
    'unit': mechanism.privacy_unit,
    'neighboring_relation': mechanism.neighboring_relation.name.lower(),
    'mechanism': mechanism.describe(),
    'sampling': mechanism.sampling.name,
    'run_id': ledger.run_id,
    'rounds': rounds,
    'rounds_charged': ledger.rounds_charged,
    'charges': ledger.charges,
    'charge_event': repr(mechanism.charge_event()),
    **(ledger.counts.describe() if ledger.counts else {}),
    'accountant': accounting.accountant_of(mechanism.charge_event()),
    'accountant_version': accounting.accountant_version(),
    'ledger_sha256': ledger.digest,
    'not_covered': not_covered,
    'precision': precision,
    'dataset': dataset,
    'data_digest': data_digest,
    'test_metrics': dict(test_metrics),
    **_if_any(
      validation_metrics=validation_metrics,
      metric_intervals=metric_intervals,
      fitted_on_validation=fitted_on_validation,
    ),
    **({'data_ledger': data_ledger.describe()} if data_ledger else {}),
    **_origin(initial_model, backbone),
  }


def build_open_card(
  *,
  dataset: str,
  test_metrics: Mapping[str, float],
  validation_metrics: Mapping[str, float] | None = None,
  metric_intervals: Mapping[str, tuple[float, float]] | None = None,
  fitted_on_validation: Mapping[str, float] | None = None,
  initial_model: Mapping[str, Any] | None = None,
  backbone: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Returns the card of a model trained on pooled images without privacy.

  Args:
    dataset: Name of the data set.
    test_metrics: Metrics on the test images; empty unless the model was
      evaluated on them.
    validation_metrics: Metrics on the validation images, if given.
    metric_intervals: 95 % bootstrap intervals of the metrics, by name.
    fitted_on_validation: Numbers fitted on validation images, by name.
    initial_model: Provenance of the initial model, if any; see `build_card`.
    backbone: Provenance of the frozen layers, if any; see `build_card`.
  """
  return {
    'epsilon': math.inf,
    'delta': None,
    'unit': 'none',
    'neighboring_relation': 'none',
    'mechanism': {'mechanism': 'none', 'noise_multiplier': 0.0},
    'sampling': 'none',
    'rounds': 0,
    'accountant': 'none',
    'accountant_version': accounting.accountant_version(),
    'not_covered': [NOTHING_PROMISED],
    'dataset': dataset,
    'test_metrics': dict(test_metrics),
    **_if_any(
      validation_metrics=validation_metrics,
      metric_intervals=metric_intervals,
      fitted_on_validation=fitted_on_validation,
    ),
    **_origin(initial_model, backbone),
  }


def metrics_of(
  split_name: str,
  metrics: Mapping[str, float],
  intervals: Mapping[str, tuple[float, float]] | None = None,
  fitted: Mapping[str, float] | None = None,
) -> dict[str, Any]:
  """Returns the arguments of a card on metrics, by the names of its keys.

  Args:
    split_name: Split of the metrics: 'validation' or 'test'.
    metrics: Metrics on the images of that split.
    intervals: Their 95 % bootstrap intervals by name, if any.
    fitted: Numbers fitted on validation images, if any. The exported model does
      not use them.
  """
  values: dict[str, Any] = {
    'test_metrics': {},
    f'{split_name}_metrics': metrics,
  }
  if intervals:
    values['metric_intervals'] = intervals
  if fitted:
    values['fitted_on_validation'] = fitted
  return values


def _if_any(**values: Mapping[str, Any] | None) -> dict[str, Any]:
  """Returns the mappings that are not empty, by their keys."""
  return {name: dict(value) for name, value in values.items() if value}


def _origin(
  initial_model: Mapping[str, Any] | None, backbone: Mapping[str, Any] | None
) -> dict[str, Any]:
  """Returns the keys on a model's creation time and the models before it."""
  origin: dict[str, Any] = {}
  if initial_model is not None:
    origin['initial_model'] = dict(initial_model)
  if backbone is not None:
    origin['backbone'] = dict(backbone)
  now = datetime.datetime.now(datetime.timezone.utc)
  return {**origin, 'created': now.isoformat(timespec='seconds')}


def of_the_best(
  card: Mapping[str, Any],
  *,
  event: dp_accounting.DpEvent,
  tuning: Mapping[str, Any],
  data_ledger: data_ledger_contents.Book | None = None,
) -> dict[str, Any]:
  """Returns the card of a model that was chosen among others on the same data.

  Args:
    card: Card of the model's own training.
    event: Event of all that the choice cost, which a single charge pays for.
    tuning: What the choice was made from, by what, and its price in words.
    data_ledger: Contents of the ledger of the data set, if there is one.
  """
  delta = float(card['delta'])
  others = (
    'Settings that were chosen by looking at other runs on the same data than '
    'those of this tuning; each has its own epsilon, and they add up.'
    if data_ledger is None
    else _other_runs(data_ledger)
  )
  values = {
    **card,
    'epsilon': accounting.epsilon(event, rounds=1, delta=delta),
    'epsilon_rdp': accounting.rdp_epsilon(event, rounds=1, delta=delta),
    'accountant': accounting.accountant_of(event),
    'charges': 1,
    'charge_event': repr(event),
    'not_covered': [others, *card['not_covered'][1:], *_secrets(event)],
    'tuning': {**tuning, 'epsilon_of_one_training': card['epsilon']},
  }
  values.pop('data_ledger', None)
  # Its event is a part of the whole.
  for name in ('event_before', 'class_counts'):
    values.pop(name, None)
  if 'created' in card:
    # The time of day would tell how long the trials took, hence their number.
    values['created'] = card['created'][:10]
  if data_ledger is not None:
    values['data_ledger'] = data_ledger.describe()
  return values


def _secrets(event: dp_accounting.DpEvent) -> list[str]:
  """Returns the sentence on what the price of a selection keeps secret."""
  if not isinstance(event, dp_event.RepeatAndSelectDpEvent):
    return []
  return [
    'Knowledge of the number of trainings that this one was chosen from, of any '
    'other of them, or of how long all of them took: it must stay secret.'
  ]


def _other_runs(book: data_ledger_contents.Book) -> str:
  """Returns the sentence on the other runs of a data ledger."""
  return (
    f'The other runs on the same data: epsilon over all {len(book.runs)} runs on '
    f'this data that its ledger holds is {book.epsilon:.4g} at delta '
    f'{book.delta:.3g}, of a budget of {book.budget:g}; runs that it does not '
    'hold come on top.'
  )


def _copies(largest_group: int) -> str:
  """Returns the sentence on copies; their number is rounded up, as it leaks."""
  bound = 2 ** math.ceil(math.log2(largest_group))
  return (
    f'Copies of an image: up to {bound} images are nearly equal to each other (a '
    'power of two, counted without noise). Epsilon is that of one record, and '
    f'what {bound} of them share has up to {bound} times that epsilon, at a larger '
    'delta.'
  )


def _of_earlier_data(
  initial_model: Mapping[str, Any] | None,
) -> Iterator[str]:
  """Yields a sentence on the data of each earlier model."""
  # An initial model may itself have started from one: follow the chain.
  while initial_model is not None:
    earlier, unit = initial_model['dataset'], initial_model['unit']
    promised = initial_model['epsilon'] not in ('inf', math.inf)
    stated = (
      f'epsilon {initial_model["epsilon"]:.4g} at delta '
      f'{initial_model["delta"]:.3g} for each {unit}'
      if promised
      else 'nothing'
    )
    yield (
      f'The data of a model that this one started from ({earlier}), for which '
      f'that model promises {stated}.'
    )
    initial_model = initial_model.get('initial_model')
