"""Compiles the kernels for this machine's GPUs, once, and says how far it is.

TensorFlow 2.14 holds machine code for GPUs up to compute capability 7.5, and
code for 8.0 that the driver can compile for later ones. On a Hopper GPU (9.0)
this takes many minutes at the first use of a kernel, and looks as if training
hung. This command trains one round of DP-FedAvg and one of record-level DP-SGD.
The driver keeps the kernels in a folder, CUDA_CACHE_PATH, which all commands of
this project share (~/.cache/tff_medical/cuda unless the variable is set).

    python -m experiments.warm_gpu
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
import contextlib
import pathlib
import sys
import threading
import time

from absl import flags as absl_flags

from experiments.running import command

if __name__ == '__main__':
  absl_flags.DEFINE_list(
    'client_devices', None, 'GPUs to compile for, e.g. GPU:0 [all]'
  )
  command.parse()

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from experiments import benchmark
from experiments.measuring import record_rounds
from tff_medical import _validate
from tff_medical import runtime
from tff_medical.learning import dp_sgd
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling
from tff_medical.runtime import devices

# Seconds between two lines of progress.
_EVERY = 10.0
_WORK = benchmark.Workload(clients=20, images=32, batch_size=32)


def describe(gpus: Sequence[tf.config.PhysicalDevice]) -> list[str]:
  """Returns a line for each GPU: its name and its compute capability."""
  lines = []
  for gpu in gpus:
    details = tf.config.experimental.get_device_details(gpu)
    capability = details.get('compute_capability', (0, 0))
    lines.append(
      f'{gpu.name.rpartition("device:")[2]}: '
      f'{details.get("device_name", "unknown")}, compute capability '
      f'{capability[0]}.{capability[1]}'
    )
  return lines


@contextlib.contextmanager
def progress(folder: pathlib.Path, every: float = _EVERY) -> Iterator[None]:
  """Prints the seconds and the size of the folder while the body runs."""
  start, ended = time.monotonic(), threading.Event()

  def show(word: str) -> None:
    size = sum(f.stat().st_size for f in folder.rglob('*') if f.is_file())
    seconds = time.monotonic() - start
    print(
      f'{word}: {seconds:.0f} s, {size / 2**20:.0f} MiB in {folder}',
      file=sys.stderr,
      flush=True,
    )

  def watch() -> None:
    while not ended.wait(every):
      with contextlib.suppress(OSError):  # The driver renames its files.
        show('compiling')

  thread = threading.Thread(target=watch, daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()
  show('compiled')


def train(context: runtime.LocalContext) -> None:
  """Trains one round of DP-FedAvg and one of DP-SGD on random images."""
  with tff.framework.get_context_stack().install(context):
    process = benchmark.learning_process(_WORK.clients, noise_multiplier=0.5)
    data = benchmark.client_data(_WORK)
    _round(process, [runtime.tensor_dataset(d, batch_size=32) for d in data])
    model = record_rounds.functional_model('cnn_dense')
    _round(_dp_sgd(model), [_records(model) for _ in range(8)])


def _round(
  process: tff.learning.templates.LearningProcess,
  datasets: list[tf.data.Dataset],
) -> None:
  process.next(process.initialize(), datasets)


def _dp_sgd(
  model: tff.learning.models.FunctionalModel,
) -> tff.learning.templates.LearningProcess:
  mechanism = mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(population=1000, expected_cohort=256),
    clipping=mechanisms.AdaptiveClipping(clip_norm=0.1),
    noise_multiplier=1.0,
    privacy_unit='record',
  )
  return dp_sgd.build_dp_sgd(model, mechanism)


def _records(model: tff.learning.models.FunctionalModel) -> tf.data.Dataset:
  x, y = record_rounds.images(model, 32)
  batch = collections.OrderedDict(
    x=x[:, np.newaxis],
    y=y[:, np.newaxis],
    mask=np.ones((32, 1), np.float32),
  )
  return runtime.tensor_dataset(batch, batch_size=32)


def main(client_devices: Sequence[str] | None) -> None:
  """Compiles what training needs.

  Raises:
    InputError: TensorFlow sees no GPU, or not the named ones.
  """
  folder = devices.keep_compiled_kernels()
  gpus = tf.config.list_physical_devices('GPU')
  if not gpus:
    raise _validate.InputError(
      'TensorFlow sees no GPU; run `make gpu`, which installs CUDA 11.8 and '
      'cuDNN 8, and see that `nvidia-smi` lists the GPU'
    )
  print('\n'.join(describe(gpus)))
  folder.mkdir(parents=True, exist_ok=True)
  context = runtime.create_local_context(client_devices=client_devices)
  with progress(folder):
    train(context)


if __name__ == '__main__':
  _FLAGS = absl_flags.FLAGS
  command.run(lambda: main(_FLAGS.client_devices))
