"""Own models: `module:function` names a function that builds a Keras model.

The function has three arguments. `input_shape` is the shape (H, W, C) of one
image, `num_outputs` the number of classes or findings, and `seed` the seed of
the initial weights, or None. It returns a functional or Sequential Keras model
from images in 0..1 to logits. The module is imported as Python imports any
other, with the working directory first.

>>> find('no_such_module:build')
Traceback (most recent call last):
...
tff_medical._validate.InputError: model 'no_such_module:build': there is no \
module no_such_module in the working directory or the environment; start where \
no_such_module.py lies
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import difflib
import importlib
import os
import re
import sys
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from tff_medical import _validate
from tff_medical.models import checks

# Of (input_shape, num_outputs, seed).
ModelFunction = Callable[[tuple[int, int, int], int, Optional[int]], Any]

_NAME = re.compile(r'[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*')
_CLONE_REMEDY = (
  'let get_config of each own layer return every argument of __init__'
)
_ACTIVATIONS = ('softmax', 'sigmoid')


def is_own(name: str) -> bool:
  """Returns whether a name of a model is to be looked up in a module."""
  return ':' in name


def find(
  name: str,
  what: str = 'model',
  arguments: str = '(input_shape, num_outputs, seed)',
) -> Callable[..., Any]:
  """Returns the function that `module:function` names.

  Args:
    name: Text `module:function`.
    what: Name of the setting in error messages.
    arguments: Arguments of the function, for error messages.

  Raises:
    InputError: The name is malformed, the module cannot be imported, or it has
      no such function.
  """
  if not _NAME.fullmatch(name):
    raise _validate.InputError(
      f'{what} must be module:function with the dotted name of a Python module, '
      f'got {name!r}; for nets.py write nets:build'
    )
  module_name, _, function_name = name.partition(':')
  module = _imported(name, module_name, what)
  function = getattr(module, function_name, None)
  if function is None:
    close = difflib.get_close_matches(function_name, dir(module), n=1)
    hint = f'; did you mean {module_name}:{close[0]}?' if close else ''
    raise _validate.InputError(
      f'{what} {name!r}: module {module_name} has no {function_name}{hint}'
    )
  if not callable(function):
    raise _validate.InputError(
      f'{what} {name!r}: {function_name} is a {type(function).__name__}; name a '
      f'function of {arguments}'
    )
  return function


def _imported(name: str, module_name: str, what: str) -> Any:
  try:
    with _working_directory_first():
      return importlib.import_module(module_name)
  except Exception as error:  # A user's module may raise anything.
    missing = getattr(error, 'name', None)
    is_missing = isinstance(error, ModuleNotFoundError) and (
      missing is not None and f'{module_name}.'.startswith(f'{missing}.')
    )
    if is_missing:
      raise _validate.InputError(
        f'{what} {name!r}: there is no module {missing} in the working '
        f'directory or the environment; start where {missing}.py lies'
      ) from None
    raise _validate.InputError(
      f'{what} {name!r}: module {module_name} cannot be imported '
      f'({_in_short(error)})'
    ) from error


@contextlib.contextmanager
def _working_directory_first() -> Iterator[None]:
  """Lets imports find modules of the working directory, as `python -m` does."""
  before = list(sys.path)
  sys.path.insert(0, os.getcwd())
  # A module that was written a moment ago may not be in the finder's cache.
  importlib.invalidate_caches()
  try:
    yield
  finally:
    sys.path[:] = before


def build(
  function: ModelFunction,
  input_shape: tuple[int, int, int],
  num_outputs: int,
  seed: int | None,
) -> tf.keras.Model:
  """Returns the model of a function, checked to take and return what it must.

  Args:
    function: Function of (input_shape, num_outputs, seed).
    input_shape: Shape (H, W, C) of one image.
    num_outputs: Number of classes or findings.
    seed: Seed of the initial weights; None draws fresh ones.

  Raises:
    InputError: The function fails, or its model cannot be used.
  """
  name = _name_of(function)
  try:
    model = function(input_shape, num_outputs, seed)
  except Exception as error:  # A user's function may raise anything.
    raise _validate.InputError(
      f'model function {name} fails with input_shape={input_shape}, '
      f'num_outputs={num_outputs}, seed={seed} ({_in_short(error)})'
    ) from error
  if not isinstance(model, tf.keras.Model):
    raise _validate.InputError(
      f'model function {name} must return a Keras model, got a '
      f'{type(model).__name__}'
    )
  checks.check_federated(model)
  _check_ends(name, model, input_shape, num_outputs)
  _check_clone(name, model)
  return model


def _check_ends(
  name: str,
  model: tf.keras.Model,
  input_shape: tuple[int, int, int],
  num_outputs: int,
) -> None:
  """Refuses a model that is not from images to logits."""
  for what, shape, expected in (
    ('take images', model.input_shape, (None, *input_shape)),
    ('return logits', model.output_shape, (None, num_outputs)),
  ):
    if shape != expected:
      raise _validate.InputError(
        f'model of {name} must {what} of shape {expected}, got {shape}; use '
        'the arguments input_shape and num_outputs'
      )
  last = model.get_layer(model.output_names[0])
  activation = getattr(last, 'activation', None)
  applied = getattr(activation, '__name__', type(last).__name__.lower())
  if applied in _ACTIVATIONS:
    raise _validate.InputError(
      f'layer {last.name!r} ends the model of {name} in {applied}; return '
      'logits, without activation'
    )


def _check_clone(name: str, model: tf.keras.Model) -> None:
  """Refuses a model whose clone, which TFF trains, is another function."""
  rng = np.random.default_rng(0)
  images = rng.random((2, *model.input_shape[1:]), np.float32)
  try:
    clone = tf.keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    expected, actual = model(images).numpy(), clone(images).numpy()
  except Exception as error:  # The layers may be of the user's own making.
    raise _validate.InputError(
      f'model of {name} cannot be cloned, as TFF needs it ({_in_short(error)})'
      f'; {_CLONE_REMEDY}'
    ) from error
  if not np.allclose(actual, expected, rtol=1e-3, atol=1e-5, equal_nan=True):
    raise _validate.InputError(
      f'model of {name} differs from its clone, which TFF trains; '
      f'{_CLONE_REMEDY}'
    )


def _name_of(function: ModelFunction) -> str:
  plain = getattr(function, '__name__', type(function).__name__)
  return f'{getattr(function, "__module__", "?")}:{plain}'


def _in_short(error: Exception) -> str:
  lines = str(error).strip().splitlines() or ['']
  return f'{type(error).__name__}: {lines[0]}'.rstrip(': ')
