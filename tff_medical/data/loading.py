"""Loads a data set by name into arrays: the one function that programs need.

`DATASETS` holds every data set by name, with what is known of it before it is
loaded. `_FAMILIES` holds open families by their prefix: `tfds:NAME` and
`npz:FILE`. `source` resolves both. `load('synthetic')` and
`load('medmnist/pneumoniamnist')` prepare the TFDS records once, in TFDS's cache,
and read them into an `images.ImageData`. Its images are an array in memory, or of
large sets a file; see `record_pixels`. Because of the records, training uses the same
images, in the same order, as `tfds.load` gives anybody else.

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
from tff_medical.data import record_pixels

if TYPE_CHECKING:
  import tensorflow_datasets as tfds

_READ_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Options:
  """Arguments of `load` beside the name; see `load`.

  Attributes:
    image_size: Height and width in pixels.
    data_dir: Folder with the file of the data set, or None.
    tfds_dir: Folder of the prepared records, or None.
    seed: Seed of generated images.
    difficulty: Difficulty of generated images, or None.
    own: Choices for own images.
    keys: Names of the features of a set of the catalogue.
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
    num_train: Number of training images; None if known only after loading.
    channels: Number of channels, 1 (grey) or 3 (RGB); None if known only after
      loading.
    class_names: Names of the classes or, for multi-label data, of the findings;
      None if known only after loading.
    load: Function that returns the images. It must refuse options that it does
      not use.
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
      raise _validate.InputError(
        'class_names must name at least one class, got none'
      )


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
    dataset: Name of the data set: one of `DATASETS`, `tfds:NAME[/CONFIG]` or
      `npz:FILE`.
    image_size: Height and width in pixels; 28, 64, 128 or 224 for medmnist.
    data_dir: Folder that holds NAME.npz (NAME_64.npz, ...) of medmnist and may
      be read-only; None downloads the file. Folder of the images for `folder`,
      file of the table for `table`, folder of the file for `npz:FILE`, and
      folder of manually downloaded files for `tfds:NAME`.
    tfds_dir: Folder of the prepared records. None is TFDS's default:
      $TFDS_DATA_DIR or ~/tensorflow_datasets.
    seed: Seed of synthetic images; nothing in medmnist is random.
    difficulty: Difficulty of synthetic images, 0 to 1; None is their default.
    own: Choices for `folder` and `table`; None is their defaults.
    keys: Names of the features of `tfds:NAME`; None detects them.
    class_names: Names of the classes of `npz:FILE`; () for their numbers.

  Raises:
    InputError: A name, value, combination of values or file cannot be used.
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
    dataset: Name of the data set, as in `load`.

  Raises:
    InputError: There is no data set of that name. Names of TFDS's catalogue are
      checked only when the set is loaded.
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
  """Returns the names for a help text, where a family of sets is one name.

  >>> names()
  'tfds:NAME[/CONFIG], npz:FILE, synthetic, synthetic_rgb, medmnist/NAME, folder, table'
  """
  short = (
    f'{name.split("/")[0]}/NAME' if '/' in name else name for name in DATASETS
  )
  return ', '.join((*_SHOWN.values(), *dict.fromkeys(short)))


def _synthetic_source(channels: int) -> Source:
  spec = phantoms.PhantomSpec(channels=channels)

  def load_source(options: Options) -> images.ImageData:
    if options.data_dir is not None:
      raise _validate.InputError(
        f'data_dir is not used by {_SYNTHETIC[channels]}, got '
        f'{options.data_dir!r}; leave it out'
      )
    chosen = dataclasses.replace(
      spec, image_size=options.image_size, seed=options.seed
    )
    if options.difficulty is not None:
      chosen = dataclasses.replace(chosen, difficulty=options.difficulty)
    return load_synthetic(chosen, tfds_dir=options.tfds_dir)

  return Source(
    spec.num_train,
    channels,
    phantoms.CLASS_NAMES[: spec.num_classes],
    load_source,
  )


def _medmnist_source(info: medmnist_info.MedMnistInfo) -> Source:
  def load_source(options: Options) -> images.ImageData:
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

  return Source(info.counts[0], info.channels, info.class_names, load_source)


def _own_source(name: str) -> Source:
  def load_source(options: Options) -> images.ImageData:
    for option in ('tfds_dir', 'difficulty'):
      _refuse(name, option, options)
    return own_images.load(
      name, options.data_dir, options.image_size, options.own
    )

  return Source(None, None, None, load_source)


def _catalogue_source(name: str) -> Source:
  catalogue.check_name(name)

  def load_source(options: Options) -> images.ImageData:
    _refuse(f'{catalogue.PREFIX}{name}', 'difficulty', options)
    return catalogue.load(
      name,
      options.image_size,
      data_dir=options.data_dir,
      tfds_dir=options.tfds_dir,
      keys=options.keys,
    )

  return Source(None, None, None, load_source)


def _npz_source(file: str) -> Source:
  if not file or file.endswith('/'):
    raise _validate.InputError(
      f'dataset must be npz:FILE, got {npz_files.PREFIX + file!r}'
    )

  def load_source(options: Options) -> images.ImageData:
    for option in ('tfds_dir', 'difficulty'):
      _refuse(f'{npz_files.PREFIX}{file}', option, options)
    return npz_files.load(
      file, options.data_dir, options.image_size, options.class_names
    )

  return Source(None, None, None, load_source)


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
  # The module imports TensorFlow Datasets, so it is imported only here.
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
  """Returns a MedMNIST set, read from `data_dir` or downloaded; see `load`."""
  # The module imports TensorFlow Datasets, so it is imported only here.
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
    is_ordinal=info.task == 'ordinal-regression',
    citation=medmnist_info.CITATION,
    license=info.license,
    source_digest=f'md5:{config.md5}',
    origin=images.OFFICIAL if config.is_official else images.OTHER_FILE,
  )


def _prepare(builder: tfds.core.DatasetBuilder, *, downloads: bool) -> None:
  """Writes the records unless they exist; only downloads show progress."""
  import tensorflow as tf
  import tensorflow_datasets as tfds

  logging.info('Preparing %s in %s', builder.info.full_name, builder.data_dir)
  tfds.display_progress_bar(downloads)
  try:
    # TFDS prints about a download even when nothing is downloaded.
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
  """Reads one split in the order in which its records were written."""
  import tensorflow_datasets as tfds

  rows = builder.info.splits[split].num_examples
  shape = builder.info.features['image'].shape
  sink = record_pixels.sink(builder, split, split, (rows, *shape), 'image')
  is_stored = isinstance(sink, record_pixels.Stored)
  dataset = builder.as_dataset(
    split=split,
    batch_size=_READ_BATCH,
    decoders=record_pixels.undecoded('image') if is_stored else None,
    read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
  )
  parts: dict[str, list[np.ndarray]] = {}
  try:
    for batch in tfds.as_numpy(dataset):
      for image in batch.pop('image'):
        sink.add(image)
      for name, values in batch.items():
        parts.setdefault(name, []).append(values)
  except BaseException:
    sink.discard()
    raise
  columns = {name: np.concatenate(values) for name, values in parts.items()}
  return images.Split(
    images=sink.close({}),
    labels=columns['label'].astype(np.int64),
    sites=columns.get('site'),
    patients=columns.get('patient'),
  )


# Names of the generated data sets by their number of channels.
_SYNTHETIC = {1: 'synthetic', 3: 'synthetic_rgb'}
# Families of data sets by their prefix: a name of TFDS's catalogue, or a file,
# follows the prefix.
_FAMILIES: dict[str, Callable[[str], Source]] = {
  catalogue.PREFIX: _catalogue_source,
  npz_files.PREFIX: _npz_source,
}
_SHOWN = {
  catalogue.PREFIX: f'{catalogue.PREFIX}NAME[/CONFIG]',
  npz_files.PREFIX: f'{npz_files.PREFIX}FILE',
}
# All data sets by name. A new data set is one line here: the commands, their
# checks and their help need nothing else.
DATASETS: dict[str, Source] = {
  **{name: _synthetic_source(c) for c, name in _SYNTHETIC.items()},
  **{
    f'medmnist/{name}': _medmnist_source(info)
    for name, info in medmnist_info.BY_NAME.items()
  },
  **{name: _own_source(name) for name in own_images.NAMES},
}
