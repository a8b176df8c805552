"""An .npz file with MedMNIST's keys and images of any size, as an `ImageData`.

Keys: train_images and train_labels; val_images, val_labels, test_images and
test_labels. A split that the file lacks is made from train. Images are uint8
[N, H, W] or [N, H, W, 1 or 3]; labels are whole numbers [N] or [N, 1], or 0 and 1
[N, L] of several findings. Images are resized as files of own images are, unless
they have the size already. `npz` reads the file: its claims before its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import pathlib

import numpy as np

from tff_medical import _files
from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data import label_values
from tff_medical.data import missing_splits
from tff_medical.data import npz
from tff_medical.data.decoders import resizing

PREFIX = 'npz:'
MAX_CLASSES = 10_000
_PARTS = {'train': 'train', 'validation': 'val', 'test': 'test'}


def load(
  file: str,
  data_dir: str | None,
  image_size: int,
  class_names: Sequence[str] = (),
) -> images.ImageData:
  """Returns the images of a file.

  Args:
    file: Path of the file, relative to `data_dir`.
    data_dir: Folder of the file; None for the current one.
    image_size: Height and width that images are resized to.
    class_names: Names of the classes or findings; () for their numbers.

  Raises:
    InputError: The file cannot be used.
  """
  path = pathlib.Path(data_dir or '.').expanduser() / file
  name = f'{PREFIX}{path.name}'
  given = {}
  with _archive(path) as archive:
    for split, part in _PARTS.items():
      keys = [f'{part}_images', f'{part}_labels']
      missing = archive.missing(keys)
      if len(missing) == 1 or missing and split == 'train':
        raise npz.Error(f'{", ".join(missing)} missing in it')
      if not missing:
        _check_headers(path, archive, *keys)
        given[split] = _split(
          f'{path}: {part}', archive.read(keys[0]), archive.read(keys[1]),
          image_size,
        )  # fmt: skip
  _check_alike(path, given)
  splits, rule = missing_splits.made(name, given)
  multi_label = splits['train'].labels.ndim == 2
  num_classes = _num_classes(splits, multi_label)
  if class_names and len(class_names) < num_classes:
    raise _validate.InputError(
      f'class_names must name the {num_classes} classes of {name}, got '
      f'{len(class_names)}'
    )
  names = tuple(class_names) or tuple(map(str, range(num_classes)))
  for split, content in splits.items():
    label_values.check_labels(
      f'{path}: {split}', content.labels, len(names), multi_label
    )
  return images.ImageData(
    name=name,
    train=splits['train'],
    validation=splits['validation'],
    test=splits['test'],
    class_names=names,
    multi_label=multi_label,
    source_digest=images.content_digest(splits),
    split_rule=rule,
  )


@contextlib.contextmanager
def _archive(path: pathlib.Path) -> Iterator[npz.Archive]:
  """Opens the file; errors name it."""
  try:
    file = _files.open_regular(path)
  except OSError as error:
    raise _validate.InputError(
      f'dataset {path} cannot be read: {error.strerror or error}; give '
      '--dataset=npz:FILE, and its folder as --data_dir'
    ) from error
  with file:
    try:
      yield npz.Archive(file)
    except npz.Error as error:
      raise _validate.InputError(
        f'{path} is no .npz file with the keys of MedMNIST ({error}); write it '
        'anew'
      ) from error


def _check_headers(
  path: pathlib.Path, archive: npz.Archive, image_key: str, label_key: str
) -> None:
  """Refuses arrays by the claims of their headers."""
  pixels, labels = archive.header(image_key), archive.header(label_key)
  shape = pixels.shape
  if (
    pixels.dtype != np.uint8
    or len(shape) not in (3, 4)
    or len(shape) == 4
    and shape[3] not in (1, 3)
    or 0 in shape[1:]
  ):
    raise _validate.InputError(
      f'{path}: {image_key} must be uint8 [N, H, W] or [N, H, W, 1 or 3], got '
      f'{pixels.dtype} {list(shape)}'
    )
  if (
    labels.dtype.kind not in 'iub'
    or len(labels.shape) not in (1, 2)
    or labels.shape[0] != shape[0]
    or 0 in labels.shape[1:]
  ):
    raise _validate.InputError(
      f'{path}: {label_key} must be {shape[0]} rows of whole numbers, one row an '
      f'image, got {labels.dtype} {list(labels.shape)}'
    )


def _split(
  where: str, pixels: np.ndarray, labels: np.ndarray, image_size: int
) -> images.Split:
  if labels.size and labels.max() >= MAX_CLASSES:
    raise _validate.InputError(
      f'{where}_labels must be below {MAX_CLASSES}, got {labels.max()}; number '
      'the classes from 0'
    )
  labels = labels.astype(np.int64)
  if labels.ndim == 2 and labels.shape[1] == 1:
    labels = labels[:, 0]
  if pixels.ndim == 3:
    pixels = pixels[..., np.newaxis]
  try:
    return images.Split(resized(pixels, image_size), labels)
  except _validate.InputError as error:
    raise _validate.InputError(f'{where}: {error}') from None


def resized(pixels: np.ndarray, image_size: int) -> np.ndarray:
  """Returns images [N, H, W, C] as uint8 [N, s, s, C].

  Args:
    pixels: uint8 images; they are returned as they are if s is their size.
    image_size: Height and width s of the result.
  """
  side = (image_size, image_size)
  if pixels.shape[1:3] == side:
    return pixels
  stored = np.empty((len(pixels), *side, pixels.shape[3]), np.uint8)
  for row, image in enumerate(pixels):
    stored[row] = resizing.to_uint8(
      image.astype(np.float32) / 255, image_size, None
    )
  return stored


def _check_alike(path: pathlib.Path, given: dict[str, images.Split]) -> None:
  """Refuses splits that differ in channels or in the form of their labels."""
  forms = {
    name: (split.image_shape[2], split.labels.shape[1:])
    for name, split in given.items()
  }
  if len(set(forms.values())) > 1:
    text = ', '.join(
      f'{name}: {channels} channels, labels {["N", *labels]}'
      for name, (channels, labels) in forms.items()
    )
    raise _validate.InputError(
      f'{path}: splits must have the same channels and labels, got {text}'
    )


def _num_classes(splits: dict[str, images.Split], multi_label: bool) -> int:
  if multi_label:
    return int(splits['train'].labels.shape[1])
  return 1 + max(
    int(split.labels.max()) for split in splits.values() if len(split)
  )
