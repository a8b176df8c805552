"""DP-FTRL: a guarantee for clients that needs no random sampling.

Kairouz et al. 2021 (arXiv 2103.00039): the server adds noise to the running sum
of the clipped updates, by a binary tree. The leaves of the tree are the rounds,
and each node carries independent Gaussian noise of standard deviation z * C.
The sum of the first t rounds takes the noise of at most log2(t) + 1 nodes. With
independent noise per round it would take that of t rounds. The mechanism is for
federations that cannot promise Poisson sampling.

Privacy. A client joins at most one round per tree. In a tree of T rounds its
update is part of at most h = floor(log2 T) + 1 complete nodes. In each of them
its norm is at most C. So all releases of a tree form one Gaussian of noise
multiplier z / sqrt(h). Everything that the server computes from the noised
nodes is post-processing: their sums, the weighting that lowers the variance
(Honaker 2015), and any server optimizer. SGD with momentum on the noised round
sums is the paper's DP-FTRLM. Its model is the initial one minus the learning
rate times the momentum-weighted prefix sums.

Neighbours differ in one client, whose updates are zero in one of the two runs
(Definition 1.1 of the paper). Add-or-remove neighbours would not do: one more
client changes the permutation, and with it the round of every client.

>>> mechanism = DpFtrlMechanism(
...     sampling=DpFtrlSampling(1000, clients_per_round=50, rounds_per_tree=16),
...     clipping=mechanisms.FixedClipping(1.0),
...     noise_multiplier=3.0,
... )
>>> mechanism.tree_height
5
>>> mechanism.charges_for(100)  # Number of trees that 100 rounds begin.
7
>>> mechanism.charge_event()
GaussianDpEvent(noise_multiplier=1.3416407864998738)
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any

import dp_accounting
import numpy as np

from tff_medical import _validate
from tff_medical.privacy import interface
from tff_medical.privacy import limits
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling as sampling_lib

if typing.TYPE_CHECKING:
  import tensorflow_federated as tff

  from tff_medical.privacy import dp_ftrl_query


@dataclasses.dataclass(frozen=True)
class DpFtrlSampling:
  """Cohorts of a fixed size in which a client joins each tree at most once.

  Each tree has its own permutation of the population. Its rounds take one slice
  of the permutation after the other.

  Attributes:
    population: Number of clients.
    clients_per_round: Cohort size of every round.
    rounds_per_tree: Number of rounds after which a new tree begins.
  """

  population: int
  clients_per_round: int
  rounds_per_tree: int

  name = 'once_per_tree'
  amplifies = False
  draws_by_attempt = False

  def __post_init__(self) -> None:
    _validate.positive_int(
      population=self.population,
      clients_per_round=self.clients_per_round,
      rounds_per_tree=self.rounds_per_tree,
    )
    if self.clients_per_round * self.rounds_per_tree > self.population:
      raise _validate.InputError(
        f'rounds_per_tree must be at most '
        f'{self.population // self.clients_per_round} with {self.population} '
        f'clients, {self.clients_per_round} a round, got '
        f'{self.rounds_per_tree}: each client joins a tree at most once; '
        'lower rounds_per_tree or clients_per_round'
      )

  @property
  def expected_cohort(self) -> float:
    """Cohort size, which is fixed."""
    return float(self.clients_per_round)

  @property
  def rate(self) -> float:
    """Fraction of the clients in a round; it amplifies nothing."""
    return self.clients_per_round / self.population

  def draw(self, cohort_seed: int, round_num: int, attempt: int) -> np.ndarray:
    """Returns the sorted indices, int64 [n], of a round's cohort.

    A repeated round has the same cohort, as each client joins a tree once. The
    repetition is charged as a further tree. No amplification is claimed.
    """
    del attempt
    position = (round_num - 1) % self.rounds_per_tree
    order = _order_of_tree(self.population, cohort_seed, round_num - position)
    start = position * self.clients_per_round
    return np.sort(order[start : start + self.clients_per_round])


# A permutation takes time by the population, which the rounds of a tree share.
@functools.lru_cache(maxsize=1)
def _order_of_tree(
  population: int, cohort_seed: int, first_round: int
) -> np.ndarray:
  """Returns the clients in the order in which a tree takes them, int64 [n]."""
  rng = sampling_lib.cohort_rng(cohort_seed, first_round)
  order = rng.permutation(population)
  order.flags.writeable = False
  return order


@dataclasses.dataclass(frozen=True)
class DpFtrlMechanism:
  """Clipped client updates, whose running sum is noised by a binary tree.

  If `sampling.rounds_per_tree` covers all rounds there is one tree. Otherwise
  trees follow one another (restarts).

  Attributes:
    sampling: Sampler of the cohorts, which also sets the length of a tree.
    clipping: Fixed clipping: the noise in the nodes belongs to one clip norm.
    noise_multiplier: Noise multiplier z: standard deviation of each node's
      noise over the clip norm. 0 adds no noise and gives no guarantee.
  """

  sampling: DpFtrlSampling
  clipping: mechanisms.FixedClipping
  noise_multiplier: float = 0.0

  name = 'dp_ftrl'
  privacy_unit = 'client'
  neighboring_relation = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
  max_noise_multiplier = float('inf')
  caveats = (
    interface.CENTRAL_SERVER_CAVEAT,
    'Checkpoints: they hold the noise of the tree that is still to be '
    'cancelled, so whoever reads one can remove it; keep them secret.',
    'A client that joins a tree more often than once, under another name.',
  )

  def __post_init__(self) -> None:
    limits.check_noise_multiplier(self.noise_multiplier)
    if not isinstance(self.clipping, mechanisms.FixedClipping):
      raise _validate.InputError(
        f'clipping must be fixed for trees, got {self.clipping!r}'
      )

  @property
  def tree_height(self) -> int:
    """Largest number of nodes that one client is part of: floor(log2 T) + 1."""
    return self.sampling.rounds_per_tree.bit_length()

  @property
  def is_private(self) -> bool:
    """Whether any finite epsilon can be stated."""
    return self.noise_multiplier > 0

  def with_noise(self, noise_multiplier: float) -> DpFtrlMechanism:
    """Returns this mechanism with another noise multiplier."""
    return dataclasses.replace(self, noise_multiplier=noise_multiplier)

  def charge_event(self) -> dp_accounting.DpEvent:
    """Returns the event of one tree."""
    if not self.is_private:
      return dp_accounting.NonPrivateDpEvent()
    return dp_accounting.GaussianDpEvent(
      self.noise_multiplier / self.tree_height**0.5
    )

  def charges_for(self, rounds: int) -> int:
    """Returns the number of trees that `rounds` rounds begin, paid in full.

    A repeated round pays for one more tree, which is enough. Its first attempt
    released at most h noised nodes of any client, and `dp_ftrl_query` draws new
    noise for the second attempt.
    """
    return -(-rounds // self.sampling.rounds_per_tree)

  def sum_query(self, record_specs: Any) -> dp_ftrl_query.TreeSumQuery:
    """Returns the query that clips and sums records, with the tree's noise.

    Args:
      record_specs: Nest of TensorSpec, as the records are.
    """
    from tff_medical.privacy import dp_ftrl_query

    return dp_ftrl_query.TreeSumQuery(
      record_specs,
      clip_norm=self.clipping.clip_norm,
      stddev=self.clipping.clip_norm * self.noise_multiplier,
      rounds_per_tree=self.sampling.rounds_per_tree,
      tree_height=self.tree_height,
    )

  def aggregation_factory(
    self,
  ) -> tff.aggregators.UnweightedAggregationFactory:
    """Returns the factory of round sums with the residual of tree noise."""
    from tff_medical.privacy import dp_ftrl_query

    return dp_ftrl_query.TreeAggregationFactory(
      self.sum_query, self.sampling.expected_cohort
    )

  def describe(self) -> dict[str, Any]:
    """Returns the mechanism as plain values for the ledger and the card."""
    return interface.described(
      self,
      self.clipping,
      tree_height=self.tree_height,
    )
