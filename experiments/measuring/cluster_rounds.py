"""Rounds on a cluster, of clients that workers make themselves."""

from __future__ import annotations

import collections
import dataclasses
import functools

import numpy as np
import tensorflow as tf

from tff_medical import runtime
from tff_medical.runtime import recipes


@dataclasses.dataclass(frozen=True)
class RandomClients:
  """Source of clients with random images of 28 x 28 x 3.

  Attributes:
    images: Number of images of each client.
    batch_size: Number of images in a batch.
  """

  images: int
  batch_size: int

  @property
  def digest(self) -> str:
    """All that decides the data."""
    return repr(self)

  def open(self) -> recipes.Loader:
    """Returns the function from the number of a client to its data."""

    @functools.cache
    def load(client: int) -> tf.data.Dataset:
      rng = np.random.default_rng(client)
      arrays = collections.OrderedDict(
        x=rng.random((self.images, 28, 28, 3), np.float32),
        y=rng.integers(8, size=self.images, dtype=np.int32),
      )
      return runtime.tensor_dataset(arrays, batch_size=self.batch_size)

    return load


def clients(number: int, images: int, batch_size: int) -> list[tf.data.Dataset]:
  """Returns the datasets of clients, none of them loaded.

  Args:
    number: Number of clients.
    images: Number of images of each client.
    batch_size: Number of images in a batch.
  """
  source = RandomClients(images, batch_size)
  spec = collections.OrderedDict(
    x=tf.TensorSpec([None, 28, 28, 3]), y=tf.TensorSpec([None], tf.int32)
  )
  return [
    recipes.recipe_dataset(recipes.Recipe(source, n, float(images)), spec)
    for n in range(number)
  ]
