"""Composition of discretised privacy losses by the Fourier transform.

dp-accounting discretises the loss of one round pessimistically: its curve of δ
over ε lies nowhere below the true one ("connect the dots", Doroshenko et al.
2022). `epsilon_of` composes such losses as dp-accounting does (Koskela et al.
2020): a Chernoff bound limits the range of the sum, whose probabilities are a
product of Fourier transforms. Mass outside the range counts as an infinite
loss. This module keeps what all rounds of a run share, and has no Python loop
over losses. One ε therefore takes 1 ms where dp-accounting takes 10.

>>> from dp_accounting.pld import privacy_loss_distribution as pld_lib
>>> round_loss = pld_lib.from_gaussian_mechanism(2.0, sampling_prob=0.1)
>>> library = round_loss.self_compose(50).get_epsilon_for_delta(1e-5)
>>> epsilon = epsilon_of([(RoundLoss.of(round_loss), 50)], delta=1e-5)
>>> abs(epsilon - library) < 1e-6
True
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import math

from dp_accounting.pld import privacy_loss_distribution
import numpy as np
from scipy import fft

# Mass that a composition counts as infinite losses, as in dp-accounting.
_TAIL_MASS = 1e-15
# Orders of the Chernoff bound, as powers of 2 around the best for a Gaussian.
# Rare large losses have their best orders far below it.
_ORDERS = range(-7, 2)
# A transform has one of four lengths an octave, which many rounds share.
_LENGTHS_PER_OCTAVE = 4
_KEPT_SPECTRA = 2


@dataclasses.dataclass(frozen=True, eq=False)
class _Side:
  """Losses of one round for one of the two directions of neighbours.

  Attributes:
    lower: Smallest loss, as a multiple of the interval.
    probabilities: Probability of each multiple from there on, float64 [n].
    infinity_mass: Probability of an infinite loss.
  """

  lower: int
  probabilities: np.ndarray
  infinity_mass: float
  # What was computed before, by its arguments.
  _log_moments: dict[tuple[int, int], float] = dataclasses.field(
    default_factory=dict, init=False, repr=False
  )
  _spectra: dict[int, np.ndarray] = dataclasses.field(
    default_factory=dict, init=False, repr=False
  )

  def __len__(self) -> int:
    return len(self.probabilities)

  @functools.cached_property
  def variance(self) -> float:
    """Variance of the finite losses, in units of the squared interval."""
    places = np.arange(len(self), dtype=float)
    mean = self.probabilities @ places
    return float(self.probabilities @ (places - mean) ** 2)

  def log_moment(self, exponent: int, sign: int) -> float:
    """Returns log E exp(sign * 2**exponent * (loss - lower)), finite losses."""
    key = exponent, sign
    if key not in self._log_moments:
      order = sign * 2.0**exponent
      places = np.arange(len(self), dtype=float)
      shift = max(0.0, order * (len(self) - 1))
      total = self.probabilities @ np.exp(order * places - shift)
      self._log_moments[key] = (
        math.log(total) + shift if total > 0 else math.inf
      )
    return self._log_moments[key]

  def spectrum(self, length: int) -> np.ndarray:
    """Returns the Fourier transform of a `length` of at least `len(self)`."""
    if length not in self._spectra:
      if len(self._spectra) >= _KEPT_SPECTRA:
        del self._spectra[min(self._spectra)]
      self._spectra[length] = fft.rfft(self.probabilities, length)
    return self._spectra[length]


@dataclasses.dataclass(frozen=True, eq=False)
class RoundLoss:
  """Privacy loss of one round on a grid.

  Attributes:
    interval: Distance of neighbouring losses.
    sides: Losses if a unit is removed and if it is added; one of them where
      both are the same.
  """

  interval: float
  sides: tuple[_Side, ...]

  @classmethod
  def of(
    cls, loss: privacy_loss_distribution.PrivacyLossDistribution
  ) -> RoundLoss:
    """Returns the loss that dp-accounting has discretised."""
    pmfs = [loss._pmf_remove.to_dense_pmf()]
    if not loss._symmetric:
      pmfs.append(loss._pmf_add.to_dense_pmf())
    return cls(
      pmfs[0]._discretization,
      tuple(
        _Side(
          int(pmf._lower_loss),
          np.asarray(pmf._probs, np.float64),
          float(pmf._infinity_mass),
        )
        for pmf in pmfs
      ),
    )

  def __len__(self) -> int:
    """Number of losses of the longer side."""
    return max(map(len, self.sides))


def num_points(rounds: Sequence[tuple[RoundLoss, int]]) -> int:
  """Returns the number of losses of the composition, of the longer side.

  Args:
    rounds: Losses on grids of one interval, each with its number of rounds.
  """
  points = 0
  for side in range(_num_sides(rounds)):
    low, high = _range_of(_of_side(rounds, side))
    points = max(points, high - low + 1)
  return points


def epsilon_of(
  rounds: Sequence[tuple[RoundLoss, int]], *, delta: float
) -> float:
  """Returns epsilon at `delta` of all rounds together, rounded up.

  Args:
    rounds: Losses on grids of one interval, each with its number of rounds.
    delta: Delta, in (0, 1), at which epsilon is stated.
  """
  interval = rounds[0][0].interval
  return max(
    _epsilon_of_side(_of_side(rounds, side), interval, delta)
    for side in range(_num_sides(rounds))
  )


def _num_sides(rounds: Sequence[tuple[RoundLoss, int]]) -> int:
  return max(len(loss.sides) for loss, _ in rounds)


def _of_side(
  rounds: Sequence[tuple[RoundLoss, int]], number: int
) -> list[tuple[_Side, int]]:
  return [(loss.sides[number % len(loss.sides)], n) for loss, n in rounds]


def _range_of(parts: Sequence[tuple[_Side, int]]) -> tuple[int, int]:
  """Returns the first and last place that the composition keeps.

  Places count from the sum of all smallest losses. At most `_TAIL_MASS` is
  outside, by Chernoff's bound at any order.
  """
  low, high = 0, sum((len(side) - 1) * count for side, count in parts)
  if sum(count for _, count in parts) == 1:
    return low, high  # There is nothing to compose.
  spread = sum(side.variance * count for side, count in parts) ** 0.5
  log_mass = math.log(2 / _TAIL_MASS)
  best = math.log2((2 * log_mass) ** 0.5 / max(spread, 1e-9))
  for exponent in (round(best) + offset for offset in _ORDERS):
    for sign in (1, -1):
      log_moment = sum(n * side.log_moment(exponent, sign) for side, n in parts)
      bound = sign * (log_moment + log_mass) / 2.0**exponent
      if not math.isfinite(bound):
        continue
      if sign > 0:
        high = min(high, math.ceil(bound))
      else:
        low = max(low, math.floor(bound))
  return low, max(low, high)


def _epsilon_of_side(
  parts: Sequence[tuple[_Side, int]], interval: float, delta: float
) -> float:
  low, high = _range_of(parts)
  is_composed = sum(count for _, count in parts) > 1
  if is_composed:
    length = _length(max(high - low + 1, *(len(side) for side, _ in parts)))
    spectrum = functools.reduce(
      np.multiply, (_power(side.spectrum(length), n) for side, n in parts)
    )
    # Rounding errors below 0 would take mass away, and so lower epsilon.
    wrapped = np.maximum(fft.irfft(spectrum, length), 0)
    start = low % length
    mass = np.concatenate([wrapped[start:], wrapped[:start]])[: high - low + 1]
  else:
    mass = parts[0][0].probabilities
  infinity_mass = _TAIL_MASS * is_composed - math.expm1(
    sum(n * math.log1p(-side.infinity_mass) for side, n in parts)
  )
  lower = low + sum(side.lower * n for side, n in parts)
  return _epsilon_at(lower, mass, infinity_mass, interval, delta)


def _length(least: int) -> int:
  """Returns a length of at least `least`, up to a quarter above it."""
  step = 2 ** max(0, least.bit_length() - _LENGTHS_PER_OCTAVE.bit_length())
  return -(-least // step) * step


def _power(spectrum: np.ndarray, exponent: int) -> np.ndarray:
  """Returns the power by squarings, faster and no less exact than NumPy's."""
  if exponent == 1:
    return spectrum
  half = _power(spectrum, exponent // 2)
  square = half * half
  return square * spectrum if exponent % 2 else square


def _epsilon_at(
  lower: int,
  mass: np.ndarray,
  infinity_mass: float,
  interval: float,
  delta: float,
) -> float:
  """Returns the smallest epsilon, 0 or more, with at most `delta`.

  δ(ε) is the infinity mass and the sum of p (1 - exp(ε - loss)) over all losses
  above ε. Between two losses of the grid it has a closed form.

  Args:
    lower: Loss of the first mass, as a multiple of the interval.
    mass: Probability of each multiple from there on, float64 [n].
    infinity_mass: Probability of an infinite loss.
    interval: Distance of neighbouring losses.
    delta: Delta, in (0, 1).
  """
  if infinity_mass > delta:
    return math.inf
  first = max(0, 1 - lower)  # Losses up to 0 do not count for any epsilon.
  if first >= len(mass):
    return 0.0
  losses = np.arange(lower + len(mass) - 1, lower + first - 1, -1.0) * interval
  # Both sums run from the largest loss down.
  p = mass[first:][::-1]
  upper = infinity_mass + np.cumsum(p)
  weights = np.exp(-losses)
  weighted = np.cumsum(p * weights)
  if upper[-1] <= weighted[-1] + delta:
    return 0.0
  # δ at the next loss, up to which the sums hold, is the first above `delta`.
  # Losses whose weight underflows are left out of the subtraction: δ is larger.
  following = np.append(weights[1:], 1.0)
  at_following = upper - np.divide(
    weighted, following, out=np.zeros_like(weighted), where=following > 0
  )
  place = int(np.argmax(at_following > delta))
  if not weighted[place] > 0:
    return float(losses[place])
  epsilon = math.log((upper[place] - delta) / weighted[place])
  largest = float(losses[place])
  return min(max(epsilon, largest - interval), largest)
