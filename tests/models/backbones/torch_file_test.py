"""Weights of torch are read without torch, and nothing else is done."""

import os
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tests.models.backbones import torch_files
from tff_medical import _validate
from tff_medical.models.backbones import torch_file

_ARRAYS = {
  'kernel': np.arange(24, dtype=np.float32).reshape(2, 3, 4),
  'transposed': np.arange(24, dtype=np.float32).reshape(2, 3, 4).T,
  'steps': np.array(7, np.int64),
}


class TorchFileTest(parameterized.TestCase):
  def _path(self):
    return os.path.join(self.create_tempdir().full_path, 'weights.pth')

  def test_returns_what_was_written(self):
    path = self._path()
    torch_files.write(path, _ARRAYS)
    arrays = torch_file.read(path)
    self.assertEqual(list(arrays), list(_ARRAYS))
    for name, array in _ARRAYS.items():
      self.assertEqual(arrays[name].dtype, array.dtype)
      np.testing.assert_array_equal(arrays[name], array)

  def test_arrays_hold_their_memory(self):
    path = self._path()
    torch_files.write(path, _ARRAYS)
    array = torch_file.read(path)['transposed']
    array += 1  # The file's own memory may not be written to.
    np.testing.assert_array_equal(array, _ARRAYS['transposed'] + 1)

  def test_calls_no_other_function(self):
    path, mark = self._path(), self._path()
    call = torch_files.Call(pathlib.Path(mark).touch)
    torch_files.write(path, _ARRAYS, more=call)
    with self.assertRaisesRegex(_validate.InputError, 'it asks for'):
      torch_file.read(path)
    self.assertFalse(os.path.exists(mark))

  @parameterized.parameters(
    ({'magic': 1}, 'another number'),
    ({'shape_factor': 2}, 'larger than its storage'),
    ({'shape_factor': -1}, 'negative size'),
    ({'more': 3}, 'other things than named tensors'),
  )
  def test_refuses(self, changes, message):
    path = self._path()
    torch_files.write(path, _ARRAYS, **changes)
    with self.assertRaisesRegex(_validate.InputError, message):
      torch_file.read(path)

  def test_refuses_every_shortened_file(self):
    path = self._path()
    torch_files.write(path, _ARRAYS)
    whole = pathlib.Path(path).read_bytes()
    for length in range(0, len(whole), 7):
      pathlib.Path(path).write_bytes(whole[:length])
      with self.assertRaisesRegex(_validate.InputError, 'no file of weights'):
        torch_file.read(path)

  def test_names_a_missing_file(self):
    with self.assertRaisesRegex(_validate.InputError, 'No such file'):
      torch_file.read(self._path())


if __name__ == '__main__':
  absltest.main()
