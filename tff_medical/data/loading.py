"""Loads a data set by name, as arrays: the one entry that programs need.

What: `load('synthetic')` and `load('medmnist/pneumoniamnist')` prepare the TFDS
records once, in TFDS's cache, and read them into an `images.ImageData`. Why
through records rather than straight from the source: what is trained on is
then what `tfds.load` gives anybody else, in the same order. Arrays are uint8,
all in memory.

>>> load('medmnist/pneumonia')
Traceback (most recent call last):
...
tff_medical._validate.InputError: dataset must be one of \
medmnist/bloodmnist, medmnist/breastmnist, medmnist/chestmnist, \
medmnist/dermamnist, medmnist/octmnist, medmnist/organamnist, \
medmnist/organcmnist, medmnist/organsmnist, medmnist/pathmnist, \
medmnist/pneumoniamnist, medmnist/retinamnist, medmnist/tissuemnist, \
synthetic, synthetic_rgb, got 'medmnist/pneumonia'; did you mean 'medmnist/pneumoniamnist'?
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
from typing import TYPE_CHECKING

from absl import logging
import numpy as np

from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data import medmnist_info
from tff_medical.data import phantoms

if TYPE_CHECKING:
  import tensorflow_datasets as tfds

# Channels of the generated data by its name.
SYNTHETIC = {'synthetic': 1, 'synthetic_rgb': 3}
DATASETS = (
  *SYNTHETIC,
  *(f'medmnist/{name}' for name in medmnist_info.BY_NAME),
)

_READ_BATCH = 256


def load(
  dataset: str,
  *,
  image_size: int = 28,
  data_dir: str | None = None,
  tfds_dir: str | None = None,
  seed: int = 0,
  difficulty: float | None = None,
) -> images.ImageData:
  """Returns the data set of that name.

  Args:
    dataset: One of `DATASETS`.
    image_size: Height and width; for medmnist 28, 64, 128 or 224.
    data_dir: For medmnist, a folder that holds NAME.npz (NAME_64.npz, ...),
      which may be read-only; the file is downloaded if None.
    tfds_dir: Where records are prepared: TFDS's default if None, which is
      $TFDS_DATA_DIR or ~/tensorflow_datasets.
    seed: For synthetic, of the images; nothing in medmnist is random.
    difficulty: For synthetic, 0 to 1; its default if None.

  Raises:
    InputError: A name, value, combination or file that cannot be used.
  """
  _validate.one_of(DATASETS, dataset=dataset)
  if dataset in SYNTHETIC:
    if data_dir is not None:
      raise _validate.InputError(
        f'data_dir is not used by {dataset}, got {data_dir!r}; leave it out'
      )
    spec = phantoms.PhantomSpec(
      image_size=image_size, channels=SYNTHETIC[dataset], seed=seed
    )
    if difficulty is not None:
      spec = dataclasses.replace(spec, difficulty=difficulty)
    return load_synthetic(spec, tfds_dir=tfds_dir)
  if difficulty is not None:
    raise _validate.InputError(
      f'difficulty is only for synthetic, got {difficulty!r} with {dataset}; '
      'leave it out'
    )
  name = dataset.split('/')[1]
  return load_medmnist(name, image_size, data_dir=data_dir, tfds_dir=tfds_dir)


def load_synthetic(
  spec: phantoms.PhantomSpec, *, tfds_dir: str | None = None
) -> images.ImageData:
  """Returns the generated data set of a spec."""
  # Imports TensorFlow Datasets, hence only here.
  from tff_medical.data import synthetic

  names = {channels: name for name, channels in SYNTHETIC.items()}
  builder = synthetic.builder_for_spec(spec, tfds_dir)
  _prepare(builder, downloads=False)
  return images.ImageData(
    name=names[spec.channels],
    train=_read(builder, 'train'),
    validation=_read(builder, 'validation'),
    test=_read(builder, 'test'),
    class_names=phantoms.CLASS_NAMES[: spec.num_classes],
    site_names=phantoms.site_names(spec),
    citation=builder.info.citation,
    license=synthetic.LICENSE,
    source_digest=f'sha256:{synthetic.spec_digest(spec)}',
    origin=images.GENERATED,
  )


def load_medmnist(
  name: str,
  image_size: int = 28,
  *,
  data_dir: str | None = None,
  tfds_dir: str | None = None,
) -> images.ImageData:
  """Returns a MedMNIST set, from `data_dir` or downloaded; see `load`."""
  # Imports TensorFlow Datasets, hence only here.
  from tff_medical.data import medmnist

  _validate.one_of(list(medmnist_info.BY_NAME), name=name)
  if image_size not in medmnist_info.IMAGE_SIZES:
    raise _validate.InputError(
      f'image_size must be one of {medmnist_info.IMAGE_SIZES} for medmnist, '
      f'got {image_size!r}'
    )
  info = medmnist_info.BY_NAME[name]
  if data_dir is None:
    config = medmnist.official_config(name, image_size)
    builder = medmnist.MedMnist(config=config, data_dir=tfds_dir)
    if not builder.data_path.exists():
      medmnist.check_reachable(config)
  else:
    path = pathlib.Path(data_dir).expanduser() / info.file_name(image_size)
    builder = medmnist.builder_for_file(name, image_size, path, tfds_dir)
  _prepare(builder, downloads=data_dir is None)
  config = builder.builder_config
  return images.ImageData(
    name=f'medmnist/{name}',
    train=_read(builder, 'train'),
    validation=_read(builder, 'validation'),
    test=_read(builder, 'test'),
    class_names=info.class_names,
    multi_label=info.multi_label,
    citation=medmnist_info.CITATION,
    license=info.license,
    source_digest=f'md5:{config.md5}',
    origin=images.OFFICIAL if config.is_official else images.OTHER_FILE,
  )


def _prepare(builder: tfds.core.DatasetBuilder, *, downloads: bool) -> None:
  """Writes the records unless they are there; shows only downloads."""
  import tensorflow as tf
  import tensorflow_datasets as tfds

  logging.info('Preparing %s in %s', builder.info.full_name, builder.data_dir)
  tfds.display_progress_bar(downloads)
  try:
    # TFDS prints of a download even where there is none.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare()
  except (OSError, tf.errors.OpError) as error:
    # Another process may have prepared the same records meanwhile.
    if not builder.is_prepared():
      raise _validate.InputError(
        f'cannot prepare records in {builder.data_dir_root}: {error}; make '
        'room there or give another folder as tfds_dir'
      ) from error
  finally:
    tfds.display_progress_bar(True)


def _read(builder: tfds.core.DatasetBuilder, split: str) -> images.Split:
  """Reads one split in the order in which it was written."""
  import tensorflow_datasets as tfds

  dataset = builder.as_dataset(
    split=split,
    batch_size=_READ_BATCH,
    read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
  )
  rows = builder.info.splits[split].num_examples
  columns: dict[str, np.ndarray] = {}
  start = 0
  for batch in tfds.as_numpy(dataset):
    stop = start + len(batch['image'])
    for name, values in batch.items():
      if name not in columns:
        columns[name] = np.empty((rows, *values.shape[1:]), values.dtype)
      columns[name][start:stop] = values
    start = stop
  return images.Split(
    images=columns['image'],
    labels=columns['label'].astype(np.int64),
    sites=columns.get('site'),
    patients=columns.get('patient'),
  )
