"""How the clients of a round are drawn, and what that is to the accountant.

A sampler draws the cohort that really runs and names the `DpEvent` of exactly
that draw. Most of the field's software accounts for Poisson sampling while it
draws a cohort of fixed size; here the two cannot come apart.

>>> sampling = PoissonSampling(num_clients=1000, clients_per_round=50)
>>> sampling.rate
0.05
>>> rng = np.random.default_rng(0)
>>> cohort = sampling.draw(rng)  # indices; the size varies, 0 is possible
>>> bool(np.all(np.diff(cohort) > 0))
True
"""

from __future__ import annotations

import dataclasses
from typing import Union

import dp_accounting
import numpy as np

from tff_medical import _validate


@dataclasses.dataclass(frozen=True)
class PoissonSampling:
  """Each client joins each round on its own with the same probability.

  Attributes:
    num_clients: The population, a whole number of clients.
    clients_per_round: The expected cohort, below `num_clients`.
  """

  num_clients: int
  clients_per_round: float

  name = 'poisson'

  def __post_init__(self) -> None:
    _validate.positive_int(num_clients=self.num_clients)
    _validate.positive(clients_per_round=self.clients_per_round)
    if self.clients_per_round >= self.num_clients:
      raise _validate.InputError(
          'clients_per_round must be below num_clients '
          f'({self.num_clients}) for Poisson sampling, got '
          f'{self.clients_per_round:g}; lower it, or choose the sampling '
          '"all"'
      )

  @property
  def rate(self) -> float:
    """The probability, in (0, 1), that a client joins a round."""
    return self.clients_per_round / self.num_clients

  def draw(self, rng: np.random.Generator) -> np.ndarray:
    """Returns the sorted indices, int64 [n], of one round's cohort."""
    return np.flatnonzero(rng.random(self.num_clients) < self.rate)

  def event(self, inner: dp_accounting.DpEvent) -> dp_accounting.DpEvent:
    """Returns the event of `inner` applied to a cohort drawn like this."""
    return dp_accounting.PoissonSampledDpEvent(self.rate, inner)


@dataclasses.dataclass(frozen=True)
class FullParticipation:
  """Every client takes part in every round: no amplification by sampling."""

  num_clients: int

  name = 'all'
  rate = 1.0

  def __post_init__(self) -> None:
    _validate.positive_int(num_clients=self.num_clients)

  @property
  def clients_per_round(self) -> float:
    """The cohort, which is the population."""
    return float(self.num_clients)

  def draw(self, rng: np.random.Generator) -> np.ndarray:
    """Returns the indices of all clients; draws nothing from `rng`."""
    del rng
    return np.arange(self.num_clients)

  def event(self, inner: dp_accounting.DpEvent) -> dp_accounting.DpEvent:
    """Returns `inner`: a cohort of everybody hides nobody."""
    return inner


Sampling = Union[PoissonSampling, FullParticipation]


def cohort_rng(cohort_seed: int, round_num: int) -> np.random.Generator:
  """Returns the generator that draws the cohort of one round.

  The cohort is a pure function of the seed and the round, so a repeated round
  draws the same clients, and no generator's state has to be saved.

  Args:
    cohort_seed: A non-negative integer. Amplification by sampling holds only
      against those who do not know it: keep it out of published files.
    round_num: The round, 1 for the first.
  """
  return np.random.default_rng((cohort_seed, round_num))
