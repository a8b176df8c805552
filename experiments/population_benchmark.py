"""Measures what a large population of clients costs before and in a round.

A split of random images of 8 x 8 pixels is spread over clients in each way, and
read through the feed of a training. Every step runs twice: `cpu_secs` is the
processor time of the first run. `kept_mib` and `peak_mib` are the memory that
the second one keeps, and needs in its course, beyond what was there before.

    python -m experiments.population_benchmark --json=population.json
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import gc
import time
import tracemalloc
from typing import Any

from absl import flags as absl_flags

from experiments.running import command

if __name__ == '__main__':
  absl_flags.DEFINE_integer('clients', 1_000_000, 'number of clients')
  absl_flags.DEFINE_integer(
    'images_per_client', 2, 'mean number of images of a client'
  )
  absl_flags.DEFINE_integer('cohort', 1_000, 'expected clients in a round')
  absl_flags.DEFINE_float('alpha', 0.3, 'concentration of skewed partitions')
  absl_flags.DEFINE_string('json', None, 'file for the figures')
  command.parse()

import numpy as np

from experiments.measuring import timing
from tff_medical import _validate
from tff_medical.data import clients as clients_lib
from tff_medical.data import images as images_lib
from tff_medical.data import partition as partition_lib
from tff_medical.data import units as units_lib
from tff_medical.privacy import sampling
from tff_medical.program import feeds

_CLASSES = 9
_BATCH_SIZE = 16
_MEBIBYTE = 2**20


def random_split(
  clients: int, images_per_client: int, *, has_patients: bool
) -> images_lib.Split:
  """Returns random images; sites and patients are as many as clients."""
  rng = np.random.default_rng(0)
  number = clients * images_per_client
  owners = rng.permutation(np.arange(number) % clients)
  return images_lib.Split(
    images=rng.integers(256, size=(number, 8, 8, 1), dtype=np.uint8),
    labels=rng.integers(_CLASSES, size=number),
    sites=owners,
    patients=owners if has_patients else None,
  )


def partitioned(
  kind: str, split: images_lib.Split, clients: int, alpha: float = 0.3
) -> partition_lib.ClientRows:
  """Returns the partition of a kind."""
  return partition_lib.partition(
    kind,
    split,
    num_clients=clients if kind in partition_lib.COUNTED_KINDS else None,
    alpha=alpha if kind in partition_lib.ALPHA_KINDS else None,
    rng=np.random.default_rng(0),
  )


def partitions(
  clients: int, images_per_client: int, alpha: float
) -> dict[str, float]:
  """Returns the costs of the partition of each kind."""
  results = {}
  for has_patients in (False, True):
    split = random_split(clients, images_per_client, has_patients=has_patients)
    for kind in partition_lib.KINDS:
      if (kind == 'natural_patient') == has_patients:
        run = functools.partial(partitioned, kind, split, clients, alpha)
        results.update(measured(kind, run))
  return results


def rounds(
  clients: int, images_per_client: int, cohort: int
) -> dict[str, float]:
  """Returns the costs of the steps from a partition to a round's data."""
  split = random_split(clients, images_per_client, has_patients=False)
  partition = partitioned('iid', split, clients)
  sampler = sampling.PoissonSampling(clients, cohort)
  attempts = iter(range(10))

  def draw() -> np.ndarray:
    return sampler.draw(0, 1, next(attempts))

  def feed() -> feeds.ClientFeed:
    data = clients_lib.ImageClientData(split, partition)
    made = feeds.ClientFeed(data, _BATCH_SIZE)
    _validate.within(clients, clients, num_units=made.num_units)
    return made

  def fresh_digest() -> str:
    return partition_lib.ClientRows(partition.rows, partition.ends).digest()

  made = feed()
  made(draw())  # The first dataset takes longer.
  return {
    **measured('feed', feed),
    **measured('draw', draw),
    **measured('data_of_cohort', lambda: made(draw())),
    **measured('digest', fresh_digest),
    **measured('units', lambda: units_lib.record_units(partition)),
  }


def measured(name: str, run: Callable[[], Any]) -> dict[str, float]:
  """Returns seconds and memory of a function that can run twice."""
  gc.collect()
  started = time.process_time()
  run()
  seconds = time.process_time() - started
  gc.collect()
  tracemalloc.start()
  try:
    kept = run()  # Its memory counts until it is measured.
    size, peak = tracemalloc.get_traced_memory()
    del kept
  finally:
    tracemalloc.stop()
  return {
    f'{name}_cpu_secs': seconds,
    f'{name}_kept_mib': size / _MEBIBYTE,
    f'{name}_peak_mib': peak / _MEBIBYTE,
  }


def main(values: absl_flags.FlagValues) -> None:
  """Runs the benchmark that the flags describe."""
  _validate.positive_int(
    clients=values.clients,
    images_per_client=values.images_per_client,
    cohort=values.cohort,
  )
  _validate.within(1, values.clients - 1, cohort=values.cohort)
  _validate.positive(alpha=values.alpha)
  size = (values.clients, values.images_per_client)
  results = {
    'partitions': partitions(*size, values.alpha),
    'rounds': rounds(*size, values.cohort),
  }
  timing.report(
    results,
    values.json,
    clients=values.clients,
    images_per_client=values.images_per_client,
    cohort=values.cohort,
    alpha=values.alpha,
  )


if __name__ == '__main__':
  command.run(functools.partial(main, absl_flags.FLAGS))
