"""A split by patient that stays as it is when images are added.

What: `split` gives each group (a patient, else an image) to train, validation or
test by a keyed hash of its name, so that the same patient lands in the same
split whatever else is in the table. Why not a permutation: one more image would
deal all of them anew, and a model would be tested on what it was trained on
before. The hash spreads every stratum (label and site) in the shares asked for,
up to chance; only where a split would get nothing of a stratum that has enough
groups for it does the group nearest to its bound move there.

>>> splits = split([f'p{i}' for i in range(100)], np.arange(100) % 2, seed=0)
>>> np.bincount(splits).tolist()
[70, 9, 21]
"""

from __future__ import annotations

from collections.abc import Sequence
import hashlib

import numpy as np

from tff_medical.data import images

# Origins of the splits of own images.
GIVEN = 'given'
BY_PATIENT = 'made by patient'
BY_COPIES = 'made by group of near copies'
BY_IMAGE = 'made by image'

VALIDATION_SHARE = 0.1
TEST_SHARE = 0.2
_TRAIN, _VALIDATION, _TEST = range(len(images.SPLIT_NAMES))


def split(
  groups: Sequence[str],
  strata: np.ndarray,
  *,
  seed: int,
  validation: float = VALIDATION_SHARE,
  test: float = TEST_SHARE,
) -> np.ndarray:
  """Returns the split of each row.

  Args:
    groups: Name of the group of each row; a group is never divided.
    strata: int64 [N], number of the stratum of each row.
    seed: Seed of the hash; another one gives another split.
    validation: Share of the groups that go to validation.
    test: Share of the groups that go to test.

  Returns:
    int64 [N], indices of `images.SPLIT_NAMES`.
  """
  names, first, group = np.unique(
    np.asarray(groups, object), return_index=True, return_inverse=True
  )
  places = np.array([_place(seed, name) for name in names])
  splits = np.full(len(names), _TRAIN)
  splits[places < test + validation] = _VALIDATION
  splits[places < test] = _TEST
  shares = {_TRAIN: 1 - validation - test, _TEST: test, _VALIDATION: validation}
  everything = np.arange(len(names))
  for stratum in np.unique(strata[first]):
    members = np.flatnonzero(strata[first] == stratum)
    for number, share in shares.items():
      if len(members) * share >= 1:
        _fill(splits, places, members, number)
  for number, share in shares.items():
    if share:
      _fill(splits, places, everything, number)
  return splits[group].astype(np.int64)


def strata(labels: np.ndarray, sites: np.ndarray | None) -> np.ndarray:
  """Returns the number of the stratum of each row: label and site.

  Args:
    labels: int64 [N], or [N, L], whose rarest finding counts.
    sites: int64 [N], or None.
  """
  if labels.ndim == 2:
    # Unknown findings count as little as absent ones.
    present = labels > 0
    rarity = np.where(present, present.sum(axis=0), len(labels) + 1)
    labels = np.where(
      present.any(axis=1), rarity.argmin(axis=1), labels.shape[1]
    )
  keys = labels if sites is None else labels * (sites.max() + 1) + sites
  return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _fill(
  splits: np.ndarray, places: np.ndarray, members: np.ndarray, number: int
) -> None:
  """Moves a group of the largest split to a split that has none, in place."""
  if (splits[members] == number).any():
    return
  counts = np.bincount(splits[members], minlength=len(images.SPLIT_NAMES))
  # Validation is what two groups can do without.
  giver = counts.argmax() if counts.max() > 1 else _VALIDATION
  givers = members[splits[members] == giver]
  if len(givers) and giver != number:
    # Test lies lowest, train highest.
    nearest = (
      places[givers].argmax() if number == _TRAIN else (places[givers].argmin())
    )
    splits[givers[nearest]] = number


def _place(seed: int, name: str) -> float:
  """Returns the hash of a group's name as a number in 0..1."""
  digest = hashlib.blake2b(
    name.encode('utf-8', 'surrogatepass'),
    digest_size=8,
    key=f'split {seed}'.encode(),
  ).digest()
  return int.from_bytes(digest, 'big') / 2**64
