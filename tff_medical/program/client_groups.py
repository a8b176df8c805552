"""Feed of groups of clients, for `learning.build_batched_dp_fed_avg`.

A dataset of a round is a group of clients instead of one client. Clients of
like size share a group, so that little is filled up. The numbers of clients and
images in a group are bounded, and with them the memory of a round.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical import runtime
from tff_medical.learning import batched_clients
from tff_medical.program import feeds
from tff_medical.runtime import tensor_data


@dataclasses.dataclass(frozen=True, eq=False)
class ClientGroupFeed:
  """Feed of the whole data of each drawn client, in groups of clients.

  A client that cannot be read takes part without data, as in `ClientFeed`.

  Attributes:
    inner: Feed that reads the clients. Its examples are mappings of `x` and
      `y`, or pairs.
    size: Largest group; see `batched_clients.group_size`.
    at_once: Number of groups that train at once, so that there are no fewer
      groups in a round; None leaves their number to the size.
  """

  inner: feeds.ClientFeed
  size: batched_clients.GroupSize
  at_once: int | None = None

  def __post_init__(self) -> None:
    if self.at_once is not None:
      _validate.positive_int(at_once=self.at_once)

  @property
  def num_units(self) -> int:
    """Population of the mechanism's sampling."""
    return self.inner.num_units

  def without_data(self) -> list[tf.data.Dataset]:
    """Returns the datasets of a round with one client, which has no data."""
    return in_groups(self.inner.without_data(), self.size)

  @property
  def element_spec(self) -> Any:
    """Structure of the specs of a group of any number of images a client."""
    return tf.nest.map_structure(
      lambda spec: tf.TensorSpec([None, None, *spec.shape[2:]], spec.dtype),
      self.without_data()[0].element_spec,
    )

  def __call__(self, indices: np.ndarray) -> list[tf.data.Dataset]:
    """Returns the datasets of the groups of the clients at `indices`.

    Args:
      indices: Indices of the drawn clients, int64 [n].

    Raises:
      InputError: None of at least 10 drawn clients can be read.
    """
    groups = [self.dataset(part.key) for part in self.parts(indices)]
    self.check_readable()
    return groups

  def check_readable(self) -> None:
    """Checks that the data source itself is not at fault; see `ClientFeed`."""
    self.inner.check_readable()

  def problems(self, indices: np.ndarray) -> dict[int, str | None]:
    """Returns the argument of `note` for a group that was loaded."""
    return {
      int(index): problem
      for client in indices
      for index, problem in self.inner.problems(int(client)).items()
    }

  def note(self, problems: Mapping[int, str | None]) -> None:
    """Notes which clients were read; see `ClientFeed`."""
    self.inner.note(problems)

  def parts(self, indices: np.ndarray) -> list[feeds.Part]:
    """Returns a part for each group of the clients at `indices`, int64 [n]."""
    sizes = np.array([self.inner.size(int(index)) for index in indices], int)
    limit = self.size
    if self.at_once is not None:
      share = max(1, math.ceil(len(indices) / self.at_once))
      limit = dataclasses.replace(limit, clients=min(limit.clients, share))
    return [
      feeds.Part(indices[group], int(sizes[group].sum()))
      for group in groups_of_like_size(sizes, limit)
    ]

  def dataset(self, indices: np.ndarray) -> tf.data.Dataset:
    """Returns the dataset of the clients at `indices` as one group."""
    return _group([self.inner.dataset(int(index)) for index in indices])


def in_groups(
  clients: Sequence[tf.data.Dataset], limit: batched_clients.GroupSize
) -> list[tf.data.Dataset]:
  """Returns the datasets of groups of clients.

  Args:
    clients: Datasets that `runtime.tensor_dataset` made of x and y. The
      learning process divides the examples of a client into steps, whatever
      the batch size and epochs here.
    limit: Largest group.

  Raises:
    InputError: `runtime.tensor_dataset` made none of a dataset.
  """
  sizes = np.array([len(_examples(client)[0]) for client in clients], np.int64)
  return [
    _group([clients[i] for i in group])
    for group in groups_of_like_size(sizes, limit)
  ]


def groups_of_like_size(
  sizes: np.ndarray, limit: batched_clients.GroupSize
) -> Iterator[np.ndarray]:
  """Yields the indices of the clients of each group, int64 [n].

  >>> limit = batched_clients.GroupSize(clients=10, images=16)
  >>> [g.tolist() for g in groups_of_like_size(np.array([8, 1, 7, 2]), limit)]
  [[1, 3], [2, 0]]

  Args:
    sizes: Number of images of each client, int64.
    limit: Largest group. Each client is filled up to the largest one of its
      group; a larger client is a group of its own.
  """
  order = np.argsort(sizes, kind='stable')
  start = 0
  for end in range(1, len(order) + 1):
    # The clients ascend, so the next one would be the largest of its group.
    if end < len(order):
      clients, largest = end + 1 - start, max(1, sizes[order[end]])
      if clients <= limit.clients and clients * largest <= limit.images:
        continue
    yield order[start:end]
    start = end


def _examples(client: tf.data.Dataset) -> tuple[tf.Tensor, ...]:
  """Returns the examples of a client, x and y."""
  if not isinstance(client, tensor_data.TensorDataset):
    raise _validate.InputError(
      'clients must be datasets of runtime.tensor_dataset, got '
      f'{type(client).__name__}; make them of arrays x and y'
    )
  return client.batches.components


def _group(clients: Sequence[tf.data.Dataset]) -> tf.data.Dataset:
  """Returns clients as one batch."""
  examples = [_examples(client) for client in clients]
  sizes = np.array([len(x) for x, _ in examples], np.int64)
  with tf.device('CPU:0'):
    x, y = (_stacked(column, sizes) for column in zip(*examples))
    mask = tf.sequence_mask(sizes, max(1, sizes.max()), tf.float32)
  arrays = collections.OrderedDict(x=x, y=y, mask=mask)
  return runtime.tensor_dataset(arrays, batch_size=len(sizes))


def _stacked(values: Sequence[tf.Tensor], sizes: np.ndarray) -> tf.Tensor:
  """Returns [clients, K, ...] of values [n, ...], with zeros after the last."""
  if sizes.min() == sizes.max() > 0:
    return tf.stack(values)
  rows = tf.RaggedTensor.from_row_lengths(tf.concat(values, 0), sizes)
  width = max(1, sizes.max())
  return rows.to_tensor(shape=[len(sizes), width, *values[0].shape[1:]])
