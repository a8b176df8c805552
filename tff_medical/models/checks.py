"""Checks that a Keras model can be trained under TFF.

`tff.learning.models.functional_model_from_keras` turns a model into a pure
function of its weights. State outside the trained weights is lost, or kept by
the server without ever being updated.

>>> good = tf.keras.Sequential([tf.keras.layers.Dense(2, input_shape=(3,))])
>>> check_federated(good)
>>> norm = tf.keras.layers.BatchNormalization(name='norm')
>>> check_federated(tf.keras.Sequential([good, norm]))
Traceback (most recent call last):
...
tff_medical._validate.InputError: layer 'norm' is a BatchNormalization, whose \
running statistics cannot be trained under TFF; use GroupNormalization
"""

from __future__ import annotations

import tensorflow as tf

from tff_medical import _validate


def check_federated(model: tf.keras.Model) -> None:
  """Raises `InputError`, naming the layer, unless TFF can train `model`."""
  for layer in model.submodules:
    is_layer = isinstance(layer, tf.keras.layers.Layer)
    if is_layer and not isinstance(layer, tf.keras.Model):
      _check_layer(layer)
  if model.losses:
    raise _validate.InputError(
      'the model adds losses of its own (a regularizer or add_loss), which '
      'TFF would leave out; put them into the loss'
    )


def _check_layer(layer: tf.keras.layers.Layer) -> None:
  if isinstance(layer, tf.keras.layers.BatchNormalization):
    raise _validate.InputError(
      f'layer {layer.name!r} is a BatchNormalization, whose running '
      'statistics cannot be trained under TFF; use GroupNormalization'
    )
  if getattr(layer, 'stateful', False):
    raise _validate.InputError(
      f'layer {layer.name!r} ({type(layer).__name__}) keeps state between '
      'batches, which TFF would lose; use a layer without state'
    )
  if layer.non_trainable_weights:
    raise _validate.InputError(
      f'layer {layer.name!r} ({type(layer).__name__}) has weights that are '
      'not trained, which TFF would never update; make it trainable or use '
      'another layer'
    )


def restore_eager(model: tf.keras.Model) -> None:
  """Makes `model` callable again after Keras layers were built in a graph.

  Keras 2 swaps the base classes of a layer class each time a layer is built in
  a graph, as `functional_model_from_keras` does. Every earlier model then fails
  with 'Your Layer or Model is in an invalid state'. Building one layer of each
  class outside the graph swaps the base classes back.

  Args:
    model: Functional Keras model, whose weights stay unchanged.
  """
  tf.keras.models.clone_model(model)
