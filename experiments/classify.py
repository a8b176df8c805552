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

With --labels_from_folders the name of an image's folder is its label, which is
shown beside the class. The two agree if they have the same letters and digits.

>>> print('\n'.join(align([('image', 'class'), ('a.png', 'normal')])))
image  class
a.png  normal
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import decimal
import functools
import pathlib
import re
from typing import Any

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
from tff_medical.serving import encoded_images
from tff_medical.serving import export

_Predict = Callable[..., Mapping[str, tf.Tensor]]

# Message of the exported graph about the only image in a request.
_REASON = re.compile(r'assertion failed: \[image 0 of encoded ([^\]]*)\]')


def main(values: absl_flags.FlagValues, paths: Sequence[str]) -> None:
  """Prints the classes of the image files at `paths`."""
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
  # All files are checked before the slow loading of the model. They are read
  # again later, as they may not all fit into memory.
  for path in paths:
    _read(path)
  predict = _load(saved_model)
  predictions = [_row(path, _read(path), predict, names) for path in paths]
  header: tuple[str, ...] = ('image', 'class', *names)
  rows = [(_printable(p), *row) for p, row in zip(paths, predictions)]
  if not labels_from_folders:
    return [guarantee(card), *align([header, *rows])]
  labels = [pathlib.Path(path).absolute().parent.name for path in paths]
  agree = sum(
    _agrees(row[0], label, names) for row, label in zip(predictions, labels)
  )
  labelled = [
    (row[0], _printable(label), *row[1:]) for row, label in zip(rows, labels)
  ]
  return [
    guarantee(card),
    *align([('image', 'label', *header[1:]), *labelled]),
    f'{agree} of {len(paths)} images have the class of their folder',
  ]


def _agrees(text: str, label: str, names: Sequence[str]) -> bool:
  """Returns whether a label is among the predicted classes."""
  # The name of a class may itself hold a comma.
  classes = [text] if text in names else text.split(', ')
  return _plain(label) in map(_plain, classes)


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


def _load(saved_model: str) -> _Predict:
  _files.check_folder('model', saved_model)
  try:
    return tf.saved_model.load(saved_model).signatures['serve_bytes']
  except (OSError, LookupError, ValueError, tf.errors.OpError) as error:
    raise _validate.InputError(
      f'the model in {saved_model!r} is damaged; export it again'
    ) from error


def _row(
  path: str, image: bytes, predict: _Predict, names: Sequence[str]
) -> tuple[str, ...]:
  """Returns the class and the probabilities of one image, as text."""
  try:
    outputs = predict(encoded=tf.constant([image]))
  except tf.errors.OpError as error:
    stated = _REASON.search(error.message or '')
    reason = stated[1] if stated else 'is not a PNG or JPEG that can be read'
    raise _validate.InputError(f'image {path!r} {reason}') from error
  index = outputs['class_index'].numpy()[0]
  probabilities = outputs['probabilities'].numpy()[0]
  if len(names) != len(probabilities):
    raise _validate.InputError(
      f'{export.CLASS_NAMES_FILE} of the model has {len(names)} names for '
      f'{len(probabilities)} outputs; export the model again'
    )
  if index.ndim:  # Multi-label: 0 or 1 for each name.
    text = ', '.join(n for n, on in zip(names, index) if on) or 'none'
  else:
    text = names[index]
  return (text, *(f'{p:.4f}' for p in probabilities))


if __name__ == '__main__':
  command.run(functools.partial(main, absl_flags.FLAGS), takes_arguments=True)
