"""Inputs and output of a model whose gradients are taken unit by unit.

DP-SGD lays out the examples of a unit itself, so that it takes models of one
input, one label and one output. Other models are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate

_REMEDY = 'for models of several use build_dp_fed_avg, which protects clients'


def of_model(
  model: tff.learning.models.FunctionalModel,
) -> tuple[tf.TensorSpec, tf.TensorSpec]:
  """Returns the specs of the batch of inputs [N, ...] and labels [N, ...].

  Args:
    model: Functional model whose `input_spec` is a mapping of `x` and `y`, or
      a pair.

  Raises:
    InputError: The model is not functional, or one of them is no single tensor.
  """
  check_functional(model)
  spec = model.input_spec
  pair = [spec['x'], spec['y']] if isinstance(spec, Mapping) else list(spec)
  for name, value in zip(('x', 'y'), pair):
    if not isinstance(value, tf.TensorSpec):
      raise _validate.InputError(
        f'model.input_spec must have one tensor as {name} for DP-SGD, got '
        f'{_described(value)}; stack them into one, or {_REMEDY}'
      )
  return pair[0], pair[1]


def check_functional(model: Any) -> None:
  """Raises `InputError` unless a model is one of TFF's functional models."""
  if not isinstance(model, tff.learning.models.FunctionalModel):
    raise _validate.InputError(
      'model must be a FunctionalModel for DP-SGD, got '
      f'{type(model).__name__}; convert a Keras model by '
      'tff.learning.models.functional_model_from_keras'
    )


def check_output(output: Any) -> None:
  """Raises `InputError` unless the output of a model is one tensor."""
  if not tf.is_tensor(output):
    raise _validate.InputError(
      f'model must return one tensor for DP-SGD, got {_described(output)}; '
      f'concatenate them, or {_REMEDY}'
    )


def _described(value: Any) -> str:
  """Returns the structure in words: its kind and the names of its leaves."""
  if isinstance(value, Mapping):
    return f'a mapping of {", ".join(map(str, value))}'
  if isinstance(value, (list, tuple)):
    return f'a {type(value).__name__} of {len(value)}'
  return f'a {type(value).__name__}'
