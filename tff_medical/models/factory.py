"""Builds a model and its loss by name.

Every model takes float32 images [N, H, W, C] in 0..1 and rescales them to -1..1
itself. It returns logits [N, num_outputs]. They are softmax logits for one
class out of several (two for a binary task), or independent sigmoid logits for
a multi-label task.

Number of parameters, which is also the dimension of the noise under
differential privacy:

| name       | for images of | grey, 2 outputs | colour, 8 outputs |
|------------|---------------|-----------------|-------------------|
| cnn_small  | 8 px and up   | 14,194          | 14,680            |
| cnn        | 8 px and up   | 93,154          | 94,504            |
| resnet     | 32 px and up  | 172,322         | 174,472           |

A dense head on the fixed features of a backbone is smaller; see `backbones`.

Test AUC on PneumoniaMNIST, trained centrally without privacy (6 epochs of Adam,
batches of 32, three seeds): `cnn_small` .948 to .953, `cnn` .954 to .956, and
`resnet`, on images enlarged to 64 pixels, .947 to .953.

>>> model = build('cnn', input_shape=(28, 28, 3), num_outputs=8, seed=1)
>>> model.input_shape, model.output_shape, model.count_params()
((None, 28, 28, 3), (None, 8), 94504)
>>> build('cnn_smal', input_shape=(28, 28, 1), num_outputs=2)
Traceback (most recent call last):
...
tff_medical._validate.InputError: model must be one of cnn, cnn_small, \
module:function, resnet, got 'cnn_smal'; did you mean 'cnn_small'?
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tff_medical import _validate
from tff_medical.models import cnn
from tff_medical.models import own
from tff_medical.models import resnet


class _Entry(NamedTuple):
  build: own.ModelFunction
  min_size: int  # pixels of the shorter side


_ENTRIES = {
  'cnn': _Entry(cnn.wide, 8),
  'cnn_small': _Entry(cnn.small, 8),
  'resnet': _Entry(resnet.build, 32),
}

MODELS = tuple(_ENTRIES)
_OWN = 'module:function'


def find(name: str) -> own.ModelFunction:
  """Returns the function that builds a model, without building it.

  Args:
    name: Name from `MODELS`, or `module:function` of an own model.

  Raises:
    InputError: The name is unknown, or its module cannot be imported.
  """
  if own.is_own(name):
    return own.find(name)
  _validate.one_of((*MODELS, _OWN), model=name)
  return _ENTRIES[name].build


def build(
  name: str | own.ModelFunction,
  *,
  input_shape: Sequence[int],
  num_outputs: int,
  seed: int | None = None,
) -> tf.keras.Model:
  """Builds the model called `name`.

  Args:
    name: Name of the model, from `MODELS` or `module:function`, or such a
      function itself; see `own`.
    input_shape: Shape (H, W, C) of one image, with C of 1 or 3.
    num_outputs: Number of classes (2 for a binary task) or of labels.
    seed: Seed of the initial weights; None draws fresh ones.

  Returns:
    Functional Keras model from float32 [N, H, W, C] in 0..1 to logits.

  Raises:
    InputError: The name is unknown, a value is out of range, or an own model
      cannot be trained.
  """
  function = find(name) if isinstance(name, str) else name
  _validate.positive_int(num_outputs=num_outputs)
  if seed is not None:
    _validate.non_negative(seed=seed)
  shape = _checked_shape(input_shape)
  if not isinstance(name, str) or own.is_own(name):
    return own.build(function, shape, num_outputs, seed)
  _check_size(name, shape)
  return function(shape, num_outputs, seed)


def _checked_shape(input_shape: Sequence[int]) -> tuple[int, int, int]:
  if len(input_shape) != 3 or input_shape[2] not in (1, 3):
    raise _validate.InputError(
      'input_shape must be (height, width, 1 or 3 channels), '
      f'got {tuple(input_shape)}'
    )
  height, width, channels = input_shape
  _validate.positive_int(height=height, width=width)
  return int(height), int(width), int(channels)


def _check_size(name: str, shape: tuple[int, int, int]) -> None:
  height, width, _ = shape
  smallest = _ENTRIES[name].min_size
  if min(height, width) < smallest:
    raise _validate.InputError(
      f'model {name!r} needs images of at least {smallest} x {smallest} '
      f'pixels, got {height} x {width}; choose a larger image size or '
      f'another model ({", ".join(MODELS)})'
    )


# Label of a finding of which nothing is known, as in `data.images`.
UNKNOWN = -1


class _KnownBinaryCrossentropy(tf.keras.losses.Loss):
  """Binary cross-entropy of each record, a mean over its known findings."""

  def __init__(self, label_smoothing: float, reduction: str):
    super().__init__(reduction)
    self._smoothing = label_smoothing

  def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    y_true = tf.cast(y_true, y_pred.dtype)
    is_known = tf.not_equal(y_true, tf.cast(UNKNOWN, y_true.dtype))
    losses = tf.nn.sigmoid_cross_entropy_with_logits(
      labels=y_true * (1 - self._smoothing) + self._smoothing / 2,
      logits=y_pred,
    )
    # No gradient passes to what is not chosen here.
    losses = tf.where(is_known, losses, tf.zeros_like(losses))
    return tf.math.divide_no_nan(
      tf.reduce_sum(losses, axis=-1),
      tf.reduce_sum(tf.cast(is_known, losses.dtype), axis=-1),
    )


class _WeightedCrossentropy(tf.keras.losses.Loss):
  """Cross-entropy of each record, times the weight of the record's class."""

  def __init__(
    self,
    label_smoothing: float,
    class_weights: Sequence[float] | None,
    reduction: str,
  ):
    super().__init__(reduction)
    self._smoothing = label_smoothing
    self._weights = class_weights

  def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    num_classes = y_pred.shape[-1]
    classes = tf.cast(tf.reshape(y_true, [-1]), tf.int32)
    # One-hot labels in place of a gather, which fails for an invalid label.
    targets = tf.one_hot(classes, num_classes, dtype=y_pred.dtype)
    losses = tf.nn.softmax_cross_entropy_with_logits(
      labels=targets * (1 - self._smoothing) + self._smoothing / num_classes,
      logits=y_pred,
    )
    if self._weights is None:
      return losses
    weights = tf.constant(self._weights, y_pred.dtype)
    return losses * tf.reduce_sum(targets * weights, axis=-1)


def loss(
  multi_label: bool,
  *,
  label_smoothing: float = 0.0,
  class_weights: Sequence[float] | None = None,
) -> tf.keras.losses.Loss:
  """Returns the loss on logits, a mean over the batch.

  The loss of a multi-label record is the mean binary cross-entropy over its
  known findings, and 0 if none is known. Unknown findings have no gradient.

  Label smoothing (Szegedy et al. 2016, arXiv 1512.00567) mixes each label with
  the uniform distribution. The weight of a record's class multiplies the loss
  of the record, and so its gradient before it is clipped. Weights are scaled to
  a mean of 1 over the classes, which bounds them by the number of classes.

  Args:
    multi_label: Whether labels are 0, 1 and `UNKNOWN` [N, K] instead of integer
      classes [N].
    label_smoothing: Part s of the uniform distribution, in [0, 1). A class has
      the target 1 - s + s / K and the others s / K. A finding has 1 - s / 2 or
      s / 2.
    class_weights: Positive weight of each class [K]; None weighs all the same.

  Returns:
    Keras loss of (labels, logits [N, K]).

  Raises:
    InputError: A value is out of range, or findings are to have class weights.
  """
  mean = tf.keras.losses.Reduction.SUM_OVER_BATCH_SIZE
  _validate.non_negative(label_smoothing=label_smoothing)
  if label_smoothing:
    _validate.in_range(0, 1, label_smoothing=label_smoothing)
  if multi_label:
    if class_weights is not None:
      raise _validate.InputError(
        f'class_weights must be left out for a multi-label task, got '
        f'{list(class_weights)}: a record has no single class'
      )
    return _KnownBinaryCrossentropy(label_smoothing, mean)
  if class_weights is not None:
    class_weights = _with_mean_1(class_weights)
  if not label_smoothing and class_weights is None:
    return tf.keras.losses.SparseCategoricalCrossentropy(
      from_logits=True, reduction=mean
    )
  return _WeightedCrossentropy(label_smoothing, class_weights, mean)


def _with_mean_1(class_weights: Sequence[float]) -> list[float]:
  for weight in class_weights:
    _validate.positive(class_weights=weight)
  mean = sum(class_weights) / len(class_weights)
  return [weight / mean for weight in class_weights]
