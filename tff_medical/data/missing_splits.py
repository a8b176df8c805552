"""Splits that a data set lacks, taken out of train by a keyed hash.

The hash is of the patient, where patients are known, or else of the content of
an image: equal images stay together, and the split stays as it is when images
are added. `made` says in words what was done, as whoever trains must know it.
"""

from __future__ import annotations

from collections.abc import Mapping
import hashlib

from absl import logging
import numpy as np

from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data.tables import splitting

_SEED = 0
_SHARES = {
  'validation': splitting.VALIDATION_SHARE,
  'test': splitting.TEST_SHARE,
}


def made(
  name: str, given: Mapping[str, images.Split]
) -> tuple[dict[str, images.Split], str]:
  """Returns train, validation and test, and where they come from.

  Args:
    name: What errors and warnings call the data set.
    given: Splits by their names, `images.SPLIT_NAMES`; those that are missing
      or empty are taken out of train.

  Raises:
    InputError: There is no train, or it is too small to be divided.
  """
  present = {n: split for n, split in given.items() if len(split)}
  if 'train' not in present:
    raise _validate.InputError(
      f'{name} has no train images, got the splits '
      f'{", ".join(given) or "none"}; give a data set with train images'
    )
  missing = {n: s for n, s in _SHARES.items() if n not in present}
  if not missing:
    return present, 'given'
  train = present['train']
  splits = splitting.split(
    _groups(train),
    splitting.strata(train.labels, train.sites),
    seed=_SEED,
    validation=missing.get('validation', 0),
    test=missing.get('test', 0),
  )
  for number, split_name in enumerate(images.SPLIT_NAMES):
    if split_name in missing or split_name == 'train':
      present[split_name] = train.take(np.flatnonzero(splits == number))
  unit = 'image' if train.patients is None else 'patient'
  text = f'{" and ".join(missing)} made from train by {unit}'
  logging.warning('%s: %s, as it has none.', name, text)
  for split_name in ('train', 'test'):
    if not len(present[split_name]):
      raise _validate.InputError(
        f'{name} has too few images to make a test split of its '
        f'{len(train)} train images; give more, or a test split'
      )
  return {n: present[n] for n in images.SPLIT_NAMES}, text


def _groups(split: images.Split) -> list[str]:
  """Returns the name of what must not be divided, for each image."""
  if split.patients is not None:
    return [str(patient) for patient in split.patients.tolist()]
  return [
    hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()
    for batch in split.batches()
    for image in batch
  ]
