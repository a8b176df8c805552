"""DP-FedAvg: federated averaging whose aggregate is differentially private.

McMahan et al. 2018 (arXiv 1710.06963), with the adaptive clipping of Andrew et
al. 2021 (arXiv 1905.03871) or as the DP-FTRL of Kairouz et al. 2021 (arXiv
2103.00039) where the mechanism asks for it. The parts are TFF's own: its client
work trains the clients, its aggregator around TensorFlow Privacy's query clips,
sums and adds noise, its finalizer applies the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Union

import tensorflow_federated as tff

from tff_medical.learning import client_training
from tff_medical.learning import labels
from tff_medical.learning import optimizers
from tff_medical.privacy import aggregators
from tff_medical.privacy import interface

Model = Union[
  tff.learning.models.FunctionalModel,
  Callable[[], tff.learning.models.VariableModel],
]
ClientOptimizer = Union[
  tff.learning.optimizers.Optimizer,
  Callable[[Any], tff.learning.optimizers.Optimizer],
]


def build_dp_fed_avg(
  model: Model,
  mechanism: interface.ClientMechanism,
  *,
  client_optimizer: ClientOptimizer,
  client_learning_rate: client_training.Schedule | None = None,
  server_optimizer: tff.learning.optimizers.Optimizer | None = None,
  count_broken: bool = False,
) -> tff.learning.templates.LearningProcess:
  """Returns a learning process that runs in any TFF context.

  The guarantee holds for the models and metrics of `next`, if each round's
  cohort is drawn by `mechanism.sampling` and each round is charged in a ledger
  of `mechanism`; for the state, too, but for a tree's, which holds noise that
  is still to be taken back. Client training metrics, which TFF sums without
  noise, are left out for that reason.

  A client with a label that no class has (see `labels`), or whose model or
  update is not finite, counts as one whose update is zero.

  Args:
    model: A functional model, or a function that returns a new `VariableModel`.
      It must have no BatchNorm: batch statistics do not survive averaging.
    mechanism: Clipping, noise and sampling. Without clipping the process is
      plain, unweighted FedAvg.
    client_optimizer: What every client trains with, one pass over its dataset
      of batches; with `client_learning_rate`, a function from a learning rate
      to it. See `client_training.with_proximal_term` for FedProx.
    client_learning_rate: From the number of rounds done before to the clients'
      learning rate, as `client_training.build_schedule` makes it.
    server_optimizer: Takes the aggregated update for a gradient. By default SGD
      with learning rate 1: the update is added.
    count_broken: Whether the metrics tell how many clients had no data or an
      update that is not finite; see `aggregators.broken_units`. Epsilon does not
      cover that count.
  """
  unweighted = aggregators.build_aggregator(mechanism)
  model = labels.guarded(model)
  aggregator = (
    aggregators.BrokenCountFactory(unweighted)
    if count_broken
    else tff.aggregators.as_weighted_aggregator(unweighted)
  )
  if server_optimizer is None:
    server_optimizer = optimizers.build_server_optimizer(
      'sgd', learning_rate=1.0
    )
  if client_learning_rate is None:
    return tff.learning.algorithms.build_weighted_fed_avg(
      model_fn=model,
      client_optimizer_fn=client_optimizer,
      server_optimizer_fn=server_optimizer,
      model_aggregator=aggregator,
      metrics_aggregator=_no_metrics,
    )
  return tff.learning.algorithms.build_weighted_fed_avg_with_optimizer_schedule(
    model_fn=model,
    client_learning_rate_fn=client_learning_rate,
    client_optimizer_fn=client_optimizer,
    server_optimizer_fn=server_optimizer,
    model_aggregator=aggregator,
    metrics_aggregator=_no_metrics,
  )


def _no_metrics(*finalizers_and_types: Any) -> tff.Computation:
  """Returns an aggregation of client metrics that drops them on the client."""
  del finalizers_and_types

  def drop(_: Any) -> Any:
    return tff.federated_value((), tff.SERVER)

  return drop
