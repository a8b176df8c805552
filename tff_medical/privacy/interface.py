"""Protocols of mechanisms and samplers.

Ledger, calibration, card, aggregators and training program know no mechanism by
name. A new mechanism that has these members is charged, calibrated, executed
and described like the others.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Protocol, TypeVar

import dp_accounting
import numpy as np

if typing.TYPE_CHECKING:
  import tensorflow_federated as tff

CENTRAL_SERVER_CAVEAT = (
  'The server: it sees each update of a client before the noise is added and '
  'has to be trusted (central model).'
)


class Sampler(Protocol):
  """Draws the units of each round."""

  @property
  def name(self) -> str:
    """Name of the sampler in the ledger and the card."""

  @property
  def amplifies(self) -> bool:
    """Whether epsilon counts on amplification by sampling (secret cohorts)."""

  @property
  def draws_by_attempt(self) -> bool:
    """Whether each charge pays for an independent draw.

    A lost cohort seed may then be replaced by a new one. It may not where
    cohorts depend on those of earlier rounds.
    """

  @property
  def expected_cohort(self) -> float:
    """Expected number of units in a round."""

  def draw(self, cohort_seed: int, round_num: int, attempt: int) -> np.ndarray:
    """Returns the sorted indices, int64 [n], of a round's units.

    The draw is a pure function of its arguments, so that no generator state has
    to be saved. A draw that is charged as independent depends on the attempt: a
    repeated round has another cohort.

    Args:
      cohort_seed: Non-negative integer seed of the run.
      round_num: Number of the round, 1 for the first.
      attempt: Number of the charge that pays for the draw. It never repeats:
        `PrivacyLedger.rounds_charged` right after the charge.
    """


class Priced(Protocol):
  """States what a charge costs, by the noise that calibration searches."""

  @property
  def noise_multiplier(self) -> float:
    """Noise multiplier, the value that calibration searches; 0 is no noise."""

  @property
  def max_noise_multiplier(self) -> float:
    """Exclusive upper bound of the noise multiplier; may be inf."""

  def charge_event(self) -> dp_accounting.DpEvent:
    """Returns the event that one charge pays for, the same for every charge."""

  def charges_for(self, rounds: int) -> int:
    """Returns the number of charges for the first `rounds` rounds, run once.

    A mechanism may charge every round. It may also charge several rounds at
    once, together with the first of them.
    """

  def with_noise(self: PricedT, noise_multiplier: float) -> PricedT:
    """Returns this mechanism with another noise multiplier."""


class Mechanism(Priced, Protocol):
  """States what is released, whom the guarantee protects, and the cost."""

  @property
  def name(self) -> str:
    """Name of the algorithm in the ledger and the card."""

  @property
  def sampling(self) -> Sampler:
    """Sampler of each round's units."""

  @property
  def is_private(self) -> bool:
    """Whether any finite epsilon can be stated."""

  @property
  def privacy_unit(self) -> str:
    """Privacy unit, whom the guarantee protects: client, record or patient."""

  @property
  def neighboring_relation(self) -> dp_accounting.NeighboringRelation:
    """Neighbouring relation under which epsilon is stated."""

  @property
  def caveats(self) -> tuple[str, ...]:
    """Sentences on what epsilon does not cover with this mechanism."""

  def describe(self) -> dict[str, Any]:
    """Returns the mechanism as plain values for the ledger and the card."""


class ClientMechanism(Mechanism, Protocol):
  """A mechanism whose contributions are the updates of whole clients."""

  def aggregation_factory(
    self,
  ) -> tff.aggregators.UnweightedAggregationFactory:
    """Returns the TFF factory that clips, sums, noises and divides updates.

    The call imports TensorFlow; the module does not.
    """


PricedT = TypeVar('PricedT', bound=Priced)


def described(
  mechanism: Mechanism, clipping: Any, **details: Any
) -> dict[str, Any]:
  """Returns what the description of every mechanism holds.

  Args:
    mechanism: Mechanism whose sampler is a dataclass with a `rate`.
    clipping: Dataclass with a `name`, or None without clipping.
    **details: Values of this mechanism alone.
  """
  sampling: Any = mechanism.sampling
  return {
    'mechanism': mechanism.name,
    'privacy_unit': mechanism.privacy_unit,
    'neighboring_relation': mechanism.neighboring_relation.name.lower(),
    'noise_multiplier': mechanism.noise_multiplier,
    **details,
    'clipping': clipping.name if clipping else 'none',
    **(dataclasses.asdict(clipping) if clipping else {}),
    'sampling': sampling.name,
    'sampling_rate': sampling.rate,
    **dataclasses.asdict(sampling),
  }
