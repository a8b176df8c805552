"""The Gaussian mechanism of DP-FedAvg and of DP-SGD over all sites.

Client level, DP-FedAvg (McMahan et al. 2018, arXiv 1710.06963): each client's
update is clipped to an L2 norm C. The server sums the updates, adds Gaussian
noise of standard deviation z * C, and divides by the expected cohort size.

Record and patient level, DP-SGD (Abadi et al. 2016, arXiv 1607.00133):
gradients take the place of updates, over all sites. Each is the gradient of one
record, or of all images of one patient together.

Adaptive clipping (Andrew et al. 2021, arXiv 1905.03871): C follows a quantile
of the norms, estimated from a noised count. The noise on the values is raised,
so that both releases together cost as much as one Gaussian with the total noise
multiplier z.

>>> from tff_medical.privacy import sampling
>>> mechanism = GaussianMechanism(
...     sampling=sampling.PoissonSampling(1000, 50),
...     clipping=AdaptiveClipping(),
...     noise_multiplier=1.0,
... )
>>> mechanism.charge_event()
PoissonSampledDpEvent(sampling_probability=0.05, \
event=GaussianDpEvent(noise_multiplier=1.0))
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Union

import dp_accounting

from tff_medical import _validate
from tff_medical.privacy import interface
from tff_medical.privacy import limits
from tff_medical.privacy import sampling as sampling_lib

if typing.TYPE_CHECKING:
  import tensorflow_federated as tff
  import tensorflow_privacy as tfp


@dataclasses.dataclass(frozen=True)
class FixedClipping:
  """Scales updates whose L2 norm exceeds `clip_norm` down to it."""

  clip_norm: float = 1.0

  name = 'fixed'

  def __post_init__(self) -> None:
    limits.check_clip_norm(self.clip_norm)


@dataclasses.dataclass(frozen=True)
class AdaptiveClipping:
  """Lets the clip norm follow a quantile of update norms (Andrew et al. 2021).

  After each round the clip norm is multiplied by exp(-learning_rate * (b -
  quantile)), where b is the noised fraction of unclipped updates. It never
  leaves the range in which clipping binds (see `limits`).

  Attributes:
    clip_norm: Clip norm of the first round.
    target_unclipped_quantile: Fraction of updates, in (0, 1), to leave
      unclipped.
    clip_learning_rate: Learning rate of the geometric update.
  """

  clip_norm: float = 0.1
  target_unclipped_quantile: float = 0.5
  clip_learning_rate: float = 0.2

  name = 'adaptive'

  def __post_init__(self) -> None:
    limits.check_clip_norm(self.clip_norm)
    # Within this range exp(clip_learning_rate) is finite and differs from 1.
    _validate.within(1e-6, 10, clip_learning_rate=self.clip_learning_rate)
    _validate.in_range(
      0, 1, target_unclipped_quantile=self.target_unclipped_quantile
    )


Clipping = Union[FixedClipping, AdaptiveClipping]

# Standard deviation of the count's noise as a fraction of the cohort size
# (Andrew et al. 2021, section 3.1).
_COUNT_STDDEV_PER_UNIT = 0.05

PRIVACY_UNITS = ('client', 'record', 'patient')


@dataclasses.dataclass(frozen=True)
class GaussianMechanism:
  """Sum of the units' clipped contributions with Gaussian noise.

  Attributes:
    sampling: Sampler of each round's units.
    clipping: Fixed or adaptive clipping; None trains without any guarantee.
    noise_multiplier: Total noise multiplier z: standard deviation of the noise
      over the sensitivity, for values and clipped count together. 0 adds no
      noise and gives no guarantee.
    privacy_unit: Whom the guarantee protects: a 'client' (all that it ever
      sends), a 'record' (one image) or a 'patient' (all images of the patient).
  """

  sampling: sampling_lib.Sampling
  clipping: Clipping | None
  noise_multiplier: float = 0.0
  privacy_unit: str = 'client'

  neighboring_relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE

  def __post_init__(self) -> None:
    limits.check_noise_multiplier(self.noise_multiplier)
    _validate.one_of(PRIVACY_UNITS, privacy_unit=self.privacy_unit)
    if self.clipping is None and self.noise_multiplier > 0:
      raise _validate.InputError(
        f'noise_multiplier must be 0 without clipping, got '
        f'{self.noise_multiplier:g}: noise bounds nothing where updates are '
        'not clipped; choose fixed or adaptive clipping'
      )
    if self.noise_multiplier >= self.max_noise_multiplier:
      raise _validate.InputError(
        f'noise_multiplier must be below {self.max_noise_multiplier:g} (a '
        'tenth of the expected cohort) with adaptive clipping, got '
        f'{self.noise_multiplier:g}; raise the expected cohort or choose fixed '
        'clipping'
      )
    if self.value_noise_multiplier > limits.MAX_NOISE_MULTIPLIER:
      raise _validate.InputError(
        f'noise_multiplier {self.noise_multiplier!r} is so close to the limit '
        f'of {self.max_noise_multiplier:g} with adaptive clipping that the '
        'updates would be lost in noise; lower it or raise the expected cohort'
      )

  @property
  def max_noise_multiplier(self) -> float:
    """Exclusive upper bound of the noise multiplier; inf for fixed clipping.

    With adaptive clipping the noised count alone costs as much as a Gaussian
    with a multiplier of twice the count's standard deviation. Both releases
    together cannot cost less.
    """
    if isinstance(self.clipping, AdaptiveClipping):
      return 2 * self.count_stddev
    return float('inf')

  @property
  def count_stddev(self) -> float:
    """Standard deviation, in units, of the noise on the clipped count."""
    return _COUNT_STDDEV_PER_UNIT * self.sampling.expected_cohort

  @property
  def name(self) -> str:
    """Name of the algorithm in the literature."""
    return 'dp_fed_avg' if self.privacy_unit == 'client' else 'dp_sgd'

  @property
  def is_private(self) -> bool:
    """Whether any finite epsilon can be stated."""
    return self.noise_multiplier > 0

  @property
  def value_noise_multiplier(self) -> float:
    """Noise multiplier of the summed updates, at least the total one."""
    if not self.is_private or not isinstance(self.clipping, AdaptiveClipping):
      return self.noise_multiplier
    # 1/z**2 = 1/z_values**2 + 1/(2 * count_stddev)**2, solved for z_values.
    precision = self.noise_multiplier**-2 - (2 * self.count_stddev) ** -2
    return precision**-0.5 if precision > 0 else float('inf')

  @property
  def mean_stddev(self) -> float | None:
    """Standard deviation of the noise in each entry of the mean of a round.

    It is None where it is not the same in every round: without noise, and with
    adaptive clipping, whose noise follows the clip norm.
    """
    if not self.is_private or not isinstance(self.clipping, FixedClipping):
      return None
    total = self.clipping.clip_norm * self.noise_multiplier
    return total / self.sampling.expected_cohort

  def with_noise(self, noise_multiplier: float) -> GaussianMechanism:
    """Returns this mechanism with another total noise multiplier."""
    return dataclasses.replace(self, noise_multiplier=noise_multiplier)

  @property
  def caveats(self) -> tuple[str, ...]:
    """Sentences on what epsilon does not cover with this mechanism."""
    if not self.sampling.amplifies:
      return (interface.CENTRAL_SERVER_CAVEAT,)
    return (
      interface.CENTRAL_SERVER_CAVEAT,
      'Knowledge of who took part: amplification by sampling holds against '
      'those who cannot tell the cohorts, so the cohort seed must stay '
      'secret, and how long each round took, which files for TensorBoard tell.',
    )

  def charge_event(self) -> dp_accounting.DpEvent:
    """Returns the event of one round.

    Values and clipped count form one Gaussian with the total noise multiplier
    z: 1/z**2 is the sum of 1/z_i**2 over the two (Andrew et al. 2021, Theorem
    1).
    """
    if not self.is_private:
      return dp_accounting.NonPrivateDpEvent()
    return self.sampling.event(
      dp_accounting.GaussianDpEvent(self.noise_multiplier)
    )

  def charges_for(self, rounds: int) -> int:
    """Returns `rounds`: every round is one charge."""
    return rounds

  def sum_query(self) -> tfp.SumAggregationDPQuery:
    """Returns the query that clips, sums and adds noise.

    Without clipping the query is a plain sum.
    """
    import tensorflow_privacy as tfp

    from tff_medical.privacy import gaussian_query

    clipping = self.clipping
    if isinstance(clipping, AdaptiveClipping):
      return gaussian_query.AdaptiveSumQuery(
        initial_l2_norm_clip=float(clipping.clip_norm),
        noise_multiplier=float(self.value_noise_multiplier),
        target_unclipped_quantile=float(clipping.target_unclipped_quantile),
        learning_rate=float(clipping.clip_learning_rate),
        clipped_count_stddev=float(self.count_stddev)
        if self.is_private
        else 0.0,
        expected_num_records=float(self.sampling.expected_cohort),
      )
    if isinstance(clipping, FixedClipping):
      return gaussian_query.GaussianSumQuery(
        l2_norm_clip=float(clipping.clip_norm),
        stddev=float(clipping.clip_norm * self.value_noise_multiplier),
      )
    return tfp.NoPrivacySumQuery()

  def aggregation_factory(
    self,
  ) -> tff.aggregators.UnweightedAggregationFactory:
    """Returns the factory of the noised sum over the expected cohort size.

    Without clipping the result is the plain mean over the round's clients.
    """
    import tensorflow_federated as tff

    from tff_medical.privacy import gaussian_query

    if self.clipping is None:
      return tff.aggregators.UnweightedMeanFactory()
    return gaussian_query.mean_factory(
      self.sum_query(), float(self.sampling.expected_cohort)
    )

  def describe(self) -> dict[str, Any]:
    """Returns the mechanism as plain values for the ledger and the card."""
    return interface.described(
      self,
      self.clipping,
      value_noise_multiplier=self.value_noise_multiplier,
    )
