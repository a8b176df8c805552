"""Rounds of many clients in one batch, as the experiments run them.

The groups are made anew in each round, as the feed of the experiments does.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from experiments.measuring import bare_tensorflow
from tff_medical import learning
from tff_medical import models
from tff_medical import runtime
from tff_medical.learning import batched_clients
from tff_medical.learning import batched_steps
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling
from tff_medical.program import client_groups

# Number of features of the experiments' default backbone, and epochs.
_FEATURES = 5_249
_EPOCHS = 3
_NOISE_MULTIPLIER = 0.5


def head(
  in_groups: bool, work: Any, context: Any, *_: Any
) -> Callable[[], None]:
  """Returns a function that trains a dense layer on features for a round.

  Args:
    in_groups: Whether many clients take each step at once.
    work: Numbers `clients`, `images` of a client and `batch_size`.
    context: TFF context.
  """
  rng = np.random.default_rng(0)
  data = [
    collections.OrderedDict(
      x=rng.random((work.images, _FEATURES), np.float32),
      y=rng.integers(2, size=work.images),
    )
    for _ in range(work.clients)
  ]
  model = _head_model()
  if in_groups:
    steps = batched_steps.LocalSteps(work.batch_size, _EPOCHS)
    return rounds(context, model, data, _NOISE_MULTIPLIER, steps)
  datasets = [
    runtime.tensor_dataset(d, batch_size=work.batch_size, epochs=_EPOCHS)
    for d in data
  ]
  with tff.framework.get_context_stack().install(context):
    process = learning.build_dp_fed_avg(
      model,
      _mechanism(len(data), _NOISE_MULTIPLIER),
      client_optimizer=tff.learning.optimizers.build_sgdm(
        bare_tensorflow.CLIENT_RATE
      ),
      server_optimizer=_server_optimizer(),
    )
    state = process.initialize()

  def run() -> None:
    nonlocal state
    with tff.framework.get_context_stack().install(context):
      state = process.next(state, datasets).state

  return run


def _head_model() -> tff.learning.models.FunctionalModel:
  return tff.learning.models.functional_model_from_keras(
    tf.keras.Sequential(
      [tf.keras.layers.Input((_FEATURES,)), tf.keras.layers.Dense(2)]
    ),
    models.loss(multi_label=False),
    collections.OrderedDict(
      x=tf.TensorSpec((None, _FEATURES)), y=tf.TensorSpec((None,), tf.int64)
    ),
  )


def _mechanism(
  clients: int, noise_multiplier: float
) -> mechanisms.GaussianMechanism:
  return mechanisms.GaussianMechanism(
    sampling=sampling.FullParticipation(clients),
    clipping=mechanisms.AdaptiveClipping(),
    noise_multiplier=noise_multiplier,
  )


def _server_optimizer() -> tff.learning.optimizers.Optimizer:
  return tff.learning.optimizers.build_sgdm(1.0, bare_tensorflow.MOMENTUM)


def rounds(
  context: Any,
  model: tff.learning.models.FunctionalModel,
  data: Sequence[Mapping[str, np.ndarray]],
  noise_multiplier: float,
  steps: batched_steps.LocalSteps | None = None,
) -> Callable[[], None]:
  """Returns a function that runs the next round in a context.

  Args:
    context: TFF context.
    model: Model that the clients train.
    data: Images x and labels y of each client.
    noise_multiplier: Noise multiplier, with adaptive clipping.
    steps: Steps of each client; the default is one on all of its images.
  """
  datasets = [runtime.tensor_dataset(d, batch_size=len(d['y'])) for d in data]
  size = batched_clients.group_size(model, steps is None)
  with tff.framework.get_context_stack().install(context):
    process = learning.build_batched_dp_fed_avg(
      model,
      _mechanism(len(data), noise_multiplier),
      client_learning_rate=bare_tensorflow.CLIENT_RATE,
      client_steps=steps,
      server_optimizer=_server_optimizer(),
    )
    state = process.initialize()

  def run() -> None:
    nonlocal state
    with tff.framework.get_context_stack().install(context):
      groups = client_groups.in_groups(datasets, size)
      state = process.next(state, groups).state

  return run
