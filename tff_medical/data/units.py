"""Units that a record- or patient-level guarantee protects.

A unit is drawn, clipped and protected as a whole: one image, or all images of
one patient, up to a limit. `Units` maps each unit to its rows of the training
split and to the client (site) that holds it. `Units.arrays` returns the units
drawn for a round in the layout of `examples`, for `learning.build_dp_sgd`.

>>> units = record_units((np.array([0, 2]), np.array([1])))
>>> len(units), units.clients.tolist()
(3, [0, 1, 0])
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tff_medical import _validate
from tff_medical.data import examples
from tff_medical.data import images
from tff_medical.data import partition as partition_lib


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
  """Rows of a split by unit, and the client of each unit.

  Attributes:
    rows: Rows of the split that each unit holds, int64 [U, K]; -1 is padding.
    clients: Index of the client that holds each unit, int64 [U].
    left_out: Number of images beyond the limit of their unit; they are not
      used.
  """

  rows: np.ndarray
  clients: np.ndarray
  left_out: int = 0

  def __len__(self) -> int:
    return len(self.rows)

  def by_client(
    self, indices: np.ndarray, num_clients: int
  ) -> list[np.ndarray]:
    """Returns the drawn units of each client, in their order.

    Args:
      indices: Numbers of the drawn units, int64 [n].
      num_clients: Number of clients.

    Returns:
      One array per client, int64; it is empty if no unit of the client was
      drawn.
    """
    clients = self.clients[indices]
    order = np.argsort(clients, kind='stable')
    ends = np.cumsum(np.bincount(clients, minlength=num_clients))
    return np.split(indices[order], ends[:-1])

  def class_counts(
    self, labels: np.ndarray, num_classes: int, num_clients: int
  ) -> np.ndarray:
    """Returns the number of units of each class at each client, without noise.

    A unit whose images are of several classes counts for each of them by its
    share, so that each unit adds 1 in all.

    Args:
      labels: Classes of the split's rows, integers [N].
      num_classes: Number K of classes.
      num_clients: Number C of clients.

    Returns:
      Counts, float64 [C, K].
    """
    is_image = self.rows != examples.PADDING
    shares = is_image / is_image.sum(axis=1, keepdims=True)
    counts = np.zeros((num_clients, num_classes))
    clients = np.broadcast_to(self.clients[:, np.newaxis], self.rows.shape)
    np.add.at(
      counts,
      (clients[is_image], labels[self.rows[is_image]]),
      shares[is_image],
    )
    return counts

  def arrays(
    self, split: images.Split, indices: np.ndarray
  ) -> examples.Examples:
    """Returns x, y and mask of the units; see `examples.of_units`."""
    return examples.of_units(split, self.rows[indices])


def record_units(partition: partition_lib.Partition) -> Units:
  """Returns one unit per image, in the order of the split's rows."""
  rows, clients = _clients_of_rows(partition)
  order = np.argsort(rows)
  return Units(rows=rows[order][:, np.newaxis], clients=clients[order])


def _clients_of_rows(
  partition: partition_lib.Partition,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the rows of all clients and the client of each, int64 [N]."""
  clients = partition_lib.ClientRows.of(partition)
  return clients.rows, np.repeat(np.arange(len(clients)), clients.sizes)


def patient_units(
  split: images.Split,
  partition: partition_lib.Partition,
  *,
  max_images: int,
) -> Units:
  """Returns one unit per patient, in the order of the patients' numbers.

  Args:
    split: Training split with patients.
    partition: Partition that keeps each patient on one client.
    max_images: Largest number of images per patient; further images of a
      patient are left out.

  Raises:
    InputError: The data has no patients, or a patient is on several clients.
  """
  _validate.positive_int(max_images_per_patient=max_images)
  if split.patients is None:
    raise _validate.InputError(
      'privacy_unit=patient needs patient numbers, which this data set does '
      'not have; choose record or client'
    )
  numbers, patient = np.unique(split.patients, return_inverse=True)
  client_of_row = np.empty(len(split), np.int64)
  rows_of_clients, clients_of_rows = _clients_of_rows(partition)
  client_of_row[rows_of_clients] = clients_of_rows
  sizes = np.bincount(patient)
  order = np.argsort(patient, kind='stable')
  first = np.cumsum(sizes) - sizes
  unit = patient[order]
  clients = client_of_row[order[first]]
  if np.any(client_of_row[order] != clients[unit]):
    raise _validate.InputError(
      'a patient is on several clients; use a partition of '
      'tff_medical.data.partition, which keeps patients together'
    )
  place = np.arange(len(order)) - first[unit]
  width = min(max_images, int(sizes.max()))
  is_used = place < width
  rows = np.full((len(numbers), width), examples.PADDING)
  rows[unit[is_used], place[is_used]] = order[is_used]
  return Units(rows=rows, clients=clients, left_out=int(np.sum(~is_used)))
