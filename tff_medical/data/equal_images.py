"""Images that are equal, pixel for pixel, within splits and across them."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import hashlib
import itertools

from tff_medical.data import pixels


@dataclasses.dataclass(frozen=True)
class Duplicates:
  """Counts of images that are equal to another image, pixel for pixel.

  Attributes:
    within: Number of copies beyond the first of each image, by split.
    across: Number of distinct images that are in both, by pair of splits.
  """

  within: Mapping[str, int]
  across: Mapping[tuple[str, str], int]

  def __bool__(self) -> bool:
    return any(self.within.values()) or any(self.across.values())

  def __str__(self) -> str:
    parts = [f'{n} extra in {name}' for name, n in self.within.items() if n]
    parts += [
      f'{n} in both {a} and {b}' for (a, b), n in self.across.items() if n
    ]
    return ', '.join(parts) or 'none'


def find_duplicates(images: Mapping[str, pixels.ArrayOrPixels]) -> Duplicates:
  """Counts equal images within each array of images and across them.

  >>> import numpy as np
  >>> a = np.zeros([3, 2, 2, 1], np.uint8)
  >>> report = find_duplicates({'train': a, 'test': a[:1]})
  >>> str(report)
  '2 extra in train, 1 in both train and test'

  Args:
    images: Images by name, each uint8 [N, H, W, C]; they are read in batches.

  Returns:
    Counts for every name and for every pair of names.
  """
  digests = {name: _digests(array) for name, array in images.items()}
  distinct = {name: set(values) for name, values in digests.items()}
  return Duplicates(
    within={n: len(digests[n]) - len(distinct[n]) for n in images},
    across={
      (a, b): len(distinct[a] & distinct[b])
      for a, b in itertools.combinations(images, 2)
    },
  )


def _digests(images: pixels.ArrayOrPixels) -> list[bytes]:
  return [
    hashlib.blake2b(image.tobytes(), digest_size=16).digest()
    for batch in pixels.batches(images)
    for image in batch
  ]
