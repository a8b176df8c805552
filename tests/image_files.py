"""Image files made by hand: PNG chunks, JPEG segments and Exif data."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

PNG_START = b'\x89PNG\r\n\x1a\n'
# Adam7: first row, first column, and steps between them, of each pass.
_ADAM7 = (
  (0, 0, 8, 8),
  (0, 4, 8, 8),
  (4, 0, 8, 4),
  (0, 2, 4, 4),
  (2, 0, 4, 2),
  (0, 1, 2, 2),
  (1, 0, 2, 1),
)


def pixels(*shape, dtype=np.uint8):
  """Returns random pixels of the shape, the same ones each time."""
  high = np.iinfo(dtype).max
  rng = np.random.default_rng(0)
  return rng.integers(0, high, shape, dtype=dtype, endpoint=True)


def smooth(height, width):
  """Returns an RGB image without any symmetry, which JPEG keeps well."""
  y, x = np.mgrid[:height, :width] / max(height, width)
  channels = (40 + 180 * x, 40 + 180 * y, 200 - 150 * x * y)
  return np.stack(channels, -1).astype(np.uint8)


def saved(array, kind, mode=None, **options):
  """Returns the bytes that Pillow writes."""
  image = Image.fromarray(array)
  stream = io.BytesIO()
  (image.convert(mode) if mode else image).save(stream, kind, **options)
  return stream.getvalue()


def chunk(kind, content=b'', crc=None):
  """Returns a PNG chunk."""
  crc = zlib.crc32(kind + content) if crc is None else crc
  return (
    struct.pack('>I', len(content)) + kind + content + struct.pack('>I', crc)
  )


def header(width, height, depth=8, colour=0, interlace=0, rest=(0, 0)):
  """Returns the IHDR chunk."""
  values = (width, height, depth, colour, *rest, interlace)
  return chunk(b'IHDR', struct.pack('>IIBBBBB', *values))


def png(first, *chunks, rows=None, last=True):
  """Returns a PNG of a header, chunks, grey rows and an end."""
  data = b''
  if rows is not None:
    data = chunk(b'IDAT', zlib.compress(rows))
  end = chunk(b'IEND') if last else b''
  return PNG_START + first + b''.join(chunks) + data + end


def grey_rows(array):
  """Returns the rows of uint8 [h, w] as PNG filters them: not at all."""
  return b''.join(b'\0' + row.tobytes() for row in array)


def grey_png(array, *chunks):
  """Returns a PNG of uint8 [h, w] with these chunks before the pixels."""
  height, width = array.shape
  return png(header(width, height), *chunks, rows=grey_rows(array))


def interlaced_png(array):
  """Returns an Adam7 PNG of uint8 [h, w]."""
  height, width = array.shape
  rows = b''.join(
    grey_rows(np.ascontiguousarray(array[y::dy, x::dx]))
    for y, x, dy, dx in _ADAM7
  )
  return png(header(width, height, interlace=1), rows=rows)


def exif(orientation, order='<', kind=3, count=1, tag=0x0112, before=()):
  """Returns Exif data (from its byte order on) that states an orientation."""
  value = struct.pack(order + ('HH' if kind in (3, 8) else 'I'), orientation,
                      *([0] if kind in (3, 8) else []))  # fmt: skip
  entries = [*before, struct.pack(order + 'HHI', tag, kind, count) + value]
  start = b'II' if order == '<' else b'MM'
  return (
    start
    + struct.pack(order + 'HIH', 42, 8, len(entries))
    + b''.join(entries)
    + struct.pack(order + 'I', 0)
  )


def segment(marker, content, length=None):
  """Returns a JPEG segment."""
  length = len(content) + 2 if length is None else length
  return struct.pack('>BBH', 0xFF, marker, length) + content


def with_segments(jpeg, *segments):
  """Returns the JPEG with segments put after its start."""
  return jpeg[:2] + b''.join(segments) + jpeg[2:]


def exif_segment(data):
  """Returns the APP1 segment of Exif data."""
  return segment(0xE1, b'Exif\0\0' + data)


def with_size(jpeg, width, height):
  """Returns the JPEG with another size in its frame header."""
  place = next(
    i
    for i in range(2, len(jpeg) - 1)
    if jpeg[i] == 0xFF and jpeg[i + 1] in (0xC0, 0xC1, 0xC2)
  )
  size = struct.pack('>HH', height, width)
  return jpeg[: place + 5] + size + jpeg[place + 9 :]
