"""Loads a data set by name, as arrays: the one entry that programs need.

What: `DATASETS` holds every data set by name, with what is known of it before
it is loaded, and `_FAMILIES` what follows a prefix: `tfds:NAME`, `npz:FILE`.
`source` resolves both. `load('synthetic')` and `load('medmnist/pneumoniamnist')` prepare
the TFDS records once, in TFDS's cache, and read them into an
`images.ImageData`. Why through records rather than straight from the source:
what is trained on is then what `tfds.load` gives anybody else, in the same
order. Arrays are uint8, in memory but for large sets of the catalogue.

>>> load('medmnist/pneumonia')
Traceback (most recent call last):
...
tff_medical._validate.InputError: dataset must be one of folder, \
medmnist/bloodmnist, medmnist/breastmnist, medmnist/chestmnist, \
medmnist/dermamnist, medmnist/octmnist, medmnist/organamnist, \
medmnist/organcmnist, medmnist/organsmnist, medmnist/pathmnist, \
medmnist/pneumoniamnist, medmnist/retinamnist, medmnist/tissuemnist, \
npz:FILE, synthetic, synthetic_rgb, table, tfds:NAME[/CONFIG], got \
'medmnist/pneumonia'; did you mean 'medmnist/pneumoniamnist'?
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import dataclasses
import io
import pathlib
from typing import TYPE_CHECKING

from absl import logging
import numpy as np

from tff_medical import _validate
from tff_medical.data import catalogue
from tff_medical.data import images
from tff_medical.data import medmnist_info
from tff_medical.data import npz_files
from tff_medical.data import own_images
from tff_medical.data import phantoms

if TYPE_CHECKING:
  import tensorflow_datasets as tfds

_READ_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Options:
  """What `load` was asked for beside the name; see there.

  Attributes:
    image_size: Height and width.
    data_dir: A folder with the file of the data set, or None.
    tfds_dir: Where records are prepared, or None.
    seed: Of what is generated.
    difficulty: Of what is generated, or None.
    own: The choices for own images.
    keys: The features of a set of the catalogue.
    class_names: Names of the classes of an .npz file; () for their numbers.
  """

  image_size: int = 28
  data_dir: str | None = None
  tfds_dir: str | None = None
  seed: int = 0
  difficulty: float | None = None
  own: own_images.OwnImages = own_images.OwnImages()
  keys: catalogue.Keys = catalogue.Keys()
  class_names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set: what is known of it without loading it, and how it is loaded.

  Attributes:
    num_train: The number of training images, or None if loading tells.
    channels: 1 (grey) or 3 (RGB), or None if loading tells.
    class_names: The classes or, with several labels an image, the findings;
      None if loading tells.
    load: Returns the images. Options that are not used must be refused.
  """

  num_train: int | None
  channels: int | None
  class_names: tuple[str, ...] | None
  load: Callable[[Options], images.ImageData]

  def __post_init__(self) -> None:
    if self.num_train is not None:
      _validate.positive_int(num_train=self.num_train)
    if self.channels not in (None, *phantoms.CHANNELS):
      raise _validate.InputError(
        f'channels must be 1 (grey) or 3 (RGB), got {self.channels!r}'
      )
    if self.class_names is not None and not self.class_names:
      raise _validate.InputError('class_names must name at least one, got none')


def load(
  dataset: str,
  *,
  image_size: int = 28,
  data_dir: str | None = None,
  tfds_dir: str | None = None,
  seed: int = 0,
  difficulty: float | None = None,
  own: own_images.OwnImages | None = None,
  keys: catalogue.Keys | None = None,
  class_names: tuple[str, ...] = (),
) -> images.ImageData:
  """Returns the data set of that name.

  Args:
    dataset: One of `DATASETS`, `tfds:NAME[/CONFIG]` or `npz:FILE`.
    image_size: Height and width; for medmnist 28, 64, 128 or 224.
    data_dir: For medmnist, a folder that holds NAME.npz (NAME_64.npz, ...),
      which may be read-only; the file is downloaded if None. For `folder` and
      `table` the folder of the images and the file of the table; for `npz:FILE`
      the folder of the file; for `tfds:NAME` that of files fetched by hand.
    tfds_dir: Where records are prepared: TFDS's default if None, which is
      $TFDS_DATA_DIR or ~/tensorflow_datasets.
    seed: For synthetic, of the images; nothing in medmnist is random.
    difficulty: For synthetic, 0 to 1; its default if None.
    own: For `folder` and `table`, their choices; the defaults if None.
    keys: For `tfds:NAME`, names of features; they are found if None.
    class_names: For `npz:FILE`, names of the classes; () for their numbers.

  Raises:
    InputError: A name, value, combination or file that cannot be used.
  """
  known = source(dataset)
  if own is not None and dataset not in own_images.NAMES:
    raise _validate.InputError(
      f'own is not used by {dataset}; leave it out, or load folder or table'
    )
  return known.load(
    Options(
      image_size,
      data_dir,
      tfds_dir,
      seed,
      difficulty,
      own or own_images.OwnImages(),
      keys or catalogue.Keys(),
      class_names,
    )
  )


def source(dataset: str) -> Source:
  """Returns what is known of a data set without loading it.

  Args:
    dataset: As for `load`.

  Raises:
    InputError: There is none of that name. Whether TFDS's catalogue has a name
      is known when it is loaded.
  """
  for prefix, of_rest in _FAMILIES.items():
    if str(dataset).startswith(prefix):
      return of_rest(dataset[len(prefix) :])
  _validate.one_of([*DATASETS, *_SHOWN.values()], dataset=dataset)
  return DATASETS[dataset]


def family(dataset: str) -> str:
  """Returns the name of a data set, or what stands for all with its prefix.

  >>> family('table'), family('npz:scans.npz')
  ('table', 'npz:FILE')
  """
  for prefix, shown in _SHOWN.items():
    if str(dataset).startswith(prefix):
      return shown
  return dataset


def names() -> str:
  """Returns the names as a help text has them, a family of them as one.

  >>> names()
  'tfds:NAME[/CONFIG], npz:FILE, synthetic, synthetic_rgb, medmnist/NAME, folder, table'
  """
  short = (
    f'{name.split("/")[0]}/NAME' if '/' in name else name for name in DATASETS
  )
  return ', '.join((*_SHOWN.values(), *dict.fromkeys(short)))


def _synthetic_source(channels: int) -> Source:
  spec = phantoms.PhantomSpec(channels=channels)

  def load_it(options: Options) -> images.ImageData:
    if options.data_dir is not None:
      raise _validate.InputError(
        f'data_dir is not used by {_SYNTHETIC[channels]}, got '
        f'{options.data_dir!r}; leave it out'
      )
    wanted = dataclasses.replace(
      spec, image_size=options.image_size, seed=options.seed
    )
    if options.difficulty is not None:
      wanted = dataclasses.replace(wanted, difficulty=options.difficulty)
    return load_synthetic(wanted, tfds_dir=options.tfds_dir)

  return Source(
    spec.num_train, channels, phantoms.CLASS_NAMES[: spec.num_classes], load_it
  )


def _medmnist_source(info: medmnist_info.MedMnistInfo) -> Source:
  def load_it(options: Options) -> images.ImageData:
    if options.difficulty is not None:
      raise _validate.InputError(
        f'difficulty is only for synthetic, got {options.difficulty!r} with '
        f'medmnist/{info.name}; leave it out'
      )
    return load_medmnist(
      info.name,
      options.image_size,
      data_dir=options.data_dir,
      tfds_dir=options.tfds_dir,
    )

  return Source(info.counts[0], info.channels, info.class_names, load_it)


def _own_source(name: str) -> Source:
  def load_it(options: Options) -> images.ImageData:
    for option in ('tfds_dir', 'difficulty'):
      _refuse(name, option, options)
    return own_images.load(
      name, options.data_dir, options.image_size, options.own
    )

  return Source(None, None, None, load_it)


def _catalogue_source(name: str) -> Source:
  catalogue.check_name(name)

  def load_it(options: Options) -> images.ImageData:
    _refuse(f'{catalogue.PREFIX}{name}', 'difficulty', options)
    return catalogue.load(
      name,
      options.image_size,
      data_dir=options.data_dir,
      tfds_dir=options.tfds_dir,
      keys=options.keys,
    )

  return Source(None, None, None, load_it)


def _npz_source(file: str) -> Source:
  if not file or file.endswith('/'):
    raise _validate.InputError(
      f'dataset must be npz:FILE, got {npz_files.PREFIX + file!r}'
    )

  def load_it(options: Options) -> images.ImageData:
    for option in ('tfds_dir', 'difficulty'):
      _refuse(f'{npz_files.PREFIX}{file}', option, options)
    return npz_files.load(
      file, options.data_dir, options.image_size, options.class_names
    )

  return Source(None, None, None, load_it)


def _refuse(name: str, option: str, options: Options) -> None:
  """Refuses an option that a data set has no use for."""
  value = getattr(options, option)
  if value is not None:
    raise _validate.InputError(
      f'{option} is not used by {name}, got {value!r}; leave it out'
    )


def load_synthetic(
  spec: phantoms.PhantomSpec, *, tfds_dir: str | None = None
) -> images.ImageData:
  """Returns the generated data set of a spec."""
  # Imports TensorFlow Datasets, hence only here.
  from tff_medical.data import synthetic

  builder = synthetic.builder_for_spec(spec, tfds_dir)
  _prepare(builder, downloads=False)
  return images.ImageData(
    name=_SYNTHETIC[spec.channels],
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


# The names of the generated data by their channels.
_SYNTHETIC = {1: 'synthetic', 3: 'synthetic_rgb'}
# What follows a prefix is open: a name of TFDS's catalogue, a file.
_FAMILIES: dict[str, Callable[[str], Source]] = {
  catalogue.PREFIX: _catalogue_source,
  npz_files.PREFIX: _npz_source,
}
_SHOWN = {
  catalogue.PREFIX: f'{catalogue.PREFIX}NAME[/CONFIG]',
  npz_files.PREFIX: f'{npz_files.PREFIX}FILE',
}
# All data sets by their names. A new one is a line here: the commands, their
# checks and their help ask for nothing else.
DATASETS: dict[str, Source] = {
  **{name: _synthetic_source(c) for c, name in _SYNTHETIC.items()},
  **{
    f'medmnist/{name}': _medmnist_source(info)
    for name, info in medmnist_info.BY_NAME.items()
  },
  **{name: _own_source(name) for name in own_images.NAMES},
}
