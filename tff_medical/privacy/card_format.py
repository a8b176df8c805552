"""Format of a privacy card: file name, required keys, checks.

A model is served without TensorFlow Federated and without an accountant, so
this module needs neither. `privacy.card` builds the card.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tff_medical import _files
from tff_medical import _validate

# Name of the card among the assets of an exported model.
FILE = 'privacy_card.json'

# Keys that a reader needs to judge the guarantee.
REQUIRED_KEYS = (
  'epsilon',  # of the whole training; 'inf' without privacy
  'delta',
  'unit',  # what is protected: a client, a record or a patient
  'neighboring_relation',
  'mechanism',
  'sampling',
  'rounds',
  'accountant',
  'accountant_version',
  'not_covered',  # what epsilon says nothing about
  'dataset',
  'test_metrics',
)

# Keys of whole numbers that count releases.
COUNTS = ('rounds', 'rounds_charged', 'charges')


def checked(card: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the card as plain JSON values.

  Raises:
    InputError: A required key is missing, or epsilon and delta state no valid
      guarantee.
  """
  missing = [key for key in REQUIRED_KEYS if key not in card]
  if missing:
    raise _validate.InputError(
      f'privacy_card lacks {", ".join(missing)}; state each of '
      'card_format.REQUIRED_KEYS'
    )
  plain = _files.plain_json(card, 'privacy_card')
  if plain['epsilon'] != 'inf':
    _validate.non_negative(**{'privacy_card epsilon': plain['epsilon']})
    _validate.in_range(0, 1, **{'privacy_card delta': plain['delta']})
    if plain['epsilon'] == 0 and plain['rounds']:
      raise _validate.InputError(
        f'privacy_card states epsilon 0 for {plain["rounds"]} rounds, which '
        'no mechanism gives; charge each round in the ledger'
      )
  return plain
