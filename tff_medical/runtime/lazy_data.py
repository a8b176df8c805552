"""Datasets that `tf.data` builds only when it has to.

Building a dataset takes longer than the round of a small client. A runtime that
knows what is behind a dataset need not build it.
"""

from __future__ import annotations

import abc
from typing import Any

import tensorflow as tf


class LazyDataset(tf.data.Dataset, abc.ABC):
  """Dataset whose type is known before it is built.

  The constructor of `tf.data.Dataset` needs the built dataset, so subclasses do
  not call it. `__getattr__` finds what it would have set. A subclass sets its
  attributes in its own constructor, where `_is_set` comes last.
  """

  _is_set = False

  @property
  @abc.abstractmethod
  def built(self) -> tf.data.Dataset:
    """The same dataset, made by `tf.data`."""

  def _inputs(self) -> list[tf.data.Dataset]:
    return [self.built]

  def __getattr__(self, name: str) -> Any:
    if name.startswith('__') or not self._is_set:
      raise AttributeError(name)
    return getattr(self.built, name)
