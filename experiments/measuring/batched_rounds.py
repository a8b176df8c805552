"""Rounds of clients that take one step, as the experiments run them.

The groups are made anew in each round, as the feed of the experiments does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_federated as tff

from experiments.measuring import bare_tensorflow
from tff_medical import learning
from tff_medical import runtime
from tff_medical.learning import batched_clients
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling
from tff_medical.program import client_groups


def rounds(
  context: Any,
  model: tff.learning.models.FunctionalModel,
  data: Sequence[Mapping[str, np.ndarray]],
  noise_multiplier: float,
) -> Callable[[], None]:
  """Returns a function that runs the next round in a context.

  Args:
    context: TFF context.
    model: Model that the clients train.
    data: Images x and labels y of each client, all of which are one step.
    noise_multiplier: Noise multiplier, with adaptive clipping.
  """
  datasets = [runtime.tensor_dataset(d, batch_size=len(d['y'])) for d in data]
  size = batched_clients.group_size(model)
  mechanism = mechanisms.GaussianMechanism(
    sampling=sampling.FullParticipation(len(data)),
    clipping=mechanisms.AdaptiveClipping(),
    noise_multiplier=noise_multiplier,
  )
  with tff.framework.get_context_stack().install(context):
    process = learning.build_batched_dp_fed_avg(
      model,
      mechanism,
      client_learning_rate=bare_tensorflow.CLIENT_RATE,
      server_optimizer=tff.learning.optimizers.build_sgdm(
        1.0, bare_tensorflow.MOMENTUM
      ),
    )
    state = process.initialize()

  def run() -> None:
    nonlocal state
    with tff.framework.get_context_stack().install(context):
      groups = client_groups.in_groups(datasets, size)
      state = process.next(state, groups).state

  return run
