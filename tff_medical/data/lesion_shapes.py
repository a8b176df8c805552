"""Shapes of lesions in the generated images, one per class.

A shape is a brightness pattern on coordinates that are already moved, scaled
and rotated. A new class is added here alone: no other module knows its
geometry. Arrays are float [n, H, W].

>>> rng = np.random.default_rng(0)
>>> u, v = np.zeros([1, 1, 2]), np.array([[[0.0, 0.8]]])
>>> draw(rng, NAMES.index('cavity'), u, v).round(1)  # Dark inside, bright rim.
array([[[0., 1.]]])
"""

from __future__ import annotations

import numpy as np

NAMES = (
  'nodule',
  'cavity',
  'spiculated mass',
  'speck cluster',
  'linear scar',
  'paired nodules',
  'crescent',
  'striated mass',
)


def draw(
  rng: np.random.Generator, label: int, u: np.ndarray, v: np.ndarray
) -> np.ndarray:
  """Returns lesions of one class in their own coordinates.

  Args:
    rng: Generator of the places of specks; the other shapes do not use it.
    label: Index into `NAMES`.
    u: Coordinate along the lesion's axis, [n, H, W]; its radius is about 1.
    v: Coordinate across the lesion's axis, [n, H, W].

  Returns:
    Brightness [n, H, W] in 0..1 (specks add up to a little more).
  """
  rho, phi = np.hypot(u, v), np.arctan2(v, u)
  name = NAMES[label]
  if name == 'nodule':
    return _inside(0.85 - rho)
  if name == 'cavity':
    return _inside(0.22 - np.abs(rho - 0.8))
  if name == 'spiculated mass':
    return _inside(0.6 + 0.5 * np.cos(5 * phi) - rho)
  if name == 'speck cluster':
    return _specks(rng, u, v)
  if name == 'linear scar':
    return _inside(np.minimum(0.22 - np.abs(v), 1.3 - np.abs(u)))
  if name == 'paired nodules':
    return _inside(0.45 - np.hypot(np.abs(u) - 0.7, v))
  if name == 'crescent':
    return _inside(np.minimum(0.95 - rho, np.hypot(u - 0.5, v) - 0.75))
  return _inside(0.95 - rho) * (0.5 + 0.5 * np.sin(9 * u))


def _specks(
  rng: np.random.Generator, u: np.ndarray, v: np.ndarray, count: int = 5
) -> np.ndarray:
  """Returns small bright specks, unevenly spaced around a circle."""
  total = np.zeros_like(u)
  for i in range(count):
    turn = column(2 * np.pi * i / count + rng.uniform(-0.4, 0.4, len(u)))
    far = column(rng.uniform(0.5, 1.0, len(u)))
    distance = np.hypot(u - far * np.cos(turn), v - far * np.sin(turn))
    total += np.exp(-0.5 * (distance / 0.2) ** 2)
  return total


def _inside(distance: np.ndarray) -> np.ndarray:
  """Returns 1 where `distance` to the edge is positive, with a soft edge."""
  return 1 / (1 + np.exp(-np.clip(distance / 0.06, -30, 30)))


def column(values: np.ndarray) -> np.ndarray:
  """Returns [n] values as float32 [n, 1, 1], which broadcast to [n, H, W]."""
  return np.asarray(values, np.float32)[:, np.newaxis, np.newaxis]
