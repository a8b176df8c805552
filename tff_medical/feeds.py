"""Feeds: from the units drawn for a round to the datasets of its clients.

A feed is what the training program calls with the indices that the mechanism's
sampling drew. If a client is the unit, it returns the datasets of the clients
drawn; if a record or a patient is, one dataset a client (site), which holds the
client's drawn units and may be empty, or its drawn units of several steps.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical import runtime
from tff_medical.data import clients as clients_lib
from tff_medical.data import images
from tff_medical.data import units as units_lib
from tff_medical.learning import local_dp_sgd
from tff_medical.privacy import local_mechanism

# Client datasets are kept as float tensors while all of them fit into this.
_MAX_KEPT_BYTES = 2 * 2**30


@dataclasses.dataclass(frozen=True, eq=False)
class ClientFeed:
  """The whole training data of each client drawn, in batches.

  Attributes:
    clients: The client data; clients are drawn by their position in its ids.
    batch_size: Images in one step on a client.
    epochs: Passes over a client's images in one round.
  """

  clients: clients_lib.ImageClientData
  batch_size: int
  epochs: int = 1

  def __post_init__(self) -> None:
    _validate.positive_int(
      client_batch_size=self.batch_size, client_epochs=self.epochs
    )

  @property
  def num_units(self) -> int:
    """The population of the mechanism's sampling."""
    return len(self.clients.client_ids)

  def __call__(self, indices: np.ndarray) -> list[tf.data.Dataset]:
    """Returns the datasets of the clients at `indices`, int64 [n]."""
    return [self._dataset(int(index)) for index in indices]

  @functools.cached_property
  def _kept(self) -> dict[int, tf.data.Dataset]:
    return {}

  @functools.cached_property
  def _keeps(self) -> bool:
    pixels = int(np.prod(self.clients.element_type_structure['x'].shape))
    total = sum(self.clients.num_examples.values())
    return 4 * pixels * total <= _MAX_KEPT_BYTES

  def _dataset(self, index: int) -> tf.data.Dataset:
    if index in self._kept:
      return self._kept[index]
    dataset = runtime.tensor_dataset(
      self.clients.client_arrays(self.clients.client_ids[index]),
      batch_size=self.batch_size,
      epochs=self.epochs,
    )
    if self._keeps:
      self._kept[index] = dataset
    return dataset


@dataclasses.dataclass(frozen=True, eq=False)
class UnitFeed:
  """The drawn records or patients of every client.

  Attributes:
    split: The training split.
    units: Its units.
    num_clients: How many datasets a round has.
    microbatch_size: Units in one step of a client; bounds its memory.
  """

  split: images.Split
  units: units_lib.Units
  num_clients: int
  microbatch_size: int

  def __post_init__(self) -> None:
    _validate.positive_int(microbatch_size=self.microbatch_size)

  @property
  def num_units(self) -> int:
    """The population of the mechanism's sampling."""
    return len(self.units)

  def __call__(self, indices: np.ndarray) -> list[tf.data.Dataset]:
    """Returns a dataset for each client, of its units among `indices`."""
    return [
      runtime.tensor_dataset(
        self.units.arrays(self.split, own),
        batch_size=self.microbatch_size,
      )
      for own in self.units.by_client(indices, self.num_clients)
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class LocalStepsFeed:
  """The drawn records or patients of every step of every client.

  Attributes:
    split: The training split.
    units: Its units.
    num_clients: How many datasets a round has.
    sampling: Draws the units of each step.
  """

  split: images.Split
  units: units_lib.Units
  num_clients: int
  sampling: local_mechanism.LocalPoissonSampling

  @property
  def num_units(self) -> int:
    """The population of the mechanism's sampling."""
    return len(self.units)

  def __call__(self, drawn: np.ndarray) -> list[tf.data.Dataset]:
    """Returns a dataset for each client, with one batch for each step."""
    by_step = [
      self.units.by_client(units, self.num_clients)
      for units in self.sampling.by_step(drawn)
    ]
    sizes = np.bincount(self.units.clients, minlength=self.num_clients)
    return [
      self._dataset([step[client] for step in by_step], int(sizes[client]))
      for client in range(self.num_clients)
    ]

  def _dataset(self, steps: list[np.ndarray], size: int) -> tf.data.Dataset:
    arrays = local_dp_sgd.step_arrays(
      [self.units.arrays(self.split, own) for own in steps],
      expected_units=self.sampling.rate * size,
    )
    return runtime.tensor_dataset(
      arrays, batch_size=len(arrays['x']) // len(steps)
    )
