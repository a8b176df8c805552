"""A noised count of the classes, released once before the first round.

Weights that balance the classes need the number of units of each class, which is
private. Each unit adds 1 to the count of its class, or the shares of its images'
classes, which add up to 1. So adding or removing a unit changes the counts by
an L2 norm of at most 1. Gaussian noise of standard deviation z then makes them
a Gaussian release with the noise multiplier z. The weights computed from it are
post-processing.

Where sites trust nobody, each site noises its own count and publishes it. A
unit is at one site, so the cost per unit is that of one count. The noise of
their sum has the variance of all sites.

>>> release = ClassCountRelease(noise_multiplier=20.0)
>>> release.event()
GaussianDpEvent(noise_multiplier=20.0)
>>> counts = release.draw(np.array([[900.0, 3000.0]]))
>>> heavier, lighter = counts.weights()
>>> bool(heavier > lighter)
True
"""

from __future__ import annotations

import dataclasses
from typing import Any

import dp_accounting
import numpy as np

from tff_medical import _validate
from tff_medical.privacy import limits


@dataclasses.dataclass(frozen=True)
class ClassCountRelease:
  """Mechanism of the noised count.

  Attributes:
    noise_multiplier: Standard deviation of the noise on each count, in units.
    num_noises: Number of independent noises in the sum: 1 for a trusted server,
      the number of sites where each site adds its own.
  """

  noise_multiplier: float
  num_noises: int = 1

  def __post_init__(self) -> None:
    _validate.positive(class_count_noise=self.noise_multiplier)
    limits.check_noise_multiplier(self.noise_multiplier)
    _validate.positive_int(num_noises=self.num_noises)

  @property
  def stddev(self) -> float:
    """Standard deviation of the noise in the sum over the sites, in units."""
    return self.noise_multiplier * self.num_noises**0.5

  def event(self) -> dp_accounting.DpEvent:
    """Returns the event that the release is charged with, once."""
    return dp_accounting.GaussianDpEvent(self.noise_multiplier)

  def draw(self, counts: np.ndarray) -> ClassCounts:
    """Returns the noised counts, with fresh noise of the operating system.

    The result counts as released once a ledger was opened with it.

    Args:
      counts: Exact counts of each noise's units, float [num_noises, K]. The row
        of a unit's shares has an L1 norm of at most 1.
    """
    if counts.shape[0] != self.num_noises:
      raise ValueError(f'{counts.shape[0]} counts for {self.num_noises} noises')
    rng = np.random.default_rng()  # 128 bits of fresh entropy.
    noised = counts + self.noise_multiplier * rng.normal(size=counts.shape)
    # Whole numbers: the low bits of a sum of floats may tell of its terms.
    total = np.rint(noised).sum(axis=0)
    return ClassCounts(self, tuple(int(count) for count in total))


@dataclasses.dataclass(frozen=True)
class ClassCounts:
  """Noised counts, whose noise a ledger charges before the first round.

  Attributes:
    release: Mechanism that the counts came from.
    values: Noised count of the units of each class; it may be negative.
  """

  release: ClassCountRelease
  values: tuple[int, ...]

  def weights(self) -> tuple[float, ...]:
    """Returns weights that are inversely proportional to the counts.

    A count below its own noise is taken as large as that noise, so that no
    class gets a weight from noise alone.
    """
    lowest = max(1.0, self.release.stddev)
    return tuple(1 / max(count, lowest) for count in self.values)

  def describe(self) -> dict[str, Any]:
    """Returns the release as plain values for the ledger and the card."""
    return {
      'event_before': repr(self.release.event()),
      'class_counts': list(self.values),
      'class_count_noise': self.release.noise_multiplier,
      'class_count_noises': self.release.num_noises,
    }

  @classmethod
  def of(cls, header: dict[str, Any]) -> ClassCounts | None:
    """Returns the counts of a ledger's header; None if it has none.

    Raises:
      InputError: The header is damaged.
    """
    if 'class_counts' not in header:
      return None
    try:
      release = ClassCountRelease(
        float(header['class_count_noise']), int(header['class_count_noises'])
      )
      return cls(release, tuple(int(v) for v in header['class_counts']))
    except (KeyError, TypeError, ValueError) as error:
      raise _validate.InputError(
        f'the class counts of the ledger are damaged ({error}); restore the '
        'file or choose another output_dir'
      ) from None
