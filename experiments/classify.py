r"""Classifies images with an exported model.

    python -m experiments.classify --saved_model=RUN/saved_model a.png b.jpg
    python -m experiments.classify --saved_model=RUN/saved_model \
        --labels_from_folders images/*/*.png

The command prints the guarantee of the model's privacy card and one line per
image: the class (multi-label: every finding with a probability of 0.5 or more)
and the probability of each class. It needs TensorFlow, but not TensorFlow
Federated. An image that cannot be used gives one line on stderr, with the
file's name and the reason, and exit code 2. The limits on an image (64 MiB, 64
Mi pixels) are those of `tff_medical.serving.encoded_images`.

A model that was trained on own image files also takes TIFF, DICOM and NIfTI
files. It decodes all files by the choices of its training
(`tff_medical.serving.image_files`).

With --labels_from_folders the name of an image's folder is its label, which is
shown beside the class. The two agree if they have the same letters and digits.

>>> print('\n'.join(align([('image', 'class'), ('a.png', 'normal')])))
image  class
a.png  normal
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import decimal
import functools
import pathlib
import re
from typing import Any, NamedTuple

from absl import flags as absl_flags

from experiments.running import command

if __name__ == '__main__':
  absl_flags.DEFINE_string('saved_model', None, 'folder of the exported model')
  absl_flags.DEFINE_boolean(
    'labels_from_folders',
    False,
    "shows the name of each image's folder as its label, and the number of "
    'images whose class agrees with it',
  )
  command.parse(takes_arguments=True)

import tensorflow as tf

from tff_medical import _files
from tff_medical import _validate
from tff_medical.data.decoders import decoded
from tff_medical.serving import encoded_images
from tff_medical.serving import export
from tff_medical.serving import image_files

_ARRAYS = 'serving_default'
# Message of the exported graph about the only image in a request.
_REASON = re.compile(r'assertion failed: \[image 0 of encoded ([^\]]*)\]')


def main(values: absl_flags.FlagValues, paths: Sequence[str]) -> None:
  """Prints the classes of the image files at `paths`."""
  # To optimise the graph takes a third of a second, and no image is classified
  # faster by it.
  tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': True})
  lines = classify(
    values.saved_model, paths, labels_from_folders=values.labels_from_folders
  )
  print('\n'.join(lines))


def classify(
  saved_model: str | None,
  paths: Sequence[str],
  *,
  labels_from_folders: bool = False,
) -> list[str]:
  """Returns the lines to print.

  Args:
    saved_model: Folder of the exported model.
    paths: Paths of the image files.
    labels_from_folders: Whether the folders' names are labels of the images.

  Raises:
    InputError: The model or an image cannot be used.
  """
  if not saved_model:
    raise _validate.InputError('--saved_model must name the exported model')
  if not paths:
    raise _validate.InputError('no images given; name PNG or JPEG files')
  card = export.load_card(saved_model)
  names = export.load_class_names(saved_model)
  policy = export.load_decoding_policy(saved_model)
  if policy is None:
    # All files are checked before the slow loading of the model. They are read
    # again later, as they may not all fit into memory.
    for path in paths:
      _read(path)
  signatures = _load(saved_model)
  predictions = []
  for path in paths:
    predictions += (
      _of_encoded(path, signatures['serve_bytes'], names)
      if policy is None
      else _of_file(path, policy, signatures[_ARRAYS], names)
    )
  header: tuple[str, ...] = ('image', 'class', *names)
  rows = [(p.image, p.classes, *p.probabilities) for p in predictions]
  if not labels_from_folders:
    return [guarantee(card), *align([header, *rows])]
  agree = sum(_agrees(prediction, names) for prediction in predictions)
  labelled = [
    (image, _printable(prediction.label), *rest)
    for (image, *rest), prediction in zip(rows, predictions)
  ]
  return [
    guarantee(card),
    *align([('image', 'label', *header[1:]), *labelled]),
    f'{agree} of {len(predictions)} images have the class of their folder',
  ]


class Prediction(NamedTuple):
  """Prediction for one image, as text.

  Attributes:
    image: Printable path of the file, with `#2` for its third image.
    label: Name of the folder that the file is in.
    classes: Class or, for a multi-label model, all findings.
    probabilities: Probability of each class.
  """

  image: str
  label: str
  classes: str
  probabilities: tuple[str, ...]


def _agrees(prediction: Prediction, names: Sequence[str]) -> bool:
  """Returns whether a label is among the predicted classes."""
  text = prediction.classes
  # The name of a class may itself hold a comma.
  classes = [text] if text in names else text.split(', ')
  return _plain(prediction.label) in map(_plain, classes)


def _plain(name: str) -> str:
  return ''.join(c for c in name if c.isalnum()).casefold()


def guarantee(card: Mapping[str, Any]) -> str:
  """Returns the card's guarantee in one line."""
  trained = f'trained on {card["dataset"]}'
  if card['rounds']:
    trained += f' for {card["rounds"]} rounds'
  relation = card['neighboring_relation'].replace('_', ' ')
  if card['epsilon'] == 'inf':
    return f'Model {trained} WITHOUT a privacy guarantee (epsilon is infinite)'
  return (
    f'Model {trained}, ({_round_up(card["epsilon"])}, '
    f'{_round_up(card["delta"])})-'
    f'differentially private for each {card["unit"]} '
    f'({relation}; {card["accountant"]} '
    f'{card["accountant_version"]})'
  )


def _printable(path: str) -> str:
  """Returns the path, or its Python literal if it would break the line."""
  return path if path.isprintable() else repr(path)


def _round_up(value: float) -> str:
  """Returns a value rounded up to four digits, which claims no more privacy."""
  context = decimal.Context(prec=4, rounding=decimal.ROUND_CEILING)
  return f'{float(context.create_decimal(repr(value))):g}'


def align(rows: Sequence[Sequence[str]]) -> list[str]:
  """Lays out rows of equal length as columns with two spaces between."""
  widths = [max(map(len, column)) for column in zip(*rows)]
  return [
    '  '.join(f'{cell:<{w}}' for cell, w in zip(row, widths)).rstrip()
    for row in rows
  ]


def _read(path: str) -> bytes:
  return _files.read('image', path, max_bytes=encoded_images.MAX_BYTES)


def _load(saved_model: str) -> Mapping[str, Any]:
  """Returns the signatures of an exported model."""
  _files.check_folder('model', saved_model)
  try:
    signatures = tf.saved_model.load(saved_model).signatures
    return {name: signatures[name] for name in ('serve_bytes', _ARRAYS)}
  except (OSError, LookupError, ValueError, tf.errors.OpError) as error:
    raise _validate.InputError(
      f'the model in {saved_model!r} is damaged; export it again'
    ) from error


def _of_encoded(
  path: str, predict: Any, names: Sequence[str]
) -> list[Prediction]:
  """Returns the prediction of a PNG or JPEG, which the model decodes."""
  try:
    outputs = predict(encoded=tf.constant([_read(path)]))
  except tf.errors.OpError as error:
    stated = _REASON.search(error.message or '')
    reason = stated[1] if stated else 'is not a PNG or JPEG that can be read'
    raise _validate.InputError(f'image {path!r} {reason}') from error
  return _predictions(path, outputs, names)


def _of_file(
  path: str,
  policy: decoded.DecodingPolicy,
  predict: Any,
  names: Sequence[str],
) -> list[Prediction]:
  """Returns the predictions of a file that is decoded as in the training."""
  spec = predict.structured_input_signature[1]['images']
  images = image_files.read(path, policy, tuple(spec.shape[1:]))
  return _predictions(path, predict(images=tf.constant(images)), names)


def _predictions(
  path: str, outputs: Mapping[str, Any], names: Sequence[str]
) -> list[Prediction]:
  """Returns the classes and probabilities of a file's images, as text."""
  indices = outputs['class_index'].numpy()
  probabilities = outputs['probabilities'].numpy()
  if len(names) != probabilities.shape[1]:
    raise _validate.InputError(
      f'{export.CLASS_NAMES_FILE} of the model has {len(names)} names for '
      f'{probabilities.shape[1]} outputs; export the model again'
    )
  label = pathlib.Path(path).absolute().parent.name
  predictions = []
  for number, (index, values) in enumerate(zip(indices, probabilities)):
    if index.ndim:  # Multi-label: 0 or 1 for each name.
      text = ', '.join(n for n, on in zip(names, index) if on) or 'none'
    else:
      text = names[index]
    image = _printable(path) + (f'#{number}' if len(indices) > 1 else '')
    shown = tuple(f'{value:.4f}' for value in values)
    predictions.append(Prediction(image, label, text, shown))
  return predictions


if __name__ == '__main__':
  command.run(functools.partial(main, absl_flags.FLAGS), takes_arguments=True)
