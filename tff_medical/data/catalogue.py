"""Image classification sets of TensorFlow Datasets' catalogue, by their names.

`load('malaria', ...)` prepares the records in TFDS's cache and reads them. The
keys of image, label and patient are taken from the set's features where only one
fits, or else are given. Labels are one class an image, or a
sequence of findings. Images are resized as files of own images are.
TensorFlow is imported by `load` alone.

>>> check_name('malaria')
>>> check_name('mala ria')
Traceback (most recent call last):
...
tff_medical._validate.InputError: dataset must be tfds:NAME or tfds:NAME/CONFIG, \
got 'tfds:mala ria'
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import difflib
import os
import re
from typing import TYPE_CHECKING, Any

from absl import logging
import numpy as np

from tff_medical import _validate
from tff_medical.data import catalogue_records
from tff_medical.data import images
from tff_medical.data import missing_splits

if TYPE_CHECKING:
  import tensorflow_datasets as tfds

PREFIX = 'tfds:'
_NAME = re.compile(r'\w+(/[\w.+-]+)?(:[\d.*]+)?')
# Keys that tell patients apart; an id of an image does not.
_PATIENT_KEYS = ('patient', 'patient_id', 'subject', 'subject_id')


@dataclasses.dataclass(frozen=True)
class Keys:
  """Names of features, nested ones as a/b; None where `load` finds them.

  Attributes:
    image: Feature of the image.
    label: Feature of the class or the findings.
    patient: Feature that distinguishes patients.
  """

  image: str | None = None
  label: str | None = None
  patient: str | None = None


def check_name(name: str) -> None:
  """Raises `InputError` unless a name may be one of the catalogue."""
  if not _NAME.fullmatch(name):
    raise _validate.InputError(
      f'dataset must be tfds:NAME or tfds:NAME/CONFIG, got {PREFIX + name!r}'
    )


def load(
  name: str,
  image_size: int,
  *,
  data_dir: str | None = None,
  tfds_dir: str | None = None,
  keys: Keys | None = None,
) -> images.ImageData:
  """Returns a set of the catalogue, prepared now or before.

  Args:
    name: NAME, or NAME/CONFIG.
    image_size: Height and width that images are resized to.
    data_dir: Folder of the files that TFDS asks to be fetched by hand.
    tfds_dir: Folder of the prepared records; None for TFDS's own default.
    keys: Names of features; `load` finds those that are None.

  Raises:
    InputError: There is no such set, its keys are not clear, or it cannot be
      prepared.
  """
  check_name(name)
  builder = _builder(name, tfds_dir)
  features = dict(catalogue_records.flat(builder.info.features))
  keys = keys or Keys()
  image_key = _image_key(name, builder, features, keys.image)
  labels = _labels(name, builder, features, keys.label)
  patient_key = _patient_key(name, features, keys.patient)
  _prepare(name, builder, data_dir)
  reader = catalogue_records.Reader(
    f'{PREFIX}{name}', builder, image_size, image_key, labels, patient_key
  )
  splits, rule = missing_splits.made(reader.name, reader.read())
  class_names = labels.names
  if not class_names:
    highest = max(int(s.labels.max(initial=0)) for s in splits.values())
    class_names = tuple(map(str, range(highest + 1)))
  return images.ImageData(
    name=reader.name,
    train=splits['train'],
    validation=splits['validation'],
    test=splits['test'],
    class_names=class_names,
    multi_label=labels.multi_label,
    citation=builder.info.citation or '',
    source_digest=images.content_digest(splits),
    preparation=reader.preparation(),
    split_rule=rule,
  )


def _builder(name: str, tfds_dir: str | None) -> tfds.core.DatasetBuilder:
  import tensorflow_datasets as tfds

  try:
    return tfds.builder(name, data_dir=tfds_dir)
  except tfds.core.DatasetNotFoundError:
    near = difflib.get_close_matches(
      name.split('/')[0].split(':')[0], tfds.list_builders(), n=1
    )
    hint = f'; did you mean {PREFIX + near[0]!r}?' if near else ''
    raise _validate.InputError(
      f'dataset must name a set of the catalogue of TFDS '
      f'{tfds.__version__}, got {PREFIX + name!r}{hint}'
    ) from None
  except (ValueError, AssertionError, ImportError) as error:
    raise _validate.InputError(
      f'dataset {PREFIX + name!r} cannot be used: {_line(error)}; choose a config '
      'that tfds.builder knows'
    ) from error


def _line(error: BaseException) -> str:
  """Returns the start of an error's text, in one line."""
  return ' '.join(str(error).split())[:300] or type(error).__name__


def _image_key(
  name: str,
  builder: tfds.core.DatasetBuilder,
  features: Mapping[str, Any],
  given: str | None,
) -> str:
  import tensorflow_datasets as tfds

  usable = [
    key
    for key, feature in features.items()
    if isinstance(feature, tfds.features.Image)
    and feature.np_dtype in (np.uint8, np.uint16)
    and feature.shape[-1] in (1, 3)
  ]
  return _chosen(name, 'image_key', given, usable, _supervised(builder, 0))


def _labels(
  name: str,
  builder: tfds.core.DatasetBuilder,
  features: Mapping[str, Any],
  given: str | None,
) -> catalogue_records.Labels:
  import tensorflow_datasets as tfds

  classes = {
    key: catalogue_records.Labels(key, tuple(feature.names), multi_label=False)
    for key, feature in features.items()
    if isinstance(feature, tfds.features.ClassLabel)
  }
  findings = {
    key: catalogue_records.Labels(
      key, tuple(feature.feature.names), multi_label=True
    )
    for key, feature in features.items()
    if isinstance(feature, tfds.features.Sequence)
    and isinstance(feature.feature, tfds.features.ClassLabel)
  }
  numbers = {
    key: catalogue_records.Labels(key, (), multi_label=False)
    for key, feature in features.items()
    if key not in classes
    and feature.shape == ()
    and np.issubdtype(feature.np_dtype, np.integer)
  }
  usable = {**classes, **findings}
  if given is not None:
    usable.update(numbers)
  supervised = _supervised(builder, 1)
  return usable[_chosen(name, 'label_key', given, list(usable), supervised)]


def _patient_key(
  name: str, features: Mapping[str, Any], given: str | None
) -> str | None:
  scalars = [key for key, feature in features.items() if feature.shape == ()]
  if given is not None:
    return _chosen(name, 'patient_key', given, scalars, None)
  usual = [key for key in scalars if key.split('/')[-1] in _PATIENT_KEYS]
  return usual[0] if len(usual) == 1 else None


def _supervised(builder: tfds.core.DatasetBuilder, place: int) -> str | None:
  """Returns the key that the set itself calls input (0) or target (1)."""
  supervised = builder.info.supervised_keys
  if supervised is None or not isinstance(supervised[place], str):
    return None
  return supervised[place]


def _chosen(
  name: str,
  flag: str,
  given: str | None,
  usable: list[str],
  supervised: str | None,
) -> str:
  """Returns the key that is given or that alone can be meant."""
  if given is not None:
    if given not in usable:
      raise _validate.InputError(
        f'{flag} must be one of {", ".join(usable) or "none"} of {PREFIX}{name}, '
        f'got {given!r}'
      )
    return given
  if supervised in usable:
    return str(supervised)
  if len(usable) == 1:
    return usable[0]
  if not usable:
    raise _validate.InputError(
      f'dataset {PREFIX}{name} has no feature that can be the {flag}; choose a '
      'set of image classification'
    )
  raise _validate.InputError(
    f'{flag} must be given for {PREFIX}{name}: one of {", ".join(usable)}'
  )


def _prepare(
  name: str, builder: tfds.core.DatasetBuilder, data_dir: str | None
) -> None:
  """Writes the records unless they are there."""
  import tensorflow as tf
  import tensorflow_datasets as tfds

  if data_dir is not None and not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    raise _validate.InputError(
      f'data_dir is not used by {PREFIX}{name}, which TFDS downloads, got '
      f"{data_dir!r}; leave it out, and name TFDS's folder in TFDS_DATA_DIR"
    )
  if builder.is_prepared():
    return
  if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and data_dir is None:
    raise _validate.InputError(
      f'data_dir must be given with {PREFIX}{name}: the folder of the files that '
      f'have to be fetched by hand: {_line_of(builder)}'
    )
  logging.info('Preparing %s%s in %s', PREFIX, name, builder.data_dir)
  manual_dir = None if data_dir is None else os.path.expanduser(data_dir)
  try:
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
    )
  except (
    OSError,  # Covers those of requests.
    AssertionError,  # Files that had to be fetched by hand are missing.
    ImportError,  # Some sets need further packages.
    ValueError,
    RuntimeError,
    tf.errors.OpError,
    tfds.download.DownloadError,
    tfds.download.download_manager.NonMatchingChecksumError,
  ) as error:
    raise _validate.InputError(
      f'dataset {PREFIX}{name} cannot be prepared in {builder.data_dir_root}: '
      f'{_line(error)}; prepare it by tfds.builder({name!r}) where that works, and '
      'name its folder in TFDS_DATA_DIR'
    ) from error


def _line_of(builder: tfds.core.DatasetBuilder) -> str:
  return ' '.join(str(builder.MANUAL_DOWNLOAD_INSTRUCTIONS).split())[:300]
