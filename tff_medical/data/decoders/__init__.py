"""Image files of any kind to pixels, in processes that may die."""

from __future__ import annotations

import typing

from tff_medical import _lazy

__all__ = [
  'decoded',
  'decoding',
  'decoding_pool',
  'decoding_worker',
  'dicom_files',
  'dicom_pixels',
  'nifti_files',
  'raster_files',
  'resizing',
]

if typing.TYPE_CHECKING:
  from tff_medical.data.decoders import decoded as decoded
  from tff_medical.data.decoders import decoding as decoding
  from tff_medical.data.decoders import decoding_pool as decoding_pool
  from tff_medical.data.decoders import decoding_worker as decoding_worker
  from tff_medical.data.decoders import dicom_files as dicom_files
  from tff_medical.data.decoders import dicom_pixels as dicom_pixels
  from tff_medical.data.decoders import nifti_files as nifti_files
  from tff_medical.data.decoders import raster_files as raster_files
  from tff_medical.data.decoders import resizing as resizing
else:  # A __getattr__ that type checkers see would allow any name.
  __getattr__, __dir__ = _lazy.attach(__name__, __all__)
