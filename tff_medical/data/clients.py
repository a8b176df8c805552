"""Client datasets for TensorFlow Federated, from a split and a partition.

`ImageClientData` is a `tff.simulation.datasets.ClientData` over a split, whose
images may be stored. TFF's `TestClientData` does not serve here: it copies all
data, builds one dataset per client into its graph and walks through the
datasets at each look-up. Here a client's dataset is one read of its rows in
eager mode. Where TFF traces `serializable_dataset_fn` (`dataset_computation`,
`preprocess`), the dataset is one gather. `client_arrays` returns plain NumPy
arrays and needs no dataset at all.

A million clients take no million objects: their rows are slices of one array,
and their ids follow from their numbers (`ImageClientData.ids`).

An element is an `OrderedDict(x, y)` in the layout of `examples`. Images are
kept as uint8 and scaled when they are read.

>>> from tff_medical.data import images
>>> split = images.Split(images=np.full([3, 2, 2, 1], 255, np.uint8),
...                      labels=np.array([0, 1, 1]))
>>> data = ImageClientData(split, (np.array([0, 2]), np.array([1])))
>>> data.client_ids
['client_0', 'client_1']
>>> data.client_arrays('client_0')['y']
array([0, 1])
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Sequence
import operator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical.data import examples
from tff_medical.data import images
from tff_medical.data import partition as partition_lib
from tff_medical.data import pixels

# A TensorFlow graph cannot exceed 2 GiB; 64 MiB are left for all but images.
_MAX_GRAPH_BYTES = 2**31 - 2**26


def default_client_ids(num_clients: int) -> Sequence[str]:
  """Returns client ids whose alphabetical order is that of their numbers.

  >>> default_client_ids(11)[:2]
  ['client_00', 'client_01']
  """
  return _NumberedIds(num_clients)


class _NumberedIds(Sequence[str]):
  """Ids of clients by their numbers, which are made when they are read."""

  def __init__(self, num_clients: int):
    self._numbers = range(num_clients)
    self._width = len(str(num_clients - 1))

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, index: Any) -> Any:
    if isinstance(index, slice):
      return [self._id(number) for number in self._numbers[index]]
    return self._id(self._numbers[operator.index(index)])

  def position(self, client_id: str) -> int | None:
    """Returns the number of a client, or None for another text."""
    digits = client_id[-self._width :]
    if not (digits.isascii() and digits.isdigit()):
      return None
    number = int(digits)
    is_client = number in self._numbers and self._id(number) == client_id
    return number if is_client else None

  def _id(self, number: int) -> str:
    return f'client_{number:0{self._width}d}'


class _GivenIds(list[str]):
  """Ids of clients that were given, with their positions."""

  def __init__(self, client_ids: Iterable[str]):
    super().__init__(client_ids)
    self._positions = {name: i for i, name in enumerate(self)}
    self.num_distinct = len(self._positions)

  def position(self, client_id: str) -> int | None:
    """Returns the position of an id, or None if it was not given."""
    return self._positions.get(client_id)


def to_arrays(split: images.Split) -> collections.OrderedDict:
  """Returns x and y of a whole split, in the layout of a client's examples."""
  return examples.of_images(split, np.arange(len(split)))


class ImageClientData(tff.simulation.datasets.ClientData):
  """Images of a split, spread over clients."""

  def __init__(
    self,
    split: images.Split,
    partition: partition_lib.Partition,
    client_ids: Sequence[str] | None = None,
  ):
    """Builds the client data; neither images nor `ClientRows` are copied.

    Args:
      split: Images with their labels.
      partition: Indices into `split` for each client.
      client_ids: One id per client; by default `default_client_ids`.

    Raises:
      InputError: The ids are not distinct, or their number is not that of the
        clients.
    """
    self._split = split
    self._clients = partition_lib.ClientRows.of(partition)
    self._ids: _NumberedIds | _GivenIds
    if client_ids is None:
      self._ids = _NumberedIds(len(partition))
      num_distinct = len(partition)
    else:
      self._ids = _GivenIds(client_ids)
      num_distinct = self._ids.num_distinct
    if not len(partition) or num_distinct != len(partition):
      raise _validate.InputError(
        'client_ids must hold one distinct id per client, got '
        f'{num_distinct} ids for {len(partition)} clients'
      )

  @property
  def ids(self) -> Sequence[str]:
    """Client ids, in the order of the partition, without a list of them."""
    return self._ids

  @property
  def client_ids(self) -> list[str]:
    """Client ids, in the order of the partition, as a new list (TFF's API)."""
    return list(self._ids)

  @property
  def num_examples(self) -> dict[str, int]:
    """Number of images of each client, by id."""
    return dict(zip(self._ids, self._clients.sizes.tolist()))

  @property
  def element_type_structure(self) -> collections.OrderedDict:
    """`tf.TensorSpec`s of one example."""
    return collections.OrderedDict(
      x=tf.TensorSpec(self._split.input_shape, tf.float32),
      y=tf.TensorSpec(
        self._split.labels.shape[1:],
        tf.as_dtype(examples.y_dtype(self._split)),
      ),
    )

  def client_arrays(self, client_id: str) -> collections.OrderedDict:
    """Returns new arrays x [n, H, W, C] and y [n] or [n, L] of a client."""
    return examples.of_images(self._split, self._client_indices(client_id))

  def client_size(self, client_id: str) -> int:
    """Returns the number of images of a client."""
    return len(self._client_indices(client_id))

  def create_tf_dataset_for_client(self, client_id: str) -> tf.data.Dataset:
    """Returns the examples of a client, in the order of the split."""
    return tf.data.Dataset.from_tensor_slices(self.client_arrays(client_id))

  @property
  def serializable_dataset_fn(
    self,
  ) -> Callable[[str | tf.Tensor], tf.data.Dataset]:
    """Function that maps a client id to its dataset, also in a traced graph.

    A traced graph holds the images of all clients, and TensorFlow limits it to
    2 GiB. Larger data can be read client by client outside of a graph.
    """
    return self._dataset

  def subset(self, client_ids: Iterable[str]) -> ImageClientData:
    """Returns the client data of these clients alone, sharing the arrays."""
    ids = list(client_ids)
    indices = tuple(self._client_indices(name) for name in ids)
    return ImageClientData(self._split, indices, ids)

  @classmethod
  def train_test_client_split(
    cls,
    client_data: tff.simulation.datasets.ClientData,
    num_test_clients: int,
    seed: int | Sequence[int] | None = None,
  ) -> tuple[
    tff.simulation.datasets.ClientData, tff.simulation.datasets.ClientData
  ]:
    """Splits as TFF does; the parts of an `ImageClientData` stay such data."""
    parts = super().train_test_client_split(client_data, num_test_clients, seed)
    if not isinstance(client_data, ImageClientData):
      return parts
    train, test = (client_data.subset(part.client_ids) for part in parts)
    return train, test

  def _client_indices(self, client_id: str) -> np.ndarray:
    position = self._ids.position(client_id)
    if position is None:
      raise _validate.InputError(
        f'client_id must be one of the {len(self._ids)} in client_ids, '
        f'got {client_id!r}'
      )
    return self._clients[position]

  def _dataset(self, client_id: str | tf.Tensor) -> tf.data.Dataset:
    if isinstance(client_id, str):
      return self.create_tf_dataset_for_client(client_id)
    if tf.executing_eagerly():
      return self.create_tf_dataset_for_client(client_id.numpy().decode())
    return self._traced_dataset(client_id)

  def _traced_dataset(self, client_id: tf.Tensor) -> tf.data.Dataset:
    """Builds a graph that looks the client up when the graph runs."""
    stored = self._split.model_inputs
    if self._split.nbytes > _MAX_GRAPH_BYTES:
      raise _validate.InputError(
        f'{self._split.nbytes} bytes of images or features do not fit into a '
        'TensorFlow graph (2 GiB); use create_tf_dataset_for_client'
      )
    matches = tf.equal(client_id, self.client_ids)
    is_client = tf.debugging.Assert(
      tf.reduce_any(matches), ['Not a client of this ClientData:', client_id]
    )
    sizes = tf.constant(self._clients.sizes, tf.int64)
    ends = tf.constant(self._clients.ends, tf.int64)
    with tf.control_dependencies([] if is_client is None else [is_client]):
      client = tf.argmax(matches)
    end = ends[client]
    start = end - sizes[client]
    rows = tf.constant(self._clients.rows)[start:end]
    every_row = np.arange(len(self._split))
    x = tf.gather(tf.constant(pixels.read(stored, every_row)), rows)
    if self._split.features is None:
      values = tf.constant(examples.scaled(np.arange(256, dtype=np.uint8)))
      x = tf.gather(values, tf.cast(x, tf.int32))
    y = tf.constant(self._split.labels, examples.y_dtype(self._split))
    return tf.data.Dataset.from_tensor_slices(
      collections.OrderedDict(x=x, y=tf.gather(y, rows))
    )
