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

import inspect
from typing import Any

import tensorflow as tf

from tff_medical import _validate
from tff_medical.models import frozen_layers

_OF_EVERY_LAYER = {'self', 'name', 'trainable', 'dtype', 'dynamic'}


def check_federated(model: tf.keras.Model) -> None:
  """Checks that TFF can train a model.

  Args:
    model: Functional or Sequential Keras model with a known input shape.

  Raises:
    InputError: TFF cannot train the model, or would train another one. The
      message names the layer and what to use instead.
  """
  layers = []
  for module in (model, *model.submodules):
    if isinstance(module, tf.keras.Model):
      _check_graph(module)
      _check_owners(module)
    elif isinstance(module, tf.keras.layers.Layer):
      layers.append(module)
  for layer in layers:
    _check_layer(layer)
  if not model.trainable_weights:
    raise _validate.InputError(
      f'model {model.name!r} has no weights to train; add a trainable layer'
    )
  if model.losses:
    raise _validate.InputError(
      'the model adds losses of its own (a regularizer or add_loss), which '
      'TFF would leave out; put them into the loss'
    )


def _check_graph(model: tf.keras.Model) -> None:
  """Refuses models that Keras cannot clone: TFF trains a clone."""
  if getattr(model, '_is_graph_network', False):
    return
  if isinstance(model, tf.keras.Sequential):
    raise _validate.InputError(
      f'model {model.name!r} has no known input shape; give tf.keras.Input as '
      'its first layer'
    )
  raise _validate.InputError(
    f'model {model.name!r} is a subclass of Model '
    f'({type(model).__name__}), which Keras cannot clone for TFF; build it as '
    'tf.keras.Model(inputs, outputs)'
  )


def _check_owners(model: tf.keras.Model) -> None:
  """Refuses a weight of two layers, which the clone would hold twice."""
  owners: dict[int, tf.keras.layers.Layer] = {}
  for layer in model.layers:
    for weight in layer.weights:
      owner = owners.setdefault(id(weight), layer)
      if owner is not layer:
        raise _validate.InputError(
          f'layer {layer.name!r} ({type(layer).__name__}) shares the weight '
          f'{weight.name!r} with layer {owner.name!r}, which Keras cannot '
          'clone for TFF; call one layer twice, or give each its own weights'
        )


def _check_layer(layer: tf.keras.layers.Layer) -> None:
  kind = type(layer).__name__
  if isinstance(layer, tf.keras.layers.BatchNormalization):
    raise _validate.InputError(
      f'layer {layer.name!r} is a BatchNormalization, whose running '
      'statistics cannot be trained under TFF; use GroupNormalization'
    )
  if getattr(layer, 'stateful', False):
    raise _validate.InputError(
      f'layer {layer.name!r} ({kind}) keeps state between '
      'batches, which TFF would lose; use a layer without state'
    )
  is_frozen = isinstance(layer, frozen_layers.Frozen)
  if layer.non_trainable_weights and not is_frozen:
    raise _validate.InputError(
      f'layer {layer.name!r} ({kind}) has weights that are '
      'not trained, which TFF would never update; make it trainable or use '
      'another layer'
      + (', such as Rescaling' if kind == 'Normalization' else '')
    )
  policy = layer.dtype_policy
  if policy.compute_dtype != policy.variable_dtype or any(
    weight.dtype != tf.float32 for weight in layer.weights
  ):
    raise _validate.InputError(
      f'layer {layer.name!r} ({kind}) computes in {policy.name}, in which '
      "clipping and noise would not hold; build it with dtype='float32' and "
      'without a mixed precision policy'
    )
  _check_function(layer)
  _check_config(layer)


def _check_function(layer: tf.keras.layers.Layer) -> None:
  """Refuses a Lambda layer that reads weights from outside of the model."""
  function = getattr(layer, 'function', None)
  if not inspect.isfunction(function):
    return
  captured = inspect.getclosurevars(function)
  for name, value in (*captured.nonlocals.items(), *captured.globals.items()):
    weights = [value] if isinstance(value, tf.Variable) else []
    if isinstance(value, tf.Module):
      weights = list(value.variables)
    if weights:
      raise _validate.InputError(
        f'layer {layer.name!r} ({type(layer).__name__}) reads the variable of '
        f'{name}, which is no weight of the model and would never be trained; '
        'make it a layer with add_weight'
      )


def _check_config(layer: tf.keras.layers.Layer) -> None:
  """Refuses a layer that Keras cannot build again for the clone."""
  kind = type(layer)
  # Keras then guesses the config outside of graphs, and fails inside of them.
  if kind.get_config.__qualname__ == 'Layer.get_config':
    taken = set(inspect.getfullargspec(kind.__init__).args) - _OF_EVERY_LAYER
    if taken:
      raise _unlike_its_config(layer, f'no {", ".join(sorted(taken))}')
  try:
    kind.from_config(layer.get_config())
  except Exception as error:  # The layer may be of the user's own making.
    raise _unlike_its_config(layer, type(error).__name__) from error


def _unlike_its_config(
  layer: tf.keras.layers.Layer, reason: str
) -> _validate.InputError:
  return _validate.InputError(
    f'layer {layer.name!r} ({type(layer).__name__}) cannot be built again from '
    f'its config, as TFF needs it ({reason}); let its get_config return every '
    'argument of __init__'
  )


def restore_eager(model: tf.keras.Model) -> None:
  """Makes `model` callable again after Keras layers were built in a graph.

  Keras 2 swaps the base classes of a layer class each time a layer is made in a
  graph, as `functional_model_from_keras` does. Every earlier model then fails
  with 'Your Layer or Model is in an invalid state'. Making one object of each
  class outside the graph swaps the base classes back.

  Args:
    model: Functional Keras model, whose weights stay unchanged.
  """
  parts = (model, *model.submodules)
  classes: set[Any] = {
    type(part) for part in parts if isinstance(part, tf.keras.layers.Layer)
  }
  for cls in classes:
    cls.__new__(cls)  # Keras swaps here; `__init__` needs the config.
