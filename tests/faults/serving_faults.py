"""What an exported model answers to requests with malformed images.

    python -m tests.faults.serving_faults --requests=5000

Every request must end in an answer or in an error that names the image and the
reason, and the memory must stay flat.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import dataclasses
import itertools
import os
import pathlib
import random
import re
import struct
import sys
import tempfile
import zlib

import numpy as np
import tensorflow as tf

from tests import image_files
from tff_medical import models
from tff_medical.privacy import card_format
from tff_medical.serving import encoded_images
from tff_medical.serving import export

_SIDE = 12
_SHAPE = (28, 28, 1)
# Of the 5000 requests, how many warm the memory up before it is measured.
_WARM_UP = 0.2


@dataclasses.dataclass
class Result:
  """What became of the requests.

  Attributes:
    tried: Requests sent.
    answered: Those of good images that were answered as such.
    refused: Those with a malformed image whose error names it and says why.
    lost: What became of the others, one line each.
    growth_mib: By how much the memory grew after the first fifth.
  """

  tried: int = 0
  answered: int = 0
  refused: int = 0
  lost: list[str] = dataclasses.field(default_factory=list)
  growth_mib: float = 0.0

  @property
  def survived(self) -> int:
    """Requests that ended as they should."""
    return self.answered + self.refused


def good_images() -> dict[str, bytes]:
  """Returns an image of each kind that can be served, by name."""
  grey = image_files.smooth(_SIDE, _SIDE)[..., 0]
  colour = image_files.smooth(_SIDE, _SIDE)
  alpha = np.concatenate([colour, grey[..., np.newaxis]], axis=-1)
  files = {
    'png_grey': image_files.saved(grey, 'png'),
    'png_grey_alpha': image_files.saved(grey, 'png', mode='LA'),
    'png_rgb': image_files.saved(colour, 'png'),
    'png_rgba': image_files.saved(alpha, 'png'),
    'png_palette': image_files.saved(colour, 'png', mode='P'),
    'png_bits': image_files.saved(grey, 'png', mode='1'),
    'png_16': image_files.saved(grey.astype(np.uint16) * 257, 'png'),
    'png_interlaced': image_files.interlaced_png(grey),
    'jpeg_grey': image_files.saved(grey, 'jpeg'),
    'jpeg_rgb': image_files.saved(colour, 'jpeg'),
    'jpeg_cmyk': image_files.saved(colour, 'jpeg', mode='CMYK'),
    'jpeg_progressive': image_files.saved(colour, 'jpeg', progressive=True),
  }
  segment = image_files.exif_segment(image_files.exif(6))
  files['jpeg_exif'] = image_files.with_segments(files['jpeg_rgb'], segment)
  return files


def malformed_images() -> Iterator[tuple[str, bytes]]:
  """Yields the name and the bytes of files that must be refused."""
  for name, file in good_images().items():
    for eighths in range(8):
      yield f'{name}_cut_{eighths}_of_8', file[: len(file) * eighths // 8]
    yield f'{name}_without_its_last_bytes', file[:-1].rstrip(file[-1:])[:-2]
    yield f'{name}_without_its_start', file[1:]
  yield from _other_files()
  yield from _wrong_pngs()
  yield from _wrong_jpegs()


def _other_files() -> Iterator[tuple[str, bytes]]:
  grey = image_files.smooth(_SIDE, _SIDE)[..., 0]
  for kind in ('bmp', 'gif', 'tiff', 'webp', 'ppm', 'ico', 'tga'):
    yield f'a_{kind}', image_files.saved(grey, kind)
  yield from (
    ('nothing', b''),
    ('zeros', bytes(1000)),
    ('ones', b'\xff' * 1000),
    ('noise', np.random.default_rng(0).bytes(1000)),
    ('text', b'not an image'),
    ('html', b'<html><body>404</body></html>'),
    ('dicom', bytes(128) + b'DICM' + bytes(100)),
    ('zip', b'PK\x03\x04' + bytes(100)),
    ('base64', b'iVBORw0KGgoAAAANSUhEUgAA'),
    ('too_large', bytes(encoded_images.MAX_BYTES + 1)),
  )


def _wrong_pngs() -> Iterator[tuple[str, bytes]]:
  grey = image_files.smooth(_SIDE, _SIDE)[..., 0]
  rows = image_files.grey_rows(grey)
  sizes = (
    0,
    1,
    _SIDE,
    encoded_images.MAX_SIDE,
    2**16,
    16_000,
    2**31 - 1,
    2**32 - 1,
  )
  for width, height in itertools.product(sizes, sizes):
    if (width, height) != (_SIDE, _SIDE):
      # A row of one pixel is there in the rows; nothing else is.
      first = image_files.header(width, height)
      if width not in (1, _SIDE) or height not in (1, _SIDE):
        yield (
          f'png_of_{width}_x_{height}',
          image_files.png(first, rows=rows[:2]),
        )
  allowed = {(d, 0) for d in (1, 2, 4, 8, 16)}
  for depth, colour in itertools.product(
    (0, 3, 8, 16, 32, 255), (0, 1, 2, 5, 255)
  ):
    if (depth, colour) in allowed:
      continue
    first = image_files.header(_SIDE, _SIDE, depth, colour)
    yield (
      f'png_of_depth_{depth}_colour_{colour}',
      image_files.png(first, rows=rows[:9]),
    )
  good = image_files.header(_SIDE, _SIDE)
  for i, rest in enumerate(((1, 0), (0, 1), (255, 255))):
    first = image_files.header(_SIDE, _SIDE, rest=rest)
    yield f'png_of_method_{i}', image_files.png(first, rows=rows)
  for name, chunks in (
    ('without_pixels', ()),
    ('of_pixels_not_compressed', (image_files.chunk(b'IDAT', rows),)),
    ('of_few_rows', (image_files.chunk(b'IDAT', zlib.compress(rows[:40])),)),
    ('of_a_wrong_sum', (image_files.chunk(b'IDAT', zlib.compress(rows), 1),)),
    ('of_an_unknown_part', (image_files.chunk(b'XXXX', b'x'),)),
    (
      'of_too_many_parts',
      (image_files.chunk(b'teST'),) * encoded_images.MAX_CHUNKS,
    ),
    (
      'of_endless_pixels',
      (struct.pack('>I', 2**31 - 1) + b'IDAT' + bytes(99),),
    ),
  ):
    yield f'png_{name}', image_files.png(good, *chunks)
  yield 'png_without_a_header', image_files.png(b'', rows=rows)
  yield (
    'png_of_a_late_header',
    image_files.png(image_files.chunk(b'teXt'), good, rows=rows),
  )
  colour = image_files.header(_SIDE, _SIDE, 8, 3)
  yield 'png_without_its_palette', image_files.png(colour, rows=rows)
  wrong = image_files.chunk(b'IHDR', good[8:21], crc=7)
  yield 'png_of_a_header_with_a_wrong_sum', image_files.png(wrong, rows=rows)


def _wrong_jpegs() -> Iterator[tuple[str, bytes]]:
  jpeg = good_images()['jpeg_rgb']
  for width, height in (
    (0, 9),
    (9, 0),
    (0, 0),
    (65_500, 65_500),
    (16_000, 16_000),
  ):
    yield (
      f'jpeg_of_{width}_x_{height}',
      image_files.with_size(jpeg, width, height),
    )
  for marker in (0xC0, 0xC4, 0xDA, 0xDB):
    place = jpeg.index(bytes((0xFF, marker)))
    if marker != 0xC4:  # libjpeg has the usual Huffman tables itself.
      without = jpeg[:place] + jpeg[place + 2 :]
      yield f'jpeg_without_{marker:02x}', without
    yield (
      f'jpeg_of_no_length_at_{marker:02x}',
      jpeg[: place + 2] + b'\0\0' + jpeg[place + 4 :],
    )
    end = jpeg[: place + 2] + b'\xff\xff' + jpeg[place + 4 :]
    yield f'jpeg_of_a_long_{marker:02x}', end
  frame = jpeg.index(b'\xff\xc0')
  for kind in (0xC3, 0xC5, 0xC7, 0xCB, 0xCD, 0xCF):
    yield (
      f'jpeg_of_process_{kind:02x}',
      jpeg[: frame + 1] + bytes((kind,)) + jpeg[frame + 2 :],
    )
  yield 'jpeg_of_12_bits', jpeg[: frame + 4] + b'\x0c' + jpeg[frame + 5 :]
  yield (
    'jpeg_of_many_channels',
    jpeg[: frame + 9] + b'\xff' + jpeg[frame + 10 :],
  )
  start = jpeg.index(b'\xff\xda')
  yield 'jpeg_of_many_scans', jpeg[:start] + jpeg[start:-2] * 501 + jpeg[-2:]
  yield 'jpeg_of_two_frames', jpeg[:start] + jpeg[frame:start] + jpeg[start:]
  yield 'jpeg_of_fill', jpeg[:2] + b'\xff' * 5000


def export_model(folder: str) -> str:
  """Exports a small model to `folder` and returns its path."""
  path = os.path.join(folder, 'saved_model')
  model = models.build('cnn_small', input_shape=_SHAPE, num_outputs=2, seed=0)
  card = dict.fromkeys(card_format.REQUIRED_KEYS, 'stated')
  card.update(epsilon='inf', delta=None, rounds=0)
  export.save(
    path,
    model,
    class_names=('a', 'b'),
    multi_label=False,
    privacy_card=card,
  )
  return path


def run(
  path: str,
  requests: int,
  *,
  malformed: float = 0.05,
  each: bool = False,
  seed: int = 0,
) -> Result:
  """Sends requests of 1 to 4 images to the model in folder `path`.

  Args:
    path: A SavedModel of images like those of `export_model`.
    requests: How many requests to send.
    malformed: The share of requests that hold one malformed image.
    each: Whether every malformed image is sent once, before the requests.
    seed: Of the choice of images.

  Returns:
    What became of the requests.
  """
  serve = tf.saved_model.load(path).signatures['serve_bytes']
  rng = random.Random(seed)
  good, wrong = good_images(), dict(malformed_images())
  expected = {
    name: serve(encoded=tf.constant([file]))['probabilities'].numpy()[0]
    for name, file in good.items()
  }
  result = Result()
  names: list[str | None] = [*wrong] if each else []
  names += [
    rng.choice([*wrong]) if rng.random() < malformed else None
    for _ in range(requests)
  ]
  warm = int(len(names) * _WARM_UP)
  before = 0.0
  for number, name in enumerate(names):
    if number == warm:
      before = _memory_mib()
    beside = [rng.choice([*good]) for _ in range(rng.randint(1, 4))]
    _request(serve, beside, name, rng, good, wrong, expected, result)
  result.growth_mib = _memory_mib() - before
  return result


def _request(serve, beside, name, rng, good, wrong, expected, result):
  """Sends one request; notes in `result` what became of it."""
  result.tried += 1
  files = [good[n] for n in beside]
  place = rng.randrange(len(files))
  if name is not None:
    files[place] = wrong[name]
  try:
    found = serve(encoded=tf.constant(files))['probabilities'].numpy()
  except tf.errors.InvalidArgumentError as error:
    stated = re.search(
      rf'\[image {place} of encoded (is|has|cannot) [^\]]+\]', error.message
    )
    if name is None or not stated:
      result.lost.append(f'{name}: {error.message}')
    else:
      result.refused += 1
    return
  except Exception as error:  # noqa: BLE001, whatever it is, it is lost.
    result.lost.append(f'{name}: {type(error).__name__}: {error}')
    return
  if name is not None:
    result.lost.append(f'{name}: was answered')
  elif not np.allclose(found, [expected[n] for n in beside], atol=1e-5):
    result.lost.append(f'{beside}: was answered with other probabilities')
  else:
    result.answered += 1


def _memory_mib() -> float:
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


def main() -> int:
  """Runs the long form; returns 1 if a request was lost."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--requests', type=int, default=5000)
  requests = parser.parse_args().requests
  with tempfile.TemporaryDirectory() as folder:
    result = run(export_model(folder), requests, each=True)
  print('\n'.join(result.lost))
  print(
    f'tried {result.tried}  survived {result.survived} '
    f'({result.answered} answered, {result.refused} refused in words)  '
    f'lost {len(result.lost)}  memory grew by {result.growth_mib:.0f} MiB'
  )
  return int(bool(result.lost))


if __name__ == '__main__':
  sys.exit(main())
