"""Spreads the images of a split over clients.

Each function returns `ClientRows`: sorted int64 index arrays, one per client.
They are slices of one array: a million clients with two images each take 32 MB.
Every image appears exactly once, and no client is empty. If patients are known,
all images of a patient go to one client: with clients as privacy units, the
guarantee would not cover a patient who is spread over two of them. All
randomness comes from the generator that is given.

`dirichlet` follows Hsu et al. 2019 (arXiv 1909.06335): each client's class mix
is drawn from Dirichlet(alpha x prior), and all clients have about the same
size. Hsu et al. fill one client after the other, so that the last clients get
whatever remains. Here iterative proportional fitting (Sinkhorn) makes the mixes
use up every image. `quantity_skew` is that of Li et al. 2022 (arXiv
2102.02079).

>>> rng = np.random.default_rng(0)
>>> clients = iid(images.Split(
...     images=np.zeros([10, 2, 2, 1], np.uint8),
...     labels=np.arange(10) % 2), 3, rng)
>>> [len(c) for c in clients]
[4, 3, 3]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import hashlib
import logging
import operator
from typing import Any

import numpy as np

from tff_medical import _validate
from tff_medical.data import images

# Indices into a split for each client: `ClientRows`, or arrays of one's own.
Partition = Sequence[np.ndarray]

KINDS = ('iid', 'dirichlet', 'quantity_skew', 'natural_site', 'natural_patient')
# Kinds that take a number of clients, and kinds that take alpha.
COUNTED_KINDS = ('iid', 'dirichlet', 'quantity_skew')
ALPHA_KINDS = ('dirichlet', 'quantity_skew')

_SINKHORN_STEPS = 100
# Shares of clients times labels from this number on take no more steps than
# change them. Fewer shares take all steps: even the rounding of ties, which
# earlier versions' results depend on, stays as it was.
_MANY_SHARES = 2**20
_SINKHORN_PRECISION = 1e-13
_FLOOR = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class ClientRows(Sequence[np.ndarray]):
  """Rows of all clients in one array, client after client.

  An array for each of a million clients would take 120 MB besides the rows.

  >>> clients = ClientRows.of([np.array([0, 3]), np.array([1])])
  >>> clients[0], clients.sizes
  (array([0, 3]), array([2, 1]))

  Attributes:
    rows: Rows of the split, int64 [N]; those of a client are neighbours.
    ends: Position in `rows` after the last row of each client, int64 [C].
  """

  rows: np.ndarray
  ends: np.ndarray

  def __post_init__(self) -> None:
    last = self.ends[-1] if len(self.ends) else 0
    if self.sizes.min(initial=0) < 0 or last != len(self.rows):
      raise _validate.InputError(
        f'ends must ascend to the {len(self.rows)} rows, got {self.ends}; give '
        'the end of each client'
      )

  @classmethod
  def of(cls, partition: Partition) -> ClientRows:
    """Returns any partition in this form; rows that have it are not copied."""
    if isinstance(partition, ClientRows):
      return partition
    sizes = np.fromiter(map(len, partition), np.int64, len(partition))
    rows = np.concatenate([np.zeros(0, np.int64), *partition])
    return cls(rows.astype(np.int64, copy=False), np.cumsum(sizes))

  @functools.cached_property
  def sizes(self) -> np.ndarray:
    """Number of rows of each client, int64 [C]."""
    return np.diff(self.ends, prepend=0)

  def __len__(self) -> int:
    return len(self.ends)

  def __getitem__(self, index: Any) -> Any:
    if isinstance(index, slice):
      return tuple(self[i] for i in range(*index.indices(len(self))))
    client = range(len(self))[operator.index(index)]
    start = self.ends[client - 1] if client else 0
    return self.rows[start : self.ends[client]]

  def __iter__(self) -> Iterator[np.ndarray]:
    start = 0
    for end in self.ends.tolist():
      yield self.rows[start:end]
      start = end

  def digest(self) -> str:
    """Returns the SHA-256 of the number of rows and the rows of each client."""
    # In one array, as an update of the digest costs more than most clients.
    sizes = self.sizes.astype('>i8').view(np.int64)
    numbers = np.insert(self.rows, self.ends - self.sizes, sizes)
    return hashlib.sha256(numbers.tobytes()).hexdigest()


def partition(
  kind: str,
  split: images.Split,
  *,
  num_clients: int | None = None,
  alpha: float | None = None,
  rng: np.random.Generator | None = None,
) -> ClientRows:
  """Spreads `split` over clients in the way named by `kind`.

  Args:
    kind: Kind of the partition, one of `KINDS`.
    split: Images to spread.
    num_clients: Number of clients, required for `COUNTED_KINDS`; None for the
      natural kinds, where the data decides.
    alpha: Concentration, required for `ALPHA_KINDS`; None for the others.
    rng: Generator of all random choices, required for all but the natural
      kinds.

  Returns:
    One sorted array of indices into `split` per client.

  Raises:
    InputError: An argument is missing, not used by the kind, or out of range.
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
) -> ClientRows:
  """Deals images (or patients) out at random, in equal numbers.

  Numbers of images or patients differ by at most one between clients. If
  patients are dealt out, the numbers of images may differ more.

  Args:
    split: Images to spread.
    num_clients: Number of clients.
    rng: Generator of the random order.

  Returns:
    One sorted array of indices into `split` per client.
  """
  units = _units(split, num_clients)
  sizes = np.full(num_clients, len(units) // num_clients)
  sizes[: len(units) % num_clients] += 1
  return units.dealt(rng.permutation(len(units)), sizes)


def dirichlet(
  split: images.Split,
  num_clients: int,
  rng: np.random.Generator,
  *,
  alpha: float,
) -> ClientRows:
  """Gives each client its own mix of labels, in about equal amounts.

  A client's mix is drawn from Dirichlet(alpha x C x prior), where `prior` is
  the share of each of the C labels in `split`. Alpha thus means the same for
  any balance and number of labels: 0.1 leaves a client one or two labels, 100
  is close to iid.

  The label of an image with several findings is the rarest of them, and 'no
  finding' counts as a label. The label of a patient is the most frequent label
  of the patient's images or, for multi-label data, the rarest finding in them.

  Args:
    split: Images to spread.
    num_clients: Number of clients.
    rng: Generator of the mixes and of the images that fill them.
    alpha: Concentration, above 0.

  Returns:
    One sorted array of indices into `split` per client.
  """
  _validate.positive(alpha=alpha)
  units = _units(split, num_clients)
  labels = units.labels(split.labels)
  counts = np.bincount(labels).astype(float)
  concentration = alpha * counts / counts.mean()
  mixes = _dirichlet(rng, concentration, num_clients)
  shares = _fit(mixes, rows=counts.sum() / num_clients, columns=counts)
  # Units in the order in which they are dealt out, and the client of each.
  dealt = [np.zeros(0, np.int64)]
  clients = [np.zeros(0, np.int64)]
  for label in range(len(counts)):
    members = rng.permutation(np.flatnonzero(labels == label))
    # The order of the clients is random, so that rounding favours no client.
    order = rng.permutation(num_clients)
    cuts = np.rint(np.cumsum(shares[order, label])).astype(np.int64)
    cuts[-1] = len(members)
    dealt.append(members)
    clients.append(
      np.repeat(order, np.diff(np.minimum(cuts, len(members)), prepend=0))
    )
  client_of_unit = np.empty(len(units), np.int64)
  client_of_unit[np.concatenate(dealt)] = _none_empty(
    np.concatenate(clients), num_clients
  )
  return units.at(client_of_unit)


def quantity_skew(
  split: images.Split,
  num_clients: int,
  rng: np.random.Generator,
  *,
  alpha: float,
) -> ClientRows:
  """Gives clients unequal amounts of images, in shares from Dirichlet(alpha).

  Labels are distributed alike over the clients, up to chance.

  Args:
    split: Images to spread.
    num_clients: Number of clients.
    rng: Generator of the amounts and of the images.
    alpha: Concentration, above 0; smaller values give more unequal amounts.

  Returns:
    One sorted array of indices into `split` per client.
  """
  _validate.positive(alpha=alpha)
  units = _units(split, num_clients)
  weights = _dirichlet(rng, np.full(num_clients, alpha), rows=1)[0]
  # Every client first gets one unit, so that none is empty. The shares split
  # the rest.
  spare = len(units) - num_clients
  ends = np.rint(np.cumsum(weights / weights.sum()) * spare).astype(int)
  sizes = np.diff(ends, prepend=0) + 1
  return units.dealt(rng.permutation(len(units)), sizes)


def natural(split: images.Split, field: str) -> ClientRows:
  """Makes each site or each patient a client, in the order of their numbers.

  All images of a patient go to the site that holds most of them, since a
  patient is never spread over clients.

  Args:
    split: Images to spread.
    field: Field that defines the clients, `site` or `patient`.

  Returns:
    One sorted array of indices into `split` per client; a site with no image
    in `split` is no client.

  Raises:
    InputError: The data has no such field.
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
  return _rows_of_clients(np.unique(values, return_inverse=True)[1])


def _require(kind: str, name: str, value: object, is_used: bool) -> None:
  if is_used and value is None:
    raise _validate.InputError(f'partition {kind} needs {name}, got None')
  if not is_used and value is not None:
    raise _validate.InputError(
      f'partition {kind} does not use {name}, got {value!r}; leave it out'
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Units:
  """Units that are dealt out whole: patients, or else images.

  Attributes:
    of_row: Unit of each row of the split, int64 [N], from 0.
    count: Number of units.
  """

  of_row: np.ndarray
  count: int

  def __len__(self) -> int:
    return self.count

  def dealt(self, order: np.ndarray, sizes: np.ndarray) -> ClientRows:
    """Returns the partition of units that are dealt out in an order.

    Args:
      order: All units, in the order in which they are dealt out, int64 [U].
      sizes: Number of units of each client, at least 1, int64 [clients].
    """
    clients = np.empty(self.count, np.int64)
    clients[order] = np.repeat(np.arange(len(sizes)), sizes)
    return self.at(clients)

  def at(self, clients: np.ndarray) -> ClientRows:
    """Returns the partition of units that are at clients, int64 [U]."""
    return _rows_of_clients(clients[self.of_row])

  def labels(self, labels: np.ndarray) -> np.ndarray:
    """Returns one label per unit, as consecutive numbers from 0.

    Args:
      labels: Labels of the split, integers [N] or, multi-label, [N, L].
    """
    if labels.ndim == 2:
      is_present = labels > 0  # An unknown finding counts as an absent one.
      counts = is_present.sum(axis=0)
      has_finding = np.zeros((self.count, labels.shape[1]), bool)
      np.logical_or.at(has_finding, self.of_row, is_present)
      ranked = np.where(has_finding, counts, np.iinfo(np.int64).max)
      chosen = np.where(
        has_finding.any(axis=1), ranked.argmin(axis=1), len(counts)
      )
    else:
      chosen = _most_frequent(labels, self.of_row)
    return np.unique(chosen, return_inverse=True)[1]


def most_clients(split: images.Split) -> int:
  """Returns the largest number of clients that images can be dealt out to."""
  return (
    len(split) if split.patients is None else len(np.unique(split.patients))
  )


def _units(split: images.Split, num_clients: int) -> _Units:
  """Returns the units that are dealt out whole: patients, or else images."""
  _validate.positive_int(num_clients=num_clients)
  if split.patients is None:
    of_row = np.arange(len(split))
  else:
    of_row = np.unique(split.patients, return_inverse=True)[1]
  count = int(of_row.max(initial=-1)) + 1
  if num_clients > count:
    noun = 'images' if split.patients is None else 'patients'
    raise _validate.InputError(
      f'num_clients must be at most the {count} training {noun}, got '
      f'{num_clients}; use fewer clients or more data'
    )
  return _Units(of_row, count)


def _rows_of_clients(clients: np.ndarray) -> ClientRows:
  """Returns the sorted rows of each client.

  Args:
    clients: Client of each row, int64 [N]; each of the clients from 0 on has at
      least one row.
  """
  rows = np.argsort(clients, kind='stable')
  return ClientRows(rows, np.cumsum(np.bincount(clients)))


def _dirichlet(
  rng: np.random.Generator, concentration: np.ndarray, rows: int
) -> np.ndarray:
  """Draws rows of Dirichlet shares, each at least `_FLOOR` of the largest.

  For a small concentration, whole rows of gamma variables underflow to zero, as
  in NumPy's `dirichlet`. Their logarithms are drawn instead, by the identity in
  distribution log gamma(a) = log gamma(a + 1) + log(u) / a.
  """
  shape = (rows, len(concentration))
  logs = np.log(rng.gamma(concentration + 1, size=shape))
  logs += np.log(1 - rng.random(shape)) / concentration
  return np.exp(logs - logs.max(axis=1, keepdims=True)) + _FLOOR


def _fit(matrix: np.ndarray, rows: float, columns: np.ndarray) -> np.ndarray:
  """Scales rows and columns until they have the given sums (Sinkhorn)."""
  fitted = matrix.copy()
  for _ in range(_SINKHORN_STEPS):
    fitted *= rows / fitted.sum(axis=1, keepdims=True)
    factors = columns / fitted.sum(axis=0)
    fitted *= factors
    is_fitted = np.abs(factors - 1).max() < _SINKHORN_PRECISION
    if is_fitted and fitted.size >= _MANY_SHARES:
      break
  return fitted


def _none_empty(clients: np.ndarray, num_clients: int) -> np.ndarray:
  """Moves the last unit of the largest client to each empty one, in order.

  Of equally large clients the first one gives. The largest clients thus give
  their last units, then all that are now as large give the next ones: units go
  by their place at the client from the last place on, and then by the client.

  Args:
    clients: Client of each unit, in the order in which units are dealt out,
      int64 [U], where U is at least `num_clients`.
    num_clients: Number of clients.

  Returns:
    Client of each unit, int64 [U].
  """
  sizes = np.bincount(clients, minlength=num_clients)
  empty = np.flatnonzero(sizes == 0)
  if not empty.size:
    return clients
  by_client = np.argsort(clients, kind='stable')
  place = np.empty(len(clients), np.int64)
  place[by_client] = np.arange(len(clients)) - np.repeat(
    np.cumsum(sizes) - sizes, sizes
  )
  spare = np.flatnonzero(place > 0)  # Every client keeps its first unit.
  order = np.lexsort((clients[spare], -place[spare]))
  moved = clients.copy()
  moved[spare[order[: len(empty)]]] = empty
  return moved


def _main_site(sites: np.ndarray, patients: np.ndarray) -> np.ndarray:
  """Returns, for each image, the site with most images of its patient."""
  patient = np.unique(patients, return_inverse=True)[1]
  main = _most_frequent(sites, patient)[patient]
  if moved := int((main != sites).sum()):
    logging.info("%d images counted to their patient's main site.", moved)
  return main


def _most_frequent(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
  """Returns the most frequent value of each group, the smallest of several.

  Args:
    values: Values from 0 on, integers [N].
    groups: Group of each value, int64 [N]; each of the groups from 0 on has at
      least one value.
  """
  num_values = int(values.max(initial=0)) + 1
  # Pairs that occur, as a table of all groups and values may be too large.
  pairs, counts = np.unique(groups * num_values + values, return_counts=True)
  order = np.lexsort((-counts, pairs // num_values))
  group_of = pairs[order] // num_values
  is_first = np.diff(group_of, prepend=-1) > 0
  return pairs[order][is_first] % num_values
