r"""Writes some test images of a data set as PNG files, for `classify`.

    python -m experiments.sample_images --dataset=synthetic --output_dir=images
    python -m experiments.classify --saved_model=RUN/saved_model \
        --labels_from_folders images/*/*.png

Each image is in a folder with the name of the image's class.
"""

from __future__ import annotations

import functools
import pathlib

from absl import flags as absl_flags
import numpy as np
from PIL import Image

from experiments.running import command
from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data import loading


def write_images(
  data: images.ImageData, folder: pathlib.Path, images_per_class: int
) -> list[pathlib.Path]:
  """Writes the first test images of each class; returns the files.

  Args:
    data: Data set.
    folder: Folder that gets a folder per class.
    images_per_class: Largest number of images of each class.

  Raises:
    InputError: `images_per_class` is not positive, or the names of two classes
      give the same folder.
  """
  _validate.positive_int(images_per_class=images_per_class)
  slugs = [_slug(name) for name in data.class_names]
  if len(set(slugs)) < len(slugs):
    raise _validate.InputError(
      f'class_names must differ in letters and digits, got {data.class_names}'
    )
  written = []
  for index, slug in enumerate(slugs):
    labels = data.test.labels
    has_class = labels[:, index] == 1 if data.multi_label else labels == index
    for row in np.flatnonzero(has_class)[:images_per_class]:
      path = folder / slug / f'{row:05d}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = data.test.rows(np.array(row))
      Image.fromarray(
        pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels
      ).save(path)
      written.append(path)
  return written


def _slug(name: str) -> str:
  """Returns the name of the folder of a class."""
  return ''.join(c if c.isalnum() else '_' for c in name)


def main(values: absl_flags.FlagValues) -> None:
  """Runs the command."""
  if values.output_dir is None:
    raise _validate.InputError('output_dir must be given: --output_dir=FOLDER')
  data = loading.load(
    values.dataset, image_size=values.image_size, data_dir=values.data_dir
  )
  folder = pathlib.Path(values.output_dir)
  written = write_images(data, folder, values.images_per_class)
  print(f'{len(written)} test images in {folder}')


if __name__ == '__main__':
  absl_flags.DEFINE_string(
    'dataset', 'synthetic', 'data set, as in experiments.train'
  )
  absl_flags.DEFINE_integer('image_size', 28, 'height and width in pixels')
  absl_flags.DEFINE_string('data_dir', None, 'folder with NAME.npz')
  absl_flags.DEFINE_integer(
    'images_per_class', 3, 'number of images of each class'
  )
  absl_flags.DEFINE_string('output_dir', None, 'folder that gets the PNG files')
  command.run(functools.partial(main, absl_flags.FLAGS))
