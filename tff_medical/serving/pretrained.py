"""Loads an exported model as the start of a new training.

The arrays are read from the SavedModel's checkpoint. So a wrong folder is
refused before any graph is built or any data is loaded.

>>> load('no/such/model')
Traceback (most recent call last):
...
tff_medical._validate.InputError: 'no/such/model' is not a model exported by \
tff_medical (it has no assets/privacy_card.json); give the saved_model folder \
of a run
"""

from __future__ import annotations

import itertools
import os
import pathlib

import numpy as np
import tensorflow as tf

from tff_medical import _files
from tff_medical import _validate
from tff_medical import models
from tff_medical.serving import export

# `ServingModule` keeps the variables of its model in the list `weights`.
_KEY = 'weights/{}/.ATTRIBUTES/VARIABLE_VALUE'


def load(path: str | os.PathLike[str]) -> models.InitialModel:
  """Returns the model of the SavedModel in folder `path`.

  Raises:
    InputError: The folder is no export of this project, or is damaged.
  """
  return models.InitialModel(
    name=os.fspath(path),
    card=export.load_card(path),
    class_names=export.load_class_names(path),
    weights=read_weights(pathlib.Path(path)),
  )


def read_weights(path: pathlib.Path) -> tuple[np.ndarray, ...]:
  """Returns the arrays of the SavedModel in `path`; raises as `load` does."""
  _files.check_folder('model', path)
  prefix = path / 'variables' / 'variables'
  try:
    reader = tf.train.load_checkpoint(os.fspath(prefix))
    keys = (_KEY.format(i) for i in itertools.count())
    present = itertools.takewhile(reader.has_tensor, keys)
    return tuple(reader.get_tensor(key) for key in present)
  except (tf.errors.OpError, IndexError, ValueError) as error:
    raise _validate.InputError(
      f'the model in {os.fspath(path)!r} is damaged; export it again'
    ) from error
