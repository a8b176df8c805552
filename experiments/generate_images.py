r"""Writes generated images as a folder of PNG files, of any number and size.

    python -m experiments.generate_images --num_train=14000 \
        --num_validation=2000 --num_test=4000 --image_size=224 --channels=3 \
        --output_dir=images
    python -m experiments.train --dataset=folder --data_dir=images \
        --folder_levels=split/site/class/patient ...

The images are those of `tff_medical.data.phantoms`, in files called
SPLIT/SITE/CLASS/PATIENT/NUMBER.png. One batch of them is in memory at a time,
so that the set may be larger than the memory.
"""

from __future__ import annotations

import functools
import pathlib

from absl import flags as absl_flags
from PIL import Image
import tqdm

from experiments.running import command
from tff_medical import _validate
from tff_medical.data import phantoms

_SPEC = phantoms.PhantomSpec()
# Flags beside --output_dir, which are attributes of `phantoms.PhantomSpec`.
_WHOLE = {
  'num_train': 'number of training images',
  'num_validation': 'number of validation images',
  'num_test': 'number of test images',
  'image_size': 'height and width in pixels',
  'channels': 'number of channels: 1 (grey) or 3 (RGB)',
  'num_classes': 'number of classes, 2 to 8',
  'num_sites': 'number of sites',
  'seed': 'seed of the images',
}
# Zlib's fastest level: noise hardly shrinks further, in five times the seconds.
_COMPRESSION = 1


def write(spec: phantoms.PhantomSpec, folder: pathlib.Path) -> None:
  """Writes the images of a spec into a new folder.

  Args:
    spec: Description of the images.
    folder: Folder that is made; it may exist if it is empty.

  Raises:
    InputError: The folder holds files, or cannot be written.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
      raise _validate.InputError(
        f'output_dir {str(folder)!r} holds files; give a new folder'
      )
    _write(spec, folder)
  except OSError as error:
    raise _validate.InputError(
      f'output_dir {str(folder)!r} cannot be written: '
      f'{error.strerror or error}; make room there or give another folder'
    ) from error


def _write(spec: phantoms.PhantomSpec, folder: pathlib.Path) -> None:
  total = spec.num_train + spec.num_validation + spec.num_test
  sites = phantoms.site_names(spec)
  number = 0
  # Nothing is shown where nobody looks.
  with tqdm.tqdm(total=total, unit='image', disable=None) as bar:
    for split, batch in phantoms.batches(spec):
      columns = zip(batch.images, batch.labels, batch.sites, batch.patients)
      for pixels, label, site, patient in columns:
        path = folder.joinpath(
          split,
          sites[site],
          phantoms.CLASS_NAMES[label],
          f'patient_{patient:06d}',
          f'{number:07d}.png',
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        grey_or_rgb = pixels[..., 0] if spec.channels == 1 else pixels
        Image.fromarray(grey_or_rgb).save(path, compress_level=_COMPRESSION)
        number += 1
      bar.update(len(batch))


def main(values: absl_flags.FlagValues) -> None:
  """Runs the command."""
  if values.output_dir is None:
    raise _validate.InputError('output_dir must be given: --output_dir=FOLDER')
  spec = phantoms.PhantomSpec(
    difficulty=values.difficulty,
    **{name: values[name].value for name in _WHOLE},
  )
  folder = pathlib.Path(values.output_dir)
  write(spec, folder)
  total = spec.num_train + spec.num_validation + spec.num_test
  stored = total * spec.image_size**2 * spec.channels
  print(f'{total:,} images in {folder}, {stored:,} bytes as uint8 pixels')


if __name__ == '__main__':
  for _name, _help in _WHOLE.items():
    absl_flags.DEFINE_integer(_name, getattr(_SPEC, _name), _help)
  absl_flags.DEFINE_float(
    'difficulty', _SPEC.difficulty, 'difficulty, 0 (easy) to 1 (hard)'
  )
  absl_flags.DEFINE_string('output_dir', None, 'folder that gets the PNG files')
  command.run(functools.partial(main, absl_flags.FLAGS))
