"""An image file of any kind to pixels in 0..1: the content decides, not the name.

>>> import tempfile, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp(), 'scan.dcm')
>>> _ = path.write_bytes(b'no image')
>>> decode(str(path), decoded.DecodingPolicy())
Traceback (most recent call last):
...
tff_medical.data.decoded.BadFile: is no image of a known kind
"""

from __future__ import annotations

import os

from tff_medical import _files
from tff_medical import _validate
from tff_medical.data import decoded
from tff_medical.data import dicom_files
from tff_medical.data import nifti_files
from tff_medical.data import raster_files

MAX_BYTES = 2**31
_START_BYTES = 2**14


def decode(
  path: str | os.PathLike[str], policy: decoded.DecodingPolicy
) -> decoded.Decoded:
  """Returns the images of a file.

  Args:
    path: The file; its name is not looked at.
    policy: The choices that the file cannot make.

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
  start = content[:_START_BYTES]
  if raster_files.is_raster(start):
    return raster_files.decode(content, policy)
  if nifti_files.is_nifti(start):
    return nifti_files.decode(content, policy)
  if dicom_files.is_dicom(start):
    return dicom_files.decode(content, policy)
  raise decoded.BadFile('is no image of a known kind')
