"""Spreads the images of a split over clients.

What: each function returns a tuple of sorted int64 index arrays, one a client,
in which every image appears exactly once and no client is empty. The images of
one patient always go to one client, where patients are known: a patient is
then the smallest unit dealt out. Why: in cross-device terms a client is the
privacy unit, and a patient split over two clients would be protected by
neither. Plain NumPy; all randomness comes from the generator given.

Sources: `dirichlet` follows Hsu et al. 2019 (arXiv 1909.06335), where each
client has its own class mix drawn from Dirichlet(alpha x prior) and all clients
are of about the same size; here the mixes are made to use up every image by
iterative proportional fitting (Sinkhorn), rather than dealt one client after
the other, which leaves the last clients whatever remains. `quantity_skew` is
the one of Li et al. 2022 (arXiv 2102.02079).

>>> rng = np.random.default_rng(0)
>>> clients = iid(images.Split(
...     images=np.zeros([10, 2, 2, 1], np.uint8),
...     labels=np.arange(10) % 2), 3, rng)
>>> [len(c) for c in clients]
[4, 3, 3]
"""

from __future__ import annotations

from collections.abc import Sequence
import logging

import numpy as np

from tff_medical import _validate
from tff_medical.data import images

Partition = tuple[np.ndarray, ...]

KINDS = ('iid', 'dirichlet', 'quantity_skew', 'natural_site', 'natural_patient')
# The kinds that take a number of clients, and those that take alpha.
COUNTED_KINDS = ('iid', 'dirichlet', 'quantity_skew')
ALPHA_KINDS = ('dirichlet', 'quantity_skew')

_SINKHORN_STEPS = 100
_FLOOR = 1e-6


def partition(
  kind: str,
  split: images.Split,
  *,
  num_clients: int | None = None,
  alpha: float | None = None,
  rng: np.random.Generator | None = None,
) -> Partition:
  """Spreads `split` over clients in the way named by `kind`.

  Args:
    kind: One of `KINDS`.
    split: What to spread.
    num_clients: For `COUNTED_KINDS`, which need it; None for the natural ones,
      where the data decides.
    alpha: For `ALPHA_KINDS`, which need it; None for the others.
    rng: Needed by all but the natural kinds.

  Returns:
    One sorted array of indices into `split` a client.
  """
  _validate.one_of(KINDS, partition=kind)
  _require(kind, 'num_clients', num_clients, kind in COUNTED_KINDS)
  _require(kind, 'alpha', alpha, kind in ALPHA_KINDS)
  if kind == 'natural_site':
    return natural(split, 'site')
  if kind == 'natural_patient':
    return natural(split, 'patient')
  if rng is None or num_clients is None:
    raise _validate.InputError(f'partition {kind} needs rng, got {rng}')
  if alpha is None:
    return iid(split, num_clients, rng)
  skewed = dirichlet if kind == 'dirichlet' else quantity_skew
  return skewed(split, num_clients, rng, alpha=alpha)


def iid(
  split: images.Split, num_clients: int, rng: np.random.Generator
) -> Partition:
  """Deals images (or patients) out at random, the same number to each.

  Give or take one; clients of whole patients hold as many images as those do.

  Args:
    split: What to spread.
    num_clients: Number of clients.
    rng: Draws the order.

  Returns:
    One sorted array of indices into `split` a client.
  """
  units = _units(split, num_clients)
  order = rng.permutation(len(units))
  return _gather(units, np.array_split(order, num_clients))


def dirichlet(
  split: images.Split,
  num_clients: int,
  rng: np.random.Generator,
  *,
  alpha: float,
) -> Partition:
  """Gives each client its own mix of labels, in about equal amounts.

  Client k's mix is drawn from Dirichlet(alpha x C x prior), prior the share of
  each of the C labels in `split`, so that alpha means the same for any balance
  and number of labels: 0.1 leaves a client one or two labels, 100 is close to
  iid. The label of an image with several findings is the rarest of them, and
  'no finding' counts as a label of its own; the label of a patient is the most
  frequent one of its images (several findings: the rarest of all).

  Args:
    split: What to spread.
    num_clients: Number of clients.
    rng: Draws the mixes and the images.
    alpha: Concentration, above 0.

  Returns:
    One sorted array of indices into `split` a client.
  """
  _validate.positive(alpha=alpha)
  units = _units(split, num_clients)
  labels = _unit_labels(split.labels, units)
  counts = np.bincount(labels).astype(float)
  concentration = alpha * counts / counts.mean()
  mixes = _dirichlet(rng, concentration, num_clients)
  shares = _fit(mixes, rows=counts.sum() / num_clients, columns=counts)
  clients: list[list[int]] = [[] for _ in range(num_clients)]
  for label in range(len(counts)):
    members = rng.permutation(np.flatnonzero(labels == label))
    # Clients in random order, so that rounding favours none of them.
    order = rng.permutation(num_clients)
    cuts = np.rint(np.cumsum(shares[order, label]))[:-1].astype(int)
    for client, part in zip(order, np.split(members, cuts)):
      clients[client].extend(part)
  return _gather(units, _fill_empty(clients))


def quantity_skew(
  split: images.Split,
  num_clients: int,
  rng: np.random.Generator,
  *,
  alpha: float,
) -> Partition:
  """Gives clients like labels in unlike amounts, shares from Dirichlet(alpha).

  Args:
    split: What to spread.
    num_clients: Number of clients.
    rng: Draws the amounts and the images.
    alpha: Concentration, above 0; the smaller, the more unequal.

  Returns:
    One sorted array of indices into `split` a client.
  """
  _validate.positive(alpha=alpha)
  units = _units(split, num_clients)
  weights = _dirichlet(rng, np.full(num_clients, alpha), rows=1)[0]
  # One unit each first, so that none is empty; the shares split the rest.
  spare = len(units) - num_clients
  ends = np.rint(np.cumsum(weights / weights.sum()) * spare).astype(int)
  cuts = ends[:-1] + np.arange(1, num_clients)
  return _gather(units, np.split(rng.permutation(len(units)), cuts))


def natural(split: images.Split, field: str) -> Partition:
  """Makes each site or each patient a client, in the order of their numbers.

  A patient with images at several sites goes whole to the site that holds most
  of them, since a patient is never spread over clients.

  Args:
    split: What to spread.
    field: `site` or `patient`.

  Returns:
    One sorted array of indices into `split` a client; sites with no image in
    `split` get no client.
  """
  _validate.one_of(('site', 'patient'), field=field)
  values = split.sites if field == 'site' else split.patients
  if values is None:
    raise _validate.InputError(
      f'partition natural_{field} needs {field} numbers, which this data '
      f'set does not have; choose one of {", ".join(COUNTED_KINDS)}'
    )
  if field == 'site' and split.patients is not None:
    values = _main_site(values, split.patients)
  return tuple(np.flatnonzero(values == value) for value in np.unique(values))


def _require(kind: str, name: str, value: object, wanted: bool) -> None:
  if wanted and value is None:
    raise _validate.InputError(f'partition {kind} needs {name}, got None')
  if not wanted and value is not None:
    raise _validate.InputError(
      f'partition {kind} does not use {name}, got {value!r}; leave it out'
    )


def _units(split: images.Split, num_clients: int) -> list[np.ndarray]:
  """Returns what is dealt out whole: the images of each patient, or images."""
  _validate.positive_int(num_clients=num_clients)
  if split.patients is None:
    units = list(np.arange(len(split))[:, np.newaxis])
  else:
    order = np.argsort(split.patients, kind='stable')
    starts = np.flatnonzero(np.diff(split.patients[order])) + 1
    units = np.split(order, starts)
  if num_clients > len(units):
    what = 'images' if split.patients is None else 'patients'
    raise _validate.InputError(
      f'num_clients must be at most the {len(units)} training {what}, got '
      f'{num_clients}; use fewer clients or more data'
    )
  return units


def _gather(
  units: Sequence[np.ndarray], clients: Sequence[Sequence[int] | np.ndarray]
) -> Partition:
  return tuple(
    np.sort(np.concatenate([units[unit] for unit in client]))
    for client in clients
  )


def _unit_labels(labels: np.ndarray, units: list[np.ndarray]) -> np.ndarray:
  """Returns one label a unit, as consecutive numbers from 0."""
  if labels.ndim == 2:
    present = labels > 0  # Unknown findings count as little as absent ones.
    rarity = present.sum(axis=0)
    found = np.array([present[unit].any(axis=0) for unit in units])
    ranked = np.where(found, rarity, np.iinfo(np.int64).max)
    chosen = np.where(found.any(axis=1), ranked.argmin(axis=1), len(rarity))
  else:
    chosen = np.array([np.bincount(labels[unit]).argmax() for unit in units])
  return np.unique(chosen, return_inverse=True)[1]


def _dirichlet(
  rng: np.random.Generator, concentration: np.ndarray, rows: int
) -> np.ndarray:
  """Draws rows of Dirichlet shares, of at least `_FLOOR` of the largest.

  Drawn as logarithms of gammas, with log gamma(a) = log gamma(a + 1) + log(u)/a
  in distribution, since for a small concentration whole rows of plain gammas
  (and NumPy's `dirichlet`) underflow to zero.
  """
  shape = (rows, len(concentration))
  logs = np.log(rng.gamma(concentration + 1, size=shape))
  logs += np.log(1 - rng.random(shape)) / concentration
  return np.exp(logs - logs.max(axis=1, keepdims=True)) + _FLOOR


def _fit(matrix: np.ndarray, rows: float, columns: np.ndarray) -> np.ndarray:
  """Scales rows and columns until they have the sums given (Sinkhorn)."""
  for _ in range(_SINKHORN_STEPS):
    matrix = matrix * (rows / matrix.sum(axis=1, keepdims=True))
    matrix = matrix * (columns / matrix.sum(axis=0))
  return matrix


def _fill_empty(clients: list[list[int]]) -> list[list[int]]:
  """Moves one unit from the largest client to each empty one."""
  for client in clients:
    if not client:
      client.append(max(clients, key=len).pop())
  return clients


def _main_site(sites: np.ndarray, patients: np.ndarray) -> np.ndarray:
  """Returns for each image the site where its patient has most images."""
  _, patient = np.unique(patients, return_inverse=True)
  counts = np.zeros([patient.max() + 1, sites.max() + 1], np.int64)
  np.add.at(counts, (patient, sites), 1)
  main = counts.argmax(axis=1)[patient]
  if moved := int((main != sites).sum()):
    logging.info("%d images counted to their patient's main site.", moved)
  return main
