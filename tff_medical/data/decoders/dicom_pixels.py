"""DICOM pixel data to stored values, one frame at a time.

What: `frame` returns the values of one frame as the file stores them: the bits
that PS3.5 calls stored and no others, palette and YCbCr still to be converted
only where the codec left them so. Native frames are cut out of the bytes here;
a baseline JPEG in colour is decoded by Pillow, which believes the markers of
the JPEG rather than the tag beside it; everything else goes through pydicom and
the plugin that is the fastest for its transfer syntax.

Source: DICOM PS3.5 sections 8 and A.4. pydicom 2.4 and 3 are both served.
"""

from __future__ import annotations

import io
import logging
import re
import sys
from typing import Any, NamedTuple
import warnings as warnings_lib

import numpy as np
from PIL import Image

from tff_medical.data.decoders import decoded

_JPEG_BASELINE = '1.2.840.10008.1.2.4.50'
_BIG_ENDIAN = '1.2.840.10008.1.2.2'
_NATIVE = (
  '1.2.840.10008.1.2',
  '1.2.840.10008.1.2.1',
  '1.2.840.10008.1.2.1.99',
  _BIG_ENDIAN,
)
_JPEG_2000 = '1.2.840.10008.1.2.4.9'
# The fastest plugin of pydicom 3 for a syntax, where that is not its first.
_PLUGINS = {
  '1.2.840.10008.1.2.5': 'pylibjpeg',
  '1.2.840.10008.1.2.4.80': 'pyjpegls',
  '1.2.840.10008.1.2.4.81': 'pyjpegls',
}
# What reads a syntax that the lock's packages may fail on.
_PACKAGES = {
  '1.2.840.10008.1.2.4.51': 'pylibjpeg-libjpeg (GPL-3) or python-gdcm',
  '1.2.840.10008.1.2.4.57': 'python-gdcm or pylibjpeg-libjpeg (GPL-3)',
  '1.2.840.10008.1.2.4.70': 'python-gdcm or pylibjpeg-libjpeg (GPL-3)',
  '1.2.840.10008.1.2.4.80': 'pyjpegls',
  '1.2.840.10008.1.2.4.81': 'pyjpegls',
  '1.2.840.10008.1.2.4.90': 'pylibjpeg-openjpeg',
  '1.2.840.10008.1.2.4.91': 'pylibjpeg-openjpeg',
  '1.2.840.10008.1.2.4.201': 'pylibjpeg-openjpeg',
  '1.2.840.10008.1.2.4.202': 'pylibjpeg-openjpeg',
  '1.2.840.10008.1.2.4.203': 'pylibjpeg-openjpeg',
  '1.2.840.10008.1.2.5': 'pylibjpeg-rle',
}


class Frame(NamedTuple):
  """The stored values of one frame.

  Attributes:
    values: Integers [H, W], or [H, W, 3] of a colour image.
    raw: The values before bits above the stored ones were cleared.
    is_rgb: Whether three channels are RGB; otherwise they are as the tag says.
    rules: Steps that the header alone does not ask for.
  """

  values: np.ndarray
  raw: np.ndarray
  is_rgb: bool = False
  rules: tuple[str, ...] = ()


def import_pydicom() -> Any:
  """Returns pydicom, if it is installed.

  Raises:
    PolicyNeeded: pydicom is not installed.
  """
  # gdcm takes any module or folder called `dl` for one that Python 3 dropped.
  sys.modules.setdefault('dl', None)  # type: ignore[arg-type]
  # Its messages may quote the header, which names the patient.
  logging.getLogger('pydicom').propagate = False
  try:
    import pydicom
  except ModuleNotFoundError:
    raise decoded.PolicyNeeded(
      'is a DICOM file, which needs the package pydicom; install '
      'requirements.txt'
    ) from None
  return pydicom


def count(dataset: Any) -> int:
  """Returns the number of frames, counted where the tag must be wrong.

  Args:
    dataset: A pydicom dataset with pixels.
  """
  stated = int(dataset.get('NumberOfFrames') or 1)
  size = _frame_bytes(dataset)
  if not _is_native(dataset) or not size:
    return stated
  # Less than a frame may follow the last one as padding.
  return max(stated, len(dataset.PixelData) // size)


def frame(dataset: Any, number: int) -> Frame:
  """Returns the stored values of a frame.

  Args:
    dataset: A pydicom dataset with pixels and transfer syntax.
    number: Number of the frame, from 0.

  Raises:
    BadFile: The pixels are cut short, damaged or of an unknown syntax.
  """
  syntax = str(dataset.file_meta.TransferSyntaxUID)
  bits = int(dataset.BitsAllocated)
  simple = bits in (16, 32) or (bits == 8 and syntax != _BIG_ENDIAN)
  if 'PixelData' not in dataset:
    values = _of_floats(dataset, number)
    return Frame(values, values)
  if _is_native(dataset):
    _check_length(dataset, number)
    if simple and dataset.get('PhotometricInterpretation') != 'YBR_FULL_422':
      raw = _native(dataset, number, syntax)
      return Frame(_stored_bits(dataset, raw), raw)
  if syntax == _JPEG_BASELINE and int(dataset.get('SamplesPerPixel', 1)) == 3:
    return _jpeg_in_colour(dataset, number)
  values = _by_pydicom(dataset, number, syntax)
  is_rgb = syntax.startswith(_JPEG_2000)
  return Frame(values, values, is_rgb)


def _is_native(dataset: Any) -> bool:
  return str(dataset.file_meta.TransferSyntaxUID) in _NATIVE


def _frame_bytes(dataset: Any) -> int:
  bits = (
    int(dataset.Rows)
    * int(dataset.Columns)
    * int(dataset.get('SamplesPerPixel', 1))
    * int(dataset.BitsAllocated)
  )
  if dataset.get('PhotometricInterpretation') == 'YBR_FULL_422':
    bits = bits // 3 * 2
  return -(-bits // 8)


def _check_length(dataset: Any, number: int) -> None:
  needed = _frame_bytes(dataset) * (number + 1)
  # All frames that the header states must be there, not this one alone.
  needed = max(needed, _frame_bytes(dataset) * count(dataset))
  if len(dataset.PixelData) < needed:
    raise decoded.BadFile(
      f'holds {len(dataset.PixelData):,} bytes of pixels where its header asks '
      f'for {needed:,}; it is cut short'
    )


def _native(dataset: Any, number: int, syntax: str) -> np.ndarray:
  """Cuts a frame of 8, 16 or 32 bits out of the bytes."""
  size = _frame_bytes(dataset)
  part = dataset.PixelData[size * number : size * (number + 1)]
  kind = 'i' if int(dataset.get('PixelRepresentation', 0)) else 'u'
  order = '>' if syntax == _BIG_ENDIAN else '<'
  width = int(dataset.BitsAllocated) // 8
  values = np.frombuffer(part, f'{order}{kind}{width}').astype(f'{kind}{width}')
  rows, columns = int(dataset.Rows), int(dataset.Columns)
  samples = int(dataset.get('SamplesPerPixel', 1))
  if samples == 1:
    return values.reshape(rows, columns)
  if int(dataset.get('PlanarConfiguration', 0)):
    return values.reshape(samples, rows, columns).transpose(1, 2, 0)
  return values.reshape(rows, columns, samples)


def _stored_bits(dataset: Any, raw: np.ndarray) -> np.ndarray:
  """Clears what lies above and below the stored bits, and keeps the sign."""
  allocated = raw.dtype.itemsize * 8
  stored = int(dataset.get('BitsStored', allocated))
  high = int(dataset.get('HighBit', stored - 1))
  if not 0 < stored <= allocated or not stored - 1 <= high < allocated:
    raise decoded.BadFile(
      f'states {stored} stored bits up to bit {high} of {allocated}, which no '
      'file can have'
    )
  return (raw << (allocated - 1 - high)) >> (allocated - stored)


def _of_floats(dataset: Any, number: int) -> np.ndarray:
  """Returns a frame of Float or Double Float Pixel Data."""
  name = 'FloatPixelData' if 'FloatPixelData' in dataset else (
    'DoubleFloatPixelData'
  )  # fmt: skip
  kind = '<f4' if name == 'FloatPixelData' else '<f8'
  rows, columns = int(dataset.Rows), int(dataset.Columns)
  values = np.frombuffer(dataset[name].value, kind)
  start = rows * columns * number
  if len(values) < start + rows * columns:
    raise decoded.BadFile('holds fewer pixels than its header asks for')
  part = values[start : start + rows * columns].reshape(rows, columns)
  if not np.isfinite(part).all():
    raise decoded.BadFile('holds pixels that are NaN or infinite')
  return part


def _jpeg_in_colour(dataset: Any, number: int) -> Frame:
  """Decodes a baseline JPEG by its own markers."""
  content = _encoded_frame(dataset, number)
  try:
    image = Image.open(io.BytesIO(content), formats=('JPEG',))
    decoded.check_size(*image.size)
    values = np.asarray(image.convert('RGB'))
  except (OSError, SyntaxError, ValueError) as error:
    raise decoded.BadFile(
      f'cannot be decoded (transfer syntax {_JPEG_BASELINE}): {error}'
    ) from None
  _check_shape(dataset, values)
  rules: tuple[str, ...] = ()
  tag_is_rgb = dataset.get('PhotometricInterpretation') == 'RGB'
  jpeg_is_ybr = 'jfif' in image.info or image.info.get('adobe_transform') == 1
  jpeg_is_rgb = image.info.get('adobe_transform') == 0
  if (tag_is_rgb and jpeg_is_ybr) or (not tag_is_rgb and jpeg_is_rgb):
    rules = ('colours by the JPEG, which contradicts the tag',)
  return Frame(values, values, True, rules)


def _encoded_frame(dataset: Any, number: int) -> bytes:
  from pydicom import encaps

  frames = int(dataset.get('NumberOfFrames') or 1)
  try:
    if hasattr(encaps, 'get_frame'):  # pydicom 3.
      return bytes(
        encaps.get_frame(dataset.PixelData, number, number_of_frames=frames)
      )
    found = encaps.generate_pixel_data_frame(dataset.PixelData, frames)
    for index, content in enumerate(found):
      if index == number:
        return content
  except Exception as error:  # noqa: BLE001  pydicom raises many kinds.
    raise decoded.BadFile(f'holds damaged frames: {error}') from None
  raise decoded.BadFile(f'holds no frame {number}; it is cut short')


def _check_shape(dataset: Any, values: np.ndarray) -> None:
  stated = (int(dataset.Rows), int(dataset.Columns))
  if values.shape[:2] != stated:
    raise decoded.BadFile(
      f'states {stated[0]} x {stated[1]} pixels but holds '
      f'{values.shape[0]} x {values.shape[1]}'
    )


def _by_pydicom(dataset: Any, number: int, syntax: str) -> np.ndarray:
  """Decodes a frame by the plugins of pydicom."""
  frames = int(dataset.get('NumberOfFrames') or 1)
  try:
    # Warnings of the file, and some that quote values of its header.
    with warnings_lib.catch_warnings():
      warnings_lib.simplefilter('ignore')
      values = _decode_frame(dataset, number, syntax, frames)
  except decoded.BadFile:
    raise
  except Exception as error:  # noqa: BLE001  Plugins raise many kinds.
    # Without the addresses of objects, which differ from run to run.
    reason = re.sub(r'<[^<>]* at 0x\w+>', 'it', ' '.join(str(error).split()))
    package = _PACKAGES.get(syntax)
    hint = f'; the package {package} reads it' if package else (
      '; no package that is known here reads it: convert the file'
    )  # fmt: skip
    raise decoded.BadFile(
      f'cannot be decoded (transfer syntax {syntax}{hint}): {reason[:300]}'
    ) from None
  _check_shape(dataset, values)
  return values


def _decode_frame(
  dataset: Any, number: int, syntax: str, frames: int
) -> np.ndarray:
  try:
    from pydicom import pixels
    from pydicom.pixels import get_decoder
  except ImportError:  # pydicom 2.4, which decodes all frames at once.
    decoded.check_size(
      int(dataset.Columns) * frames, int(dataset.Rows)
    ) if frames == 1 else None
    values = dataset.pixel_array
    return values[number] if frames > 1 else values
  plugin = _PLUGINS.get(syntax, '')
  if plugin:
    available = get_decoder(dataset.file_meta.TransferSyntaxUID)
    if plugin not in available.available_plugins:
      plugin = ''
  return pixels.pixel_array(
    dataset, index=number, raw=True, decoding_plugin=plugin
  )
