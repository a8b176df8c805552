"""A tiny file in MedMNIST's format, so that commands run in seconds."""

import pathlib

import numpy as np


def write(folder, name='breastmnist', counts=(60, 12, 24), **changed):
  """Writes NAME.npz with images whose brightness reveals the class.

  Args:
    folder: Where to write it.
    name: The MedMNIST set; two classes, grey, 28 pixels.
    counts: Images in train, val and test.
    **changed: Arrays to put in place of the generated ones; None leaves out.

  Returns:
    The folder as a string, for --data_dir.
  """
  rng = np.random.default_rng(0)
  arrays = {}
  for split, count in zip(('train', 'val', 'test'), counts):
    labels = np.arange(count) % 2
    images = rng.integers(0, 60, (count, 28, 28)) + 120 * labels[:, None, None]
    arrays[f'{split}_images'] = images.astype(np.uint8)
    arrays[f'{split}_labels'] = labels[:, None].astype(np.uint8)
  arrays.update(changed)
  kept = {k: v for k, v in arrays.items() if v is not None}
  np.savez(pathlib.Path(folder, f'{name}.npz'), **kept)
  return str(folder)
