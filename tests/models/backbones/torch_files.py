"""Writes files as torch.save does in its older format, without torch."""

from __future__ import annotations

import collections
import pickle
import sys
import types
from unittest import mock

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C


class _Storage:
  """A storage by key; the pickle refers to it."""

  def __init__(self, key, array):
    self.key = key
    self.values = np.asarray(array).ravel(order='K')
    self.kind = {'f': 'FloatStorage', 'i': 'LongStorage'}[
      self.values.dtype.kind
    ]


class Call:
  """A call of any importable function, which a pickle may ask for."""

  def __init__(self, function, *arguments):
    self.function, self.arguments = function, arguments

  def __reduce__(self):
    return self.function, self.arguments


class _Tensor:
  """What a pickle calls torch's `_rebuild_tensor_v2` for."""

  def __init__(self, storage, offset, shape, strides):
    self.arguments = (storage, offset, shape, strides, False, {})

  def __reduce__(self):
    return sys.modules['torch._utils']._rebuild_tensor_v2, self.arguments


class _Pickler(pickle.Pickler):
  def persistent_id(self, thing):
    if not isinstance(thing, _Storage):
      return None
    kind = getattr(sys.modules['torch'], thing.kind)
    return ('storage', kind, thing.key, 'cpu', len(thing.values), None)


def _torch():
  """Returns stand-ins for torch's modules, which pickles name."""
  torch, utils = types.ModuleType('torch'), types.ModuleType('torch._utils')
  for name in ('FloatStorage', 'LongStorage'):
    setattr(torch, name, type(name, (), {'__module__': 'torch'}))

  def _rebuild_tensor_v2():
    raise AssertionError('only named')

  _rebuild_tensor_v2.__module__ = 'torch._utils'
  _rebuild_tensor_v2.__qualname__ = '_rebuild_tensor_v2'
  utils._rebuild_tensor_v2 = _rebuild_tensor_v2
  torch._utils = utils
  return {'torch': torch, 'torch._utils': utils}


def write(path, arrays, magic=_MAGIC, shape_factor=1, more=None):
  """Writes arrays by name, each as it lies in memory.

  Args:
    path: File to write.
    arrays: Arrays of float32 or int64.
    magic: First number of the file.
    shape_factor: Factor of the first axis of each stated shape.
    more: Anything else that the dictionary holds.
  """
  storages = {}
  tensors = collections.OrderedDict()
  for name, array in arrays.items():
    storages[name] = _Storage(name, array)
    shape = array.shape
    if shape:
      shape = (shape[0] * shape_factor, *shape[1:])
    strides = tuple(s // array.itemsize for s in array.strides)
    tensors[name] = _Tensor(storages[name], 0, shape, strides)
  if more is not None:
    tensors['more'] = more
  with mock.patch.dict(sys.modules, _torch()), open(path, 'wb') as file:
    for thing in (
      magic,
      1001,
      {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {}},
      tensors,
      list(storages),
    ):
      _Pickler(file, protocol=2).dump(thing)
    for storage in storages.values():
      file.write(len(storage.values).to_bytes(8, 'little'))
      file.write(storage.values.tobytes())
