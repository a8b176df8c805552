"""Tasks: client data and a model, checked to fit each other.

A task gives a training program the clients, the model that TFF trains on them,
and the scores and metrics of the model's weights on held-out images.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical import models
from tff_medical.data import clients as clients_lib
from tff_medical.data import images
from tff_medical.data import partition as partition_lib
from tff_medical.learning import evaluation


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """Federated image classification.

  Attributes:
    data: Images, whose training split is spread over the clients.
    partition: Indices into the training split, for each client.
    model: Name of the model, from `models.MODELS` or `module:function`, or a
      function of (input_shape, num_outputs, seed) that returns a Keras model.
    seed: Seed of the model's initial weights.
    initial_model: Model whose weights take the place of the seeded ones, if
      any.
    label_smoothing: Label smoothing of the loss, in [0, 1); see `models.loss`.
    class_weights: Weight of each class in the loss, if given.
  """

  data: images.ImageData
  partition: partition_lib.Partition
  model: str | models.ModelFunction
  seed: int = 0
  initial_model: models.InitialModel | None = None
  label_smoothing: float = 0.0
  class_weights: tuple[float, ...] | None = None

  def __post_init__(self) -> None:
    weights = self.class_weights
    if weights is not None and len(weights) != self.data.num_classes:
      raise _validate.InputError(
        f'class_weights must be one number for each of the '
        f'{self.data.num_classes} classes, got {len(weights)}'
      )
    _ = self.loss  # A wrong value is refused before anything is built.
    models.check_federated(self.keras_model)

  @property
  def num_clients(self) -> int:
    """Number of clients, the population."""
    return len(self.partition)

  @property
  def provenance(self) -> dict[str, Any] | None:
    """Entry of a card on the initial model, if there is one."""
    return self.initial_model.provenance if self.initial_model else None

  @functools.cached_property
  def loss(self) -> tf.keras.losses.Loss:
    """Loss on logits; see `models.loss`.

    Raises:
      InputError: Label smoothing or class weights cannot be used.
    """
    return models.loss(
      self.data.multi_label,
      label_smoothing=self.label_smoothing,
      class_weights=self.class_weights,
    )

  @functools.cached_property
  def clients(self) -> clients_lib.ImageClientData:
    """Training images as TFF client data."""
    return clients_lib.ImageClientData(self.data.train, self.partition)

  @functools.cached_property
  def keras_model(self) -> tf.keras.Model:
    """Keras model whose weights are trained; see `build_model`."""
    return self.build_model()

  def build_model(self) -> tf.keras.Model:
    """Returns a new model with its initial weights.

    Returns:
      Keras model from float32 [N, H, W, C] in 0..1 to logits.

    Raises:
      InputError: The initial model has layers of other shapes.
    """
    model = models.build(
      self.model,
      input_shape=self.data.image_shape,
      num_outputs=self.data.num_classes,
      seed=self.seed,
    )
    if self.initial_model is not None:
      self.initial_model.put_into(model, self.data.class_names)
    return model

  @property
  def input_spec(self) -> collections.OrderedDict[str, tf.TensorSpec]:
    """`tf.TensorSpec`s of one batch of a client."""
    return tf.nest.map_structure(
      lambda spec: tf.TensorSpec((None, *spec.shape), spec.dtype),
      self.clients.element_type_structure,
    )

  @functools.cached_property
  def tff_model(self) -> tff.learning.models.FunctionalModel:
    """TFF's form of the model: a pure function of its weights.

    Raises:
      InputError: TFF cannot convert the model.
    """
    try:
      return tff.learning.models.functional_model_from_keras(
        self.keras_model,
        loss_fn=self.loss,
        input_spec=self.input_spec,
      )
    except tff.learning.models.functional.KerasFunctionalModelError as error:
      raise _validate.InputError(
        f'model {self.model!r} cannot be converted by TFF ({error}); build it '
        'from plain Keras layers'
      ) from error

  def load_weights(
    self, weights: tff.learning.models.ModelWeights
  ) -> tf.keras.Model:
    """Returns the Keras model with these weights in place."""
    models.restore_eager(self.keras_model)
    weights.assign_weights_to(self.keras_model)
    return self.keras_model

  def evaluate(
    self, weights: tff.learning.models.ModelWeights, split_name: str
  ) -> collections.OrderedDict[str, float]:
    """Returns the metrics of weights on a split, overall and by site.

    Args:
      weights: Weights of the model.
      split_name: Split of the images, one of `images.EVAL_SPLITS`.
    """
    return self.metrics(self.scores(weights, split_name), split_name)

  def scores(
    self, weights: tff.learning.models.ModelWeights, split_name: str
  ) -> np.ndarray:
    """Returns the logits of a split's images in their order, float32 [N, K].

    Args:
      weights: Weights of the model.
      split_name: Split of the images, one of `images.EVAL_SPLITS`.

    Raises:
      InputError: The split has no image with a label.
    """
    return self.model_scores(self.load_weights(weights), split_name)

  def model_scores(self, model: tf.keras.Model, split_name: str) -> np.ndarray:
    """Returns what `scores` returns, for a model of the same input."""
    return evaluation.predict(model, self.data.eval_split(split_name).images)

  def metrics(
    self, scores: np.ndarray, split_name: str
  ) -> collections.OrderedDict[str, float]:
    """Returns the metrics of `scores`, overall and by site."""
    split = self.data.eval_split(split_name)
    return evaluation.evaluate(
      scores,
      split.labels,
      class_names=self.data.class_names,
      multi_label=self.data.multi_label,
      sites=split.sites,
    )
