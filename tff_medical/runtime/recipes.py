"""Client datasets by reference: where the data is, instead of the data.

A recipe names a source of data and a part of it, such as the number of a
client. It is small and can be sent to another process, which opens the source
there and loads the part. `recipe_dataset` returns a recipe as a
`tf.data.Dataset`. Any runtime can use it. A cluster runtime sends the recipe in
its place, so that the data of a client is loaded where the client trains.

>>> import numpy as np
>>> from tff_medical.runtime import tensor_data
>>> class Numbers:
...   digest = 'numbers'
...   def open(self):
...     return lambda part: tensor_data.tensor_dataset(
...       np.array([part], np.int32), batch_size=1
...     )
>>> spec = tf.TensorSpec([None], tf.int32)
>>> dataset = recipe_dataset(Recipe(Numbers(), 7), spec)
>>> [batch.numpy().tolist() for batch in dataset]
[[7]]
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, Protocol, runtime_checkable

import tensorflow as tf

from tff_medical.runtime import lazy_data

Loader = Callable[[Any], tf.data.Dataset]


@runtime_checkable
class Reader(Protocol):
  """Loader that finds out something about the parts, such as damaged files."""

  def __call__(self, part: Any) -> tf.data.Dataset:
    """Returns the data of a part."""

  def take_findings(self) -> Any:
    """Returns what was found since the last call, in a form to be pickled."""


class Source(Protocol):
  """Data that several processes can open; it can be pickled.

  Attributes:
    digest: Digest of all that decides the data; equal digests mean equal data.
  """

  @property
  def digest(self) -> str:
    """Digest of all that decides the data."""

  def open(self) -> Loader:
    """Returns the function that loads a part of the data.

    Raises:
      InputError: The data is not there, or is other data than the digest says.
    """


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A part of a source.

  Attributes:
    source: Source of the data.
    part: Argument of the source's loader. It can be pickled, and says no more
      of a client than its number.
    cost: Expected work on the part, such as its number of examples, relative to
      the other parts of the round.
  """

  source: Source
  part: Any
  cost: float = 1.0


# Loaders of the sources that this process has opened, by digest.
_loaders: dict[str, Loader] = {}


def open_source(source: Source) -> Loader:
  """Returns the loader of a source, which a process opens once.

  Raises:
    InputError: The source cannot be opened.
  """
  if source.digest not in _loaders:
    _loaders[source.digest] = source.open()
  return _loaders[source.digest]


def load(recipe: Recipe) -> tf.data.Dataset:
  """Returns the data of a recipe.

  Raises:
    InputError: The source cannot be opened.
  """
  return open_source(recipe.source)(recipe.part)


def take_findings() -> dict[str, Any]:
  """Returns what readers have found since the last call, by source's digest."""
  return {
    digest: loader.take_findings()
    for digest, loader in _loaders.items()
    if isinstance(loader, Reader)
  }


class RecipeDataset(lazy_data.LazyDataset):
  """Dataset of `recipe_dataset`.

  Attributes:
    recipe: Recipe of the data.
  """

  def __init__(self, recipe: Recipe, element_spec: Any):
    self.recipe = recipe
    self._element_spec = element_spec
    self._is_set = True

  @functools.cached_property
  def built(self) -> tf.data.Dataset:
    """The data itself, loaded in this process."""
    return load(self.recipe)

  @property
  def element_spec(self) -> Any:
    """Structure of the specs of an element."""
    return self._element_spec


def recipe_dataset(recipe: Recipe, element_spec: Any) -> tf.data.Dataset:
  """Returns the dataset that a recipe describes; nothing is loaded yet.

  Args:
    recipe: Recipe of the data.
    element_spec: Structure of the specs of an element, which the loaded dataset
      has as well.
  """
  return RecipeDataset(recipe, element_spec)
