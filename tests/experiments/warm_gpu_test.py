"""Tests of the command that compiles for GPUs; a CPU stands for one."""

import contextlib
import io
import os
import pathlib
import time
from unittest import mock

from absl.testing import absltest
import tensorflow as tf

from experiments import warm_gpu
from tff_medical import _validate
from tff_medical import runtime
from tff_medical.runtime import devices


class WarmGpuTest(absltest.TestCase):
  def test_without_a_gpu_it_says_what_to_do(self):
    with (
      mock.patch.object(tf.config, 'list_physical_devices', lambda kind: []),
      mock.patch.dict(os.environ),
    ):
      with self.assertRaisesRegex(_validate.InputError, 'make gpu') as caught:
        warm_gpu.main(None)
    self.assertNotIn('\n', str(caught.exception))

  def test_trains_both_ways(self):
    rounds = []
    context = runtime.create_local_context(client_threads=1)
    with mock.patch.object(warm_gpu, '_round', wraps=warm_gpu._round) as ran:
      warm_gpu.train(context)
    for call in ran.call_args_list:
      rounds.append(len(call.args[1]))
    self.assertEqual(rounds, [20, 8])

  def test_shows_time_and_size_until_it_ends(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    (folder / 'a').mkdir()
    (folder / 'a' / 'kernel').write_bytes(bytes(3 * 2**20))
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
      with warm_gpu.progress(folder, every=0.01):
        while printed.getvalue().count('\n') < 2:
          time.sleep(0.01)
    *lines, last = printed.getvalue().splitlines()
    self.assertStartsWith(lines[0], 'compiling: 0 s, 3 MiB in ')
    self.assertStartsWith(last, 'compiled: ')

  def test_describes_gpus(self):
    gpu = tf.config.PhysicalDevice('/physical_device:GPU:1', 'GPU')
    details = {'device_name': 'NVIDIA H100', 'compute_capability': (9, 0)}
    with mock.patch.object(
      tf.config.experimental, 'get_device_details', lambda _: details
    ):
      self.assertEqual(
        warm_gpu.describe([gpu]),
        ['GPU:1: NVIDIA H100, compute capability 9.0'],
      )


class KernelFolderTest(absltest.TestCase):
  def test_every_context_shares_one_folder(self):
    cache = self.create_tempdir().full_path
    with mock.patch.dict(os.environ, XDG_CACHE_HOME=cache):
      os.environ.pop('CUDA_CACHE_PATH', None)
      devices.choose(1, None, None)
      self.assertEqual(
        os.environ['CUDA_CACHE_PATH'], f'{cache}/tff_medical/cuda'
      )
      self.assertGreater(int(os.environ['CUDA_CACHE_MAXSIZE']), 2**30)

  def test_a_folder_of_the_user_stays(self):
    with mock.patch.dict(os.environ, CUDA_CACHE_PATH='/mine'):
      self.assertEqual(devices.keep_compiled_kernels(), pathlib.Path('/mine'))


if __name__ == '__main__':
  absltest.main()
