"""Fixed wavelet features, for images of about 28 pixels.

What: the scattering transform of two orders with scale 2**2 and 8 angles, and
group norm without parameters. The transform gives 81 channels at a quarter of
the resolution. Why: under differential privacy, fixed features
beat small networks at small budgets (Tramer and Boneh 2021, arXiv 2011.11660,
who also give the normalisation and the classifier). Nothing is fitted to any
image.

The filters are kymatio's (Andreux et al. 2020), and the features agree with
kymatio's up to rounding. Kymatio's own layer takes 8 to 19 ms for an image of
28 x 28 on two busy CPU cores, mostly in small Fourier transforms. Here the
transforms are matrix products, for a batch and all angles at once, with the
images along the last axis: 0.4 to 0.7 ms. A complex number is a pair of real
ones, along an axis of length 2 that is merged into a neighbouring axis.

>>> normalised(tf.keras.Input((28, 28, 1))).shape
TensorShape([None, 7, 7, 81])
"""

from __future__ import annotations

import dataclasses
import functools

from kymatio.scattering2d import filter_bank
from kymatio.scattering2d import utils
import numpy as np
import tensorflow as tf

from tff_medical.models import layers

_SCALE = 2  # Features are means over about 2 ** _SCALE pixels.
_ANGLES = 8
_PATHS = (1, _ANGLES, _ANGLES, _ANGLES**2)
_GROUPS = 27
# PyTorch's default, as in the paper. Second-order moduli have variances of
# about 1e-5, which Keras's default of 1e-3 would silence.
_EPSILON = 1e-5
# Keeps the gradient of a modulus finite where an image is flat.
_TINY = 1e-12

_Pair = tuple[np.ndarray, np.ndarray]  # Matrices for rows and for columns.


# Layers without Python control flow on tensors: to rewrite their sources would
# take longer than to build them.
@tf.autograph.experimental.do_not_convert
def normalised(x: tf.Tensor) -> tf.Tensor:
  """Returns scattering features after group norm, maps [N, h, w, C * 81].

  Args:
    x: Keras tensor of images [N, H, W, C] in -1..1.
  """
  x = Scattering()(x)
  return layers.GroupNorm(
    groups=_GROUPS, epsilon=_EPSILON, center=False, scale=False
  )(x)


class Scattering(tf.keras.layers.Layer):
  """The scattering transform; it has no weights."""

  def call(self, inputs: tf.Tensor) -> tf.Tensor:
    """Transforms each channel of each image.

    Args:
      inputs: Float32 images [N, H, W, C].

    Returns:
      Features [N, h, w, C * 81], with h and w about H / 4 and W / 4. For each
      channel they are local means of the image and of wavelet moduli: 8 fine
      ones, 8 coarse ones, and the 64 coarse moduli of the fine ones. Among the
      64 the fine angle changes fastest.
    """
    height, width, channels = inputs.shape[1:]
    bank = _bank(height, width)
    size = tf.shape(inputs)[0]
    images = tf.transpose(inputs, (1, 2, 3, 0))
    images = tf.reshape(images, (height, width, -1))
    spectrum = _along_both(bank.image_to_spectrum, images)
    fine = _fine(bank, spectrum)
    second = _coarse(bank, _along_both(bank.fine_to_spectrum, fine))
    # In the order of `_PATHS`: order 0, order 1 fine and coarse, order 2.
    local_means = (
      _along_both(bank.means_of_image, images),
      _along_both(bank.means_of_fine, fine),
      _along_both(bank.means_of_coarse, _coarse(bank, spectrum)),
      _along_both(bank.means_of_coarse, second),
    )
    rows, columns = local_means[0].shape[:2]
    features = tf.concat(
      [
        tf.reshape(part, (rows, columns, paths, channels, size))
        for part, paths in zip(local_means, _PATHS)
      ],
      axis=2,
    )
    features = tf.transpose(features, (4, 0, 1, 3, 2))
    return tf.reshape(features, (-1, rows, columns, channels * sum(_PATHS)))


@dataclasses.dataclass(frozen=True, eq=False)
class _Bank:
  """Filters for one image size, as float32 matrices.

  Images are padded to [R, C]. A spectrum is [R, 2C, M] for M images. Its rows
  are ordered by (r mod R/2, r div R/2), its columns by (c mod C/2, c div C/2,
  re and im).
  """

  image_to_spectrum: _Pair  # Includes the padding.
  fine_to_spectrum: _Pair
  fine_filters: np.ndarray  # [R, C, (re, im; angle), (re, im)]
  fine_to_pixels: _Pair
  # Only every other pixel of the result is kept, so its spectrum is folded:
  # [R/2, C/2, (re, im; angle), (r div R/2; c div C/2; re, im)]
  coarse_filters: np.ndarray
  coarse_to_pixels: _Pair
  means_of_image: _Pair  # Includes the padding.
  means_of_fine: _Pair
  means_of_coarse: _Pair


def _along_both(pair: _Pair, values: tf.Tensor) -> tf.Tensor:
  """Multiplies [H, W, M] along the rows, then along the columns.

  If the first product turns real numbers into complex ones, the second product
  takes their real and imaginary parts as an axis before the columns.
  """
  by_rows, by_columns = pair
  product = tf.matmul(by_rows, tf.reshape(values, (values.shape[0], -1)))
  inner = by_columns.shape[1]
  rows = by_rows.shape[0] * values.shape[1] // inner
  return tf.matmul(by_columns, tf.reshape(product, (rows, inner, -1)))


def _fine(bank: _Bank, spectrum: tf.Tensor) -> tf.Tensor:
  """Returns the fine moduli [R, C, angles * M]."""
  rows, columns = bank.fine_filters.shape[:2]
  spectrum = tf.reshape(spectrum, (rows, columns, 2, -1))
  return _modulus(bank.fine_to_pixels, tf.matmul(bank.fine_filters, spectrum))


def _coarse(bank: _Bank, spectrum: tf.Tensor) -> tf.Tensor:
  """Returns the coarse moduli at every other pixel [R/2, C/2, angles * M]."""
  rows, columns = bank.coarse_filters.shape[:2]
  spectrum = tf.reshape(spectrum, (rows, 2, columns, 4, tf.shape(spectrum)[-1]))
  spectrum = tf.transpose(spectrum, (0, 2, 1, 3, 4))
  spectrum = tf.reshape(spectrum, (rows, columns, 8, -1))
  return _modulus(
    bank.coarse_to_pixels, tf.matmul(bank.coarse_filters, spectrum)
  )


def _modulus(to_pixels: _Pair, filtered: tf.Tensor) -> tf.Tensor:
  """Returns the moduli [R, C, angles * M] of [R, C, (re, im; angle), M]."""
  by_rows, by_columns = to_pixels
  rows, columns = filtered.shape[:2]
  pixels = tf.reshape(filtered, (rows, 2 * columns, -1))
  pixels = tf.matmul(by_columns, pixels)
  pixels = tf.matmul(by_rows, tf.reshape(pixels, (2 * rows, -1)))
  # The first axis is now the real and the imaginary part.
  pixels = tf.reshape(pixels, (2, rows, columns, -1))
  return tf.sqrt(tf.reduce_sum(tf.square(pixels), axis=0) + _TINY)


@functools.lru_cache(maxsize=8)
def _bank(height: int, width: int) -> _Bank:
  """Returns the matrices for images of one size, from kymatio's filters."""
  padded = utils.compute_padding(height, width, _SCALE)
  filters = filter_bank.filter_bank(*padded, _SCALE, _ANGLES)
  fine, coarse = (
    np.stack([f['levels'][0] for f in filters['psi'] if f['j'] == j], axis=-1)
    for j in range(_SCALE)
  )
  pads = [_padding(*sizes) for sizes in zip((height, width), padded)]
  means = [
    [_means(level, axis, 2 ** (_SCALE - i)) for axis in range(2)]
    for i, level in enumerate(filters['phi']['levels'])
  ]
  return _Bank(
    image_to_spectrum=_forward(*padded, *pads),
    fine_to_spectrum=_forward(*padded, *(np.eye(n) for n in padded)),
    fine_filters=_real_filters(fine, fold=False),
    fine_to_pixels=_backward(
      _folded_order(padded[0]), _folded_order(padded[1]), 1
    ),
    coarse_filters=_real_filters(coarse, fold=True),
    coarse_to_pixels=_backward(
      np.arange(padded[0] // 2), np.arange(padded[1] // 2), 2
    ),
    means_of_image=(_f32(means[0][0] @ pads[0]), _f32(means[0][1] @ pads[1])),
    means_of_fine=(_f32(means[0][0]), _f32(means[0][1])),
    means_of_coarse=(_f32(means[1][0]), _f32(means[1][1])),
  )


def _f32(values: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(values, np.float32)


def _padding(size: int, padded: int) -> np.ndarray:
  """Returns the matrix [padded, size] that pads by reflection."""
  before = (padded - size) // 2
  around = ((before, padded - size - before), (0, 0))
  return np.pad(np.eye(size), around, mode='reflect')


def _folded_order(size: int) -> np.ndarray:
  """Returns the frequencies, with those that fold together side by side."""
  return np.arange(size).reshape(2, -1).T.ravel()


def _waves(size: int, frequencies: np.ndarray, sign: int) -> np.ndarray:
  """Returns exp(sign * i * angle), complex [frequencies, size]."""
  angles = 2 * np.pi * np.outer(frequencies, np.arange(size)) / size
  return np.exp(sign * 1j * angles)


def _real(matrix: np.ndarray) -> np.ndarray:
  """Returns the real form [M, 2, N, 2] of a complex matrix [M, N]."""
  re, im = matrix.real, matrix.imag
  return np.stack(
    [np.stack([re, -im], axis=-1), np.stack([im, re], axis=-1)], axis=1
  )


def _forward(
  rows: int, columns: int, of_rows: np.ndarray, of_columns: np.ndarray
) -> _Pair:
  """Returns a Fourier transform of real values, for `_along_both`.

  Args:
    rows: Number of rows of the padded image.
    columns: Number of columns of the padded image.
    of_rows: Matrix [rows, H] that is applied first along the rows.
    of_columns: Matrix [columns, W] that is applied first along the columns.
  """
  by_rows = _real(_waves(rows, _folded_order(rows), -1) @ of_rows)[..., 0]
  by_columns = _real(_waves(columns, _folded_order(columns), -1) @ of_columns)
  return (
    _f32(by_rows.reshape(2 * rows, -1)),
    _f32(by_columns.transpose(0, 1, 3, 2).reshape(2 * columns, -1)),
  )


def _backward(rows: np.ndarray, columns: np.ndarray, step: int) -> _Pair:
  """Returns an inverse Fourier transform, for `_modulus`.

  Args:
    rows: Frequencies of the spectrum's rows, in their order.
    columns: Frequencies of the spectrum's columns, in their order.
    step: Subsampling factor: only every `step`-th pixel was kept.
  """
  by_rows, by_columns = (
    _real(_waves(len(order), order, 1).T / (step * len(order)))
    for order in (rows, columns)
  )
  return (
    _f32(by_rows.transpose(1, 0, 2, 3).reshape(2 * len(rows), -1)),
    _f32(by_columns.transpose(1, 0, 2, 3).reshape(2 * len(columns), -1)),
  )


def _real_filters(filters: np.ndarray, fold: bool) -> np.ndarray:
  """Returns filters as the real matrices of `_Bank`.

  Args:
    filters: Wavelets in the frequency domain, which are real: [R, C, angles].
    fold: Whether only every other pixel of the result is kept.

  Returns:
    Matrices [R, C, 2 * angles, 2], or with `fold` [R/2, C/2, 2 * angles, 8].
  """
  rows, columns, angles = filters.shape
  order_rows, order_columns = _folded_order(rows), _folded_order(columns)
  ordered = filters[order_rows][:, order_columns]
  folds = 1
  if fold:
    # Subsampling by 2 adds up the 4 frequencies that lie R/2 and C/2 apart.
    # They become columns of one matrix, whose product is that sum.
    rows, columns, folds = rows // 2, columns // 2, 4
    ordered = ordered.reshape(rows, 2, columns, 2, angles)
    ordered = ordered.transpose(0, 2, 4, 1, 3)
  ordered = ordered.reshape(rows, columns, angles, folds)
  # A real filter scales real and imaginary part alike and mixes neither.
  matrices = np.zeros((rows, columns, 2, angles, folds, 2))
  for part in range(2):
    matrices[:, :, part, :, :, part] = ordered
  return _f32(matrices.reshape(rows, columns, 2 * angles, 2 * folds))


def _means(level: np.ndarray, axis: int, step: int) -> np.ndarray:
  """Returns the local averages along one axis, as a matrix [places, pixels].

  Args:
    level: Spectrum of the averaging filter, which is a product of a filter
      along the rows and a filter along the columns.
    axis: 0 for the filter along the rows, 1 for the one along the columns.
    step: Distance between places in pixels; the outermost places are left out.
  """
  line = level[:, 0] if axis == 0 else level[0]
  kernel = np.fft.ifft(line / np.sqrt(level[0, 0])).real
  places = np.arange(0, len(kernel), step)[1:-1]
  distances = places[:, np.newaxis] - np.arange(len(kernel))
  return kernel[distances % len(kernel)]
