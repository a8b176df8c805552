"""Generated images that look like a medical task, for demos and tests.

Each image shows textured tissue with shading and vessels, and one lesion. The
shape of the lesion is the class (a round nodule, a cavity with a rim, a
spiculated mass, a cluster of specks ...); its place, size and rotation are
random. A patient has several images of the same kind of lesion, tissue and
site. A site is a scanner with its own gain, offset, contrast curve, blur and
noise.

A privacy budget can so be tried without any download, on data that need a
convolutional network: lesions of all classes add the same total brightness at
random places. No weighting of pixels tells the classes apart, so a linear model
stays far behind a small convolutional network.

Images are uint8 [N, H, W, C] in 0..255, grey or a tinted RGB. Lengths are in
half image widths, so that the image size changes the sharpness only. The images
were made for this project; nothing is taken from any patient.

>>> spec = PhantomSpec(num_train=20, num_validation=8, num_test=8)
>>> train = generate(spec)['train']
>>> train.images.shape, train.patients[:6]
((20, 28, 28, 1), array([0, 0, 0, 0, 0, 1]))
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses

import numpy as np

from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data import lesion_shapes

CLASS_NAMES = lesion_shapes.NAMES
CHANNELS = (1, 3)

_col = lesion_shapes.column

_CHUNK = 512  # Images rendered at a time, to bound memory at large sizes.
_TINT = np.array([1.0, 0.72, 0.76], np.float32)  # The tint of a stained slide.


@dataclasses.dataclass(frozen=True)
class PhantomSpec:
  """Description of the images to generate; equal specs give equal images.

  Attributes:
    difficulty: Difficulty, from 0 (lesions stand out) to 1 (lesions are faint,
      their shapes blur into each other, texture and noise are strong).
    num_classes: Number of lesion shapes, 2 to 8.
    num_sites: Number of scanners.
    image_size: Height and width in pixels, 16 to 1024.
    channels: Number of channels, 1 (grey) or 3 (RGB).
    num_train: Number of training images.
    num_validation: Number of validation images.
    num_test: Number of test images.
    images_per_patient: Mean number of images per patient; the number is 1 plus
      a Poisson variable.
    seed: Seed of all random choices.
  """

  difficulty: float = 0.3
  num_classes: int = 4
  num_sites: int = 8
  image_size: int = 28
  channels: int = 1
  num_train: int = 3000
  num_validation: int = 500
  num_test: int = 1000
  images_per_patient: int = 4
  seed: int = 0

  def __post_init__(self) -> None:
    _validate.non_negative(difficulty=self.difficulty, seed=self.seed)
    _validate.positive_int(
      num_classes=self.num_classes,
      num_sites=self.num_sites,
      image_size=self.image_size,
      num_train=self.num_train,
      num_validation=self.num_validation,
      num_test=self.num_test,
      images_per_patient=self.images_per_patient,
    )
    if self.seed != int(self.seed):
      raise _validate.InputError(
        f'seed must be a whole number, got {self.seed!r}'
      )
    _within(0, 1, difficulty=self.difficulty)
    _within(2, len(CLASS_NAMES), num_classes=self.num_classes)
    _within(16, 1024, image_size=self.image_size)
    if self.channels not in CHANNELS:
      raise _validate.InputError(
        f'channels must be 1 (grey) or 3 (RGB), got {self.channels!r}'
      )


@dataclasses.dataclass(frozen=True)
class _Scanners:
  """Imaging parameters of each site; all arrays are [num_sites]."""

  gain: np.ndarray
  offset: np.ndarray
  gamma: np.ndarray
  blur: np.ndarray  # Standard deviation in pixels, at an image size of 28.
  noise: np.ndarray  # Standard deviation, for brightness in 0..1.


def _within(low: float, high: float, **named: float) -> None:
  for name, value in named.items():
    if not low <= value <= high:
      raise _validate.InputError(
        f'{name} must lie in {low}..{high}, got {value!r}'
      )


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
  """Generated images, each with all that is known of it.

  Attributes:
    images: Pixels, uint8 [n, H, W, C].
    labels: Class indices, int64 [n].
    sites: Index of each image's site, int64 [n].
    patients: Patient number of each image, int64 [n].
  """

  images: np.ndarray
  labels: np.ndarray
  sites: np.ndarray
  patients: np.ndarray

  def __len__(self) -> int:
    return len(self.images)


def generate(spec: PhantomSpec) -> dict[str, images.Split]:
  """Returns the splits by name; they share sites but no patients."""
  return {
    name: images.Split(part.images, part.labels, part.sites, part.patients)
    for name, part in generate_whole(spec).items()
  }


def generate_whole(spec: PhantomSpec) -> dict[str, Batch]:
  """Returns the images of `generate`, each split as one batch."""
  parts: dict[str, list[Batch]] = {n: [] for n in images.SPLIT_NAMES}
  for name, part in batches(spec):
    parts[name].append(part)
  return {
    name: Batch(
      *(
        np.concatenate([getattr(part, field.name) for part in of_split])
        for field in dataclasses.fields(Batch)
      )
    )
    for name, of_split in parts.items()
  }


def batches(spec: PhantomSpec) -> Iterator[tuple[str, Batch]]:
  """Yields the images of `generate` in their order, some at a time.

  No more images are in memory than one batch has, so that a set may be larger
  than the memory.

  Args:
    spec: Description of the images.

  Yields:
    Name of the split, and the next images of it, at most 512.
  """
  scanners = _scanners(np.random.default_rng([spec.seed, 0]), spec)
  counts = (spec.num_train, spec.num_validation, spec.num_test)
  first_patient = 0
  for number, (name, count) in enumerate(zip(images.SPLIT_NAMES, counts)):
    rng = np.random.default_rng([spec.seed, number + 1])
    for part in _split(rng, spec, scanners, count, first_patient):
      yield name, part
    first_patient = int(part.patients[-1]) + 1


def site_names(spec: PhantomSpec) -> tuple[str, ...]:
  """Returns the name of each site."""
  return tuple(f'site_{i}' for i in range(spec.num_sites))


def _scanners(rng: np.random.Generator, spec: PhantomSpec) -> _Scanners:
  n = spec.num_sites
  return _Scanners(
    gain=rng.uniform(0.75, 1.2, n),
    offset=rng.uniform(-0.08, 0.08, n),
    gamma=rng.uniform(0.8, 1.3, n),
    blur=rng.uniform(0.0, 0.7, n),
    noise=rng.uniform(0.01, 0.05, n) * (0.5 + spec.difficulty),
  )


def _split(
  rng: np.random.Generator,
  spec: PhantomSpec,
  scanners: _Scanners,
  count: int,
  first_patient: int,
) -> Iterator[Batch]:
  """Draws patients until they have `count` images, then renders the images."""
  sizes = 1 + rng.poisson(spec.images_per_patient - 1, size=count)
  patients = np.repeat(np.arange(count), sizes)[:count]
  num_patients = patients[-1] + 1
  # The classes are balanced over the patients, in random order.
  labels = rng.permutation(np.arange(num_patients) % spec.num_classes)
  sites = rng.integers(spec.num_sites, size=num_patients)
  shading = _Shading.draw(rng, num_patients)
  for start in range(0, count, _CHUNK):
    rows = patients[start : start + _CHUNK]
    scene = _scenes(rng, spec, labels[rows], shading.take(rows))
    yield Batch(
      images=_scan(rng, spec, scanners, sites[rows], scene),
      labels=labels[rows].astype(np.int64),
      sites=sites[rows].astype(np.int64),
      patients=(rows + first_patient).astype(np.int64),
    )


@dataclasses.dataclass(frozen=True)
class _Shading:
  """Slow waves of brightness, one per patient; all arrays are [n]."""

  angle: np.ndarray
  phase: np.ndarray
  frequency: np.ndarray
  level: np.ndarray

  @classmethod
  def draw(cls, rng: np.random.Generator, count: int) -> _Shading:
    return cls(
      angle=rng.uniform(0, 2 * np.pi, count),
      phase=rng.uniform(0, 2 * np.pi, count),
      frequency=rng.uniform(0.2, 0.7, count),
      level=rng.uniform(0.3, 0.42, count),
    )

  def take(self, rows: np.ndarray) -> _Shading:
    return _Shading(
      *(getattr(self, f.name)[rows] for f in dataclasses.fields(self))
    )

  def render(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    along = _col(np.cos(self.angle)) * x + _col(np.sin(self.angle)) * y
    wave = np.sin(2 * np.pi * _col(self.frequency) * along + _col(self.phase))
    return _col(self.level) + 0.06 * wave


def _scenes(
  rng: np.random.Generator,
  spec: PhantomSpec,
  labels: np.ndarray,
  shading: _Shading,
) -> np.ndarray:
  """Returns brightness [n, H, W], about 0..1, before any scanner."""
  n, size = len(labels), spec.image_size
  axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
  x, y = axis[np.newaxis, np.newaxis, :], axis[np.newaxis, :, np.newaxis]
  texture = 0.7 * _noise(rng, n, size, 0.09) + 0.5 * _noise(rng, n, size, 0.03)
  scene = shading.render(x, y) + (0.02 + 0.08 * spec.difficulty) * texture
  scene += 0.12 * _vessels(rng, n, x, y)
  lesion = _lesions(rng, spec, labels, x, y)
  return scene + (0.55 - 0.3 * spec.difficulty) * lesion


def _noise(
  rng: np.random.Generator, n: int, size: int, scale: float
) -> np.ndarray:
  """Returns smooth noise [n, size, size] with a standard deviation of 1."""
  from scipy import ndimage  # Late: flags import this module.

  white = rng.standard_normal([n, size, size], dtype=np.float32)
  smooth = ndimage.gaussian_filter(
    white, [0, scale * size, scale * size], mode='wrap'
  )
  return smooth / smooth.std()


def _vessels(
  rng: np.random.Generator, n: int, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
  """Returns one bright line across each image."""
  angle = _col(rng.uniform(0, np.pi, n))
  distance = np.cos(angle) * x + np.sin(angle) * y
  distance = distance - _col(rng.uniform(-0.8, 0.8, n))
  return np.exp(-0.5 * (distance / _col(rng.uniform(0.05, 0.1, n))) ** 2)


def _lesions(
  rng: np.random.Generator,
  spec: PhantomSpec,
  labels: np.ndarray,
  x: np.ndarray,
  y: np.ndarray,
) -> np.ndarray:
  """Returns lesions [n, H, W] whose total brightness depends on size alone."""
  n, reach = len(labels), 0.15 + 0.35 * spec.difficulty
  center_x, center_y = (_col(rng.uniform(-reach, reach, n)) for _ in range(2))
  radius = _col(rng.uniform(0.3, 0.48, n))
  angle = _col(rng.uniform(0, 2 * np.pi, n))
  dx, dy = (x - center_x) / radius, (y - center_y) / radius
  u = np.cos(angle) * dx + np.sin(angle) * dy
  v = np.cos(angle) * dy - np.sin(angle) * dx
  lesion = np.empty_like(u)
  for label in range(spec.num_classes):
    of_class = labels == label
    lesion[of_class] = lesion_shapes.draw(rng, label, u[of_class], v[of_class])
  blob = np.exp(-(u**2 + v**2) / 0.8)
  mix = 0.6 * spec.difficulty**2
  return (1 - mix) * _level(lesion, blob) + mix * blob


def _level(lesion: np.ndarray, blob: np.ndarray) -> np.ndarray:
  """Scales each image of `lesion` to the sum of its `blob`."""
  sums = lesion.sum(axis=(1, 2), keepdims=True)
  return lesion * blob.sum(axis=(1, 2), keepdims=True) / sums


def _scan(
  rng: np.random.Generator,
  spec: PhantomSpec,
  scanners: _Scanners,
  sites: np.ndarray,
  scene: np.ndarray,
) -> np.ndarray:
  """Returns the scenes as images of their sites, uint8 [n, H, W, C]."""
  from scipy import ndimage  # Late: flags import this module.

  scene = scene.astype(np.float32)
  for site in np.unique(sites):
    of_site = sites == site
    sigma = scanners.blur[site] * spec.image_size / 28
    scene[of_site] = ndimage.gaussian_filter(scene[of_site], [0, sigma, sigma])
  curve = np.clip(scene, 0, None) ** _col(scanners.gamma[sites])
  image = _col(scanners.gain[sites]) * curve + _col(scanners.offset[sites])
  noise = rng.standard_normal(image.shape, dtype=np.float32)
  image = (image + _col(scanners.noise[sites]) * noise)[..., np.newaxis]
  if spec.channels == 3:
    image = 1 - image * _TINT  # Dark structures on a light, stained ground.
  return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
