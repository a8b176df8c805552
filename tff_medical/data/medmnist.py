"""TFDS builder `medmnist`: the twelve 2D MedMNIST v2 sets in four sizes.

What: `medmnist/NAME_SIZE` (such as `pneumoniamnist_28`) downloads the official
file and refuses one whose MD5 is not the official one. `builder_for_file`
reads a file that is already there, with no network; there a different MD5 is a
warning, since version 1 of the data is still about. Why the MD5 is part of the
config: records prepared from one file must never be taken for another's, so
that only the official bytes get the plain name, and any other file's config
ends in its MD5. Source: https://medmnist.github.io; see `medmnist_info`.

TFDS itself compares size and SHA-256 of the downloads in `checksums.tsv`; the
authors publish MD5s only, so that it lists the three files at hand and the MD5
is compared for all 48.

Features: image uint8 [H, W, C], label int64 (for chestmnist [L] of 0 and 1). The
records keep the order of the file.

>>> official_config('chestmnist', 64).name
'chestmnist_64'
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import hashlib
from typing import Any
import zipfile
import zlib

from absl import logging
from etils import epath
import numpy as np
import requests
import tensorflow_datasets as tfds

from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data import medmnist_info

# Names of the splits in the files, by those used here.
_FILE_SPLITS = {'train': 'train', 'validation': 'val', 'test': 'test'}
_BLOCK = 2**20
_TIMEOUT_SECS = 20

Arrays = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(eq=False)
class MedMnistConfig(tfds.core.BuilderConfig):
  """Which file the records are made from.

  Attributes:
    name: Follows from the others; holds the MD5 unless it is the official one.
    dataset: Key of `medmnist_info.BY_NAME`.
    image_size: One of `medmnist_info.IMAGE_SIZES`.
    md5: Of the bytes of the file, in hexadecimal.
  """

  name: str = ''
  dataset: str = 'pneumoniamnist'
  image_size: int = 28
  md5: str = ''

  def __post_init__(self) -> None:
    official = self.info.official_md5(self.image_size)
    self.md5 = self.md5 or official
    self.name = f'{self.dataset}_{self.image_size}'
    if self.md5 != official:
      self.name += f'_md5_{self.md5}'

  @property
  def info(self) -> medmnist_info.MedMnistInfo:
    """What is known of the data set."""
    return medmnist_info.BY_NAME[self.dataset]


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
      source: A file to read in place of a download; its MD5 must be that of
        the config (`builder_for_file` sees to it).
      **kwargs: Of `tfds.core.DatasetBuilder`.
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
    """As in TFDS, but a bad source file is found before anything is written."""
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
      OSError,  # Covers those of requests.
      tfds.download.DownloadError,
      tfds.download.download_manager.NonMatchingChecksumError,
    ) as error:
      raise _cannot_download(url, error) from error
    try:
      return self._read_checked(path)
    except _validate.InputError:
      # Or TFDS would take it from its cache the next time.
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
    image_size: One of `medmnist_info.IMAGE_SIZES`.
    path: The .npz file, which is only read.
    tfds_dir: Where prepared records go, TFDS's own default if None.
  """
  config = official_config(dataset, image_size)
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

  TFDS tries again for more than three minutes before it gives up.
  """
  url = config.info.url(config.image_size)
  try:
    requests.head(url, allow_redirects=True, timeout=_TIMEOUT_SECS)
  except requests.RequestException as error:
    raise _cannot_download(url, error) from error


def file_md5(path: epath.PathLike) -> str:
  """Returns the hexadecimal MD5 of a file, read block by block."""
  digest = hashlib.md5()
  try:
    with epath.Path(path).open('rb') as file:
      while block := file.read(_BLOCK):
        digest.update(block)
  except OSError as error:
    raise _validate.InputError(
      f'cannot read {path}: {error.strerror or error}; give the folder that '
      'holds the file as data_dir, or leave data_dir out to download it'
    ) from error
  return digest.hexdigest()


def read_npz(
  path: epath.PathLike, info: medmnist_info.MedMnistInfo, image_size: int
) -> Arrays:
  """Reads and checks a MedMNIST file.

  Args:
    path: The .npz file.
    info: What it should hold.
    image_size: Height and width that the images should have.

  Returns:
    For each split images uint8 [N, H, W, C] and labels int64 [N] (or
    [N, L] for multi-label sets).

  Raises:
    InputError: The file is unreadable or holds something else.
  """
  keys = [
    f'{s}_{k}' for s in _FILE_SPLITS.values() for k in ('images', 'labels')
  ]
  arrays = _load_arrays(path, keys)
  return {
    name: _check_arrays(
      f'{path}: {part}',
      arrays[f'{part}_images'],
      arrays[f'{part}_labels'],
      info,
      image_size,
    )
    for name, part in _FILE_SPLITS.items()
  }


def _cannot_download(url: str, error: Exception) -> _validate.InputError:
  return _validate.InputError(
    f'cannot download {url}: {error}; fetch the file by other means and give '
    'its folder as data_dir'
  )


def _load_arrays(
  path: epath.PathLike, keys: list[str]
) -> dict[str, np.ndarray]:
  try:
    with epath.Path(path).open('rb') as file:
      archive = np.load(file, allow_pickle=False)
      if isinstance(archive, np.ndarray):
        raise ValueError('it is a single array')
      missing = [key for key in keys if key not in archive.files]
      if missing:
        raise ValueError(f'{", ".join(missing)} missing in it')
      return {key: archive[key] for key in keys}
  except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as e:
    raise _validate.InputError(
      f'{path} is not a complete MedMNIST .npz file ({e}); get it again'
    ) from e


def _check_arrays(
  where: str,
  pixels: np.ndarray,
  labels: np.ndarray,
  info: medmnist_info.MedMnistInfo,
  image_size: int,
) -> tuple[np.ndarray, np.ndarray]:
  shape = (image_size, image_size, info.channels)
  shapes = (shape, shape[:2]) if info.channels == 1 else (shape,)
  if (
    pixels.dtype != np.uint8
    or pixels.shape[1:] not in shapes
    or not pixels.size
  ):
    wanted = ' or '.join(str(['N', *s]).replace("'", '') for s in shapes)
    raise _validate.InputError(
      f'{where}_images must be uint8 of shape {wanted}, got {pixels.dtype} '
      f'{list(pixels.shape)}; is it {info.name} in size {image_size}?'
    )
  if labels.dtype.kind not in 'iu' or labels.shape[:1] != pixels.shape[:1]:
    raise _validate.InputError(
      f'{where}_labels must be {len(pixels)} rows of integers, one an image, '
      f'got {labels.dtype} {list(labels.shape)}'
    )
  if not info.multi_label and labels.ndim == 2 and labels.shape[1] == 1:
    labels = labels[:, 0]
  labels = labels.astype(np.int64)
  images.check_labels(where, labels, len(info.class_names), info.multi_label)
  return pixels.reshape(-1, *shape), labels
