"""What a data set holds: images by site, class and split, grey levels, copies.

`of` reads each image twice, a batch at a time, so that pixels may be stored on
disk. Its numbers are exact, carry no noise and are covered by no ε: they are for
whoever holds the data. Patients are counted and never named.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tff_medical.data import images
from tff_medical.data.preparing import near_duplicates

# Name of the only site where sites are unknown.
ALL = 'all'
# Name of the class of images whose findings are all known to be absent.
NO_FINDING = 'no finding'
_LEVELS = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Grey:
  """Grey levels of the images of a site; channels count alike.

  Attributes:
    histogram: Share of the values 0 to 255, float64 [256].
    blank: Number of images of one value alone.
  """

  histogram: np.ndarray
  blank: int

  @property
  def black(self) -> float:
    """Share of the values that are 0."""
    return float(self.histogram[0])

  @property
  def white(self) -> float:
    """Share of the values that are 255."""
    return float(self.histogram[-1])

  @property
  def mean(self) -> float:
    """Mean value, 0 to 255."""
    return float(self.histogram @ np.arange(_LEVELS))

  @property
  def deviation(self) -> float:
    """Standard deviation of the values, 0 to 255."""
    square = (np.arange(_LEVELS) - self.mean) ** 2
    return float(self.histogram @ square) ** 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Overview:
  """Content of a data set.

  Attributes:
    sites: Names of the sites; `ALL` alone where none are known.
    classes: Names of the classes or, with several labels an image, of the
      findings and `NO_FINDING`.
    counts: int64 [splits, sites, classes], number of images. An image with
      several findings counts for each.
    images: int64 [splits, sites], number of images.
    patients: int64 [splits], number of patients; None where none are known.
    images_of_patients: int64 [n], number of images of each patient of train;
      None where none are known.
    grey: Grey levels of each site, over all splits; None of an empty site.
    copies: Equal and nearly equal images.
  """

  sites: tuple[str, ...]
  classes: tuple[str, ...]
  counts: np.ndarray
  images: np.ndarray
  patients: np.ndarray | None
  images_of_patients: np.ndarray | None
  grey: tuple[Grey | None, ...]
  copies: near_duplicates.Copies


def of(data: images.ImageData) -> Overview:
  """Returns the overview of a data set."""
  sites = data.site_names or (ALL,)
  classes = data.class_names
  if data.multi_label:
    classes = (*classes, NO_FINDING)
  splits = [split for _, split in data.splits()]
  counts = np.stack(
    [_by_class(s, len(sites), data.num_classes) for s in splits]
  )
  patients = [s.patients for s in splits if s.patients is not None]
  has_patients = len(patients) == len(splits)
  return Overview(
    sites=sites,
    classes=classes,
    counts=counts,
    images=np.stack(
      [np.bincount(_sites(s), minlength=len(sites)) for s in splits]
    ),
    patients=np.array([len(np.unique(p)) for p in patients])
    if has_patients
    else None,
    images_of_patients=np.unique(patients[0], return_counts=True)[1]
    if has_patients
    else None,
    grey=_grey(splits, len(sites)),
    copies=near_duplicates.find({n: s.images for n, s in data.splits()}),
  )


def by_class(labels: np.ndarray, num_classes: int) -> np.ndarray:
  """Returns the classes that each image counts for, bool [N, C].

  Args:
    labels: int64 [N], or int64 [N, L], for which C is L + 1: the last column is
      that of images whose findings are all known to be absent. An unknown
      finding counts for no column.
    num_classes: Number of classes, or L.
  """
  if labels.ndim == 1:
    return labels[:, np.newaxis] == np.arange(num_classes)
  none = (labels == 0).all(axis=1, keepdims=True)
  return np.concatenate([labels > 0, none], axis=1)


def _sites(split: images.Split) -> np.ndarray:
  return np.zeros(len(split), int) if split.sites is None else split.sites


def _by_class(
  split: images.Split, num_sites: int, num_classes: int
) -> np.ndarray:
  """Returns the number of images, int64 [sites, classes]."""
  member = by_class(split.labels, num_classes)
  counts = np.zeros((num_sites, member.shape[1]), np.int64)
  np.add.at(counts, _sites(split), member.astype(np.int64))
  return counts


def _grey(
  splits: list[images.Split], num_sites: int
) -> tuple[Grey | None, ...]:
  """Returns the grey levels of each site."""
  levels = np.zeros((num_sites, _LEVELS), np.int64)
  blank = np.zeros(num_sites, np.int64)
  for split in splits:
    start = 0
    for batch in split.batches():
      flat = np.asarray(batch).reshape(len(batch), -1)
      sites = _sites(split)[start : start + len(batch)]
      start += len(batch)
      for site in np.unique(sites):
        of_site = flat[sites == site]
        levels[site] += np.bincount(of_site.ravel(), minlength=_LEVELS)
        blank[site] += (of_site == of_site[:, :1]).all(axis=1).sum()
  return tuple(
    Grey(counts / counts.sum(), int(number)) if counts.any() else None
    for counts, number in zip(levels, blank)
  )
