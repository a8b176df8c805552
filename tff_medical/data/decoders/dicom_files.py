"""DICOM files to pixels in 0..1, by one written rule for all of them.

The rule, for grey images (`dicom_values=display`):

1. Stored values: the bits of BitsStored and no others.
2. Modality: the LUT, or RescaleSlope and RescaleIntercept of the frame or else
   of the file. MR is left as stored: its slope is not of the display chain.
3. Display: the first VOI LUT; else the first window with its function (LINEAR,
   LINEAR_EXACT, SIGMOID); else, and where the window's width shows nothing,
   the range from 0.5 to 99.5 % of what is not padding.
4. MONOCHROME1 is turned over.
5. Padding (PixelPaddingValue, to PixelPaddingRangeLimit) is black.

Colour images become RGB: palettes are applied, YBR is converted. Of several
frames the policy chooses; each frame has the functional groups of its own. A
file without preamble or transfer syntax is read as what its bytes are, which is
counted as a rule. No tag that identifies anybody is read, except by
`patient_id`.

Sources: DICOM PS3.3 C.7.6.3, C.11.1, C.11.2; PS3.5 section 8.
"""

from __future__ import annotations

import io
from typing import Any
import warnings as warnings_lib

import numpy as np

from tff_medical.data.decoders import decoded
from tff_medical.data.decoders import dicom_pixels

_PREAMBLE = 128
_IMPLICIT = '1.2.840.10008.1.2'
_EXPLICIT = '1.2.840.10008.1.2.1'
_BIG_ENDIAN = '1.2.840.10008.1.2.2'
_JPEG_BASELINE = '1.2.840.10008.1.2.4.50'
_GREY = ('MONOCHROME1', 'MONOCHROME2')
# ITU-R BT.601 as PS3.3 C.7.6.3.1.2 has it.
_YBR_TO_RGB = np.array(
  [[1, 0, 1.402], [1, -0.114 * 1.772 / 0.587, -0.299 * 1.402 / 0.587], [1, 1.772, 0]],
  np.float32,
)  # fmt: skip
_PIXEL_TAGS = ('PixelData', 'FloatPixelData', 'DoubleFloatPixelData')
# Groups that a file without preamble starts with.
_FIRST_GROUPS = (b'\x02\0', b'\x08\0')


def has_preamble(start: bytes) -> bool:
  """Returns whether the first bytes, 132 or more, are those of DICOM."""
  return start[_PREAMBLE : _PREAMBLE + 4] == b'DICM'


def may_lack_preamble(start: bytes) -> bool:
  """Returns whether a file may be DICOM without its preamble."""
  if len(start) <= 16:
    return False
  # A first element of a low number, in either byte order.
  little = start[:2] in _FIRST_GROUPS and start[3] == 0
  return little or (start[1::-1] in _FIRST_GROUPS and start[2] == 0)


def patient_id(path: str) -> str:
  """Returns issuer and number of the patient of a file, '' if it has none.

  Args:
    path: Path of the file.

  Raises:
    BadFile: The file is not DICOM.
  """
  pydicom = dicom_pixels.import_pydicom()
  try:
    with warnings_lib.catch_warnings():
      warnings_lib.simplefilter('ignore')
      dataset = pydicom.dcmread(
        path,
        force=True,
        stop_before_pixels=True,
        specific_tags=['PatientID', 'IssuerOfPatientID', 'SOPClassUID'],
      )
      number = str(dataset.get('PatientID') or '').strip()
      issuer = str(dataset.get('IssuerOfPatientID') or '').strip()
  except Exception:  # noqa: BLE001  pydicom raises many kinds.
    raise decoded.BadFile('cannot be read as DICOM') from None
  return f'{issuer}\0{number}' if issuer and number else number


def decode(content: bytes, policy: decoded.DecodingPolicy) -> decoded.Decoded:
  """Returns the images of a DICOM file; see the module for the rule.

  Args:
    content: All bytes of the file.
    policy: Choice of the frames, and of the values that are shown.

  Raises:
    BadFile: The file is damaged, too large or holds no pixels.
    PolicyNeeded: The policy has to say more.
  """
  # Warnings of pydicom quote the header, which may name the patient.
  with warnings_lib.catch_warnings():
    warnings_lib.simplefilter('ignore')
    return _decoded(*_read(content), policy)


def _decoded(
  dataset: Any, rules: list[str], policy: decoded.DecodingPolicy
) -> decoded.Decoded:
  _check(dataset)
  count = dicom_pixels.count(dataset) if 'PixelData' in dataset else int(
    dataset.get('NumberOfFrames') or 1
  )  # fmt: skip
  images: list[np.ndarray] = []
  bounds: list[tuple[float, float]] = []
  for number in decoded.choose_frames('frames', policy, count):
    frame = dicom_pixels.frame(dataset, number)
    rules += list(frame.rules)
    if frame.values.ndim == 3:
      images.append(_colour(dataset, frame, rules))
    elif dataset.get('PhotometricInterpretation') == 'PALETTE COLOR':
      images.append(_palette(dataset, frame.values, rules))
    else:
      pixels, low, high = _grey(dataset, frame, number, policy, rules)
      images.append(pixels[..., np.newaxis])
      bounds.append((low, high))
  return decoded.Decoded(
    tuple(images),
    tuple(dict.fromkeys(rules)),
    tuple(_warnings(dataset, rules)),
    (min(b[0] for b in bounds), max(b[1] for b in bounds)) if bounds else None,
  )


def _read(content: bytes) -> tuple[Any, list[str]]:
  """Parses a file, with a transfer syntax where it states none."""
  pydicom = dicom_pixels.import_pydicom()
  rules: list[str] = []
  try:
    dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    meta = getattr(dataset, 'file_meta', None)
    if meta is None:
      dataset.file_meta = meta = pydicom.dataset.FileMetaDataset()
    if 'TransferSyntaxUID' not in meta:
      meta.TransferSyntaxUID = pydicom.uid.UID(_guessed_syntax(dataset))
      rules.append('transfer syntax assumed')
    # Elements are parsed when first asked for: that must not fail later.
    for name in ('Rows', 'Columns', 'BitsAllocated', *_PIXEL_TAGS):
      dataset.get(name)
  except Exception as error:  # noqa: BLE001  pydicom raises many kinds.
    raise decoded.BadFile(
      f'cannot be read as DICOM ({type(error).__name__}); it is damaged or cut '
      'short'
    ) from None
  if not has_preamble(content):
    rules.append('no preamble')
  return dataset, rules


def _guessed_syntax(dataset: Any) -> str:
  """Returns the syntax that the bytes were parsed as."""
  if dataset.get('PixelData', b'')[:4] == b'\xfe\xff\x00\xe0':
    return _JPEG_BASELINE  # Encapsulated; its first item is the offset table.
  # pydicom 3 deprecates the attribute that pydicom 2.4 has alone.
  encoding = getattr(dataset, 'original_encoding', None)
  is_implicit, is_little = (
    encoding
    if encoding
    else (
      dataset.is_implicit_VR,
      dataset.is_little_endian,
    )
  )
  if not is_little:
    return _BIG_ENDIAN
  return _IMPLICIT if is_implicit else _EXPLICIT


def _check(dataset: Any) -> None:
  """Refuses by its header a file that holds no image or too large a one."""
  if not any(name in dataset for name in _PIXEL_TAGS):
    raise decoded.BadFile('holds no pixel data')
  try:
    decoded.check_size(int(dataset.Columns), int(dataset.Rows))
    samples = int(dataset.get('SamplesPerPixel', 1))
    int(dataset.BitsAllocated)
    int(dataset.get('NumberOfFrames') or 1)
  except (AttributeError, TypeError, ValueError):
    raise decoded.BadFile(
      'does not state its rows, columns and bits as numbers'
    ) from None
  if samples not in (1, 3):
    raise decoded.BadFile(f'has {samples} samples a pixel; 1 or 3 are read')


def _warnings(dataset: Any, rules: list[str]) -> list[str]:
  """Returns sentences for whoever prepares the images."""
  warnings = []
  if str(dataset.get('BurnedInAnnotation', '')).upper() == 'YES':
    warnings.append(
      'BurnedInAnnotation is YES: the pixels may name the patient'
    )
  elif _may_hold_text(dataset):
    warnings.append('burned-in text is usual for such images; look at some')
  if _NO_USABLE_WINDOW in rules:
    warnings.append('its window shows nothing and was not used')
  return warnings


def _may_hold_text(dataset: Any) -> bool:
  image_types = [str(text).upper() for text in dataset.get('ImageType') or ()]
  is_saved = any('SAVE' in text for text in image_types)
  return is_saved or dataset.get('Modality') in ('US', 'SC')


def _colour(
  dataset: Any, frame: dicom_pixels.Frame, rules: list[str]
) -> np.ndarray:
  """Returns RGB in 0..1."""
  values = frame.values
  photometric = str(dataset.get('PhotometricInterpretation', 'RGB'))
  top = 2 ** int(dataset.get('BitsStored', 8)) - 1
  rules.append(f'{photometric} of {int(dataset.get("BitsStored", 8))} bits')
  part = values.astype(np.float32) / np.float32(top)
  if not frame.is_rgb and photometric.startswith('YBR_FULL'):
    half = np.float32((top + 1) / 2 / top)
    part = (part - np.array([0, half, half], np.float32)) @ _YBR_TO_RGB.T
  return np.clip(part, 0, 1)


def _palette(dataset: Any, values: np.ndarray, rules: list[str]) -> np.ndarray:
  """Returns the colours of a palette in 0..1."""
  rules.append('palette')
  channels = []
  for colour in ('Red', 'Green', 'Blue'):
    name = f'{colour}PaletteColorLookupTable'
    table = _table(
      dataset,
      dataset.get(f'{name}Descriptor'),
      dataset.get(f'{name}Data'),
      name,
    )
    channels.append(table.of(values) / np.float32(table.top))
  return np.stack(channels, axis=-1).astype(np.float32)


class _Table:
  """A look-up table of PS3.3 C.11.1.1.

  Attributes:
    entries: float32 [n].
    first: Value that the first entry stands for.
    top: Largest value that an entry may have.
  """

  def __init__(self, entries: np.ndarray, first: int, top: int):
    self.entries, self.first, self.top = entries, first, top

  def of(self, values: np.ndarray) -> np.ndarray:
    index = np.clip(
      np.rint(values).astype(np.int64) - self.first, 0, len(self.entries) - 1
    )
    return self.entries[index]


def _table(dataset: Any, descriptor: Any, data: Any, name: str) -> _Table:
  if descriptor is None or data is None or len(descriptor) != 3:
    raise decoded.BadFile(f'lacks its look-up table ({name})')
  count, first, bits = (int(value) for value in descriptor)
  count = count or 65536
  if first > 32767 and int(dataset.get('PixelRepresentation', 0)):
    first -= 65536
  if isinstance(data, bytes):
    width = 1 if len(data) < 2 * count else 2
    order = '>' if str(dataset.file_meta.TransferSyntaxUID).endswith('.2.2') else (
      '<'
    )  # fmt: skip
    entries = np.frombuffer(data, f'{order}u{width}')
  else:
    entries = np.asarray(data, np.int64).reshape(-1) & 0xFFFF
  entries = entries[:count]
  if len(entries) < count or not 0 < bits <= 16:
    raise decoded.BadFile(f'has a look-up table that is cut short ({name})')
  # The bits may be stated as 16 where entries have 8, and the other way round.
  top = 2**bits - 1
  if entries.max() > top or (bits == 16 and entries.max() < 256):
    top = 2 ** max(8, int(entries.max()).bit_length()) - 1
  return _Table(entries.astype(np.float32), first, top)


def _groups(dataset: Any, number: int, name: str) -> Any:
  """Returns the functional group of a frame, else the one of all, else {}."""
  per_frame = dataset.get('PerFrameFunctionalGroupsSequence') or ()
  shared = dataset.get('SharedFunctionalGroupsSequence') or ()
  for group in (*per_frame[number : number + 1], *shared[:1]):
    items = group.get(name)
    if items:
      return items[0]
  return {}


def _grey(
  dataset: Any,
  frame: dicom_pixels.Frame,
  number: int,
  policy: decoded.DecodingPolicy,
  rules: list[str],
) -> tuple[np.ndarray, float, float]:
  """Returns a grey frame in 0..1, and its least and largest real value."""
  padding = _padding(dataset, frame.raw)
  shown = frame.values[~padding]
  if policy.dicom_values == 'stored':
    rules.append('stored values')
    pixels = _over_all_bits(dataset, frame.values)
    real = frame.values.astype(np.float64)
  else:
    real = _modality(dataset, frame.values, number, policy, rules)
    if policy.dicom_values == 'hu':
      rules.append('given value_range')
      low, high = policy.value_range or (0.0, 1.0)
      pixels = decoded.scaled(real, low, high)
    else:
      pixels = _display(dataset, real, real[~padding], number, rules)
  if dataset.get('PhotometricInterpretation') == 'MONOCHROME1':
    rules.append('MONOCHROME1')
    pixels = 1 - pixels
  if padding.any():
    rules.append('padding')
    pixels[padding] = 0
  real = real[~padding] if shown.size else real
  return pixels.astype(np.float32), float(real.min()), float(real.max())


def _padding(dataset: Any, raw: np.ndarray) -> np.ndarray:
  """Returns whether each pixel is padding, bool [H, W]."""
  value = dataset.get('PixelPaddingValue')
  if value is None or raw.dtype.kind == 'f':
    return np.zeros(raw.shape, bool)
  ends = [int(value), int(dataset.get('PixelPaddingRangeLimit') or value)]
  if dataset.get('PixelPaddingRangeLimit') == 0:
    ends[1] = 0
  # Either end may be stated with the sign of the pixels or without.
  size = raw.dtype.itemsize * 8
  wrapped = [np.array(end & (2**size - 1), f'u{size // 8}') for end in ends]
  low, high = sorted(int(end.astype(raw.dtype)) for end in wrapped)
  return (raw >= low) & (raw <= high)


def _over_all_bits(dataset: Any, values: np.ndarray) -> np.ndarray:
  bits = int(dataset.get('BitsStored', dataset.BitsAllocated))
  low = -(2 ** (bits - 1)) if values.dtype.kind == 'i' else 0
  return decoded.scaled(values, low, low + 2**bits - 1)


def _modality(
  dataset: Any,
  values: np.ndarray,
  number: int,
  policy: decoded.DecodingPolicy,
  rules: list[str],
) -> np.ndarray:
  """Returns the values that the modality's LUT or rescaling gives."""
  is_mr = dataset.get('Modality') == 'MR' and policy.dicom_values == 'display'
  real = values.astype(np.float64)
  if is_mr:
    return real
  tables = dataset.get('ModalityLUTSequence')
  if tables:
    rules.append('modality LUT')
    item = tables[0]
    return (
      _table(
        dataset, item.get('LUTDescriptor'), item.get('LUTData'), 'modality'
      )
      .of(values)
      .astype(np.float64)
    )
  group = (
    _groups(dataset, number, 'PixelValueTransformationSequence') or dataset
  )
  slope, intercept = group.get('RescaleSlope'), group.get('RescaleIntercept')
  if slope is None and intercept is None:
    return real
  slope = 1.0 if slope is None else _number(slope)
  intercept = 0.0 if intercept is None else _number(intercept)
  if not np.isfinite(slope) or not np.isfinite(intercept) or slope == 0:
    rules.append('unusable rescale ignored')
    return real
  rules.append('rescaled')
  return real * slope + intercept


_NO_USABLE_WINDOW = 'unusable window ignored'


def _display(
  dataset: Any,
  real: np.ndarray,
  shown: np.ndarray,
  number: int,
  rules: list[str],
) -> np.ndarray:
  """Returns real values as they are shown, in 0..1."""
  group = _groups(dataset, number, 'FrameVOILUTSequence') or dataset
  tables = group.get('VOILUTSequence') or dataset.get('VOILUTSequence')
  if tables:
    rules.append('VOI LUT')
    item = tables[0]
    table = _table(
      dataset, item.get('LUTDescriptor'), item.get('LUTData'), 'VOI'
    )
    return table.of(real) / np.float32(table.top)
  centre, width = (_first(group.get(f'Window{n}')) for n in ('Center', 'Width'))
  if centre is not None and width is not None:
    function = str(group.get('VOILUTFunction') or 'LINEAR').upper()
    # At a width of 1 LINEAR divides by 0.
    least = 1.0 if function not in ('LINEAR_EXACT', 'SIGMOID') else 0.0
    if np.isfinite(centre) and np.isfinite(width) and width > least:
      rules.append(f'window {function}')
      return _window(real, centre, width, function)
    rules.append(_NO_USABLE_WINDOW)
  rules.append('no window: 0.5 to 99.5 %')
  return decoded.scaled(
    real, *decoded.robust_range(shown if shown.size else real)
  )


def _window(
  real: np.ndarray, centre: float, width: float, function: str
) -> np.ndarray:
  """Returns the window of PS3.3 C.11.2.1.2 and C.11.2.1.3, to 0..1."""
  if function == 'SIGMOID':
    power = np.clip(-4 * (real - centre) / width, -500, 500)
    return 1 / (1 + np.exp(power))
  if function == 'LINEAR_EXACT':
    return np.clip((real - centre) / width + 0.5, 0, 1)
  return np.clip((real - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _first(value: Any) -> float | None:
  """Returns the first of one or several numbers, or None."""
  if value is None or value == '':
    return None
  if not isinstance(value, (str, bytes)) and hasattr(value, '__len__'):
    if not len(value):
      return None
    value = value[0]
  return _number(value)


def _number(value: Any) -> float:
  try:
    return float(value)
  except (TypeError, ValueError):
    return float('nan')
