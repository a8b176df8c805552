r"""Compares the local runtime with TFF's own and with bare TensorFlow.

Every contender runs the same rounds of DP-FedAvg with adaptive clipping. The
contenders take turns within one process, so that a busy machine slows all of
them alike. Figures are medians over rounds after warm-up. A ratio is the median
of the ratios within each round. The floor is the same arithmetic in TensorFlow
without TFF (`bare_tensorflow.py`).

    python -m experiments.benchmark --rounds=20 --json=benchmark.json

The contender `cluster` runs its clients on the workers of a Ray cluster, each
with --client_threads cores:

    python -m experiments.benchmark --contenders=local,cluster \
        --client_threads=1 --cluster_address=HOST:PORT
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import gc
import statistics
from typing import Any

from absl import flags as absl_flags

from experiments.running import command

if __name__ == '__main__':
  absl_flags.DEFINE_integer('rounds', 12, 'number of measured rounds')
  absl_flags.DEFINE_integer('warm_up', 3, 'number of rounds before them')
  absl_flags.DEFINE_list(
    'contenders', ['local', 'tff', 'floor'], 'implementations to compare'
  )
  absl_flags.DEFINE_list(
    'workloads', ['common', 'small_clients'], 'cohorts to run them on'
  )
  absl_flags.DEFINE_string('json', None, 'file for the figures')
  absl_flags.DEFINE_integer(
    'client_threads',
    None,
    'clients that train at once on the CPU [one for each core]',
  )
  absl_flags.DEFINE_list(
    'client_devices', None, 'devices that train clients, e.g. GPU:0'
  )
  absl_flags.DEFINE_integer(
    'clients_per_device', None, 'clients that train at once on each device [1]'
  )
  absl_flags.DEFINE_string(
    'cluster_address', 'auto', 'Ray cluster of the contender cluster'
  )
  command.parse()

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from experiments.measuring import bare_tensorflow
from experiments.measuring import batched_rounds
from experiments.measuring import cluster_rounds
from experiments.measuring import networks
from experiments.measuring import pipelines
from experiments.measuring import timing
from tff_medical import _validate
from tff_medical import runtime
from tff_medical.learning import batched_clients
from tff_medical.learning import client_training
from tff_medical.runtime import cluster
from tff_medical.runtime import devices

_NOISE_MULTIPLIER = 0.5


@dataclasses.dataclass(frozen=True)
class Workload:
  """A cohort of clients with images of 28 x 28 x 3.

  Attributes:
    clients: Number of clients.
    images: Number of images of each client.
    batch_size: Number of images in one step on a client.
    hidden: Units of the hidden layer of the CNN; see `networks.cnn`.
  """

  clients: int
  images: int
  batch_size: int
  hidden: int = 128


WORKLOADS = {
  'common': Workload(clients=20, images=128, batch_size=32),
  # For the contender `cluster`: enough work for several machines.
  'large_cohort': Workload(clients=100, images=128, batch_size=32),
  'small_clients': Workload(clients=500, images=8, batch_size=8),
  # For the contenders `head` and `head_batched`, which train on features.
  'head': Workload(clients=470, images=10, batch_size=16),
}


def model(hidden: int = 128) -> tff.learning.models.FunctionalModel:
  """Returns the CNN, with its hidden units, as a functional model of TFF."""
  spec = collections.OrderedDict(
    x=tf.TensorSpec([None, 28, 28, 3]), y=tf.TensorSpec([None], tf.int32)
  )
  loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  return tff.learning.models.functional_model_from_keras(
    networks.cnn(hidden), loss, spec
  )


def learning_process(
  clients: int,
  noise_multiplier: float,
  wrapped: Callable[[Any], Any] = lambda optimizer: optimizer,
  hidden: int = 128,
  **options: Any,
) -> tff.learning.templates.LearningProcess:
  """Returns DP-FedAvg with adaptive clipping, from TFF's own parts.

  Args:
    clients: Cohort size.
    noise_multiplier: Noise multiplier.
    wrapped: Function from the client optimizer to the one that is used.
    hidden: Units of the hidden layer.
    **options: Further arguments of TFF's `build_unweighted_fed_avg`.
  """
  aggregator = tff.aggregators.DifferentiallyPrivateFactory.gaussian_adaptive(
    noise_multiplier, float(clients)
  )
  return tff.learning.algorithms.build_unweighted_fed_avg(
    model(hidden),
    wrapped(tff.learning.optimizers.build_sgdm(bare_tensorflow.CLIENT_RATE)),
    tff.learning.optimizers.build_sgdm(1.0, bare_tensorflow.MOMENTUM),
    model_aggregator=aggregator,
    **options,
  )


def client_data(work: Workload, seed: int = 0) -> list[dict[str, np.ndarray]]:
  """Returns random images x and labels y of each client."""
  rng = np.random.default_rng(seed)
  return [
    collections.OrderedDict(
      x=rng.random((work.images, 28, 28, 3), np.float32),
      y=rng.integers(8, size=work.images, dtype=np.int32),
    )
    for _ in range(work.clients)
  ]


def _tff_rounds(
  context: Any,
  work: Workload,
  datasets: Sequence[tf.data.Dataset],
  **options: Any,
) -> Callable[[], None]:
  """Returns a function that runs TFF's next round in a context."""
  with tff.framework.get_context_stack().install(context):
    process = learning_process(
      work.clients, _NOISE_MULTIPLIER, hidden=work.hidden, **options
    )
    state = process.initialize()

  def run() -> None:
    nonlocal state
    with tff.framework.get_context_stack().install(context):
      state = process.next(state, list(datasets)).state

  return run


def _local(
  work: Workload, context: Any, threads: int | None, **options: Any
) -> Callable[[], None]:
  del threads  # They belong to the context.
  datasets = [
    runtime.tensor_dataset(data, batch_size=work.batch_size)
    for data in client_data(work)
  ]
  return _tff_rounds(context, work, datasets, **options)


def _bfloat16(
  work: Workload, context: Any, threads: int | None
) -> Callable[[], None]:
  del context  # Its precision is another.
  context = runtime.create_local_context(threads, precision='bfloat16')
  # The client optimizer marks the training step, as that of
  # `learning.build_dp_fed_avg` does.
  return _local(work, context, threads, wrapped=client_training.in_marked_steps)


def _pipeline(
  dataset_fn: Callable[[Any, int], tf.data.Dataset],
  work: Workload,
  context: Any,
  threads: int | None,
  **options: Any,
) -> Callable[[], None]:
  del threads
  datasets = [dataset_fn(d, work.batch_size) for d in client_data(work)]
  return _tff_rounds(context, work, datasets, **options)


_plain = functools.partial(_pipeline, pipelines.slices)
_iterator = functools.partial(
  _plain, loop_implementation=tff.learning.LoopImplementation.DATASET_ITERATOR
)


def _tff(
  work: Workload, context: Any, threads: int | None
) -> Callable[[], None]:
  del context
  return _plain(
    work,
    tff.backends.native.create_sync_local_cpp_execution_context(),
    threads,
  )


def _cluster(
  address: str, work: Workload, context: Any, threads: int | None
) -> Callable[[], None]:
  del context
  return _tff_rounds(
    cluster.create_cluster_context(address, worker_cores=threads),
    work,
    cluster_rounds.clients(work.clients, work.images, work.batch_size),
  )


def _floor(
  work: Workload, context: Any, threads: int | None
) -> Callable[[], None]:
  del context
  training = bare_tensorflow.Training(
    networks.cnn(work.hidden),
    client_data(work),
    work.batch_size,
    _NOISE_MULTIPLIER,
    threads or devices.available_cores(),
  )
  return training.next_round


def _batched(
  work: Workload, context: Any, threads: int | None
) -> Callable[[], None]:
  """Returns what the experiments choose: one batch, if it is faster."""
  steps = batched_clients.ClientWork(work.images, work.batch_size)
  trained = model(work.hidden)
  on_gpu = bool(tf.config.list_physical_devices('GPU'))
  if not batched_clients.is_faster(trained, steps, on_gpu):
    return _local(work, context, threads)
  data = client_data(work)
  return batched_rounds.rounds(context, trained, data, _NOISE_MULTIPLIER)


# Function of workload, context and threads that returns the next round.
Contender = Callable[..., Callable[[], None]]
CONTENDERS: dict[str, Contender] = {
  'cluster': functools.partial(_cluster, 'auto'),
  'local': _local,
  'local_plain': _plain,
  'local_tutorial': functools.partial(_pipeline, pipelines.tutorial),
  'local_iterator': _iterator,
  'local_batched': _batched,
  'local_bfloat16': _bfloat16,
  'tff': _tff,
  'floor': _floor,
  'head': functools.partial(batched_rounds.head, False),
  'head_batched': functools.partial(batched_rounds.head, True),
}


def summarize(
  work: Workload, seconds: dict[str, list[float]]
) -> dict[str, Any]:
  """Returns medians in seconds, and the local runtime's ratios to the others.

  Args:
    work: Workload that was measured.
    seconds: Seconds of each round, by contender.
  """
  summary: dict[str, Any] = dataclasses.asdict(work)
  for name, values in seconds.items():
    summary[f'{name}_secs'] = statistics.median(values)
  if 'local' in seconds:
    summary['millis_a_client'] = 1000 * summary['local_secs'] / work.clients
  for name, values in seconds.items():
    if name.startswith('local_') and 'floor' in seconds:
      ratio = timing.median_ratio(values, seconds['floor'])
      summary[f'{name}_to_floor'] = ratio
    if name == 'local' or 'local' not in seconds:
      continue
    summary[f'local_to_{name}'] = timing.median_ratio(seconds['local'], values)
    if name == 'floor':
      overhead = statistics.median(
        a - b for a, b in zip(seconds['local'], values)
      )
      summary['millis_a_client_over_floor'] = 1000 * overhead / work.clients
  if 'local_bfloat16' in seconds and 'floor' in seconds:
    summary['local_bfloat16_to_floor'] = timing.median_ratio(
      seconds['local_bfloat16'], seconds['floor']
    )
  if 'head' in seconds and 'head_batched' in seconds:
    summary['head_batched_to_head'] = timing.median_ratio(
      seconds['head_batched'], seconds['head']
    )
  return summary


def measure(
  work: Workload,
  contenders: Mapping[str, Contender],
  context: Any,
  *,
  warm_up: int,
  rounds: int,
  threads: int | None = None,
) -> dict[str, Any]:
  """Returns the figures of a workload, as `summarize` does.

  Args:
    work: Workload.
    contenders: Functions that make the contenders' rounds, by name.
    context: TFF context of the local runtime.
    warm_up: Number of rounds before those that are measured.
    rounds: Number of measured rounds.
    threads: Clients that train at once; None is one for each core.
  """
  next_rounds = {
    name: make(work, context, threads) for name, make in contenders.items()
  }
  seconds = timing.measure(next_rounds, warm_up, rounds)
  del next_rounds
  gc.collect()  # TFF stops its worker process when its context is collected.
  return summarize(work, seconds)


def main(values: absl_flags.FlagValues) -> None:
  """Runs the benchmark that the flags describe."""
  _validate.positive_int(rounds=values.rounds)
  _validate.non_negative(warm_up=values.warm_up)
  for name in values.contenders:
    _validate.one_of(CONTENDERS, contenders=name)
  for name in values.workloads:
    _validate.one_of(WORKLOADS, workloads=name)
  threads = values.client_threads
  context = runtime.create_local_context(
    threads, values.client_devices, values.clients_per_device
  )
  functions: dict[str, Contender] = {
    **CONTENDERS,
    'cluster': functools.partial(_cluster, values.cluster_address),
  }
  results = {
    name: measure(
      WORKLOADS[name],
      {c: functions[c] for c in values.contenders},
      context,
      warm_up=values.warm_up,
      rounds=values.rounds,
      threads=threads,
    )
    for name in values.workloads
  }
  timing.report(results, values.json, rounds=values.rounds)


if __name__ == '__main__':
  command.run(functools.partial(main, absl_flags.FLAGS))
