"""Feed whose datasets are loaded where they are used, from recipes.

The driver of a cluster draws cohorts and hands out numbers of clients or units.
A worker opens the same data and makes the datasets from these numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any, Protocol, runtime_checkable

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


@runtime_checkable
class _ReadingFeed(Protocol):
  """Feed whose clients may be unreadable; see `feeds.ClientFeed`."""

  def problems(self, key: Any) -> dict[int, str | None]:
    """Returns the error messages of the clients of a part, by index."""

  def note(self, problems: Mapping[int, str | None]) -> None:
    """Notes which clients were read, here or on another machine."""

  def check_readable(self) -> None:
    """Raises `InputError` if the data source itself is at fault."""


class FeedLoader:
  """Loader of a source: makes the datasets of a feed from the keys of parts.

  It keeps which clients could not be read, for the feed of the driver.
  """

  def __init__(self, feed: Any):
    """Keeps a feed, which makes datasets by its method `dataset`."""
    self._feed = feed
    self._problems: dict[int, str | None] = {}

  def __call__(self, key: Any) -> tf.data.Dataset:
    """Returns the dataset of a part."""
    dataset: tf.data.Dataset = self._feed.dataset(key)
    if isinstance(self._feed, _ReadingFeed):
      self._problems.update(self._feed.problems(key))
    return dataset

  def take_findings(self) -> dict[int, str | None]:
    """Returns the argument of `RecipeFeed.note`, since the last call."""
    problems, self._problems = self._problems, {}
    return problems


@dataclasses.dataclass(frozen=True, eq=False)
class RecipeFeed:
  """Feed of recipes.

  Attributes:
    inner: Feed that says of what the datasets of a round are made.
    source: Source of the data, whose loader is a `FeedLoader` of an equal feed.
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

  def note(self, findings: Sequence[Mapping[int, str | None]]) -> None:
    """Notes which clients were read elsewhere, and logs those that were not.

    Args:
      findings: Findings of the `FeedLoader`s of a round.

    Raises:
      InputError: None of at least 10 drawn clients can be read.
    """
    if isinstance(self.inner, _ReadingFeed):
      for problems in findings:
        self.inner.note(problems)
      self.inner.check_readable()

  @functools.cached_property
  def element_spec(self) -> Any:
    """Structure of the specs of a batch."""
    return self.inner.element_spec
