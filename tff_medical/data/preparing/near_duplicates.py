"""Images that are equal or nearly equal, also mirrored, turned or darker.

What: `find` returns the splits in which each image has copies, and the groups that
copies form. Each image is shrunk to 16 x 16, its mean taken away and its length made
1: two images whose product is at least 0.995, in one of eight positions, are
near copies. Brightness, contrast and recompression then do not matter; a crop is
not found. A group holds what near copies join, also by way of others.

How: the eight positions of an image have the same mean, which 36 numbers hold.
Near copies differ by at most 0.1 there, so that few pairs are left to compare
in full, and none is missed. Images are sorted along the direction in which these
means differ most, and each is compared with those within 0.1 of it. Of more than
`MAX_IMAGES` images a random part is compared, and copies are then a lower bound.

>>> image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
>>> copies = find({'train': image, 'test': image[:, ::-1] // 2})
>>> copies.num_near('train', 'test'), copies.groups.tolist()
(1, [0, 0])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
import itertools

import numpy as np

from tff_medical.data import equal_images
from tff_medical.data import pixels

SIDE = 16
LEAST_PRODUCT = 0.995
MAX_IMAGES = 100_000
_MAX_DISTANCE = (2 - 2 * LEAST_PRODUCT) ** 0.5
# Rounding of float32; a pair that passes wrongly is compared in full.
_MARGIN = 1e-3
_BATCH = 1024
_CANDIDATES = 2**14
# Seed of the choice of images where there are too many.
_SAMPLE_SEED = 0
_NUM_EXAMPLES = 6


@dataclasses.dataclass(frozen=True, eq=False)
class Copies:
  """Copies of images within and across splits; images follow the splits.

  Attributes:
    names: Names of the splits.
    splits: int64 [N], the index of the split of each image.
    equal: bool [N, S], whether a split has another image that is equal.
    near: bool [N, S], whether a split has a near copy that is not equal.
    groups: int64 [N], the first image of the group of each image.
    examples: int64 [n, 2], some pairs of near copies.
    compared: Number of the images that were compared for near copies.
  """

  names: tuple[str, ...]
  splits: np.ndarray
  equal: np.ndarray
  near: np.ndarray
  groups: np.ndarray
  examples: np.ndarray
  compared: int

  @property
  def is_complete(self) -> bool:
    """Whether all images were compared."""
    return self.compared == len(self.splits)

  def num_equal(self, earlier: str, later: str) -> int:
    """Returns the number of images of a split with an equal one in another."""
    return int(self.equal[self._of(later), self.names.index(earlier)].sum())

  def num_near(self, earlier: str, later: str) -> int:
    """Returns the number of images with a near copy, but no equal one."""
    column, rows = self.names.index(earlier), self._of(later)
    return int((self.near[rows, column] & ~self.equal[rows, column]).sum())

  def num_near_before(self, later: str) -> int:
    """Returns the same number as `num_near`, over all splits before one."""
    before, rows = slice(0, self.names.index(later)), self._of(later)
    near = self.near[rows, before].any(axis=1)
    return int((near & ~self.equal[rows, before].any(axis=1)).sum())

  def group_sizes(self, name: str) -> np.ndarray:
    """Returns the number of images of each group that a split has, int64."""
    return np.unique(self.groups[self._of(name)], return_counts=True)[1]

  def mended_splits(self) -> np.ndarray:
    """Returns splits in which no group is divided, int64 [N].

    A group that lies in several splits goes to the earliest of them, so that no
    image is tested on whose copy was trained on.
    """
    earliest = np.full(len(self.groups), len(self.names))
    np.minimum.at(earliest, self.groups, self.splits)
    return earliest[self.groups]

  def _of(self, name: str) -> np.ndarray:
    return self.splits == self.names.index(name)


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
  """Equal and nearly equal images, whatever split each of them is in.

  Attributes:
    content: int64 [N], the same number for equal images.
    pairs: int64 [n, 2], all pairs of images that are near copies; of equal
      images one alone is in pairs.
    groups: int64 [N], the first image of the group of each image.
    compared: Number of the images that were compared for near copies.
  """

  content: np.ndarray
  pairs: np.ndarray
  groups: np.ndarray
  compared: int

  @property
  def is_complete(self) -> bool:
    """Whether all images were compared."""
    return self.compared == len(self.content)

  def in_splits(self, names: Sequence[str], splits: np.ndarray) -> Copies:
    """Returns the copies within and across splits.

    Args:
      names: Names of the splits.
      splits: int64 [N], the index of the split of each image.
    """
    members = _in_splits(self.content, splits, len(names))
    near = np.zeros_like(members)
    for a, b in (self.pairs.T, self.pairs.T[::-1]):
      np.logical_or.at(near, self.content[a], members[self.content[b]])
    return Copies(
      names=tuple(names),
      splits=splits,
      equal=_others(self.content, splits, len(names)) > 0,
      near=near[self.content],
      groups=self.groups,
      examples=np.sort(self.pairs[:_NUM_EXAMPLES], axis=1),
      compared=self.compared,
    )

  def duplicates(
    self, names: Sequence[str], splits: np.ndarray
  ) -> equal_images.Duplicates:
    """Returns the counts that `equal_images.find_duplicates` would return."""
    contents = {
      name: np.unique(self.content[splits == i]) for i, name in enumerate(names)
    }
    return equal_images.Duplicates(
      within={
        name: int((splits == i).sum()) - len(contents[name])
        for i, name in enumerate(names)
      },
      across={
        (a, b): len(np.intersect1d(contents[a], contents[b]))
        for a, b in itertools.combinations(names, 2)
      },
    )


def find(images: Mapping[str, pixels.ArrayOrPixels]) -> Copies:
  """Returns the copies within and across splits; each image is read once.

  Args:
    images: By name of the split, uint8 [N, H, W, C] of one height and width.
  """
  counts = [len(array) for array in images.values()]
  splits = np.repeat(np.arange(len(counts)), counts)
  return compare(list(images.values())).in_splits(tuple(images), splits)


def compare(arrays: Sequence[pixels.ArrayOrPixels]) -> Comparison:
  """Compares images with each other; each is read once.

  Args:
    arrays: uint8 [N, H, W, C] each, of one height and width. Images are
      numbered through all arrays.
  """
  total = sum(len(array) for array in arrays)
  compared = np.arange(total)
  if total > MAX_IMAGES:
    rng = np.random.default_rng(_SAMPLE_SEED)
    compared = np.sort(rng.choice(total, MAX_IMAGES, replace=False))
  digests, stack = _fingerprints(arrays, compared)
  _, first, content = np.unique(digests, return_index=True, return_inverse=True)
  # Of equal images the first that is compared stands for all of them.
  _, chosen = np.unique(content[compared], return_index=True)
  chosen = chosen[np.abs(stack[chosen]).max(axis=(1, 2), initial=0) > 0]
  rows = compared[chosen]
  equal = np.stack([np.arange(total), first[content]], axis=1)
  pairs = np.concatenate(
    [np.zeros((0, 2), np.int64)]
    + [rows[pair] for pair in _pairs(stack[chosen])]
  )
  return Comparison(
    content=content,
    pairs=pairs,
    groups=_groups(np.concatenate([equal, pairs]), total),
    compared=len(compared),
  )


def signatures(images: np.ndarray) -> np.ndarray:
  """Returns the signatures of images.

  Args:
    images: uint8 [N, H, W, C].

  Returns:
    float32 [N, s, s], of length 1, or 0 of an image of one value alone.
  """
  grey = images.astype(np.float32).mean(axis=3)
  small = _shrunk(_shrunk(grey, 1), 2)
  small -= small.mean(axis=(1, 2), keepdims=True)
  length = np.sqrt((small**2).sum(axis=(1, 2), keepdims=True))
  # Below a grey level of difference there is nothing to compare.
  return np.where(length > 1, small / np.maximum(length, 1), 0)


def _fingerprints(
  arrays: Sequence[pixels.ArrayOrPixels], compared: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns digests of all images, and signatures of those `compared`."""
  digests: list[bytes] = []
  parts: list[np.ndarray] = []
  for array in arrays:
    for batch in pixels.batches(array):
      start = len(digests)
      digests += (
        hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        for image in batch
      )
      first, last = np.searchsorted(compared, [start, len(digests)])
      parts.append(signatures(np.asarray(batch[compared[first:last] - start])))
  return np.array(digests, 'V16'), np.concatenate(parts)


def _in_splits(
  content: np.ndarray, splits: np.ndarray, num_splits: int
) -> np.ndarray:
  """Returns the splits that each content is in, bool [contents, splits]."""
  members = np.zeros((content.max(initial=-1) + 1, num_splits), bool)
  members[content, splits] = True
  return members


def _others(
  content: np.ndarray, splits: np.ndarray, num_splits: int
) -> np.ndarray:
  """Returns the number of other equal images, int64 [images, splits]."""
  counts = np.zeros((content.max(initial=-1) + 1, num_splits), np.int64)
  np.add.at(counts, (content, splits), 1)
  others = counts[content]
  others[np.arange(len(content)), splits] -= 1
  return others


def _groups(joined: np.ndarray, total: int) -> np.ndarray:
  """Returns the first image of what pairs [n, 2] of images join."""
  # Late: flags import this module.
  from scipy import sparse
  from scipy.sparse import csgraph

  graph = sparse.coo_matrix(
    (np.ones(len(joined), bool), (joined[:, 0], joined[:, 1])), (total, total)
  )
  _, group = csgraph.connected_components(graph, directed=False)
  _, first = np.unique(group, return_index=True)
  return first[group].astype(np.int64)


def _pairs(stack: np.ndarray) -> Iterator[np.ndarray]:
  """Yields pairs int64 [n, 2] of signatures that are near copies."""
  if len(stack) < 2:
    return
  means = stack.reshape(len(stack), -1) @ _averaging(stack.shape[1])
  _, directions = np.linalg.eigh(np.cov(means, rowvar=False))
  places = means @ directions[:, -1]
  order = np.argsort(places, kind='stable')
  places, means = places[order], means[order]
  lengths = (means**2).sum(axis=1)
  limit = _MAX_DISTANCE + _MARGIN
  for start in range(0, len(means), _BATCH):
    stop = min(start + _BATCH, len(means))
    end = int(np.searchsorted(places, places[stop - 1] + limit, 'right'))
    for first in range(start, end, 8 * _BATCH):
      last = min(first + 8 * _BATCH, end)
      squared = means[start:stop] @ (-2 * means[first:last].T)
      squared += lengths[first:last]
      squared += lengths[start:stop, np.newaxis]
      a, b = np.nonzero(squared <= limit**2)
      a, b = a + start, b + first
      a, b = order[a[a < b]], order[b[a < b]]
      for i in range(0, len(a), _CANDIDATES):
        part = slice(i, i + _CANDIDATES)
        is_near = _are_near(stack[a[part]], stack[b[part]])
        yield np.stack([a[part][is_near], b[part][is_near]], axis=1)


def _are_near(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Returns whether signatures [n, s, s] are near copies, one by one."""
  products = [
    np.einsum('nij,nij->n', first, position) for position in _positions(second)
  ]
  return np.max(products, axis=0) >= LEAST_PRODUCT


def _averaging(side: int) -> np.ndarray:
  """Returns float32 [s * s, k], which gives the mean over eight positions.

  Its columns are of length 1, so that distances do not grow.
  """
  numbers = np.arange(side * side).reshape(1, side, side)
  orbit = np.min([p[0] for p in _positions(numbers)], axis=0).ravel()
  _, column, size = np.unique(orbit, return_inverse=True, return_counts=True)
  matrix = np.zeros((side * side, len(size)), np.float32)
  matrix[np.arange(side * side), column] = size[column] ** -0.5
  return matrix


def _shrunk(images: np.ndarray, axis: int) -> np.ndarray:
  """Returns the means of blocks along an axis, at most `SIDE` of them."""
  side = images.shape[axis]
  if side <= SIDE:
    return images
  edges = np.linspace(0, side, SIDE + 1)[:-1].round().astype(int)
  counts = np.diff(np.append(edges, side)).astype(np.float32)
  shape = [1, 1, 1]
  shape[axis] = SIDE
  return np.add.reduceat(images, edges, axis=axis) / counts.reshape(shape)


def _positions(images: np.ndarray) -> list[np.ndarray]:
  """Returns square images mirrored and turned in all eight ways."""
  turned = [np.rot90(images, k, axes=(1, 2)) for k in range(4)]
  return [*turned, *(image[:, :, ::-1] for image in turned)]
