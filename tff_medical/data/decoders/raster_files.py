"""PNG, JPEG, TIFF and other plain image files to pixels in 0..1.

The content of a file decides how it is read, never its name. What a viewer
shows is what is returned: palettes and CMYK become RGB, the EXIF orientation is
applied, alpha is dropped without a background. 16-bit files keep their range.
Half a file is refused, as is a file whose header claims too many pixels.
Floating-point TIFF has no range of its own: the policy must give one. By
`reduced_decoding` a JPEG that is far larger than needed is decoded at a fraction
of its size, as `serving.encoded_images` does it.

Sources: PNG (ISO/IEC 15948), TIFF 6.0, Exif (CIPA DC-008).
"""

from __future__ import annotations

import io
import logging
from typing import Any
import warnings as warnings_lib

import numpy as np
from PIL import Image
from PIL import ImageOps

from tff_medical.data.decoders import decoded

_TIFF_STARTS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
_PILLOW_STARTS = (
  b'\x89PNG\r\n\x1a\n',
  b'\xff\xd8\xff',
  b'BM',
  b'GIF87a',
  b'GIF89a',
  b'\0\0\0\x0cjP  \r\n\x87\n',
  b'\xff\x4f\xff\x51',
)
_FORMATS = ('PNG', 'JPEG', 'TIFF', 'BMP', 'GIF', 'WEBP', 'JPEG2000')
_JPEG_FORMATS = ('JPEG', 'MPO')
_GREY_MODES = ('1', 'L', 'LA', 'La')
_ORIENTATION_TAG = 274


def is_raster(start: bytes) -> bool:
  """Returns whether the first bytes are those of a file read here."""
  is_webp = start[:4] == b'RIFF' and start[8:12] == b'WEBP'
  return is_webp or start.startswith(_PILLOW_STARTS + _TIFF_STARTS)


def decode(
  content: bytes,
  policy: decoded.DecodingPolicy,
  image_size: int | None = None,
) -> decoded.Decoded:
  """Returns the images of a file.

  Args:
    content: All bytes of the file.
    policy: Choice of the pages, and the range of floating-point values.
    image_size: Height and width that the images will be resized to, or None.

  Raises:
    BadFile: The file is damaged, too large or of a kind that is not read.
    PolicyNeeded: The policy has to say more.
  """
  if content.startswith(_TIFF_STARTS):
    return _decode_tiff(content, policy)
  image = _open(content)
  count = 1 if image.format == 'MPO' else getattr(image, 'n_frames', 1)
  # The first image of an animated PNG or WebP is its still image.
  if image.format != 'GIF':
    count = 1
  if not policy.reduced_decoding or image.format not in _JPEG_FORMATS:
    image_size = None
  return _together(
    [
      _of_pillow(_seek(image, number), image_size)
      for number in decoded.choose_frames('frames', policy, count)
    ]
  )


def _open(content: bytes) -> Image.Image:
  """Opens a file without decoding it; refuses it by its header."""
  Image.init()  # Or some formats would be unknown to `open`.
  try:
    with warnings_lib.catch_warnings():
      warnings_lib.simplefilter('ignore', Image.DecompressionBombWarning)
      image = Image.open(io.BytesIO(content), formats=_FORMATS)
  except Image.DecompressionBombError:
    raise decoded.BadFile(
      f'is larger than the {decoded.MAX_PIXELS:,} pixels allowed; make it '
      'smaller'
    ) from None
  except (OSError, SyntaxError, ValueError, TypeError, EOFError):
    raise decoded.BadFile(
      'cannot be decoded: its header is damaged or cut short'
    ) from None
  decoded.check_size(*image.size)
  return image


def _seek(image: Image.Image, number: int) -> Image.Image:
  try:
    image.seek(number)
  except (EOFError, OSError, ValueError):
    raise decoded.BadFile(f'has no image {number}; it is cut short') from None
  return image


def _of_pillow(
  image: Image.Image, image_size: int | None = None
) -> decoded.Decoded:
  """Decodes, turns upright, and converts to grey or RGB in 0..1.

  Args:
    image: Opened, of no pixel decoded.
    image_size: Height and width of what is made of a JPEG, to decode it at a
      fraction of its size; None to decode all pixels.
  """
  width, height = image.size
  divisor = decoded.reduction(height, width, image_size) if image_size else 1
  try:
    if divisor > 1:
      # The largest fraction that is not below this size.
      image.draft(None, (width // divisor, height // divisor))
    # A palette's transparency as bytes makes Pillow warn when converting.
    with warnings_lib.catch_warnings():
      warnings_lib.simplefilter('ignore')
      image.load()
      upright = ImageOps.exif_transpose(image)
      pixels = _pixels(upright)
  except (
    OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, MemoryError,
  ) as error:  # fmt: skip
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise decoded.BadFile(f'cannot be decoded: {reason}') from None
  if pixels.ndim == 2:
    pixels = pixels[..., np.newaxis]
  values, warnings = decoded.of_integers(pixels)
  rules = [f'{image.format} {pixels.dtype.itemsize * 8} bits']
  if divisor > 1:
    rules.append(f'decoded at 1/{divisor} of its size')
  if image.mode in ('P', 'PA', 'CMYK', 'YCCK'):
    rules.append(f'{image.mode} to RGB')
  if upright.size != image.size or _is_turned(image):
    rules.append('turned as EXIF says')
  is_on_its_side = upright.size != image.size
  size = (width, height) if is_on_its_side else (height, width)
  return decoded.Decoded((values,), tuple(rules), warnings, sizes=(size,))


def _pixels(image: Image.Image) -> np.ndarray:
  """Returns uint8 or uint16 [H, W] or [H, W, 3]."""
  if image.mode.startswith('I;16'):
    array = np.asarray(image)
    return array.astype(np.uint16)
  if image.mode == 'I':  # A 16-bit PNG of older versions of Pillow.
    return np.asarray(image).clip(0, 65535).astype(np.uint16)
  if image.mode == 'F':
    raise ValueError('it holds floating-point values; save it as TIFF')
  return np.asarray(image.convert('L' if image.mode in _GREY_MODES else 'RGB'))


def _is_turned(image: Image.Image) -> bool:
  try:
    return image.getexif().get(_ORIENTATION_TAG, 1) in range(2, 9)
  except (OSError, SyntaxError, ValueError, TypeError):
    return False


def _together(parts: list[decoded.Decoded]) -> decoded.Decoded:
  """Returns one result of several images of one file."""
  return decoded.Decoded(
    images=tuple(image for part in parts for image in part.images),
    rules=tuple(dict.fromkeys(r for part in parts for r in part.rules)),
    warnings=tuple(dict.fromkeys(w for part in parts for w in part.warnings)),
    value_range=parts[0].value_range,
    sizes=tuple(size for part in parts for size in part.original_sizes),
  )


def _decode_tiff(
  content: bytes, policy: decoded.DecodingPolicy
) -> decoded.Decoded:
  tifffile = _tifffile()
  try:
    # It logs what it finds in damaged files.
    logging.getLogger('tifffile').setLevel(logging.CRITICAL)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
      if file.is_svs or file.is_ndpi or file.is_scn or file.is_bif:
        raise decoded.BadFile(_WHOLE_SLIDE)
      pages = [page for page in file.pages if not page.is_reduced]
      if not pages:
        raise decoded.BadFile('holds no page')
      tiled = [page for page in pages if page.is_tiled]
      sizes = {page.shape for page in file.pages}
      is_pyramid = len(sizes) > 2 or any(page.subifds for page in tiled)
      if tiled and (is_pyramid or _is_large(tiled[0])):
        raise decoded.BadFile(_WHOLE_SLIDE)
      numbers = decoded.choose_frames('pages', policy, len(pages))
      return _together([_of_page(content, pages[i], policy) for i in numbers])
  except (decoded.BadFile, decoded.PolicyNeeded):
    raise
  except Exception as error:  # noqa: BLE001  tifffile raises many kinds.
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise decoded.BadFile(f'cannot be decoded: {reason}') from None


_WHOLE_SLIDE = (
  'is a whole-slide image (a tiled pyramid); cut it into tiles first'
)


def _tifffile() -> Any:
  try:
    import tifffile
  except ModuleNotFoundError:
    raise decoded.PolicyNeeded(
      'is a TIFF, which needs the package tifffile; install requirements.txt'
    ) from None
  return tifffile


def _is_large(page: Any) -> bool:
  return page.imagewidth * page.imagelength > decoded.MAX_PIXELS


def _of_page(
  content: bytes, page: Any, policy: decoded.DecodingPolicy
) -> decoded.Decoded:
  """Decodes a page of a TIFF."""
  decoded.check_size(page.imagewidth, page.imagelength)
  photometric = page.photometric.name
  if photometric in ('YCBCR', 'SEPARATED', 'CIELAB'):
    return _of_pillow(_seek(_open(content), page.index))
  try:
    array = page.asarray()
  except ValueError as error:
    if 'imagecodecs' not in str(error):
      raise
    return _without_imagecodecs(content, page)
  array = _channels_last(page, array)
  warnings: tuple[str, ...] = ()
  rules = [f'TIFF {array.dtype.itemsize * 8} bits']
  if photometric == 'PALETTE':
    # A colour map is of 16 bits, [3, 2 ** bits].
    array = np.moveaxis(np.asarray(page.colormap)[:, array[..., 0]], 0, -1)
    array = array.astype(np.uint16)
    rules.append('P to RGB')
  bounds = None
  if array.dtype == bool:
    values = array.astype(np.float32)
  elif array.dtype.kind == 'u' and array.dtype.itemsize <= 2:
    values, warnings = _of_bits(page, array)
  else:
    values, warnings, bounds = _in_range(array, policy)
    rules.append('given value_range')
  if photometric == 'MINISWHITE':
    values = 1 - values
    rules.append('white is 0')
  turn = page.tags.get(_ORIENTATION_TAG)
  if turn is not None and int(turn.value) in range(2, 9):
    values = _turned(values, int(turn.value))
    rules.append('turned as EXIF says')
  return decoded.Decoded((values,), tuple(rules), warnings, bounds)


def _of_bits(
  page: Any, array: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Returns integers over the range of the bits that a page states."""
  bits = int(page.bitspersample) if page.photometric.name != 'PALETTE' else 16
  if bits in (8, 16):
    return decoded.of_integers(array)
  top = np.float32(2**bits - 1)
  return np.clip(array.astype(np.float32) / top, 0, 1), ()


def _without_imagecodecs(content: bytes, page: Any) -> decoded.Decoded:
  """Decodes by Pillow what tifffile needs another package for."""
  if page.samplesperpixel > 1 and page.bitspersample != 8:
    raise decoded.BadFile(
      f'is compressed by {page.compression.name} with '
      f'{page.bitspersample} bits a channel, which needs the package imagecodecs; '
      'install it, or save the file without compression'
    )
  image = _seek(_open(content), page.index)
  if image.mode == 'F' or page.dtype is None or page.dtype.kind != 'u':
    raise decoded.BadFile(
      f'is compressed by {page.compression.name}, which needs the package '
      'imagecodecs for values of this kind; install it, or save the file without '
      'compression'
    )
  return _of_pillow(image)


def _channels_last(page: Any, array: np.ndarray) -> np.ndarray:
  """Returns [H, W, 1] or [H, W, 3], without alpha."""
  axes = page.axes
  if axes == 'YX':
    return array[..., np.newaxis]
  if axes == 'SYX':
    array = np.moveaxis(array, 0, -1)
  elif axes != 'YXS':
    raise decoded.BadFile(f'has the axes {axes}, of which no image is made')
  return array[..., :3] if array.shape[2] >= 3 else array[..., :1]


def _in_range(
  array: np.ndarray, policy: decoded.DecodingPolicy
) -> tuple[np.ndarray, tuple[str, ...], tuple[float, float]]:
  """Scales values that have no range of their own."""
  if policy.value_range is None:
    raise decoded.PolicyNeeded(
      f'holds {array.dtype.name} values, which have no range of their own; give '
      'the values that are black and white: --value_range=LOW,HIGH'
    )
  finite = np.isfinite(array)
  if not finite.any():
    raise decoded.BadFile('holds no finite value')
  low, high = policy.value_range
  filled = np.where(finite, array, low)
  warnings = (
    () if finite.all() else ('holds NaN or infinite values, made black',)
  )
  bounds = (float(array[finite].min()), float(array[finite].max()))
  return decoded.scaled(filled, low, high), warnings, bounds


def _turned(values: np.ndarray, orientation: int) -> np.ndarray:
  """Turns [H, W, C] as Exif's orientation 2 to 8 asks."""
  if orientation >= 5:
    values = values.transpose(1, 0, 2)
  if orientation in (2, 3, 6, 7):
    values = values[:, ::-1]
  return values[::-1] if orientation in (3, 4, 7, 8) else values
