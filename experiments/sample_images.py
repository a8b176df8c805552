"""Writes some test images of a data set as PNG files, to classify them.

    python -m experiments.sample_images --dataset=synthetic --output_dir=images

The true class stands in each file's name.
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
  """Writes the first test images of each class; returns the files."""
  _validate.positive_int(images_per_class=images_per_class)
  folder.mkdir(parents=True, exist_ok=True)
  written = []
  for index, name in enumerate(data.class_names):
    labels = data.test.labels
    has_class = labels[:, index] == 1 if data.multi_label else labels == index
    for row in np.flatnonzero(has_class)[:images_per_class]:
      slug = ''.join(c if c.isalnum() else '_' for c in name)
      path = folder / f'{slug}_{row:05d}.png'
      pixels = data.test.rows(np.array(row))
      Image.fromarray(
        pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels
      ).save(path)
      written.append(path)
  return written


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
  absl_flags.DEFINE_string('dataset', 'synthetic', 'as experiments.train')
  absl_flags.DEFINE_integer('image_size', 28, 'pixels a side')
  absl_flags.DEFINE_string('data_dir', None, 'folder with NAME.npz')
  absl_flags.DEFINE_integer('images_per_class', 3, 'how many of each class')
  absl_flags.DEFINE_string('output_dir', None, 'where the PNG files go')
  command.run(functools.partial(main, absl_flags.FLAGS))
