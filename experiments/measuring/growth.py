"""Memory of a process by the number of clients in a round.

All clients have the same 8 images, so that the data of the cohort does not
grow with it.

    python -m experiments.measuring.growth 20 200 2000

prints the peak of the resident memory in MiB after a round of each cohort.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
import pathlib
import subprocess
import sys

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from experiments.measuring import memory
from experiments.measuring import networks
from tff_medical import learning
from tff_medical import models
from tff_medical import runtime
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling

_IMAGES = 8
_ROOT = pathlib.Path(__file__).resolve().parents[2]


def peaks(cohorts: Sequence[int]) -> dict[str, float]:
  """Returns the peak in MiB after a round of each cohort, in a new process.

  Args:
    cohorts: Numbers of clients, ascending.

  Raises:
    CalledProcessError: The process failed.
  """
  done = subprocess.run(
    [sys.executable, '-m', __name__, *map(str, cohorts)],
    cwd=_ROOT,
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  )
  values = done.stdout.split()[-len(cohorts) :]
  return {
    f'{clients}_clients_peak_mib': float(value)
    for clients, value in zip(cohorts, values)
  }


def main(cohorts: Sequence[int]) -> None:
  """Runs a round of each cohort, and prints the peak after it in MiB."""
  spec = collections.OrderedDict(
    x=tf.TensorSpec((None, 28, 28, 3)), y=tf.TensorSpec((None,), tf.int64)
  )
  model = tff.learning.models.functional_model_from_keras(
    networks.cnn(), models.loss(multi_label=False), spec
  )
  mechanism = mechanisms.GaussianMechanism(
    sampling=sampling.FullParticipation(max(cohorts)),
    clipping=mechanisms.FixedClipping(1.0),
    noise_multiplier=0.5,
  )
  rng = np.random.default_rng(0)
  dataset = runtime.tensor_dataset(
    collections.OrderedDict(
      x=rng.random((_IMAGES, 28, 28, 3), np.float32),
      y=rng.integers(8, size=_IMAGES),
    ),
    batch_size=_IMAGES,
  )
  context = runtime.create_local_context()
  with tff.framework.get_context_stack().install(context):
    process = learning.build_dp_fed_avg(
      model,
      mechanism,
      client_optimizer=tff.learning.optimizers.build_sgdm(0.1),
    )
    state = process.initialize()
    for clients in cohorts:
      state = process.next(state, [dataset] * clients).state
      print(memory.peak_mib(), flush=True)


if __name__ == '__main__':
  main([int(clients) for clients in sys.argv[1:]])
