"""What the rest of the project needs of a mechanism and of a sampler.

Ledger, calibration, card, aggregators and training program know no mechanism by
name: a new one has these members, and is then charged, calibrated, carried out
and described like the others.
"""

from __future__ import annotations

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
    """What the ledger and the card call it."""

  @property
  def amplifies(self) -> bool:
    """Whether epsilon is smaller for those who cannot tell the cohorts."""

  @property
  def draws_by_attempt(self) -> bool:
    """Whether each charge pays for a draw of its own.

    Then a seed that was lost may give way to a new one. Where cohorts depend on
    those of earlier rounds it may not.
    """

  @property
  def expected_cohort(self) -> float:
    """How many units a round is expected to have."""

  def draw(self, cohort_seed: int, round_num: int, attempt: int) -> np.ndarray:
    """Returns the sorted indices, int64 [n], of a round's units.

    It is a pure function, so that no generator's state has to be saved. What is
    charged as an independent draw depends on the attempt: the cohort of a
    repeated round is another one.

    Args:
      cohort_seed: A non-negative integer.
      round_num: The round, 1 for the first.
      attempt: The number of the charge that pays for it, which never repeats;
        `PrivacyLedger.rounds_charged` right after the charge.
    """


class Mechanism(Protocol):
  """Says what is released, to whom it matters and what it costs."""

  @property
  def sampling(self) -> Sampler:
    """Draws the units of each round."""

  @property
  def noise_multiplier(self) -> float:
    """The noise, on the scale that calibration searches; 0 is none."""

  @property
  def max_noise_multiplier(self) -> float:
    """The noise multiplier must stay below this; may be inf."""

  @property
  def is_private(self) -> bool:
    """Whether any finite epsilon can be stated."""

  @property
  def privacy_unit(self) -> str:
    """Whom the guarantee protects: client, record or patient."""

  @property
  def neighboring_relation(self) -> dp_accounting.NeighboringRelation:
    """What two data sets that must look alike differ in."""

  @property
  def caveats(self) -> tuple[str, ...]:
    """Sentences on what epsilon does not cover with this mechanism."""

  def charge_event(self) -> dp_accounting.DpEvent:
    """Returns what one charge pays for; every charge pays for the same."""

  def charges_for(self, rounds: int) -> int:
    """Returns how many charges the first `rounds` rounds cost, none repeated.

    It grows by one a round where each round is charged for itself, and where a
    charge pays for several rounds with the first of them.
    """

  def with_noise(self: MechanismT, noise_multiplier: float) -> MechanismT:
    """Returns this mechanism with another noise multiplier."""

  def describe(self) -> dict[str, Any]:
    """Returns the mechanism as plain values for the ledger and the card."""


class ClientMechanism(Mechanism, Protocol):
  """A mechanism whose contributions are the updates of whole clients."""

  def aggregation_factory(
    self,
  ) -> tff.aggregators.UnweightedAggregationFactory:
    """Returns TFF's factory that clips, sums, noises and divides updates.

    TensorFlow is imported by the call, not by the module.
    """


MechanismT = TypeVar('MechanismT', bound=Mechanism)
