"""DP-FedAvg: federated averaging whose aggregate is differentially private.

McMahan et al. 2018 (arXiv 1710.06963), with the adaptive clipping of Andrew et
al. 2021 (arXiv 1905.03871) where the mechanism asks for it. The parts are TFF's
own: its client work trains the clients, its aggregator around TensorFlow
Privacy's query clips, sums and adds noise, its finalizer applies the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Union

import tensorflow_federated as tff

from tff_medical.learning import optimizers
from tff_medical.privacy import aggregators

Model = Union[
  tff.learning.models.FunctionalModel,
  Callable[[], tff.learning.models.VariableModel],
]


def build_dp_fed_avg(
  model: Model,
  mechanism: aggregators.ClientMechanism,
  *,
  client_optimizer: tff.learning.optimizers.Optimizer,
  server_optimizer: tff.learning.optimizers.Optimizer | None = None,
) -> tff.learning.templates.LearningProcess:
  """Returns a learning process that runs in any TFF context.

  The guarantee holds for what `next` returns, its state and its metrics, if
  each round's cohort is drawn by `mechanism.sampling` and every round is
  charged in a ledger of `mechanism`. Client training metrics, which TFF
  sums without noise, are left out for that reason.

  Args:
    model: A functional model, or a function that returns a new `VariableModel`.
      It must have no BatchNorm: batch statistics do not survive averaging.
    mechanism: Clipping, noise and sampling. Without clipping the process is
      plain, unweighted FedAvg.
    client_optimizer: What every client trains with, one pass over its dataset
      of batches.
    server_optimizer: Takes the aggregated update for a gradient. By default SGD
      with learning rate 1: the update is added.
  """
  return tff.learning.algorithms.build_unweighted_fed_avg(
    model_fn=model,
    client_optimizer_fn=client_optimizer,
    server_optimizer_fn=server_optimizer
    or optimizers.build_server_optimizer('sgd', learning_rate=1.0),
    model_aggregator=aggregators.build_aggregator(mechanism),
    metrics_aggregator=_no_metrics,
  )


def _no_metrics(*finalizers_and_types: Any) -> tff.Computation:
  """Returns an aggregation of client metrics that drops them on the client."""
  del finalizers_and_types

  def drop(_: Any) -> Any:
    return tff.federated_value((), tff.SERVER)

  return drop
