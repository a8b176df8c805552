"""Tests of norms and weighted sums of gradients that are given as factors."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical.learning import layer_gradients
from tff_medical.learning import unit_clipping
from tff_medical.learning import unit_gradients


def _gradients(inputs, outputs, other):
  shape = (inputs.shape[2], outputs.shape[2])
  factors = layer_gradients.Factors(inputs, outputs, shape)
  return unit_gradients.Gradients.of([factors, other])


@tf.function
def _norms_and_sum(inputs, outputs, other, weights):
  gradients = _gradients(inputs, outputs, other)
  norms = unit_clipping.global_norms(gradients)
  finite = tf.math.is_finite(norms)
  return norms, unit_clipping.weighted_sum(gradients, finite, weights)


class FactorsTest(parameterized.TestCase):
  def _draw(self, rows, units=7, p=5, q=3):
    rng = np.random.default_rng(rows)
    shapes = ((units, rows, p), (units, rows, q), (units, 4), (units,))
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]

  # The norm is that of one row, of pairs of rows, and of the product.
  @parameterized.parameters((1, 5, 3), (2, 30, 20), (3, 5, 3), (40, 30, 20))
  def test_equal_those_of_the_product(self, rows, p, q):
    inputs, outputs, other, weights = self._draw(rows, p=p, q=q)
    norms, (total, rest) = _norms_and_sum(inputs, outputs, other, weights)
    product = np.einsum('bnp,bnq->bpq', *(
      v.astype(np.float64) for v in (inputs, outputs)
    ))  # fmt: skip
    expected = np.sqrt((product**2).sum((1, 2)) + (other**2).sum(1))
    np.testing.assert_allclose(norms, expected, rtol=1e-5 if rows < 4 else 1e-4)
    np.testing.assert_allclose(
      total, np.tensordot(weights, product, 1), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(rest, weights @ other, rtol=1e-4, atol=1e-5)

  @parameterized.parameters(1, 2)
  def test_a_unit_that_is_not_finite_adds_nothing(self, rows):
    inputs, outputs, other, weights = self._draw(rows)
    kept = np.arange(7) != 3
    _, expected = _norms_and_sum(
      *(v[kept] for v in (inputs, outputs, other, weights))
    )
    for broken in (inputs, outputs, other):
      before = broken[3].copy()
      broken[3].flat[0] = np.inf
      norms, found = _norms_and_sum(inputs, outputs, other, weights)
      self.assertFalse(np.isfinite(norms[3]))
      for value, wanted in zip(found, expected):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-5)
      broken[3] = before

  @parameterized.product(q=(2, 64), small=(1e-2, 1e-5, 0.0))
  def test_rows_that_cancel_are_clipped_by_what_remains(self, q, small):
    """The norm is that of the sum that is released, or above it.

    Rows of norm 20,000 cancel to what is `small`. Their pairs' products in 32
    bits would be off by more than the clip norm, in both directions.
    """
    for seed in range(20):
      rng = np.random.default_rng(seed)
      row = rng.normal(size=400).astype(np.float32) * 1e3
      changed = row + rng.normal(size=400).astype(np.float32) * small
      sign = rng.normal(size=q).astype(np.float32)
      inputs, outputs = np.stack([[row, changed]]), np.stack([[sign, -sign]])
      other, weights = np.zeros((1, 1), np.float32), np.ones(1, np.float32)
      norms, (total, _) = _norms_and_sum(inputs, outputs, other, weights)
      exact = np.linalg.norm(np.outer((row - changed).astype(float), sign))
      released = np.linalg.norm(total.numpy().astype(float))
      self.assertGreaterEqual(norms[0], exact)
      self.assertGreaterEqual(norms[0], released)
      before = 2 * np.linalg.norm(row) * np.linalg.norm(sign)
      self.assertLess(norms[0], exact + 3e-6 * before)

  def test_the_sum_of_clipped_rows_that_cancel_keeps_the_clip_norm(self):
    """Rows that cancel exactly, beside another unit's, in any order of sums."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2, 30)).astype(np.float32)
    factors = np.array([[1e4, 1, -1e4, -1]], np.float32).T
    inputs = np.stack([np.concatenate([rows, rows])] * 3)
    outputs = factors * rng.normal(size=(3, 4, 40)).astype(np.float32)
    outputs[:, 2:] = -outputs[:, :2] * np.float32(1 + 1e-6)
    other = np.zeros((3, 1), np.float32)
    norms, _ = _norms_and_sum(inputs, outputs, other, np.ones(3, np.float32))
    clip = unit_clipping.clip_factors(norms, tf.constant(1.0))
    every, one_less = (
      _norms_and_sum(inputs, outputs, other, weights)[1][0].numpy()
      for weights in (clip, clip * [1, 0, 1])
    )
    self.assertLess(np.linalg.norm(every - one_less), 1.0)

  @parameterized.parameters((1e-20, 1e17), (1e17, 1e-20), (1e-19, 1.5e19))
  def test_factors_of_very_different_sizes(self, of_inputs, of_outputs):
    """Their squares vanish or overflow in float32, their product does not."""
    p = 10_000
    inputs = np.full((1, 1, p), of_inputs, np.float32)
    outputs = np.full((1, 1, 1), of_outputs, np.float32)
    other, weights = np.zeros((1, 1), np.float32), np.ones(1, np.float32)
    norms, (total, _) = _norms_and_sum(inputs, outputs, other, weights)
    expected = np.float64(of_inputs) * of_outputs * p**0.5
    np.testing.assert_allclose(norms[0], expected, rtol=1e-4)
    np.testing.assert_allclose(norms[0], np.linalg.norm(total), rtol=1e-4)

  @parameterized.parameters(0.0, np.nan, np.inf)
  def test_outputs_that_are_all_alike(self, value):
    inputs, outputs = np.ones((1, 1, 3)), np.full((1, 1, 2), value)
    norms, _ = _norms_and_sum(
      inputs.astype(np.float32),
      outputs.astype(np.float32),
      np.zeros((1, 1), np.float32),
      np.ones(1, np.float32),
    )
    if value == 0:
      self.assertEqual(float(norms[0]), 0)
    else:
      self.assertFalse(np.isfinite(norms[0]))

  def test_no_gradient_of_a_single_row_is_written_down(self):
    """The gradients of all units would take 400 GB."""
    units, p, q = 2_000, 10_000, 5_000
    inputs = np.ones((units, 1, p), np.float32)
    outputs = np.ones((units, 1, q), np.float32)
    other, weights = np.zeros((units, 1)), np.ones(units, np.float32)
    norms, (total, _) = _norms_and_sum(
      inputs, outputs, other.astype(np.float32), weights
    )
    np.testing.assert_allclose(norms[-1], 5e7**0.5, rtol=1e-6)
    self.assertEqual(float(total[-1, -1]), units)


if __name__ == '__main__':
  absltest.main()
