"""An image file of any kind to pixels in 0..1: the content decides, not the name.

>>> import tempfile, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp(), 'scan.dcm')
>>> _ = path.write_bytes(b'no image')
>>> decode(str(path), decoded.DecodingPolicy())
Traceback (most recent call last):
...
tff_medical.data.decoders.decoded.BadFile: is no image of a known kind
"""

from __future__ import annotations

import os

from tff_medical import _files
from tff_medical import _validate
from tff_medical.data.decoders import decoded
from tff_medical.data.decoders import dicom_files
from tff_medical.data.decoders import nifti_files
from tff_medical.data.decoders import raster_files

MAX_BYTES = 2**31
_START_BYTES = 2**14


def decode(
  path: str | os.PathLike[str],
  policy: decoded.DecodingPolicy,
  image_size: int | None = None,
) -> decoded.Decoded:
  """Returns the images of a file.

  Args:
    path: Path of the file; its name has no influence.
    policy: Choices that the file cannot make itself.
    image_size: Height and width that the images will be resized to, for
      `reduced_decoding`; None to decode all pixels.

  Raises:
    BadFile: The file cannot be used; the text follows its name.
    PolicyNeeded: The policy has to say more; the text follows its name.
  """
  try:
    with _files.open_regular(path) as file:
      if os.fstat(file.fileno()).st_size > MAX_BYTES:
        raise decoded.BadFile(f'has more than the {MAX_BYTES:,} bytes allowed')
      content = file.read()
  except (OSError, _validate.InputError) as error:
    reason = getattr(error, 'strerror', None) or 'no regular file'
    raise decoded.BadFile(f'cannot be read: {reason}') from None
  if not content:
    raise decoded.BadFile('is empty')
  try:
    return _decode(content, policy, image_size)
  except (decoded.BadFile, decoded.PolicyNeeded):
    raise
  except MemoryError:
    raise decoded.BadFile('needs too much memory to be decoded') from None
  except Exception as error:  # noqa: BLE001  One file must not end a run.
    # The text of the error is not shown: it may quote a header.
    raise decoded.BadFile(
      f'cannot be decoded ({type(error).__name__}); its header or its pixels are '
      'damaged'
    ) from None


def _decode(
  content: bytes, policy: decoded.DecodingPolicy, image_size: int | None
) -> decoded.Decoded:
  start = content[:_START_BYTES]
  # First: the preamble of a DICOM file may be the start of a TIFF.
  if dicom_files.has_preamble(start):
    return dicom_files.decode(content, policy)
  if raster_files.is_raster(start):
    return raster_files.decode(content, policy, image_size)
  if nifti_files.is_nifti(start):
    return nifti_files.decode(content, policy)
  if dicom_files.may_lack_preamble(start):
    return dicom_files.decode(content, policy)
  raise decoded.BadFile('is no image of a known kind')
