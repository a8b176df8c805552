"""DICOM files for tests, written with pydicom."""

import io

import numpy as np
import pydicom
from pydicom import dataset as dataset_lib
from pydicom import uid

SECONDARY_CAPTURE = '1.2.840.10008.5.1.4.1.1.7'


def content(values, *, stored=None, syntax=uid.ExplicitVRLittleEndian, **tags):
  """Returns the bytes of a file with native pixels.

  Args:
    values: Integers [H, W] or [F, H, W], or uint8 [H, W, 3] if
      SamplesPerPixel=3 is given.
    stored: BitsStored; all bits if None.
    syntax: The transfer syntax, little endian.
    **tags: What else the header says.
  """
  dataset = dataset_lib.Dataset()
  dataset.SOPClassUID = SECONDARY_CAPTURE
  dataset.SOPInstanceUID = uid.generate_uid()
  samples = tags.get('SamplesPerPixel', 1)
  frames = values.shape[0] if values.ndim == 3 and samples == 1 else 1
  dataset.SamplesPerPixel = samples
  dataset.PhotometricInterpretation = 'MONOCHROME2'
  dataset.Rows, dataset.Columns = (
    values.shape[:2] if frames == 1 and values.ndim != 3 or samples == 3
    else values.shape[1:3]
  )  # fmt: skip
  if frames > 1:
    dataset.NumberOfFrames = frames
  dataset.BitsAllocated = values.dtype.itemsize * 8
  dataset.BitsStored = stored or dataset.BitsAllocated
  dataset.HighBit = dataset.BitsStored - 1
  dataset.PixelRepresentation = int(values.dtype.kind == 'i')
  for name, value in tags.items():
    setattr(dataset, name, value)
  data = np.ascontiguousarray(values).tobytes()
  dataset.PixelData = data + b'\0' * (len(data) % 2)
  dataset['PixelData'].VR = 'OB' if dataset.BitsAllocated == 8 else 'OW'
  meta = dataset_lib.FileMetaDataset()
  meta.TransferSyntaxUID = syntax
  meta.MediaStorageSOPClassUID = dataset.SOPClassUID
  meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
  dataset.file_meta = meta
  dataset.is_little_endian = True
  dataset.is_implicit_VR = syntax == uid.ImplicitVRLittleEndian
  dataset.preamble = b'\0' * 128
  file = io.BytesIO()
  pydicom.dcmwrite(file, dataset)
  return file.getvalue()
