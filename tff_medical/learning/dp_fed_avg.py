"""DP-FedAvg: federated averaging whose aggregate is differentially private.

McMahan et al. 2018 (arXiv 1710.06963). The mechanism may add the adaptive
clipping of Andrew et al. 2021 (arXiv 1905.03871), or make it the DP-FTRL of
Kairouz et al. 2021 (arXiv 2103.00039). The parts are TFF's own. TFF's client
work trains the clients. Its aggregator, around a TensorFlow Privacy query,
clips, sums and adds noise. Its finalizer applies the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Union

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical.learning import augmentation as augmentation_lib
from tff_medical.learning import client_training
from tff_medical.learning import labels
from tff_medical.learning import optimizers
from tff_medical.learning import schedules
from tff_medical.privacy import aggregators
from tff_medical.privacy import interface

Model = Union[
  tff.learning.models.FunctionalModel,
  Callable[[], tff.learning.models.VariableModel],
]


def build_dp_fed_avg(
  model: Model,
  mechanism: interface.ClientMechanism,
  *,
  client_optimizer: client_training.ClientOptimizer,
  client_learning_rate: schedules.Schedule | None = None,
  server_optimizer: tff.learning.optimizers.Optimizer | None = None,
  count_broken: bool = False,
  augmentation: augmentation_lib.Augmentation | None = None,
) -> tff.learning.templates.LearningProcess:
  """Returns a learning process that runs in any TFF context.

  The guarantee holds for the models and metrics of `next`, if
  `mechanism.sampling` draws each round's cohort and each round is charged in a
  ledger of `mechanism`. It also holds for the state, except with DP-FTRL, whose
  state holds noise that later rounds cancel. TFF sums client training metrics
  without noise, so they are left out.

  An invalid label (see `labels`), or a model or update that is not finite,
  makes the client's update count as zero.

  Args:
    model: Functional model, or function that returns a new `VariableModel`. The
      model must have no batch norm: batch statistics do not survive averaging.
    mechanism: Clipping, noise and sampling. Without clipping the process is
      plain, unweighted FedAvg.
    client_optimizer: Optimizer of every client, which makes one pass over its
      dataset of batches. With `client_learning_rate` it is a function from a
      learning rate to the optimizer. See `client_training.with_proximal_term`
      for FedProx.
    client_learning_rate: Function from the number of completed rounds to the
      clients' learning rate; see `schedules.build_schedule`.
    server_optimizer: Optimizer that takes the aggregated update as a gradient.
      The default is SGD with learning rate 1, which adds the update.
    count_broken: Whether the metrics count the clients without data or with an
      update that is not finite; see `aggregators.broken_units`. Epsilon does
      not cover this count.
    augmentation: Transformations of the images that clients train on, with one
      view, if given; `model` must then be functional. Epsilon is unchanged.

  Raises:
    InputError: The model is a Keras model.
  """
  if isinstance(model, tf.keras.Model):
    raise _validate.InputError(
      'model must be a FunctionalModel or a function that returns a '
      f'VariableModel, got Keras model {model.name!r}; convert it by '
      'tff.learning.models.functional_model_from_keras'
    )
  unweighted = aggregators.build_aggregator(mechanism)
  if augmentation is not None:
    model = augmentation_lib.augmented(model, augmentation)
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
  client_optimizer = client_training.in_marked_steps(client_optimizer)
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
