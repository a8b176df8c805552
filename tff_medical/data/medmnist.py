"""TFDS builder `medmnist`: the twelve 2D MedMNIST v2 sets in four sizes.

`medmnist/NAME_SIZE` (such as `pneumoniamnist_28`) downloads the official file
and refuses a file with any other MD5. `builder_for_file` reads an existing
file, with no network. There a different MD5 is only a warning, since version 1
of the data is still in circulation. The MD5 is part of the config, because
records of one file must never be taken for those of another: only the official
bytes get the plain name, and the config of any other file ends in its MD5.
Source: https://medmnist.github.io; see `medmnist_info`.

The headers of a file are checked before its bytes are read (`npz`): type and
shape of each array, and at most `MAX_IMAGES` images per split.

TFDS itself compares size and SHA-256 of the downloads in `checksums.tsv`. The
authors publish MD5s only. Hence `checksums.tsv` lists three files that were at
hand, while the MD5 is compared for all 48.

The features are image, uint8 [H, W, C], and label, int64 (for chestmnist [L] of
0 and 1). The records keep the order of the file.

>>> official_config('chestmnist', 64).name
'chestmnist_64'
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import hashlib
import os
from typing import Any, BinaryIO

from absl import logging
from etils import epath
import numpy as np
import requests
import tensorflow_datasets as tfds

from tff_medical import _files
from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data import label_values
from tff_medical.data import medmnist_info
from tff_medical.data import npz

# Names of the splits in the files, by the names used here.
_FILE_SPLITS = {'train': 'train', 'validation': 'val', 'test': 'test'}
_KEYS = [
  f'{split}_{kind}'
  for split in _FILE_SPLITS.values()
  for kind in ('images', 'labels')
]
# Largest number of images of a split; the largest official one has 165,466.
MAX_IMAGES = 2**18
_BLOCK = 2**20
_TIMEOUT_SECS = 20

Arrays = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(eq=False)
class MedMnistConfig(tfds.core.BuilderConfig):
  """The file that the records are made from.

  Attributes:
    name: Name of the config, which follows from the other fields; it holds the
      MD5 unless that is the official one.
    dataset: Key of `medmnist_info.BY_NAME`.
    image_size: Height and width, one of `medmnist_info.IMAGE_SIZES`.
    md5: MD5 of the file, in hexadecimal; '' is the official one.
  """

  name: str = ''
  dataset: str = 'pneumoniamnist'
  image_size: int = 28
  md5: str = ''

  def __post_init__(self) -> None:
    self.md5 = self.md5 or self.info.official_md5(self.image_size)
    self.name = f'{self.dataset}_{self.image_size}'
    if not self.is_official:
      self.name += f'_md5_{self.md5}'

  @property
  def info(self) -> medmnist_info.MedMnistInfo:
    """Description of the data set."""
    return medmnist_info.BY_NAME[self.dataset]

  @property
  def is_official(self) -> bool:
    """Whether the file is the official one."""
    return self.md5 == self.info.official_md5(self.image_size)


class MedMnist(tfds.core.GeneratorBasedBuilder):
  """Builder of the MedMNIST sets, from the network or from a file."""

  name = 'medmnist'
  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'The files of Zenodo record 10519652.'}
  BUILDER_CONFIGS = [
    MedMnistConfig(dataset=name, image_size=size)
    for name in medmnist_info.BY_NAME
    for size in medmnist_info.IMAGE_SIZES
  ]

  def __init__(self, *, source: str | None = None, **kwargs: Any):
    """Builds the builder; writes nothing.

    Args:
      source: File to read instead of a download; its MD5 must be that of the
        config, which `builder_for_file` ensures.
      **kwargs: Arguments of `tfds.core.DatasetBuilder`.
    """
    super().__init__(**kwargs)
    self._original_state['source'] = source
    self._source = source
    self._arrays: Arrays | None = None

  def _info(self) -> tfds.core.DatasetInfo:
    config = self.builder_config
    shape = (config.image_size, config.image_size, config.info.channels)
    names = config.info.class_names
    if config.info.multi_label:
      label = tfds.features.Tensor(shape=(len(names),), dtype=np.int64)
    else:
      label = tfds.features.ClassLabel(names=names)
    return tfds.core.DatasetInfo(
      builder=self,
      description=(
        f'{config.dataset} of MedMNIST v2 ({config.info.task}), '
        f'{config.image_size} x {config.image_size} pixels. Classes: '
        f'{"; ".join(names)}.'
      ),
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=shape, encoding_format='png'),
          'label': label,
        }
      ),
      supervised_keys=('image', 'label'),
      homepage=medmnist_info.HOMEPAGE,
      citation=medmnist_info.CITATION,
      license=config.info.license,
      disable_shuffling=True,
    )

  def download_and_prepare(self, **kwargs: Any) -> None:
    """Prepares as TFDS does, but checks a source file before any writing."""
    if self._source and not self.data_path.exists():
      self._arrays = self._read_checked(self._source)
    try:
      super().download_and_prepare(**kwargs)
    finally:
      self._arrays = None

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    arrays = self._arrays or self._download(dl_manager)
    return {
      name: self._generate_examples(*arrays[name])
      for name in images.SPLIT_NAMES
    }

  def _generate_examples(
    self, pixels: np.ndarray, labels: np.ndarray
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for i in range(len(pixels)):
      yield i, {'image': pixels[i], 'label': labels[i]}

  def _download(self, dl_manager: tfds.download.DownloadManager) -> Arrays:
    config = self.builder_config
    url = config.info.url(config.image_size)
    try:
      path = epath.Path(dl_manager.download(url))
    except (
      OSError,  # Covers the exceptions of requests.
      tfds.download.DownloadError,
      tfds.download.download_manager.NonMatchingChecksumError,
    ) as error:
      raise _cannot_download(url, error) from error
    try:
      return self._read_checked(path)
    except _validate.InputError:
      # Otherwise TFDS would take the file from its cache the next time.
      path.unlink()
      path.with_name(f'{path.name}.INFO').unlink(missing_ok=True)
      raise

  def _read_checked(self, path: epath.PathLike) -> Arrays:
    config = self.builder_config
    digest = file_md5(path)
    if digest != config.md5:
      raise _validate.InputError(
        f'{path} has MD5 {digest}, expected {config.md5}; it is damaged or '
        'was changed meanwhile: get it again'
      )
    return read_npz(path, config.info, config.image_size)


def official_config(dataset: str, image_size: int) -> MedMnistConfig:
  """Returns the config of the official file of a set."""
  return MedMnist.builder_configs[f'{dataset}_{image_size}']


def builder_for_file(
  dataset: str,
  image_size: int,
  path: epath.PathLike,
  tfds_dir: str | None = None,
) -> MedMnist:
  """Returns the builder of the records of a file, whatever its MD5.

  Args:
    dataset: Key of `medmnist_info.BY_NAME`.
    image_size: Height and width, one of `medmnist_info.IMAGE_SIZES`.
    path: Path of the .npz file, which is only read.
    tfds_dir: Folder of the prepared records; None is TFDS's own default.

  Raises:
    InputError: The file cannot be read, or does not hold such a set.
  """
  config = official_config(dataset, image_size)
  # The headers come first: to take the MD5 of an endless file never ends.
  check_npz(path, config.info, image_size)
  digest = file_md5(path)
  if digest != config.md5:
    logging.warning(
      '%s has MD5 %s, the official file has %s: it may be of version 1, '
      'changed or damaged. It is used as it is.',
      path,
      digest,
      config.md5,
    )
    config = MedMnistConfig(dataset=dataset, image_size=image_size, md5=digest)
  return MedMnist(source=str(path), config=config, data_dir=tfds_dir)


def check_reachable(config: MedMnistConfig) -> None:
  """Raises `InputError` if the server does not answer; downloads nothing.

  TFDS itself would retry for more than three minutes before it gives up.
  """
  url = config.info.url(config.image_size)
  try:
    requests.head(url, allow_redirects=True, timeout=_TIMEOUT_SECS)
  except requests.RequestException as error:
    raise _cannot_download(url, error) from error


def file_md5(path: epath.PathLike) -> str:
  """Returns the hexadecimal MD5 of a file, read block by block."""
  digest = hashlib.md5()
  with _open(path) as file:
    try:
      while block := file.read(_BLOCK):
        digest.update(block)
    except OSError as error:
      raise _validate.InputError(
        f'cannot read {path}: {error.strerror or error}; get it again'
      ) from error
  return digest.hexdigest()


def read_npz(
  path: epath.PathLike, info: medmnist_info.MedMnistInfo, image_size: int
) -> Arrays:
  """Reads and checks a MedMNIST file.

  Args:
    path: Path of the .npz file.
    info: Description of the set that the file should hold.
    image_size: Height and width that the images should have.

  Returns:
    Images, uint8 [N, H, W, C], and labels, int64 [N] (or [N, L] for multi-label
    sets), by split.

  Raises:
    InputError: The file is unreadable or holds something else.
  """
  with _archive(path) as archive:
    _check_headers(path, archive, info, image_size)
    arrays = {key: archive.read(key) for key in _KEYS}
  return {
    name: _checked_arrays(
      f'{path}: {part}',
      arrays[f'{part}_images'],
      arrays[f'{part}_labels'],
      info,
      image_size,
    )
    for name, part in _FILE_SPLITS.items()
  }


def check_npz(
  path: epath.PathLike, info: medmnist_info.MedMnistInfo, image_size: int
) -> None:
  """Checks what a MedMNIST file claims to hold, reading headers only.

  Args:
    path: Path of the .npz file.
    info: Description of the set that the file should hold.
    image_size: Height and width that the images should have.

  Raises:
    InputError: The file is unreadable or claims to hold something else.
  """
  with _archive(path) as archive:
    _check_headers(path, archive, info, image_size)


def _cannot_download(url: str, error: Exception) -> _validate.InputError:
  return _validate.InputError(
    f'cannot download {url}: {error}; fetch the file by other means and give '
    'its folder as data_dir'
  )


@contextlib.contextmanager
def _archive(path: epath.PathLike) -> Iterator[npz.Archive]:
  """Opens an .npz file; the error for a faulty file has the file's name."""
  with _open(path) as file:
    try:
      yield npz.Archive(file)
    except npz.Error as error:
      raise _validate.InputError(
        f'{path} is not a complete MedMNIST .npz file ({error}); get it again'
      ) from error


@contextlib.contextmanager
def _open(path: epath.PathLike) -> Iterator[BinaryIO]:
  """Opens a regular file, or a file of another file system by its URL."""
  try:
    if '://' in os.fspath(path):
      file = epath.Path(path).open('rb')
    else:
      file = _files.open_regular(path)
  except OSError as error:
    raise _validate.InputError(
      f'cannot read {path}: {error.strerror or error}; give the folder that '
      'holds the file as data_dir, or leave data_dir out to download it'
    ) from error
  with file:
    yield file


def _check_headers(
  path: epath.PathLike,
  archive: npz.Archive,
  info: medmnist_info.MedMnistInfo,
  image_size: int,
) -> None:
  """Raises `InputError` unless all headers are those of the described set."""
  missing = archive.missing(_KEYS)
  if missing:
    raise npz.Error(f'{", ".join(missing)} missing in it')
  for part in _FILE_SPLITS.values():
    _check_split_headers(
      f'{path}: {part}',
      archive.header(f'{part}_images'),
      archive.header(f'{part}_labels'),
      info,
      image_size,
    )


def _check_split_headers(
  where: str,
  pixels: npz.Header,
  labels: npz.Header,
  info: medmnist_info.MedMnistInfo,
  image_size: int,
) -> None:
  shape = (image_size, image_size, info.channels)
  shapes = (shape, shape[:2]) if info.channels == 1 else (shape,)
  count = pixels.shape[0] if pixels.shape else 0
  if pixels.dtype != np.uint8 or pixels.shape[1:] not in shapes or not count:
    allowed = ' or '.join(str(['N', *s]).replace("'", '') for s in shapes)
    raise _validate.InputError(
      f'{where}_images must be uint8 of shape {allowed}, got {pixels.dtype} '
      f'{list(pixels.shape)}; is it {info.name} in size {image_size}?'
    )
  if count > MAX_IMAGES:
    raise _validate.InputError(
      f'{where}_images has {count} images, more than the {MAX_IMAGES} '
      f'allowed; is it {info.name}?'
    )
  if labels.dtype.kind not in 'iu' or labels.shape[:1] != pixels.shape[:1]:
    raise _validate.InputError(
      f'{where}_labels must be {count} rows of integers, one per image, '
      f'got {labels.dtype} {list(labels.shape)}; is it {info.name}?'
    )
  if labels.shape[1:] not in _label_shapes(info):
    expected = f'[N, {len(info.class_names)}]' if info.multi_label else '[N]'
    raise _validate.InputError(
      f'{where} labels must have shape {expected}, got {list(labels.shape)}; '
      f'is it {info.name}?'
    )


def _label_shapes(
  info: medmnist_info.MedMnistInfo,
) -> tuple[tuple[int, ...], ...]:
  """Returns the shapes that the labels of one image may have."""
  return ((len(info.class_names),),) if info.multi_label else ((), (1,))


def _checked_arrays(
  where: str,
  pixels: np.ndarray,
  labels: np.ndarray,
  info: medmnist_info.MedMnistInfo,
  image_size: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns images [N, H, W, C] and checked labels as int64 [N] or [N, L]."""
  if labels.dtype.kind == 'u' and labels.max() > np.iinfo(np.int64).max:
    raise _validate.InputError(
      f'{where}_labels must be small integers, got {labels.max()}; is it '
      f'{info.name}?'
    )
  labels = labels.astype(np.int64)
  if not info.multi_label:
    labels = labels.reshape(len(labels))
  label_values.check_labels(
    where, labels, len(info.class_names), info.multi_label
  )
  shape = (image_size, image_size, info.channels)
  return pixels.reshape(-1, *shape), labels
