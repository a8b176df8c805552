"""Feed whose datasets are loaded where they are used, from recipes.

The driver of a cluster draws cohorts and hands out numbers of clients or units.
A worker opens the same data and makes the datasets from these numbers.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tff_medical.program import feeds
from tff_medical.runtime import recipes


class _Feed(Protocol):
  """Feed that makes its datasets from parts; see `feeds`."""

  @property
  def num_units(self) -> int:
    """Population of the mechanism's sampling."""

  def without_data(self) -> list[tf.data.Dataset]:
    """Returns the datasets of a round without data."""

  @property
  def element_spec(self) -> Any:
    """Structure of the specs of a batch, of any round."""

  def parts(self, drawn: np.ndarray) -> list[feeds.Part]:
    """Returns what the datasets of a round are made of."""


@dataclasses.dataclass(frozen=True, eq=False)
class RecipeFeed:
  """Feed of recipes.

  Attributes:
    inner: Feed that says of what the datasets of a round are made.
    source: Source of the data, whose loader is the `dataset` of an equal feed.
  """

  inner: _Feed
  source: recipes.Source

  @property
  def num_units(self) -> int:
    """Population of the mechanism's sampling."""
    return self.inner.num_units

  def without_data(self) -> list[tf.data.Dataset]:
    """Returns the datasets of a round without data, which need no source."""
    return self.inner.without_data()

  def __call__(self, drawn: np.ndarray) -> list[tf.data.Dataset]:
    """Returns a dataset for each part of a draw; nothing is loaded yet."""
    return [
      recipes.recipe_dataset(
        recipes.Recipe(self.source, part.key, max(1.0, part.size)),
        self.element_spec,
      )
      for part in self.inner.parts(drawn)
    ]

  @functools.cached_property
  def element_spec(self) -> Any:
    """Structure of the specs of a batch."""
    return self.inner.element_spec
