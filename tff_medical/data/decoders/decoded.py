"""Choices, pixels and refusals of decoding an image file.

`DecodingPolicy` holds the choices that no file can make for its user: which
frames, pages or slices are images, and what range of values is black to white.
`Decoded` holds pixels in 0..1 and the rules that led to them, which are counted
by site: two hospitals whose images follow different rules differ by more than
their patients. A file that cannot be used raises `BadFile` and is left out; a
file that asks for a choice raises `PolicyNeeded`, which ends the preparation.

>>> choose('frames', 'middle', 5)
(2,)
>>> choose('frames', '7', 5)
Traceback (most recent call last):
...
tff_medical.data.decoders.decoded.BadFile: has 5 frames, numbered from 0, and none is \
the frame 7
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tff_medical import _validate

# The limits that `serving.encoded_images` sets as well.
MAX_PIXELS = 2**26
MAX_SIDE = 2**16 - 1
MAX_VOXELS = 2**28

SLICE_AXES = ('axial', 'coronal', 'sagittal')
DICOM_VALUES = ('display', 'stored', 'hu')
CHOICES = ('first', 'middle', 'all')

# Percentiles that become black and white where no window is stated.
_ROBUST_PERCENT = (0.5, 99.5)
# Largest number of values that percentiles are taken of.
_MAX_RANKED = 2**22


class BadFile(Exception):
  """A file that cannot be used; the text follows the name of the file."""


class PolicyNeeded(_validate.InputError):
  """A file that asks for a choice; the text follows the name of the file."""


@dataclasses.dataclass(frozen=True)
class DecodingPolicy:
  """Choices of whoever prepares the images.

  Attributes:
    frames: Frames of a DICOM file or pages of a TIFF that are images: `first`,
      `middle`, `all`, a number counted from 0, or None to refuse several.
    slice_axis: Axis of a NIfTI volume along which its slices lie, one of
      `SLICE_AXES`, or None to refuse volumes.
    slices: Slices that are images, with the values of `frames`.
    volume: Number, from 0, of the volume of a 4-D series, or None to refuse.
    dicom_values: `display` for the rule of `dicom_files`, `stored` for the
      stored values over their whole range, `hu` for rescaled values between
      the ends of `value_range`.
    value_range: Values that are black and white, for floating-point TIFF,
      NIfTI and `hu`; None where the file must say so itself.
    reduced_decoding: Whether a large JPEG is decoded at a fraction of its size;
      see `reduction`.
  """

  frames: str | None = None
  slice_axis: str | None = None
  slices: str = 'all'
  volume: int | None = None
  dicom_values: str = 'display'
  value_range: tuple[float, float] | None = None
  reduced_decoding: bool = False

  def __post_init__(self) -> None:
    for name in ('frames', 'slices'):
      choice = getattr(self, name)
      if (
        choice is not None and choice not in CHOICES and not choice.isdecimal()
      ):
        raise _validate.InputError(
          f'{name} must be first, middle, all or a number from 0, got '
          f'{choice!r}'
        )
    if self.slice_axis is not None:
      _validate.one_of(SLICE_AXES, slice_axis=self.slice_axis)
    if self.volume is not None:
      _validate.whole(volume=self.volume)
      _validate.non_negative(volume=self.volume)
    _validate.one_of(DICOM_VALUES, dicom_values=self.dicom_values)
    if not isinstance(self.reduced_decoding, bool):
      raise _validate.InputError(
        f'reduced_decoding must be true or false, got {self.reduced_decoding!r}'
      )
    if self.value_range is not None:
      low, high = self.value_range
      if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise _validate.InputError(
          f'value_range must be LOW,HIGH with LOW below HIGH, got {low},{high}'
        )
    elif self.dicom_values == 'hu':
      raise _validate.InputError(
        'value_range must be given with dicom_values=hu, as -160,240 for soft '
        'tissue'
      )


@dataclasses.dataclass(frozen=True, eq=False)
class Decoded:
  """The images of one file.

  Attributes:
    images: float32 [H, W, C] each, 0 (black) to 1, C of 1 (grey) or 3 (RGB).
    rules: Steps that led to the values, in few words; they are counted by site.
    warnings: Sentences on the file for whoever prepares the images.
    value_range: Smallest and largest value before scaling to 0..1, where the
      file states values with a physical meaning; else None.
    sizes: Height and width of each image as the file states them, upright;
      () where these are the sizes of `images`.
  """

  images: tuple[np.ndarray, ...]
  rules: tuple[str, ...]
  warnings: tuple[str, ...] = ()
  value_range: tuple[float, float] | None = None
  sizes: tuple[tuple[int, int], ...] = ()

  @property
  def original_sizes(self) -> tuple[tuple[int, int], ...]:
    """Height and width of each image in its file, upright."""
    return self.sizes or tuple(
      (image.shape[0], image.shape[1]) for image in self.images
    )


def reduction(height: int, width: int, image_size: int) -> int:
  """Returns by how much the sides of a JPEG are divided in decoding.

  The inverse cosine transform of a JPEG can give an image of 1/2, 1/4 or 1/8 of
  the size. What is left is at least twice as large as the image that is made of
  it.

  >>> reduction(2048, 3000, 224), reduction(895, 3000, 224)
  (4, 1)

  Args:
    height: Height in the file, in pixels.
    width: Width in the file.
    image_size: Height and width of the image that is made of it.
  """
  for divisor in (8, 4, 2):
    if min(height, width) >= 2 * divisor * image_size:
      return divisor
  return 1


def choose(what: str, choice: str, count: int) -> tuple[int, ...]:
  """Returns the numbers, from 0, of the frames that a choice means.

  Args:
    what: Name of what is counted, in the plural.
    choice: `first`, `middle`, `all` or a number.
    count: Number of them in the file.

  Raises:
    BadFile: The file has no such frame.
  """
  if choice == 'all':
    return tuple(range(count))
  if choice == 'first':
    return (0,)
  if choice == 'middle':
    return (count // 2,)
  if int(choice) >= count:
    raise BadFile(
      f'has {count} {what}, numbered from 0, and none is the {what[:-1]} '
      f'{choice}'
    )
  return (int(choice),)


def choose_frames(
  what: str, policy: DecodingPolicy, count: int
) -> tuple[int, ...]:
  """Returns the numbers of the frames or pages that are images.

  Args:
    what: `frames` or `pages`.
    policy: Its `frames` is the choice.
    count: Number of them in the file.

  Raises:
    PolicyNeeded: The file has several, and there is no choice.
  """
  if count == 1:
    return (0,)
  if policy.frames is None:
    raise PolicyNeeded(
      f'has {count} {what}; choose with --frames=first, middle, all or a number '
      'from 0'
    )
  return choose(what, policy.frames, count)


def check_size(width: int, height: int) -> None:
  """Raises `BadFile` for a size that is refused before memory is taken."""
  if width < 1 or height < 1:
    raise BadFile(f'is {width} x {height} pixels, which is no image')
  if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
    raise BadFile(
      f'is {width} x {height} pixels, more than the {MAX_PIXELS:,} allowed; make '
      'it smaller'
    )


def robust_range(values: np.ndarray) -> tuple[float, float]:
  """Returns the percentiles 0.5 and 99.5 of values.

  Args:
    values: Finite numbers, one or more.
  """
  flat = values.reshape(-1)
  step = -(-flat.size // _MAX_RANKED)
  low, high = np.percentile(flat[::step], _ROBUST_PERCENT)
  return float(low), float(high)


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
  """Returns float32 values with `low` as 0 and `high` as 1, clipped.

  An image of one value alone is black.
  """
  if high <= low:
    return np.zeros(values.shape, np.float32)
  part = (values.astype(np.float32) - np.float32(low)) / np.float32(high - low)
  return np.clip(part, 0, 1)


def of_integers(values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
  """Returns unsigned integers over the range of their type, and warnings."""
  top = np.iinfo(values.dtype).max
  bits = int(values.max(initial=0)).bit_length()
  unused = np.iinfo(values.dtype).bits - bits
  warnings: tuple[str, ...] = ()
  if values.dtype.itemsize > 1 and bits and unused:
    warnings = (f'uses 1/{2**unused} of its {values.dtype.itemsize * 8}-bit '
                'range',)  # fmt: skip
  return values.astype(np.float32) / np.float32(top), warnings
