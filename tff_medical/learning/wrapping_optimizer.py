"""Base class of optimizers that change what another optimizer does.

The state of such an optimizer holds the state of the other one as `inner`. The
hyperparameters are those of the other one.
"""

from __future__ import annotations

import abc
import collections
from typing import Any

import tensorflow_federated as tff


class WrappingOptimizer(tff.learning.optimizers.Optimizer, abc.ABC):
  """Optimizer around another one, which takes the steps."""

  def __init__(self, inner: tff.learning.optimizers.Optimizer):
    """Wraps an optimizer.

    Args:
      inner: Optimizer that takes the steps.
    """
    self._inner = inner

  def get_hparams(self, state: collections.OrderedDict) -> Any:
    """Returns the hyperparameters of the inner optimizer."""
    return self._inner.get_hparams(state['inner'])

  def set_hparams(
    self, state: collections.OrderedDict, hparams: Any
  ) -> collections.OrderedDict:
    """Returns the state with these hyperparameters of the inner optimizer."""
    inner = self._inner.set_hparams(state['inner'], hparams)
    return collections.OrderedDict({**state, 'inner': inner})
