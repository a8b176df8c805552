"""Distributed DP: the clients add the noise, the server sees only the sum.

The distributed Skellam mechanism (Agarwal, Kairouz, Liu 2021, arXiv
2110.04995). Each client clips its update to the norm C and rounds it to whole
multiples of a step of C / R. Rounding is towards zero, so that the norm does
not grow. The client then adds Skellam noise with a share 1 / n of the variance.
Secure summation shows the server only the sum. The sum carries the whole noise,
which is Skellam again, with standard deviation z * C. So the server need not be
trusted with single updates.

Cost. The paper's Corollary 3.6 bounds the Renyi divergence of one round for
integer orders a > 1, with integer sensitivities D2 = R and D1 <= R**2 and noise
of variance v:

    a * D2**2 / (2 v) + ((2 a - 1) * D2**2 + 6 * D1) / (4 v**2)

The first term is a Gaussian's, the second is close to 0. The bound is linear in
a, so the event is a `ZCDpEvent`, accounted for by RDP. No PLD of this event is
known.

All n clients take part in every round: a missing client's share of the noise
would be missing too. Neighbours differ in one client's update, which is zero in
one of the two. The client's share of the noise is present in both.

>>> mechanism = DistributedDpMechanism(
...     sampling=sampling_lib.FullParticipation(100),
...     clipping=mechanisms.FixedClipping(1.0),
...     noise_multiplier=2.0,
... )
>>> mechanism.clip_steps
70710
"""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

import dp_accounting

from tff_medical import _validate
from tff_medical.privacy import interface
from tff_medical.privacy import limits
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling as sampling_lib

if typing.TYPE_CHECKING:
  import tensorflow_federated as tff

  from tff_medical.privacy import distributed_dp_query

# Largest variance of a client's share of the noise, in steps; see
# `noise.SecretNoise.skellam`.
_MAX_LOCAL_VARIANCE = 2e8
_MAX_CLIP_STEPS = 2**20
# With fewer steps, rounding towards zero would shrink small entries visibly.
_MIN_CLIP_STEPS = 2**12


@dataclasses.dataclass(frozen=True)
class DistributedDpMechanism:
  """Clipped, rounded client updates, each with its share of Skellam noise.

  Attributes:
    sampling: Full participation in every round.
    clipping: Fixed clipping. TFF's adaptive clipping shows the server an exact
      count of the clipped clients.
    noise_multiplier: Noise multiplier z: standard deviation of the summed noise
      over the clip norm. 0 adds no noise and gives no guarantee.
  """

  sampling: sampling_lib.FullParticipation
  clipping: mechanisms.FixedClipping
  noise_multiplier: float = 0.0

  name = 'distributed_dp'
  privacy_unit = 'client'
  neighboring_relation = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
  caveats = (
    'Secure summation: it was simulated here, computed as a plain sum by a '
    'process that saw each update with its own share of the noise alone.',
    'Clients that leave out their noise, or tell it to others: of n shares, k '
    'known ones lower the noise multiplier by the factor sqrt(1 - k / n); for '
    'every client itself k is 1.',
  )

  def __post_init__(self) -> None:
    if not isinstance(self.sampling, sampling_lib.FullParticipation):
      raise _validate.InputError(
        'sampling must be of all clients in every round for distributed noise, '
        f'got {self.sampling.name}: fewer clients would add less noise than '
        'stated'
      )
    if not isinstance(self.clipping, mechanisms.FixedClipping):
      raise _validate.InputError(
        f'clipping must be fixed for distributed noise, got {self.clipping!r}'
      )
    limits.check_noise_multiplier(self.noise_multiplier)
    if self.noise_multiplier >= self.max_noise_multiplier:
      raise _validate.InputError(
        f'noise_multiplier must be below {self.max_noise_multiplier:.4g} with '
        f'{self.sampling.population} clients, got {self.noise_multiplier:g}'
      )

  @property
  def max_noise_multiplier(self) -> float:
    """Exclusive upper bound of the noise multiplier, for exact noise."""
    return self._max_stddev / _MIN_CLIP_STEPS

  @property
  def clip_steps(self) -> int:
    """Number R of steps into which the clip norm is divided."""
    if not self.is_private:
      return _MAX_CLIP_STEPS
    return min(_MAX_CLIP_STEPS, int(self._max_stddev / self.noise_multiplier))

  @property
  def local_variance(self) -> float:
    """Variance, in steps, of the noise that each client adds."""
    return (
      self.noise_multiplier * self.clip_steps
    ) ** 2 / self.sampling.population

  @property
  def mean_stddev(self) -> float | None:
    """Standard deviation of the noise in each entry of the mean of a round.

    It is None without noise.
    """
    if not self.is_private:
      return None
    total = self.clipping.clip_norm * self.noise_multiplier
    return total / self.sampling.population

  @property
  def _max_stddev(self) -> float:
    return math.sqrt(_MAX_LOCAL_VARIANCE * self.sampling.population)

  @property
  def is_private(self) -> bool:
    """Whether any finite epsilon can be stated."""
    return self.noise_multiplier > 0

  def with_noise(self, noise_multiplier: float) -> DistributedDpMechanism:
    """Returns this mechanism with another noise multiplier."""
    return dataclasses.replace(self, noise_multiplier=noise_multiplier)

  def charge_event(self) -> dp_accounting.DpEvent:
    """Returns the event of one round, a Renyi divergence of rho * a + xi."""
    if not self.is_private:
      return dp_accounting.NonPrivateDpEvent()
    return skellam_event(
      l1=self.clip_steps**2,
      l2=self.clip_steps,
      variance=self.local_variance * self.sampling.population,
    )

  def charges_for(self, rounds: int) -> int:
    """Returns `rounds`: every round is one charge."""
    return rounds

  def sum_query(self) -> distributed_dp_query.SkellamSumQuery:
    """Returns the query whose clients clip, round and noise their records."""
    from tff_medical.privacy import distributed_dp_query

    return distributed_dp_query.SkellamSumQuery(
      clip_norm=self.clipping.clip_norm,
      clip_steps=self.clip_steps,
      local_variance=self.local_variance,
    )

  def aggregation_factory(
    self,
  ) -> tff.aggregators.UnweightedAggregationFactory:
    """Returns the factory whose clients add the noise before the sum."""
    from tff_medical.privacy import distributed_dp_query

    return distributed_dp_query.secure_mean_factory(
      self.sum_query(), self.sampling.expected_cohort
    )

  def describe(self) -> dict[str, Any]:
    """Returns the mechanism as plain values for the ledger and the card."""
    return interface.described(
      self,
      self.clipping,
      clip_steps=self.clip_steps,
      secure_summation='simulated',
    )


def skellam_event(
  *, l1: float, l2: float, variance: float
) -> dp_accounting.ZCDpEvent:
  """Returns the event of a sum of integers with Skellam noise.

  Args:
    l1: L1 sensitivity of the sum.
    l2: L2 sensitivity of the sum.
    variance: Variance of the noise in each entry.
  """
  # The bound of the module docstring, split into its slope and its constant.
  rho = l2**2 / (2 * variance) + 2 * l2**2 / (4 * variance**2)
  xi = (6 * l1 - l2**2) / (4 * variance**2)
  return dp_accounting.ZCDpEvent(rho=rho, xi=xi)
