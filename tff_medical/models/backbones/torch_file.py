"""Reads the weights of a file of `torch.save`, without torch and without trust.

What: `read` returns the arrays of a state dictionary. Such a file holds
pickles, and a pickle may call any function. The unpickler here knows a
dictionary and tensors of float32 and int64, and refuses all else. A tensor's
bounds are checked before its memory is read.

The format is the one that torch wrote before version 1.6, and writes today with
`_use_new_zipfile_serialization=False`: a magic number, a version, a description
of the machine, the dictionary, the keys of its storages, and their raw values.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pickle
from typing import Any, BinaryIO

import numpy as np

from tff_medical import _files
from tff_medical import _validate

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_REMEDY = (
  'give a state dictionary that torch.save wrote with '
  '_use_new_zipfile_serialization=False'
)
_DTYPES: dict[str, np.dtype] = {
  'FloatStorage': np.dtype('<f4'),
  'LongStorage': np.dtype('<i8'),
}


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Returns the arrays of a state dictionary.

  Args:
    path: File of `torch.save` in its older format.

  Returns:
    Arrays of float32 or int64 by name, in the file's order.

  Raises:
    InputError: There is no such file, or it holds anything but a dictionary of
      tensors.
  """
  try:
    with _files.open_regular(path) as file:
      return _read(file)
  except OSError as error:
    raise _validate.InputError(
      f'weights file {path} cannot be read ({error.strerror}); check the path'
    ) from error
  except Exception as error:  # A damaged pickle may raise anything.
    raise _validate.InputError(
      f'weights file {path} is no file of weights '
      f'({type(error).__name__}: {error}); {_REMEDY}'
    ) from error


@dataclasses.dataclass(frozen=True)
class _Storage:
  """A storage that the dictionary names; its values follow at the end."""

  key: str
  dtype: np.dtype
  size: int  # number of elements


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A tensor as a view of a storage, in numbers of elements."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def of(self, values: np.ndarray) -> np.ndarray:
    """Returns the tensor as an array of its own."""
    last = self.offset + sum(
      (n - 1) * stride for n, stride in zip(self.shape, self.strides)
    )
    numbers = (self.offset, *self.shape, *self.strides)
    if min(numbers) < 0 or len(self.shape) != len(self.strides):
      raise ValueError('a tensor has a negative size')
    if 0 in self.shape:
      return np.zeros(self.shape, values.dtype)
    if last >= len(values):
      raise ValueError('a tensor is larger than its storage')
    view = np.lib.stride_tricks.as_strided(
      values[self.offset :],
      self.shape,
      [stride * values.itemsize for stride in self.strides],
    )
    return view.copy()


def _rebuilt(
  storage: Any, offset: int, shape: Any, strides: Any, *_: Any
) -> _Tensor:
  """Stands in for torch's function that makes a tensor of a storage."""
  if not isinstance(storage, _Storage):
    raise pickle.UnpicklingError('a tensor has no storage')
  return _Tensor(storage, int(offset), tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
  """Unpickler that knows dictionaries and tensors alone."""

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ('collections', 'OrderedDict'):
      return collections.OrderedDict
    if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
      return _rebuilt
    if module == 'torch' and name in _DTYPES:
      return name
    raise pickle.UnpicklingError(f'it asks for {module}.{name}')

  def persistent_load(self, pid: Any) -> _Storage:
    kind, dtype, key, _, size, view = pid
    if kind != 'storage' or view is not None:
      raise pickle.UnpicklingError(f'it asks for {kind}')
    return _Storage(str(key), _DTYPES[dtype], int(size))


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
  if _Unpickler(file).load() != _MAGIC or _Unpickler(file).load() != _VERSION:
    raise ValueError('it begins with another number')
  if not _Unpickler(file).load()['little_endian']:
    raise ValueError('it was written on a big-endian machine')
  tensors = _Unpickler(file).load()
  if not isinstance(tensors, dict) or not all(
    isinstance(name, str) and isinstance(tensor, _Tensor)
    for name, tensor in tensors.items()
  ):
    raise ValueError('it holds other things than named tensors')
  storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
  values = {}
  for key in _Unpickler(file).load():
    values[key] = _values(file, storages[key])
  return {
    name: tensor.of(values[tensor.storage.key])
    for name, tensor in tensors.items()
  }


def _values(file: BinaryIO, storage: _Storage) -> np.ndarray:
  """Returns the next storage of the file, which states its size first."""
  size = int.from_bytes(file.read(8), 'little')
  if size != storage.size:
    raise ValueError(f'storage {storage.key} has another size than stated')
  raw = file.read(size * storage.dtype.itemsize)
  return np.frombuffer(raw, storage.dtype, size)
