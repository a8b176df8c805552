"""Tasks: client data and a model, checked to fit each other.

A task gives a training program the clients, the model that TFF trains on them,
and the scores and metrics of the model's weights on held-out images.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
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
from tff_medical.scoring import evaluation as scoring
from tff_medical.scoring import scored as scored_lib


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
    transfer: Network of which a part is trained instead of `model`. The data
      holds the features of its frozen part, if it has one.
    label_smoothing: Label smoothing of the loss, in [0, 1); see `models.loss`.
    class_weights: Weight of each class in the loss, if given.
    own_metrics: Further metrics by name, functions of probabilities [N, K] and
      labels.
  """

  data: images.ImageData
  partition: partition_lib.Partition
  model: str | models.ModelFunction
  seed: int = 0
  initial_model: models.InitialModel | None = None
  transfer: models.Transfer | None = None
  label_smoothing: float = 0.0
  class_weights: tuple[float, ...] | None = None
  own_metrics: Mapping[str, scoring.OwnMetric] = dataclasses.field(
    default_factory=dict
  )

  def __post_init__(self) -> None:
    self._check_features()
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

  @property
  def backbone(self) -> Mapping[str, Any] | None:
    """Entry of a card on the frozen layers, if there are any."""
    return self.transfer.provenance if self.transfer else None

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
      Keras model from float32 [N, H, W, C] in 0..1, or from features [N, ...],
      to logits.

    Raises:
      InputError: The initial model has layers of other shapes.
    """
    if self.transfer is not None:
      model = self.transfer.build_trained(self.data.num_classes, self.seed)
    else:
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

  @property
  def base_model(self) -> tff.learning.models.FunctionalModel:
    """The model behind `tff_model`, where an audit wraps that one."""
    return self.tff_model

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
    split = self.data.eval_split(split_name)
    return evaluation.predict(model, split.model_inputs)

  def metrics(
    self, scores: np.ndarray, split_name: str
  ) -> collections.OrderedDict[str, float]:
    """Returns the metrics of `scores`, overall and by site."""
    return scoring.overall_and_by_site(
      self.scored(scores, split_name), own_metrics=self.own_metrics
    )

  def scored(
    self, scores: np.ndarray, split_name: str
  ) -> scored_lib.ScoredImages:
    """Returns `scores` beside the labels, sites and patients of the images."""
    split = self.data.eval_split(split_name)
    return scored_lib.ScoredImages(
      logits=scores,
      labels=split.labels,
      class_names=self.data.class_names,
      multi_label=self.data.multi_label,
      is_ordinal=self.data.is_ordinal,
      sites=split.sites,
      clusters=split.patients,
      split_name=split_name,
    )

  def evaluation(
    self, model: tf.keras.Model, split_name: str, specificity: float
  ) -> tuple[scoring.Evaluation, scored_lib.ScoredImages]:
    """Returns the evaluation of a final model, and the scores behind it.

    Args:
      model: Keras model of the task, with its final weights.
      split_name: Split of the images, one of `images.EVAL_SPLITS`.
      specificity: Specificity of the thresholds that validation images give.
    """
    names = {split_name}
    if self.data.has_validation:
      names.add(images.VALIDATION)
    by_split = {
      name: self.scored(self.model_scores(model, name), name) for name in names
    }
    result = scoring.evaluate(
      by_split[split_name],
      by_split.get(images.VALIDATION),
      specificity,
      self.own_metrics,
    )
    return result, by_split[split_name]

  def _check_features(self) -> None:
    expected = self.transfer.feature_shape if self.transfer else None
    features = self.data.train.features
    actual = None if features is None else tuple(features.shape[1:])
    if actual != expected:
      raise _validate.InputError(
        'data and transfer must go together: data holds features of shape '
        f'{actual}, transfer gives {expected}; make the data by '
        'feature_cache.with_features'
      )
