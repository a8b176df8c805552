"""Local DP-SGD: each site adds its own noise and need not trust the server.

Every round each site takes several steps of DP-SGD (Abadi et al. 2016, arXiv
1607.00133). A step uses a Poisson-drawn batch of the site's own units, or all
of them, and the site's own noise. Then the site sends its model. That model is
already private when it leaves the site, so the guarantee also holds against the server and the
other sites. A unit is at one site, and only the steps of that site see it. The
models of other sites depend on it only through already private models
(post-processing). So epsilon is the cost of steps * rounds draws at the common
rate, the same for the units of every site.

>>> mechanism = LocalDpSgdMechanism(
...     sampling=LocalDpSgdSampling(population=1000, rate=0.05, steps=4),
...     clipping=mechanisms.FixedClipping(1.0),
...     noise_multiplier=1.0,
... )
>>> mechanism.charge_event()
PoissonSampledDpEvent(sampling_probability=0.05, \
event=GaussianDpEvent(noise_multiplier=1.0))
>>> mechanism.charges_for(rounds=10)
40
"""

from __future__ import annotations

import dataclasses
from typing import Any

import dp_accounting
import numpy as np

from tff_medical import _validate
from tff_medical.privacy import interface
from tff_medical.privacy import limits
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling as sampling_lib


@dataclasses.dataclass(frozen=True)
class LocalDpSgdSampling:
  """Each unit joins each step of each round independently at the same rate.

  At the rate 1 every unit joins every step, and nothing is amplified.

  Attributes:
    population: Number of units over all sites.
    rate: Probability, in (0, 1], that a unit joins a step.
    steps: Number of steps of each site in a round.
  """

  population: int
  rate: float
  steps: int

  draws_by_attempt = True

  def __post_init__(self) -> None:
    _validate.positive_int(population=self.population, local_steps=self.steps)
    if self.rate != 1:
      _validate.in_range(0, 1, sampling_rate=self.rate)

  @property
  def name(self) -> str:
    """Name of the sampler in the ledger and the card."""
    return 'local_poisson' if self.amplifies else 'local_all'

  @property
  def amplifies(self) -> bool:
    """Whether the units of a step are a secret random part of all units."""
    return self.rate < 1

  @property
  def expected_cohort(self) -> float:
    """Expected number of units in a step, over all sites."""
    return self.rate * self.population

  def draw(self, cohort_seed: int, round_num: int, attempt: int) -> np.ndarray:
    """Returns step * population + unit of all draws, sorted, int64 [n]."""
    del round_num  # A repeated round draws anew and is charged for it.
    rng = sampling_lib.cohort_rng(cohort_seed, attempt)
    num_draws = self.steps * self.population
    if not self.amplifies:
      return np.arange(num_draws)
    return sampling_lib.independent_units(rng, num_draws, self.rate)

  def by_step(self, drawn: np.ndarray) -> list[np.ndarray]:
    """Returns the units of each step, from the result of `draw`."""
    steps, units = np.divmod(drawn, self.population)
    return [units[steps == step] for step in range(self.steps)]

  def event(self, inner: dp_accounting.DpEvent) -> dp_accounting.DpEvent:
    """Returns the event of `inner` applied to one step's units."""
    if not self.amplifies:
      return inner
    return dp_accounting.PoissonSampledDpEvent(self.rate, inner)


@dataclasses.dataclass(frozen=True)
class LocalDpSgdMechanism:
  """Sum of a site's clipped unit gradients with the site's own noise.

  Attributes:
    sampling: Sampler of each step's units.
    clipping: Fixed clipping; None trains without any guarantee.
    noise_multiplier: Standard deviation of a step's noise over the clip norm. 0
      adds no noise and gives no guarantee.
    privacy_unit: Whom the guarantee protects: a 'record' (one image) or a
      'patient' (all images of the patient). A patient must be at one site only.
  """

  sampling: LocalDpSgdSampling
  clipping: mechanisms.FixedClipping | None
  noise_multiplier: float = 0.0
  privacy_unit: str = 'record'

  neighboring_relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
  name = 'local_dp_sgd'
  max_noise_multiplier = float('inf')

  def __post_init__(self) -> None:
    limits.check_noise_multiplier(self.noise_multiplier)
    _validate.one_of(('record', 'patient'), privacy_unit=self.privacy_unit)
    if isinstance(self.clipping, mechanisms.AdaptiveClipping):
      raise _validate.InputError(
        'clipping must be fixed for local DP-SGD, got adaptive: a site would '
        'have to spend privacy on a quantile of its own; choose fixed clipping'
      )
    if self.clipping is None and self.noise_multiplier > 0:
      raise _validate.InputError(
        f'noise_multiplier must be 0 without clipping, got '
        f'{self.noise_multiplier:g}: noise bounds nothing where gradients are '
        'not clipped; choose fixed clipping'
      )

  @property
  def is_private(self) -> bool:
    """Whether any finite epsilon can be stated."""
    return self.noise_multiplier > 0

  @property
  def caveats(self) -> tuple[str, ...]:
    """Sentences on what epsilon does not cover with this mechanism."""
    sizes = (
      'The number of units of each site, which weighs its model and divides '
      'its noised sums, and so is public.'
    )
    if not self.sampling.amplifies:
      return (sizes,)
    return (
      'Knowledge of who took part: amplification by sampling holds against '
      'those who cannot tell the batches, so the cohort seed must stay secret; '
      'in a real federation each site draws with a seed of its own.',
      sizes,
    )

  def with_noise(self, noise_multiplier: float) -> LocalDpSgdMechanism:
    """Returns this mechanism with another noise multiplier."""
    return dataclasses.replace(self, noise_multiplier=noise_multiplier)

  def charge_event(self) -> dp_accounting.DpEvent:
    """Returns the event of one step of a site."""
    if not self.is_private:
      return dp_accounting.NonPrivateDpEvent()
    return self.sampling.event(
      dp_accounting.GaussianDpEvent(self.noise_multiplier)
    )

  def charges_for(self, rounds: int) -> int:
    """Returns the number of steps of a site in `rounds` rounds."""
    return rounds * self.sampling.steps

  def describe(self) -> dict[str, Any]:
    """Returns the mechanism as plain values for the ledger and the card."""
    return interface.described(
      self,
      self.clipping,
      epsilon_is_per_site=True,
    )
