"""What the loader says of malformed MedMNIST files.

    python -m tests.faults.npz_faults

Each file must be refused by one line that names the file, the array where one
is meant, and the remedy: quickly, and without the memory that it asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import gzip
import io
import os
import pathlib
import pickle
import shutil
import signal
import socket
import struct
import sys
import tempfile
import zipfile
import zlib

import numpy as np

from tff_medical import _validate
from tff_medical.data import loading

# Writes the malformed file to a path that is not there yet.
Make = Callable[[pathlib.Path], object]

KEYS = tuple(
  f'{s}_{k}' for s in ('train', 'val', 'test') for k in ('images', 'labels')
)
_COUNT = 6
_BOMB_BYTES = 2**28
_LIMIT_SECS = 60


@dataclasses.dataclass
class Result:
  """What became of the files.

  Attributes:
    tried: Files given to the loader.
    survived: Those that were refused as they should be.
    lost: What became of the others, one line each.
    growth_mib: The most memory that one of them took.
  """

  tried: int = 0
  survived: int = 0
  lost: list[str] = dataclasses.field(default_factory=list)
  growth_mib: float = 0.0


def arrays() -> dict[str, np.ndarray]:
  """Returns the arrays of a small file that could be breastmnist."""
  rng = np.random.default_rng(0)
  found = {}
  for split in ('train', 'val', 'test'):
    pixels = rng.integers(256, size=(_COUNT, 28, 28))
    found[f'{split}_images'] = pixels.astype(np.uint8)
    found[f'{split}_labels'] = (np.arange(_COUNT) % 2).astype(np.uint8)[:, None]
  return found


def npy(array: np.ndarray) -> bytes:
  """Returns an array as .npy bytes; objects are pickled."""
  stream = io.BytesIO()
  np.lib.format.write_array(stream, array, allow_pickle=True)
  return stream.getvalue()


def npy_of(
  header: str | bytes, content: bytes = b'', version: int = 1
) -> bytes:
  """Returns .npy bytes of a header that may claim anything."""
  text = header.encode('latin1') if isinstance(header, str) else header
  text += b'\n'
  size = struct.pack('<H' if version == 1 else '<I', len(text))
  return b'\x93NUMPY' + bytes((version, 0)) + size + text + content


def claim(descr: str = "'|u1'", shape: object = (_COUNT, 28, 28)) -> str:
  """Returns the text of a header."""
  return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


def zipped(
  changed: dict[str, bytes | None],
  *,
  method: int = zipfile.ZIP_DEFLATED,
  methods: dict[str, int] | None = None,
) -> bytes:
  """Returns an .npz of the usual arrays with other members; None leaves out."""
  members = {key: npy(array) for key, array in arrays().items()}
  members.update(changed)
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, 'w') as archive:
    for key, content in members.items():
      if content is not None:
        one = (methods or {}).get(key, method)
        archive.writestr(f'{key}.npy', content, compress_type=one)
  return stream.getvalue()


def unusual_files() -> Iterator[tuple[str, bytes]]:
  """Yields files that are written in other ways and hold the usual arrays."""
  yield 'deflated', zipped({})
  yield 'stored', zipped({}, method=zipfile.ZIP_STORED)
  yield (
    'fortran',
    zipped({k: npy(np.asfortranarray(a)) for k, a in arrays().items()}),
  )
  channels = {k: npy(a[..., None]) for k, a in arrays().items() if a.ndim == 3}
  yield 'with_channels', zipped(channels)
  for kind in ('>u2', '<i8', '>i8', '|i1', '<u4', '>u8'):
    labels = {
      k: npy(a.astype(kind)) for k, a in arrays().items() if a.ndim == 2
    }
    yield (
      f'labels_{kind[1:]}_{"big" if kind[0] == ">" else "little"}',
      zipped(labels),
    )
  flat = {k: npy(a[:, 0]) for k, a in arrays().items() if a.ndim == 2}
  yield 'flat_labels', zipped(flat)
  yield 'more_arrays', zipped({'notes': npy(np.zeros(3)), 'a/b': b'text'})
  second = {
    k: npy_of(claim(shape=a.shape), a.tobytes(), 2) for k, a in arrays().items()
  }
  yield 'version_2', zipped(second)


def malformed_files(
  keys: tuple[str, ...] = KEYS,
) -> Iterator[tuple[str, str, Make]]:
  """Yields the name of a case, what its message must name, and its maker.

  Args:
    keys: The arrays to spoil in every way; the rest is yielded in any case.

  Yields:
    The name of the case, the array that is meant or '', and the maker.
  """
  for key in keys:
    for name, content in _of_any_array(key):
      yield f'{key}_{name}', key, _write(content)
  for split in ('train', 'val', 'test'):
    for name, key, content in _of_a_split(split):
      yield f'{split}_{name}', key, _write(content)
  for name, content in _of_the_whole():
    yield name, '', _write(content)
  yield from ((name, '', make) for name, make in _no_files())


def _write(content: bytes) -> Make:
  return lambda path: path.write_bytes(content)


def _of_any_array(key: str) -> Iterator[tuple[str, bytes]]:
  """Yields files of which one array, of whatever kind, is wrong."""
  array = arrays()[key]
  good = npy(array)
  for name, content in (
    ('missing', None),
    ('empty', b''),
    ('text', b'a,b\n1,2\n'),
    ('short', good[:-1]),
    ('without_data', good[:128]),
    ('cut_in_its_header', good[:60]),
    ('long', good + b'\0'),
    ('pickle', pickle.dumps(array)),
    ('objects', npy(array.astype(object))),
    ('structured', npy(np.zeros(_COUNT, [('a', 'u1'), ('b', '<i4')]))),
    ('floats', npy(array.astype(np.float32))),
    ('bools', npy(array > 0)),
    ('complex', npy(array.astype(np.complex64))),
    ('text_array', npy(array.astype('U1'))),
    ('dates', npy(array.astype('M8[s]'))),
    ('scalar', npy(np.uint8(1))),
    ('no_rows', npy(array[:0])),
    ('a_petabyte', npy_of(claim(shape=(10**15 // 784, *array.shape[1:])))),
    ('too_many_for_int64', npy_of(claim(shape=(2**63, 2**63)))),
    ('a_googol', npy_of(claim(shape=(10**100, *array.shape[1:])))),
    ('negative', npy_of(claim(shape=(-_COUNT, *array.shape[1:])))),
    ('shape_of_bools', npy_of(claim(shape=(True, 28, 28)))),
    ('shape_of_floats', npy_of(claim(shape=(6.0, 28, 28)))),
    ('shape_of_text', npy_of(claim(shape="'6'"))),
    ('many_dimensions', npy_of(claim(shape=(1,) * 200), b'1')),
    ('unknown_type', npy_of(claim("'|z9'"))),
    ('type_of_code', npy_of(claim("__import__('os').getpid()"))),
    ('type_of_lists', npy_of(claim('[[[[[]]]]]'))),
    ('wide_type', npy_of(claim("'|V999999999'"))),
    ('no_keys', npy_of('{}')),
    ('keys_of_two_types', npy_of('{1: 2, "a": 3}')),
    ('unhashable', npy_of('{[]: 1}')),
    ('no_python', npy_of(b'\xff\xfe{')),
    ('open_text', npy_of("{'descr': '''")),
    ('deep', npy_of('(' * 5000)),
    ('deeper', npy_of('-' * 9000 + '1')),
    ('long_header', npy_of(claim() + ' ' * 20_000)),
    ('header_of_4_gib', b'\x93NUMPY\x02\0\xff\xff\xff\xff{'),
    ('version_3', npy_of(claim(), version=3)),
    ('version_9', npy_of(claim(), array.tobytes(), 9)),
    ('bomb', npy_of(claim(shape=(_BOMB_BYTES,)), bytes(_BOMB_BYTES))),
  ):
    yield name, zipped({key: content})
  for name, method in (
    ('bzip2', zipfile.ZIP_BZIP2),
    ('lzma', zipfile.ZIP_LZMA),
  ):
    yield name, zipped({}, methods={key: method})
  yield from _of_the_member(key)


def _of_the_member(key: str) -> Iterator[tuple[str, bytes]]:
  """Yields files of which the zip file's own words on a member are wrong."""
  content = zipped({}, method=zipfile.ZIP_STORED)
  name = f'{key}.npy'.encode()
  local, central = content.index(name) - 30, content.rindex(name) - 46
  for case, changes in (
    ('encrypted', {central + 8: b'\1', local + 6: b'\1'}),
    ('of_an_unknown_method', {central + 10: b'\x63', local + 8: b'\x63'}),
    ('of_a_wrong_sum', {central + 16: b'\1\2\3\4'}),
    ('packed_large', {central + 20: b'\xfe\xff\xff\x7f'}),
    ('unpacked_large', {central + 24: b'\xfe\xff\xff\x7f'}),
    ('unpacked_small', {central + 24: b'\1\0\0\0'}),
    ('of_another_place', {central + 42: b'\1\0\0\0'}),
    ('of_a_place_beyond', {central + 42: b'\xfe\xff\xff\x7f'}),
    ('of_another_name_there', {local + 30: b'?'}),
    # After the 128 bytes of its header.
    ('changed', {local + 30 + len(name) + 128: b'\x99\x99\x99'}),
  ):
    changed = bytearray(content)
    for place, new in changes.items():
      changed[place : place + len(new)] = new
    yield case, bytes(changed)
  stream = io.BytesIO(content)
  with zipfile.ZipFile(stream, 'a') as archive:
    archive.filelist.append(archive.getinfo(f'{key}.npy'))
    archive.writestr('other', b'')
  yield 'twice', stream.getvalue()


def _of_a_split(split: str) -> Iterator[tuple[str, str, bytes]]:
  """Yields files whose arrays are sound and are not those of breastmnist."""
  pixels, labels = f'{split}_images', f'{split}_labels'
  for name, array in (
    ('of_another_size', np.zeros((_COUNT, 64, 64), np.uint8)),
    ('of_another_height', np.zeros((_COUNT, 27, 28), np.uint8)),
    ('in_colour', np.zeros((_COUNT, 28, 28, 3), np.uint8)),
    ('channels_first', np.zeros((_COUNT, 1, 28, 28), np.uint8)),
    ('flat', np.zeros((_COUNT, 784), np.uint8)),
    ('of_no_pixels', np.zeros((_COUNT, 0, 28), np.uint8)),
    ('of_16_bits', np.zeros((_COUNT, 28, 28), np.uint16)),
    ('signed', np.zeros((_COUNT, 28, 28), np.int8)),
    ('transposed', np.zeros((28, 28, _COUNT), np.uint8)),
    ('too_many', np.zeros((2**18 + 1, 28, 28), np.uint8)),
  ):
    yield f'images_{name}', pixels, zipped({pixels: npy(array)})
  more = np.zeros((_COUNT + 1, 28, 28), np.uint8)
  yield 'images_one_more', split, zipped({pixels: npy(more)})
  for name, array in (
    ('of_three_dimensions', np.zeros((_COUNT, 1, 1), np.uint8)),
    ('in_columns', np.zeros((_COUNT, 2), np.uint8)),
    ('of_no_columns', np.zeros((_COUNT, 0), np.uint8)),
    ('in_a_row', np.zeros((1, _COUNT), np.uint8)),
    ('too_few', np.zeros((_COUNT - 1, 1), np.uint8)),
    ('too_many', np.zeros((_COUNT + 1, 1), np.uint8)),
    ('too_high', np.full((_COUNT, 1), 2, np.uint8)),
    ('below_zero', np.full((_COUNT, 1), -1, np.int8)),
    ('lowest', np.full(_COUNT, -(2**63), np.int64)),
    ('beyond_int64', np.full(_COUNT, 2**64 - 1, np.uint64)),
    ('nan', np.full(_COUNT, np.nan)),
  ):
    # The array is named by its split where its values are meant.
    yield f'labels_{name}', split, zipped({labels: npy(array)})


def _of_the_whole() -> Iterator[tuple[str, bytes]]:
  """Yields files that are no .npz as a whole."""
  content = zipped({})
  for eighths in range(8):
    yield f'cut_{eighths}_of_8', content[: len(content) * eighths // 8]
  for number, key in enumerate(KEYS):
    newer = bytearray(content)
    newer[content.rindex(f'{key}.npy'.encode()) - 40] = 0xFF
    yield f'of_a_new_version_{number}', bytes(newer)
  end = content.rindex(b'PK\x05\x06')

  def ended(place: int, new: bytes) -> bytes:
    place += end
    return content[:place] + new + content[place + len(new) :]

  packed = io.BytesIO()
  np.save(packed, np.zeros(3))
  many = io.BytesIO()
  with zipfile.ZipFile(many, 'w') as archive:
    for number in range(2000):
      archive.writestr(str(number), b'')
  yield from (
    ('without_its_end', content[:end]),
    ('without_its_last_byte', content[:-1]),
    ('without_its_start', content[100:]),
    ('text', b'<html>not found</html>'),
    ('zeros', bytes(10_000)),
    ('noise', np.random.default_rng(0).bytes(10_000)),
    ('one_array', packed.getvalue()),
    ('a_pickle', pickle.dumps(arrays())),
    ('gzip', gzip.compress(content)),
    ('zlib', zlib.compress(content)),
    ('no_members', b'PK\x05\x06' + bytes(18)),
    ('many_members', many.getvalue()),
    ('much_before_it', bytes(2**22) + content),
    ('a_directory_elsewhere', ended(16, b'\xff\xff\xff\x7f')),
    ('a_directory_of_2_gib', ended(12, b'\xff\xff\xff\x7f')),
    ('a_directory_of_nothing', ended(12, bytes(4))),
    ('a_count_of_65535', ended(8, b'\xff' * 4)),
    ('a_directory_of_zeros', content[: end - 300] + bytes(300) + content[end:]),
  )


def _no_files() -> Iterator[tuple[str, Make]]:
  """Yields what is no file."""

  def sparse(path: pathlib.Path) -> None:
    with path.open('wb') as file:
      file.truncate(2**42)

  def sparse_before(path: pathlib.Path) -> None:
    with path.open('wb') as file:
      file.truncate(2**42)
      file.seek(0, os.SEEK_END)
      file.write(zipped({}))

  def listen(path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
      here = os.getcwd()
      os.chdir(path.parent)  # As such a name may have 100 characters only.
      try:
        server.bind(path.name)
      finally:
        os.chdir(here)

  yield from (
    ('missing', lambda path: None),
    ('directory', lambda path: path.mkdir()),
    ('fifo', lambda path: os.mkfifo(path)),
    ('socket', listen),
    ('zero_device', lambda path: path.symlink_to('/dev/zero')),
    ('random_device', lambda path: path.symlink_to('/dev/urandom')),
    ('null_device', lambda path: path.symlink_to('/dev/null')),
    ('loop', lambda path: path.symlink_to(path)),
    ('dangling', lambda path: path.symlink_to('nowhere')),
    ('4_tib_of_zeros', sparse),
    ('4_tib_before_it', sparse_before),
  )


def run(cases: Iterator[tuple[str, str, Make]]) -> Result:
  """Loads each file; every one must be refused as the module says."""
  result = Result()
  with tempfile.TemporaryDirectory() as folder:
    # What the loader imports is not counted as memory of the first file.
    path = pathlib.Path(folder, 'breastmnist.npz')
    path.write_bytes(zipped({}))
    assert _outcome(path, '') == 'was loaded'
  for name, key, make in cases:
    result.tried += 1
    folder = tempfile.mkdtemp()
    try:
      path = pathlib.Path(folder, 'breastmnist.npz')
      make(path)
      before = _memory_mib('VmRSS')
      # Sets the highest memory so far back to what is in use now.
      pathlib.Path('/proc/self/clear_refs').write_text('5')
      wrong = _outcome(path, key)
      growth = _memory_mib('VmHWM') - before
      result.growth_mib = max(result.growth_mib, growth)
    finally:
      shutil.rmtree(folder)
    if wrong:
      result.lost.append(f'{name}: {wrong}')
    else:
      result.survived += 1
  return result


def _outcome(path: pathlib.Path, key: str) -> str:
  """Says what was wrong with how the file was refused, or ''."""
  tfds_dir = path.with_name('tfds')
  previous = signal.signal(signal.SIGALRM, _too_long)
  signal.alarm(_LIMIT_SECS)
  try:
    loading.load(
      'medmnist/breastmnist', data_dir=str(path.parent), tfds_dir=str(tfds_dir)
    )
  except _validate.InputError as error:
    text = str(error)
  except Exception as error:  # noqa: BLE001, whatever it is, it is lost.
    return f'{type(error).__name__}: {error}'
  else:
    return 'was loaded'
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)
  for part in (str(path), key, ';'):  # A remedy follows the semicolon.
    if part not in text:
      return f'{part!r} is not in {text!r}'
  if '\n' in text or len(text) > 600:
    return f'is not one line: {text!r}'
  if tfds_dir.exists() and any(p.is_file() for p in tfds_dir.rglob('*')):
    return 'left records'
  return ''


def _too_long(*unused: object) -> None:
  raise TimeoutError(f'took more than {_LIMIT_SECS} s')


def _memory_mib(which: str) -> float:
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(f'{which}:'):
      return int(line.split()[1]) / 2**10
  raise KeyError(which)


def main() -> int:
  """Runs all cases; returns 1 if one was lost."""
  result = run(malformed_files())
  print('\n'.join(result.lost))
  print(
    f'tried {result.tried}  survived {result.survived}  '
    f'lost {len(result.lost)}  at most {result.growth_mib:.0f} MiB for one'
  )
  return int(bool(result.lost))


if __name__ == '__main__':
  sys.exit(main())
