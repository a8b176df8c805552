"""A linear classifier on fixed wavelet features, for images of about 28 pixels.

What: the scattering transform of two orders, scale 2**2 and 8 angles, which
makes 81 channels of a quarter of the resolution; group norm without parameters;
one dense layer. Why: under differential privacy, features that need no learning
beat small networks at small budgets (Tramer and Boneh 2021, arXiv 2011.11660,
whose normalisation and classifier these are). Nothing is fitted to any image.

The filters are those of kymatio (Andreux et al. 2020) and so, to rounding, are
the features. Its own layer takes 8 to 19 ms for an image of 28 x 28 on two busy
CPU cores, mostly in small Fourier transforms; here these are products of
matrices, for a batch and all angles at once, with the images along the last
axis: 0.4 to 0.7 ms. A complex number is two real ones, along an axis of 2 that
is merged into a neighbour.

>>> build((28, 28, 1), 2, seed=0).count_params()
7940
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
# PyTorch's, and so that paper's. Moduli of the second order have variances of
# some 1e-5: Keras's 1e-3 would silence them.
_EPSILON = 1e-5
# Keeps the gradient of a modulus finite where an image is flat.
_TINY = 1e-12

_Pair = tuple[np.ndarray, np.ndarray]  # For rows and for columns.


def build(
  input_shape: tuple[int, int, int], num_outputs: int, seed: int | None
) -> tf.keras.Model:
  """Features, group norm, one dense layer."""
  inputs, x = layers.pixels(input_shape)
  x = Scattering()(x)
  x = layers.GroupNorm(
    groups=_GROUPS, epsilon=_EPSILON, center=False, scale=False
  )(x)
  x = tf.keras.layers.Flatten()(x)
  x = layers.dense_logits(x, num_outputs, layers.layer_seeds(seed))
  return tf.keras.Model(inputs, x)


class Scattering(tf.keras.layers.Layer):
  """The scattering transform; it has no weights."""

  def call(self, inputs: tf.Tensor) -> tf.Tensor:
    """Transforms each channel of each image.

    Args:
      inputs: Float32 images [N, H, W, C].

    Returns:
      [N, h, w, C * 81], h and w about H / 4 and W / 4: for each of C the local
      means of the image, of 8 fine and 8 coarse wavelet moduli, and of the 64
      coarse moduli of the fine ones (the fine angle changes fastest).
    """
    height, width, channels = inputs.shape[1:]
    bank = _bank(height, width)
    size = tf.shape(inputs)[0]
    images = tf.transpose(inputs, (1, 2, 3, 0))
    images = tf.reshape(images, (height, width, -1))
    spectrum = _along_both(bank.image_to_spectrum, images)
    fine = _fine(bank, spectrum)
    second = _coarse(bank, _along_both(bank.fine_to_spectrum, fine))
    found = (
      _along_both(bank.means_of_image, images),
      _along_both(bank.means_of_fine, fine),
      _along_both(bank.means_of_coarse, _coarse(bank, spectrum)),
      _along_both(bank.means_of_coarse, second),
    )
    rows, columns = found[0].shape[:2]
    features = tf.concat(
      [
        tf.reshape(part, (rows, columns, paths, channels, size))
        for part, paths in zip(found, _PATHS)
      ],
      axis=2,
    )
    features = tf.transpose(features, (4, 0, 1, 3, 2))
    return tf.reshape(features, (-1, rows, columns, channels * sum(_PATHS)))


@dataclasses.dataclass(frozen=True, eq=False)
class _Bank:
  """The filters for one size of image, as matrices of float32.

  Images are padded to [R, C]. A spectrum is [R, 2C, M] for M images: its rows
  are (r mod R/2, r div R/2), its columns (c mod C/2, c div C/2, re and im).
  """

  image_to_spectrum: _Pair  # With the padding.
  fine_to_spectrum: _Pair
  fine_filters: np.ndarray  # [R, C, (re, im; angle), (re, im)]
  fine_to_pixels: _Pair
  # Every other pixel of the result is kept, so that its spectrum is folded:
  # [R/2, C/2, (re, im; angle), (r div R/2; c div C/2; re, im)]
  coarse_filters: np.ndarray
  coarse_to_pixels: _Pair
  means_of_image: _Pair  # With the padding.
  means_of_fine: _Pair
  means_of_coarse: _Pair


def _along_both(pair: _Pair, values: tf.Tensor) -> tf.Tensor:
  """Multiplies along the rows, then along the columns, of [H, W, M].

  Where the first product makes complex numbers of real ones, the second takes
  their parts before the columns.
  """
  by_rows, by_columns = pair
  found = tf.matmul(by_rows, tf.reshape(values, (values.shape[0], -1)))
  inner = by_columns.shape[1]
  rows = by_rows.shape[0] * values.shape[1] // inner
  return tf.matmul(by_columns, tf.reshape(found, (rows, inner, -1)))


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
  found = tf.reshape(filtered, (rows, 2 * columns, -1))
  found = tf.matmul(by_columns, found)
  found = tf.matmul(by_rows, tf.reshape(found, (2 * rows, -1)))
  found = tf.reshape(found, (2, rows, columns, -1))
  return tf.sqrt(tf.reduce_sum(tf.square(found), axis=0) + _TINY)


@functools.lru_cache(maxsize=8)
def _bank(height: int, width: int) -> _Bank:
  """Returns the matrices for images of one size."""
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
  """Returns [padded, size], which mirrors what is beyond the border."""
  before = (padded - size) // 2
  around = ((before, padded - size - before), (0, 0))
  return np.pad(np.eye(size), around, mode='reflect')


def _folded_order(size: int) -> np.ndarray:
  """Returns the frequencies, those that fold together beside each other."""
  return np.arange(size).reshape(2, -1).T.ravel()


def _waves(size: int, frequencies: np.ndarray, sign: int) -> np.ndarray:
  """Returns exp(sign * i * angle), complex [frequencies, size]."""
  angles = 2 * np.pi * np.outer(frequencies, np.arange(size)) / size
  return np.exp(sign * 1j * angles)


def _real(matrix: np.ndarray) -> np.ndarray:
  """Returns real [M, 2, N, 2] that multiplies as complex [M, N] does."""
  re, im = matrix.real, matrix.imag
  return np.stack(
    [np.stack([re, -im], axis=-1), np.stack([im, re], axis=-1)], axis=1
  )


def _forward(
  rows: int, columns: int, of_rows: np.ndarray, of_columns: np.ndarray
) -> _Pair:
  """Returns a Fourier transform of real values, for `_along_both`."""
  by_rows = _real(_waves(rows, _folded_order(rows), -1) @ of_rows)[..., 0]
  by_columns = _real(_waves(columns, _folded_order(columns), -1) @ of_columns)
  return (
    _f32(by_rows.reshape(2 * rows, -1)),
    _f32(by_columns.transpose(0, 1, 3, 2).reshape(2 * columns, -1)),
  )


def _backward(rows: np.ndarray, columns: np.ndarray, step: int) -> _Pair:
  """Returns an inverse Fourier transform, for `_modulus`.

  Args:
    rows: The frequencies of the spectrum's rows, in their order.
    columns: Those of its columns.
    step: How many times finer the grid was before every `step`-th was kept.
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
  """Returns the filters, real [R, C, angles], as `_Bank` has them."""
  rows, columns, angles = filters.shape
  order_rows, order_columns = _folded_order(rows), _folded_order(columns)
  ordered = filters[order_rows][:, order_columns]
  folds = 1
  if fold:
    rows, columns, folds = rows // 2, columns // 2, 4
    ordered = ordered.reshape(rows, 2, columns, 2, angles)
    ordered = ordered.transpose(0, 2, 4, 1, 3)
  ordered = ordered.reshape(rows, columns, angles, folds)
  found = np.zeros((rows, columns, 2, angles, folds, 2))
  for part in range(2):
    found[:, :, part, :, :, part] = ordered
  return _f32(found.reshape(rows, columns, 2 * angles, 2 * folds))


def _means(level: np.ndarray, axis: int, step: int) -> np.ndarray:
  """Returns the local averages along one axis, as a matrix [places, pixels].

  Args:
    level: The spectrum of the averaging filter, a product of one along the rows
      and one along the columns.
    axis: 0 for that along the rows.
    step: How many pixels the places are apart; the outermost are left out.
  """
  line = level[:, 0] if axis == 0 else level[0]
  kernel = np.fft.ifft(line / np.sqrt(level[0, 0])).real
  places = np.arange(0, len(kernel), step)[1:-1]
  distances = places[:, np.newaxis] - np.arange(len(kernel))
  return kernel[distances % len(kernel)]
