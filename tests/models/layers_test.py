"""The fast group norm gives Keras's numbers; seeds are as stated."""

from __future__ import annotations

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical.models import layers


class GroupNormTest(parameterized.TestCase):
  @parameterized.parameters(1, 3, 12)
  def test_equals_keras_with_its_gradients(self, groups):
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(5.0, 3.0, (3, 5, 7, 12)), tf.float32)
    upstream = tf.constant(rng.normal(size=x.shape), tf.float32)
    weights = [rng.normal(size=12), rng.normal(size=12)]
    results = []
    for layer_class in (
      layers.GroupNorm,
      tf.keras.layers.GroupNormalization,
    ):
      layer = layer_class(groups=groups)
      layer.build(x.shape)
      layer.set_weights(weights)
      with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        total = tf.reduce_sum(y * upstream)
      results.append([y, *tape.gradient(total, [x, *layer.weights])])
    for ours, theirs in zip(*results):
      np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)

  def test_an_empty_batch_stays_empty(self):
    layer = layers.GroupNorm(groups=2)
    self.assertEqual(layer(np.zeros((0, 4, 4, 4), 'f')).shape, (0, 4, 4, 4))

  def test_a_flat_image_does_not_divide_by_zero(self):
    y = layers.GroupNorm(groups=2)(np.full((1, 4, 4, 4), 0.3, 'f'))
    np.testing.assert_allclose(y, np.zeros((1, 4, 4, 4)), atol=1e-5)


class LayerSeedsTest(absltest.TestCase):
  def test_a_seed_gives_distinct_repeatable_layer_seeds(self):
    seeds = list(layers.layer_seeds(5))
    self.assertEqual(seeds, list(layers.layer_seeds(5)))
    self.assertLen(set(seeds), len(seeds))
    self.assertEmpty(set(seeds) & set(layers.layer_seeds(6)))

  def test_no_seed_stays_no_seed(self):
    self.assertEqual(
      list(itertools.islice(layers.layer_seeds(None), 100)), [None] * 100
    )


if __name__ == '__main__':
  absltest.main()
