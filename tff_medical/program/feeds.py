"""Feeds: from the units drawn for a round to the datasets of its clients.

The training program calls a feed with the indices that the mechanism's sampling
drew. The feed returns datasets:

| feed             | privacy unit      | datasets of a round                   |
|------------------|-------------------|---------------------------------------|
| `ClientFeed`     | client            | one per drawn client, with all images |
| `UnitFeed`       | record or patient | parts of the drawn units of all sites |
| `LocalStepsFeed` | record or patient | one per client, with one batch a step |

A dataset of drawn units may be empty. `parts` says of what the datasets of a round
are made, without a look at the data, and `dataset` makes one of them. On a
cluster the two run on different machines (`recipe_feeds`).

A client whose data cannot be read takes part with no data, and its update is
zero. The guarantee still holds, as a client's update depends on that client's
data alone. The round goes on for all other clients.

A feed reads the drawn units and nothing else, when the round begins. It does
not fetch the next round's images ahead: the next cohort is drawn for the number
of its charge, and that charge names the state that this round saves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import math
from typing import Any

from absl import logging
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
import tree

from tff_medical import _validate
from tff_medical import runtime
from tff_medical.data import clients as clients_lib
from tff_medical.data import images
from tff_medical.data import units as units_lib
from tff_medical.learning import local_dp_sgd
from tff_medical.privacy import local_dp_sgd_mechanism
from tff_medical.runtime import devices
from tff_medical.runtime import tensor_data

# Client datasets are kept as tensors up to this total size.
_MAX_KEPT_BYTES = 2 * 2**30
# Size of the objects of a dataset, which is more than that of tiny examples.
_DATASET_BYTES = 4096
_READ_BATCH = 256
# A dataset of fewer drawn units is not divided any more.
_SMALL_PART = 16
# After this many failures and no success the data source is at fault, not the
# clients.
_MANY_CLIENTS = 10
# Exceptions of reading a client's data: files are missing or damaged, examples
# have another shape, or a generator fails.
_UNREADABLE = (OSError, ValueError, KeyError, tf.errors.OpError)


def read_client(
  clients: tff.simulation.datasets.ClientData, client_id: str
) -> Any:
  """Returns all examples of a client, stacked.

  Args:
    clients: Client data whose examples are tensors, in any structure.
    client_id: Id of the client, one of `clients.client_ids`.

  Returns:
    Arrays [n, ...] in the structure of one example.

  Raises:
    OSError, ValueError, KeyError, tf.errors.OpError: The examples cannot be
      read, or differ in shape or type from `clients.element_type_structure`.
  """
  if isinstance(clients, clients_lib.ImageClientData):
    return clients.client_arrays(client_id)
  dataset = clients.create_tf_dataset_for_client(client_id)
  batches = list(dataset.batch(_READ_BATCH).as_numpy_iterator())
  none = _no_examples(clients)
  for batch in batches:
    _check_structure(none, batch)
  names = [name for name, _ in _named(none)]
  columns = zip(names, *(tf.nest.flatten(part) for part in (none, *batches)))
  return tf.nest.pack_sequence_as(none, [_joined(*c) for c in columns])


def _check_structure(none: Any, batch: Any) -> None:
  try:
    tf.nest.assert_same_structure(none, batch)
  except TypeError as error:
    raise ValueError(f'an example has another structure: {error}') from error


def _joined(name: str, none: np.ndarray, *parts: np.ndarray) -> np.ndarray:
  """Returns the parts in one array of the type of `none`, which has no rows."""
  if any(part.dtype != none.dtype for part in parts):
    raise ValueError(f'{name} is not {none.dtype}')
  return np.concatenate([none, *parts])


def _no_examples(clients: tff.simulation.datasets.ClientData) -> Any:
  return tf.nest.map_structure(
    lambda spec: np.zeros((0, *spec.shape), spec.dtype.as_numpy_dtype),
    clients.element_type_structure,
  )


def _named(structure: Any) -> list[tuple[str, Any]]:
  """Returns the leaves of an example with their names, as `x` or `x/age`."""
  return [
    ('/'.join(map(str, path)) or 'the example', leaf)
    for path, leaf in tree.flatten_with_path(structure)
  ]


@dataclasses.dataclass(frozen=True)
class Part:
  """What one dataset of a round is made of.

  Attributes:
    key: Argument of the feed's `dataset`: numbers of clients or units. It can be
      pickled.
    size: Number of images, or an estimate of it.
  """

  key: Any
  size: int


@dataclasses.dataclass(frozen=True, eq=False)
class ClientFeed:
  """Feed of the whole training data of each drawn client, in batches.

  Attributes:
    clients: Client data of this project or of TFF, whose examples are tensors
      in any structure. An index is a position in `clients.client_ids`.
    batch_size: Number of images in one step on a client.
    epochs: Number of passes over a client's images in one round.
  """

  clients: tff.simulation.datasets.ClientData
  batch_size: int
  epochs: int = 1

  def __post_init__(self) -> None:
    _validate.positive_int(
      client_batch_size=self.batch_size, client_epochs=self.epochs
    )
    for name, spec in _named(self.clients.element_type_structure):
      _check_spec(name, spec)

  @property
  def num_units(self) -> int:
    """Population of the mechanism's sampling."""
    return len(self._client_ids)

  def without_data(self) -> list[tf.data.Dataset]:
    """Returns the datasets of a round with one client, which has no data."""
    return [
      runtime.tensor_dataset(
        _no_examples(self.clients),
        batch_size=self.batch_size,
        epochs=self.epochs,
      )
    ]

  @property
  def element_spec(self) -> Any:
    """Structure of the specs of a batch."""
    return self.without_data()[0].element_spec

  def __call__(self, indices: np.ndarray) -> list[tf.data.Dataset]:
    """Returns the datasets of the clients at `indices`, int64 [n].

    Raises:
      InputError: None of at least 10 drawn clients can be read.
    """
    datasets = [self.dataset(int(index)) for index in indices]
    self.check_readable()
    return datasets

  def check_readable(self) -> None:
    """Checks that the data source itself is not at fault.

    Raises:
      InputError: None of at least 10 drawn clients can be read.
    """
    cache = self._cache
    if len(cache.unreadable) == len(cache.tried) >= _MANY_CLIENTS:
      raise _validate.InputError(
        f'none of the {len(cache.tried)} clients that were drawn can be read, '
        f'the last one as: {cache.problem}'
      )

  def parts(self, indices: np.ndarray) -> list[Part]:
    """Returns one part for each of the clients at `indices`, int64 [n]."""
    return [Part(int(index), self.size(int(index))) for index in indices]

  def size(self, index: int) -> int:
    """Returns the number of images of a client.

    Client data of other kinds than this project's has to be read for it.
    """
    if isinstance(self.clients, clients_lib.ImageClientData):
      return self.clients.client_size(self._client_ids[index])
    first = tf.nest.flatten(self.dataset(index).batches.components)[0]
    return len(first)

  @functools.cached_property
  def _cache(self) -> _ClientCache:
    return _ClientCache()

  @functools.cached_property
  def _client_ids(self) -> Sequence[str]:
    if isinstance(self.clients, clients_lib.ImageClientData):
      return self.clients.ids
    # TFF's client data returns a new list of all ids at each look.
    return list(self.clients.client_ids)

  def dataset(self, index: int) -> tensor_data.TensorDataset:
    """Returns the dataset of the client at an index; empty if unreadable."""
    cache = self._cache
    if index in cache.kept:
      return cache.kept[index]
    arrays = self._arrays(index)
    dataset = runtime.tensor_dataset(
      arrays, batch_size=self.batch_size, epochs=self.epochs
    )
    size = _DATASET_BYTES + sum(
      values.nbytes for values in tf.nest.flatten(arrays)
    )
    if index not in cache.unreadable and cache.size + size <= _MAX_KEPT_BYTES:
      cache.kept[index] = dataset
      cache.size += size
    return dataset

  def _arrays(self, index: int) -> Any:
    """Returns the examples of a client; none if they cannot be read."""
    try:
      arrays = read_client(self.clients, self._client_ids[index])
    except tf.errors.ResourceExhaustedError:
      raise  # The machine lacks memory; the client's data is not at fault.
    except _UNREADABLE as error:
      self.note({index: str(error)})
      return _no_examples(self.clients)
    self.note({index: None})
    return arrays

  def problems(self, index: int) -> dict[int, str | None]:
    """Returns the argument of `note` for a client that was loaded."""
    return {index: self._cache.unreadable.get(index)}

  def note(self, problems: Mapping[int, str | None]) -> None:
    """Notes which clients were read, here or on another machine.

    A client that cannot be read is logged once, until it can be read again.

    Args:
      problems: Error messages of reading, by the index of the client; None if
        the client was read.
    """
    cache = self._cache
    for index, problem in problems.items():
      cache.tried.add(index)
      if problem is None:
        cache.unreadable.pop(index, None)
        continue
      if index not in cache.unreadable:
        # The log is for the operator, who can mend the data; no result has it.
        logging.warning(
          'client %s cannot be read and takes part without data: %s',
          self._client_ids[index],
          problem,
        )
      cache.unreadable[index] = cache.problem = problem


def _check_spec(name: str, spec: Any) -> None:
  """Raises `InputError` unless examples of this spec stack into one array."""
  if not isinstance(spec, tf.TensorSpec):
    raise _validate.InputError(
      f'clients must have examples of plain tensors, got {name} as a '
      f'{type(spec).__name__}; make it dense and of one size, or leave it out'
    )
  if not spec.shape.is_fully_defined():
    raise _validate.InputError(
      f'clients must have examples of one size, got {name} of shape '
      f'{spec.shape}; resize them, and do not batch them'
    )


class _ClientCache:
  """State that a feed keeps about the clients that were drawn.

  Attributes:
    kept: Datasets of drawn clients, by index, up to `_MAX_KEPT_BYTES`.
    size: Size of the kept datasets in bytes.
    tried: Indices of the clients that a read was tried for.
    unreadable: Error messages of the clients whose last read failed, by index.
    problem: Error message of the last failed read.
  """

  def __init__(self) -> None:
    self.kept: dict[int, tensor_data.TensorDataset] = {}
    self.size = 0
    self.tried: set[int] = set()
    self.unreadable: dict[int, str] = {}
    self.problem = ''


@dataclasses.dataclass(frozen=True, eq=False)
class UnitFeed:
  """Feed of the drawn records or patients of all clients, in equal parts.

  The sum of clipped gradients is the same however units are grouped, and the
  noise is added once, to the sum over all clients. So the datasets of a round
  are as many as train at once on this machine, and not one for each client: a
  client with few drawn units costs almost as much as one with many. Where each
  client runs on a machine of its own, its dataset holds its own drawn units.

  Attributes:
    split: Training split.
    units: Units of the training split.
    num_clients: Number of clients, the largest number of datasets in a round.
    microbatch_size: Largest number of units whose gradients are held at once,
      which bounds memory.
    at_once: Number of datasets that train at once; None is the number of those
      that the local runtime trains at once.
  """

  split: images.Split
  units: units_lib.Units
  num_clients: int
  microbatch_size: int
  at_once: int | None = None

  def __post_init__(self) -> None:
    _validate.positive_int(microbatch_size=self.microbatch_size)
    if self.at_once is not None:
      _validate.positive_int(at_once=self.at_once)

  @property
  def num_units(self) -> int:
    """Population of the mechanism's sampling."""
    return len(self.units)

  def without_data(self) -> list[tf.data.Dataset]:
    """Returns the datasets of a round for which no unit was drawn."""
    return self(np.zeros(0, np.int64))

  @property
  def element_spec(self) -> Any:
    """Structure of the specs of a batch."""
    return self.without_data()[0].element_spec

  def __call__(self, indices: np.ndarray) -> list[tf.data.Dataset]:
    """Returns datasets of the units at `indices`, int64 [n]; at least one.

    Where every unit takes part in every round, the datasets of all units are
    kept, up to 2 GiB.
    """
    if len(indices) < self.num_units:
      return self._datasets(indices)
    if not self._kept:
      nbytes = self.units.rows.size * math.prod(self.split.input_shape) * 4
      datasets = self._datasets(indices)
      if nbytes > _MAX_KEPT_BYTES:
        return datasets
      self._kept.extend(datasets)
    return list(self._kept)

  @functools.cached_property
  def _kept(self) -> list[tf.data.Dataset]:
    return []

  def _datasets(self, indices: np.ndarray) -> list[tf.data.Dataset]:
    return [self.dataset(part.key) for part in self.parts(indices)]

  def parts(self, indices: np.ndarray) -> list[Part]:
    """Returns equal parts of the units at `indices`, int64 [n]; at least one."""
    at_once = min(self.num_clients, self.at_once or _clients_at_once())
    number = max(1, min(at_once, len(indices) // _SMALL_PART))
    return [Part(key, len(key)) for key in np.array_split(indices, number)]

  def dataset(self, indices: np.ndarray) -> tf.data.Dataset:
    """Returns the dataset of the units at `indices`, int64 [n]."""
    # Microbatches of one size: a small last one costs almost as much as a full
    # one.
    batches = max(1, math.ceil(len(indices) / self.microbatch_size))
    return runtime.tensor_dataset(
      self.units.arrays(self.split, indices),
      batch_size=max(1, math.ceil(len(indices) / batches)),
    )


def _clients_at_once() -> int:
  """Returns the number of clients that the local runtime runs at once."""
  gpus = tf.config.list_physical_devices('GPU')
  return len(gpus) or devices.available_cores()


@dataclasses.dataclass(frozen=True, eq=False)
class LocalStepsFeed:
  """Feed of the drawn records or patients of every step of every client.

  Attributes:
    split: Training split.
    units: Units of the training split.
    num_clients: Number of clients, hence of datasets in a round.
    sampling: Sampling of the units of each step.
  """

  split: images.Split
  units: units_lib.Units
  num_clients: int
  sampling: local_dp_sgd_mechanism.LocalDpSgdSampling

  @property
  def num_units(self) -> int:
    """Population of the mechanism's sampling."""
    return len(self.units)

  def without_data(self) -> list[tf.data.Dataset]:
    """Returns the datasets of a round for which no unit was drawn."""
    return self(np.zeros(0, np.int64))

  @property
  def element_spec(self) -> Any:
    """Structure of the specs of a batch."""
    return self.without_data()[0].element_spec

  def __call__(self, drawn: np.ndarray) -> list[tf.data.Dataset]:
    """Returns a dataset per client, with one batch per step.

    Where every unit takes part in every step, the datasets are kept, up to 2
    GiB.

    Args:
      drawn: Draw of the sampling, which holds the units of all steps.
    """
    if len(drawn) < self.sampling.steps * self.num_units:
      return self._datasets(drawn)
    if not self._kept:
      rows = self.sampling.steps * self.units.rows.size
      datasets = self._datasets(drawn)
      if rows * math.prod(self.split.input_shape) * 4 > _MAX_KEPT_BYTES:
        return datasets
      self._kept.extend(datasets)
    return list(self._kept)

  @functools.cached_property
  def _kept(self) -> list[tf.data.Dataset]:
    return []

  def _datasets(self, drawn: np.ndarray) -> list[tf.data.Dataset]:
    return [self.dataset(part.key) for part in self.parts(drawn)]

  def parts(self, drawn: np.ndarray) -> list[Part]:
    """Returns a part for each client; its key has the units of each step."""
    by_step = [
      self.units.by_client(units, self.num_clients)
      for units in self.sampling.by_step(drawn)
    ]
    return [
      Part(
        (client, tuple(step[client] for step in by_step)),
        sum(len(step[client]) for step in by_step),
      )
      for client in range(self.num_clients)
    ]

  def dataset(self, part: tuple[int, Sequence[np.ndarray]]) -> tf.data.Dataset:
    """Returns the dataset of a client, given its number and units by step."""
    client, steps = part
    arrays = local_dp_sgd.step_arrays(
      [self.units.arrays(self.split, units) for units in steps],
      expected_units=self.sampling.rate * int(self._sizes[client]),
    )
    return runtime.tensor_dataset(
      arrays, batch_size=len(arrays['x']) // len(steps)
    )

  @functools.cached_property
  def _sizes(self) -> np.ndarray:
    """Number of units of each client."""
    return np.bincount(self.units.clients, minlength=self.num_clients)
