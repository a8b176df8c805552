"""Costs of the driver in a round, by the size of the model.

They are what a round takes in the driver's process besides clients, messages and
the network: noise and server step, checkpoint, charge, and the sum of totals.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
import pathlib
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from experiments.measuring import starting
from tff_medical import _validate
from tff_medical import learning
from tff_medical import runtime
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling
from tff_medical.program import checkpoints
from tff_medical.program import training

# Size of a client's vectors.
INPUTS = 1_000
_CHARGES = 200


def measure(parameters: int, turns: int) -> dict[str, float]:
  """Returns costs as `cluster_simulation.Costs` names them.

  The server's step is that of DP-FedAvg with a fixed clip norm and momentum, for
  a dense layer. It includes the digest of the weights that a round records.

  Args:
    parameters: Number of weights, at least 2,000; it is rounded.
    turns: Number of measured repetitions, whose median counts.
  """
  _validate.within(2 * INPUTS, 2**31 - 1, parameters=parameters)
  _validate.positive_int(turns=turns)
  context = runtime.create_local_context()
  with tff.framework.get_context_stack().install(context):
    return _measure(parameters // INPUTS * INPUTS, turns)


def _measure(number: int, turns: int) -> dict[str, float]:
  process = dense_process(number)
  state = process.initialize()
  no_data = runtime.tensor_dataset(
    collections.OrderedDict(
      x=np.zeros((0, INPUTS), np.float32), y=np.zeros(0, np.int64)
    ),
    batch_size=1,
  )

  def step() -> None:
    nonlocal state
    state = process.next(state, [no_data]).state
    training.weights_digest(process.get_model_weights(state))

  step()
  step_secs = _median_secs(step, turns)
  total, other = np.ones((2, number), np.float32)
  add_secs = _median_secs(lambda: np.add(total, other, out=total), turns)
  size = sum(np.asarray(leaf).nbytes for leaf in tf.nest.flatten(state))
  save_secs = _save_secs(state, turns)
  return {
    'server_nanos_per_parameter': 1e9 * step_secs / number,
    'merge_nanos_per_parameter': 1e9 * add_secs / number,
    'state_copies': size / (4 * number),
    'save_megabytes_per_second': size / 1e6 / save_secs,
    'charge_millis': starting.charges(_CHARGES)['poisson_millis'],
  }


def dense_process(
  parameters: int,
) -> tff.learning.templates.LearningProcess:
  """Returns DP-FedAvg of a dense layer, for vectors of `INPUTS` numbers.

  Args:
    parameters: Number of weights, a multiple of `INPUTS`.
  """
  model = tff.learning.models.functional_model_from_keras(
    tf.keras.Sequential(
      [
        tf.keras.layers.InputLayer([INPUTS]),
        tf.keras.layers.Dense(parameters // INPUTS, use_bias=False),
      ]
    ),
    tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    collections.OrderedDict(
      x=tf.TensorSpec([None, INPUTS]), y=tf.TensorSpec([None], tf.int64)
    ),
  )
  mechanism = mechanisms.GaussianMechanism(
    sampling=sampling.PoissonSampling(1000, 100),
    clipping=mechanisms.FixedClipping(1.0),
    noise_multiplier=1.0,
  )
  return learning.build_dp_fed_avg(
    model,
    mechanism,
    client_optimizer=tff.learning.optimizers.build_sgdm(0.1),
    server_optimizer=tff.learning.optimizers.build_sgdm(1.0, 0.9),
  )


def _save_secs(state: Any, turns: int) -> float:
  with tempfile.TemporaryDirectory() as folder:
    saved = checkpoints.Checkpoints(pathlib.Path(folder))
    numbers = iter(range(turns))

    def save() -> None:
      record = checkpoints.Record(
        run_id='0' * 32,
        round_num=next(numbers),
        attempt=0,
        charges=0,
        ledger_digests=(),
        weights_digest='',
        values={},
        evaluates=False,
      )
      saved.save(state, record)

    return _median_secs(save, turns)


def _median_secs(run: Callable[[], object], turns: int) -> float:
  seconds = []
  for _ in range(turns):
    started = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - started)
  return statistics.median(seconds)
