"""Reads untrusted .npz files: headers before bytes, every byte accounted for.

`Archive` opens an .npz file, returns the headers of its arrays and reads the
arrays that are asked for. `np.load` is unsafe here: a file of some kilobytes
may claim a petabyte or unpack to it, and `np.load` allocates what is claimed.
`Archive` first reads the claims: the directory of the zip file and the header
of each array. The caller can refuse them. Before an array is allocated, the
claims must agree with each other and with the size of the file.

Members are stored or deflated, as `np.savez` and `np.savez_compressed` write
them. Source of the formats: APPNOTE.TXT 6.3 of PKWARE; `numpy.lib.format`.

>>> file = io.BytesIO()
>>> np.savez(file, labels=np.arange(3))
>>> archive = Archive(file)
>>> archive.header('labels').shape, archive.read('labels')
((3,), array([0, 1, 2]))
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
import contextlib
import dataclasses
import io
import lzma
import math
import os
import struct
import tokenize
from typing import BinaryIO
import warnings
import zipfile
import zlib

import numpy as np

from tff_medical import _validate

# An array may unpack to `_FREE_BYTES` plus `_MAX_RATIO` times its packed size.
# Photographs and scans have ratios below 10; deflate can reach 1032.
_MAX_RATIO = 100
_FREE_BYTES = 2**26
MAX_MEMBERS = 1000
# Largest size in bytes of the directory, and of all bytes outside the members.
_MAX_OVERHEAD = 2**20
# A header of version 1 has at most 65,535 bytes after its first ten.
_MAX_HEADER = 2**16 + 10
_MAX_DIMENSIONS = 32  # NumPy's own limit.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DIRECTORY_END = b'PK\x05\x06'
_DIRECTORY_END_SIZE = 22
_ENCRYPTED = 1

# Exceptions that zipfile raises for a damaged file.
_ZIP_ERRORS = (
  zipfile.BadZipFile,
  zlib.error,
  lzma.LZMAError,
  struct.error,
  OSError,
  EOFError,
  ValueError,
  OverflowError,
  NotImplementedError,
  RuntimeError,
  IndexError,
)
# Exceptions that NumPy raises for a header, which is Python source, that it
# cannot read.
_HEADER_ERRORS = (
  ValueError,
  TypeError,
  KeyError,
  IndexError,
  AttributeError,
  SyntaxError,
  tokenize.TokenError,
  RecursionError,
  MemoryError,
  EOFError,
  OverflowError,
)


@dataclasses.dataclass(frozen=True)
class Header:
  """Claims of an array's header.

  Attributes:
    shape: Shape of the array.
    dtype: Data type of the array, never of Python objects.
    size: Size of the header itself in bytes.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  size: int

  @property
  def num_bytes(self) -> int:
    """Size of the array in bytes, without its header."""
    return math.prod(self.shape) * self.dtype.itemsize


class Error(_validate.InputError):
  """A fault of an .npz file, in one line without the file's name."""


class Archive:
  """Arrays of an .npz file; every fault of the file raises `Error`."""

  def __init__(self, file: BinaryIO, *, max_members: int = MAX_MEMBERS):
    """Reads the directory of the file.

    Args:
      file: File that is open for reading.
      max_members: Largest number of arrays that the file may have.
    """
    self._file = file
    with _as_error('', _ZIP_ERRORS):
      self._size = file.seek(0, os.SEEK_END)
      _check_directory(file, self._size, max_members)
      self._zip = zipfile.ZipFile(file)
      members = self._zip.infolist()
    self._check_members(members)
    self._members = {info.filename: info for info in members}
    self._headers: dict[str, Header] = {}

  @property
  def keys(self) -> list[str]:
    """Names of the arrays, in the order of the file."""
    names = (name for name in self._members if name.endswith('.npy'))
    return [name[: -len('.npy')] for name in names]

  def missing(self, keys: list[str]) -> list[str]:
    """Returns the keys whose arrays the file lacks."""
    return [key for key in keys if f'{key}.npy' not in self._members]

  def header(self, key: str) -> Header:
    """Returns the header of an array, after checking its claims."""
    if key not in self._headers:
      self._headers[key] = self._read_header(key)
    return self._headers[key]

  def read(self, key: str) -> np.ndarray:
    """Returns an array; its header is checked before it is allocated."""
    header = self.header(key)
    with _as_error(f'{key}: ', (*_ZIP_ERRORS, *_HEADER_ERRORS)):
      with self._zip.open(self._members[f'{key}.npy']) as member:
        with warnings.catch_warnings():
          warnings.simplefilter('ignore')  # Files of Python 2 cause them.
          array = np.lib.format.read_array(member, allow_pickle=False)
    if (array.shape, array.dtype) != (header.shape, header.dtype):
      raise Error(f'{key}: it was changed while it was read')
    return array

  def _check_members(self, members: list[zipfile.ZipInfo]) -> None:
    """Refuses members that share bytes, and bytes outside all members."""
    counts = collections.Counter(info.filename for info in members)
    for info in members:
      key = info.filename[: -len('.npy')]
      if counts[info.filename] > 1:
        raise Error(f'{key[:100]!r} is there more than once')
      if info.compress_size > self._size:
        raise Error(
          f'{key[:100]!r} claims {info.compress_size} bytes of the '
          f'{self._size} in the file'
        )
    packed = sum(info.compress_size for info in members)
    if packed > self._size:
      raise Error(
        f'its arrays claim {packed} bytes of the {self._size} in the file'
      )
    if self._size - packed > _MAX_OVERHEAD:
      raise Error(
        f'{self._size - packed} of its {self._size} bytes belong to no array'
      )

  def _read_header(self, key: str) -> Header:
    name = f'{key}.npy'
    info = self._members[name]
    with _as_error(f'{key}: ', (ValueError,)):
      if info.flag_bits & _ENCRYPTED:
        raise ValueError('it is encrypted')
      if info.compress_type not in _METHODS:
        raise ValueError(
          f'it is compressed by method {info.compress_type} of zip, neither '
          'stored nor deflated'
        )
      stored = info.compress_type == zipfile.ZIP_STORED
      if stored and info.compress_size != info.file_size:
        raise ValueError(
          f'it claims {info.file_size} bytes of {info.compress_size}'
        )
      allowed = _FREE_BYTES + _MAX_RATIO * info.compress_size
      if info.file_size > allowed:
        raise ValueError(
          f'its {info.compress_size} bytes would unpack to {info.file_size}, '
          f'more than the {allowed} allowed'
        )
    with _as_error(f'{key}: ', _ZIP_ERRORS):
      with self._zip.open(info) as member:
        start = io.BytesIO(member.read(_MAX_HEADER))
    with _as_error(f'{key}: it is no .npy array: ', _HEADER_ERRORS):
      header = _parse(start)
    with _as_error(f'{key}: ', (ValueError,)):
      if header.dtype.hasobject:
        raise ValueError('it holds Python objects (a pickle)')
      if header.size + header.num_bytes != info.file_size:
        raise ValueError(
          f'its shape {list(header.shape)} of {header.dtype} takes '
          f'{header.num_bytes} bytes, but {info.file_size - header.size} are '
          'there'
        )
    return header


def _check_directory(file: BinaryIO, size: int, max_members: int) -> None:
  """Refuses a file without a zip directory, or with one that is too large."""
  start = max(0, size - _DIRECTORY_END_SIZE - 2**16)
  file.seek(start)
  tail = file.read(size - start)
  place = tail.rfind(_DIRECTORY_END)
  if place < 0 or len(tail) - place < _DIRECTORY_END_SIZE:
    raise ValueError('it is no zip file, or is cut short')
  count, directory = struct.unpack_from('<HI', tail, place + 10)
  if count > max_members or directory > _MAX_OVERHEAD:
    raise ValueError(
      f'it has {count} members, a directory of {directory} bytes'
    )


def _parse(start: BinaryIO) -> Header:
  """Reads the header of an array."""
  version = np.lib.format.read_magic(start)
  readers = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  if version not in readers:
    raise ValueError(f'format {version[0]}.{version[1]} is not read')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Files of Python 2 cause them.
    shape, _, dtype = readers[version](start)
  if len(shape) > _MAX_DIMENSIONS:
    raise ValueError(f'it has {len(shape)} dimensions')
  if any(isinstance(n, bool) or not 0 <= n < 2**63 for n in shape):
    raise ValueError(f'its shape is {shape}')
  return Header(tuple(shape), dtype, start.tell())


@contextlib.contextmanager
def _as_error(
  prefix: str, errors: tuple[type[Exception], ...]
) -> Iterator[None]:
  """Turns exceptions of the given types into an `Error`."""
  try:
    yield
  except Error:
    raise
  except errors as error:
    text = ' '.join(str(error).split()) or type(error).__name__
    raise Error(f'{prefix}{text[:200]}') from error
