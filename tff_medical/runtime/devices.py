"""Placement of clients: the division of cores and GPUs among them.

On the CPU `client_threads` clients run at once, each with `cores //
client_threads` of TensorFlow's intra-op threads. Many clients with one thread
each beat one client on all cores, as small operations do not split well. A GPU
is split into logical devices, each with a stream and a share of the memory.

TensorFlow fixes threads and devices when it first runs an operation. A context
has to be created before.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import os
import pathlib
import subprocess

from absl import logging
import tensorflow as tf

from tff_medical import _files
from tff_medical import _validate

# Share of a GPU's free memory that its logical devices divide.
_MEMORY_SHARE = 0.9
# TensorFlow takes the number of threads inside an operation from this variable
# if the program sets none. The program need not know of the runtime then.
_INTRA_OP_VARIABLE = 'TF_NUM_INTRAOP_THREADS'
# Upper limits: each thread and each part of a device holds memory of its own.
_MAX_THREADS = 256
_MAX_PARTS = 64
# Size up to which the driver keeps compiled kernels. Its own limit of 1 GiB may
# be less than those of TensorFlow.
_MAX_KERNEL_BYTES = 4 * 2**30


@dataclasses.dataclass(frozen=True)
class Placement:
  """Devices on which clients run.

  Attributes:
    devices: TensorFlow's names of the devices.
    threads: Number of clients that run at once on each device.
    knob: Name of the argument that sets this number, for error messages.
  """

  devices: tuple[str, ...]
  threads: int
  knob: str


def available_cores() -> int:
  """Returns the number of CPU cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def keep_compiled_kernels() -> pathlib.Path:
  """Has the driver keep the kernels that it compiles; returns their folder.

  The driver reads the variables when TensorFlow first looks for GPUs. Variables
  that are set stay.
  """
  folder = os.environ.setdefault(
    'CUDA_CACHE_PATH', str(_files.cache_folder('cuda'))
  )
  os.environ.setdefault('CUDA_CACHE_MAXSIZE', str(_MAX_KERNEL_BYTES))
  return pathlib.Path(folder)


def choose(
  client_threads: int | None,
  client_devices: Sequence[str] | None,
  clients_per_device: int | None,
) -> Placement:
  """Returns the placement; see `local.create_local_context` for arguments."""
  keep_compiled_kernels()
  on_devices = client_devices is not None or clients_per_device is not None
  if client_threads is not None:
    _validate.positive_int(client_threads=client_threads)
    _validate.within(1, _MAX_THREADS, client_threads=client_threads)
    if on_devices:
      raise _validate.InputError(
        'client_threads counts clients at once on the CPU as a whole; leave '
        'it out when client_devices or clients_per_device are given'
      )
    return _cpu(client_threads)
  if client_devices is None:
    gpus = tf.config.list_physical_devices('GPU')
    if not gpus and not on_devices:
      return _cpu(available_cores())
    kind, number = ('GPU', len(gpus)) if gpus else ('CPU', 1)
    client_devices = [f'{kind}:{i}' for i in range(number)]
  clients_per_device = 1 if clients_per_device is None else clients_per_device
  _validate.positive_int(clients_per_device=clients_per_device)
  _validate.within(1, _MAX_PARTS, clients_per_device=clients_per_device)
  names = _logical_devices(client_devices, clients_per_device)
  if any(name.startswith('GPU:') for name in names):
    # TensorFloat-32 rounds the inputs of matrix products to 11 bits. The sum of
    # clipped gradients is such a product: it could exceed the clip norm.
    tf.config.experimental.enable_tensor_float_32_execution(False)
  return Placement(tuple(names), 1, 'clients_per_device')


def on_cores(cores: int) -> Placement:
  """Returns the placement of one client on each of some of the CPU cores.

  Args:
    cores: Number of cores that this process uses, of those that it may use.
  """
  return _cpu(cores, cores)


def _cpu(threads: int, cores: int | None = None) -> Placement:
  if cores is None:
    cores = available_cores()
  intra_op = max(1, cores // threads)
  try:
    tf.config.threading.set_inter_op_parallelism_threads(max(cores, threads))
    tf.config.threading.set_intra_op_parallelism_threads(intra_op)
  except RuntimeError:
    if os.environ.get(_INTRA_OP_VARIABLE) != str(intra_op):
      logging.warning(
        'TensorFlow runs already, so its threads inside an operation stay as '
        'they are, which makes rounds slower. Call set_local_context or '
        'create_local_context before TensorFlow is used, thus before models '
        'and learning processes are built; or start the program with %s=%d.',
        _INTRA_OP_VARIABLE,
        intra_op,
      )
  return Placement(('CPU:0',), threads, 'client_threads')


def _logical_devices(names: Sequence[str], parts: int) -> list[str]:
  """Splits the named devices into parts and returns the names of all parts."""
  if not names:
    raise _validate.InputError('client_devices must name a device, got none')
  if parts == 1:
    logical = [
      device.name.replace('/device:', '')
      for device in tf.config.list_logical_devices()
    ]
    for name in names:
      _validate.one_of(logical, client_devices=name)
    return list(names)
  for name in names:
    _split(name, parts)
  return [part for name in names for part in _parts(name, parts)]


def _physical_devices(kind: str) -> dict[str, tf.config.PhysicalDevice]:
  physical = tf.config.list_physical_devices(kind)
  return {f'{kind}:{number}': device for number, device in enumerate(physical)}


def _split(name: str, parts: int) -> None:
  """Divides a physical device into logical devices, unless it is divided."""
  physical = _physical_devices(name.split(':')[0])
  _validate.one_of(physical, client_devices=name)
  device = physical[name]
  configuration = tf.config.get_logical_device_configuration(device) or []
  if len(configuration) == parts:
    return
  limit = None
  if device.device_type == 'GPU':
    limit = int(_free_memory_mib(name) * _MEMORY_SHARE / parts)
  try:
    tf.config.set_logical_device_configuration(
      device, [tf.config.LogicalDeviceConfiguration(limit)] * parts
    )
  except RuntimeError as error:
    raise RuntimeError(
      f'{name} cannot be divided among clients_per_device={parts} once '
      'TensorFlow runs; create the local context before any operation'
    ) from error


def _parts(name: str, parts: int) -> list[str]:
  """Returns the names of the logical devices of a split device."""
  kind = name.split(':')[0]
  start = 0
  for other, device in _physical_devices(kind).items():
    if other == name:
      break
    configuration = tf.config.get_logical_device_configuration(device) or []
    start += max(1, len(configuration))
  return [f'{kind}:{start + part}' for part in range(parts)]


def _free_memory_mib(name: str) -> int:
  """Returns the free memory of a GPU, as the driver reports it."""
  command = [
    'nvidia-smi',
    '--query-gpu=memory.free',
    '--format=csv,noheader,nounits',
  ]
  index = int(name.split(':')[1])
  visible = os.environ.get('CUDA_VISIBLE_DEVICES', '')
  if visible:
    command.append(f'--id={visible.split(",")[index]}')
    index = 0
  try:
    output = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(output.stdout.split()[index])
  except (OSError, subprocess.CalledProcessError, ValueError, IndexError) as e:
    raise RuntimeError(
      f'nvidia-smi does not tell the free memory of {name}; divide it with '
      'tf.config.set_logical_device_configuration and name its parts in '
      'client_devices'
    ) from e
