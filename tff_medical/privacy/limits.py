"""Ranges in which clipping and noise are exact enough in float32.

Clip norm. A norm is the root of a sum of squares. In float32 the square of an
entry below 1.1e-19 is lost (the smallest normal number is 1.2e-38). Such
entries count as 0 in the norm but are released. Together d of them have a norm
of up to 1.1e-19 * sqrt(d), which is 1.1e-14 for d = 1e10. With a clip norm of
at least 1e-10 they lengthen a released update by less than one part in 1e8. A
clip norm of 1e-20 would not bind at all. At the other end a norm above 1.8e19
overflows and counts as not finite. Clip norms stay far below: at 1e10 the sum
over 1e9 units still has a finite norm.

Noise. The standard deviation, clip norm times noise multiplier, lies between
1e-14 and 1e16: normal float32 numbers, far from both ends.

>>> check_clip_norm(1e-20)
Traceback (most recent call last):
...
tff_medical._validate.InputError: clip_norm must lie between 1e-10 and 1e+10, \
got 1e-20
"""

from __future__ import annotations

from tff_medical import _validate

MIN_CLIP_NORM = 1e-10
MAX_CLIP_NORM = 1e10
# Less noise gives a meaningless epsilon (5e7 for one round at 1e-4). More noise
# leaves nothing to learn.
MIN_NOISE_MULTIPLIER = 1e-4
MAX_NOISE_MULTIPLIER = 1e6


def check_clip_norm(clip_norm: float) -> None:
  """Raises `InputError` unless clipping to this L2 norm binds in float32."""
  _validate.within(MIN_CLIP_NORM, MAX_CLIP_NORM, clip_norm=clip_norm)


def check_noise_multiplier(noise_multiplier: float) -> None:
  """Raises `InputError` unless the multiplier is 0 or within the limits."""
  _validate.non_negative(noise_multiplier=noise_multiplier)
  if noise_multiplier:
    _validate.within(
      MIN_NOISE_MULTIPLIER,
      MAX_NOISE_MULTIPLIER,
      noise_multiplier=noise_multiplier,
    )
