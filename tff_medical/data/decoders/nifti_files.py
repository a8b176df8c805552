"""NIfTI volumes to slices in 0..1.

A volume is turned to its closest canonical orientation first (from left to
right, back to front, foot to head), so that the order on disk does not matter.
Slices lie along the axis that the policy names. They are shown as radiologists
see them: an axial slice from below with the front on top, a coronal one from
the front and a sagittal one from the left, both with the head on top.

Values: slope and intercept of the header are applied, a slope of 0 or NaN means
that there is none. The range from 0.5 to 99.5 % of the whole volume becomes
0..1 unless the policy gives one: slices of a volume stay comparable.

Source: NIfTI-1 (Cox et al. 2004); nibabel's `as_closest_canonical`.
"""

from __future__ import annotations

import gzip
import io
from typing import Any
import zlib

import numpy as np

from tff_medical import _validate
from tff_medical.data.decoders import decoded

_MAGICS = (b'n+1\0', b'n+2\0')
_HEADER_BYTES = 352
_GZIP = b'\x1f\x8b'
# Axes of the canonical volume (left-right, back-front, foot-head).
_AXES = {'sagittal': 0, 'coronal': 1, 'axial': 2}
_MAX_BYTES = 2**31


def is_nifti(start: bytes) -> bool:
  """Returns whether the first bytes, 1,024 or more, are those of NIfTI."""
  if start[:2] == _GZIP:
    try:
      start = zlib.decompressobj(31).decompress(start, _HEADER_BYTES)
    except zlib.error:
      return False
  return start[344:348] in _MAGICS or start[4:8] in _MAGICS


def decode(content: bytes, policy: decoded.DecodingPolicy) -> decoded.Decoded:
  """Returns the slices of a volume; see the module for the order.

  Args:
    content: All bytes of the file, compressed or not.
    policy: Choice of axis, slices and volume, and perhaps the range.

  Raises:
    BadFile: The file is damaged or too large.
    PolicyNeeded: The policy has to say more.
  """
  nibabel = _nibabel()
  content = _inflated(content)
  image_class = nibabel.Nifti2Image if content[4:8] in _MAGICS else (
    nibabel.Nifti1Image
  )  # fmt: skip
  try:
    image = image_class.from_stream(io.BytesIO(content))
  except Exception as error:  # noqa: BLE001  nibabel raises many kinds.
    raise decoded.BadFile(f'cannot be read as NIfTI: {error}') from None
  shape = _shape(image.shape)
  _check_policy(shape, policy)
  try:
    # Headers of zeros make nibabel divide by them.
    with np.errstate(all='ignore'):
      volume = _canonical(nibabel, image, shape, policy)
  except decoded.BadFile:
    raise
  except Exception as error:  # noqa: BLE001
    raise decoded.BadFile(
      f'cannot be decoded: {" ".join(str(error).split())}; it is damaged or cut '
      'short'
    ) from None
  return _slices(volume, policy)


def _nibabel() -> Any:
  try:
    import nibabel
  except ModuleNotFoundError:
    raise decoded.PolicyNeeded(
      'is a NIfTI file, which needs the package nibabel; install '
      'requirements.txt'
    ) from None
  return nibabel


def _inflated(content: bytes) -> bytes:
  """Returns the bytes of a file without compression, up to a limit."""
  if content[:2] != _GZIP:
    return content
  try:
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
      inflated = file.read(_MAX_BYTES + 1)
  except (OSError, EOFError, zlib.error):
    raise decoded.BadFile(
      'cannot be decompressed; it is damaged or cut short'
    ) from None
  if len(inflated) > _MAX_BYTES:
    raise decoded.BadFile(f'holds more than the {_MAX_BYTES:,} bytes allowed')
  return inflated


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the shape without axes of length 1 after the third."""
  while len(shape) > 3 and shape[-1] == 1:
    shape = shape[:-1]
  shape = shape + (1,) * (3 - len(shape))
  if len(shape) > 4:
    raise decoded.BadFile(f'has {len(shape)} axes ({_times(shape)})')
  if min(shape) < 1 or int(np.prod(shape[:3])) > decoded.MAX_VOXELS:
    raise decoded.BadFile(
      f'is {_times(shape)}, not between 1 and {decoded.MAX_VOXELS:,} voxels'
    )
  return shape


def _times(shape: tuple[int, ...]) -> str:
  return ' x '.join(map(str, shape))


def _check_policy(
  shape: tuple[int, ...], policy: decoded.DecodingPolicy
) -> None:
  if len(shape) == 4 and policy.volume is None:
    raise decoded.PolicyNeeded(
      f'is a series of {shape[3]} volumes ({_times(shape)}); choose one with '
      '--volume=N, counted from 0'
    )
  if policy.slice_axis is None:
    raise decoded.PolicyNeeded(
      f'is a volume ({_times(shape[:3])}) of slices; choose how it is cut with '
      f'--slice_axis={", ".join(decoded.SLICE_AXES)}'
    )


def _canonical(
  nibabel: Any,
  image: Any,
  shape: tuple[int, ...],
  policy: decoded.DecodingPolicy,
) -> np.ndarray:
  """Returns float32 values along left-right, back-front, foot-head."""
  # As stored: the scaled values of the whole series might not fit.
  stored = np.asanyarray(image.dataobj.get_unscaled()).reshape(shape)
  if stored.dtype.fields is not None or stored.dtype.kind == 'c':
    raise decoded.BadFile(f'holds values of the kind {stored.dtype}')
  if len(shape) == 4:
    chosen = policy.volume or 0
    if chosen >= shape[3]:
      raise decoded.BadFile(
        f'has {shape[3]} volumes, numbered from 0, and none is volume {chosen}'
      )
    stored = stored[..., chosen]
  affine = image.affine
  if not np.isfinite(affine).all():
    raise decoded.BadFile('has an affine that is not finite')
  turn = nibabel.io_orientation(affine)
  if np.isnan(turn).any():
    raise decoded.BadFile('has an affine that names no orientation')
  turned = nibabel.apply_orientation(stored, turn)
  slope, inter = image.dataobj.slope, image.dataobj.inter
  values = turned.astype(np.float32)
  if np.isfinite(slope) and slope != 0 and np.isfinite(inter):
    values = values * np.float32(slope) + np.float32(inter)
  return values


def _slices(
  volume: np.ndarray, policy: decoded.DecodingPolicy
) -> decoded.Decoded:
  """Cuts a canonical volume into slices in 0..1."""
  finite = np.isfinite(volume)
  if not finite.any():
    raise decoded.BadFile('holds no finite value')
  real = volume[finite]
  if policy.value_range is not None:
    low, high = policy.value_range
    rules = ['given value_range']
  else:
    low, high = decoded.robust_range(real)
    rules = ['no window: 0.5 to 99.5 %']
  warnings = (
    () if finite.all() else ('holds NaN or infinite values, made black',)
  )
  scaled = decoded.scaled(np.where(finite, volume, low), low, high)
  name = policy.slice_axis or 'axial'
  _validate.one_of(_AXES, slice_axis=name)
  along = np.moveaxis(scaled, _AXES[name], 0)
  # Rows from the top down; columns of axial and coronal from the right side.
  cut = along.transpose(0, 2, 1)[:, ::-1, ::-1]
  decoded.check_size(cut.shape[2], cut.shape[1])
  numbers = decoded.choose('slices', policy.slices, len(cut))
  return decoded.Decoded(
    tuple(np.ascontiguousarray(cut[i])[..., np.newaxis] for i in numbers),
    (*rules, f'{name} slices'),
    warnings,
    (float(real.min()), float(real.max())),
  )
