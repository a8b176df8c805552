"""Tests of each layer's gradient by unit, against TensorFlow's for the unit."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tff_medical.learning import layer_gradients

_UNITS, _IMAGES = 2, 3


def _random(*shape):
  return np.random.default_rng(sum(shape)).normal(size=shape)


def _check(layer, images, weight):
  """Compares a layer's gradients by its rule with those of one unit at a time."""
  with tf.Graph().as_default() as graph:
    x = tf.compat.v1.placeholder(tf.float64, (None, *images.shape[1:]))
    w = tf.constant(weight)
    output = layer(x, w)
    (op,) = w.consumers()
    (of_output,) = tf.gradients(tf.reduce_sum(tf.sin(output)), op.outputs)
    rule = layer_gradients.find_rule(op, w)
    found = rule(op, of_output, (_UNITS, _IMAGES))
    if not tf.is_tensor(found):
      found = found.product()
    expected = tf.gradients(tf.reduce_sum(tf.sin(output)), w)
    with tf.compat.v1.Session(graph=graph) as session:
      found = session.run(found, {x: images})
      expected = [
        session.run(expected[0], {x: images[k : k + _IMAGES]})
        for k in range(0, _UNITS * _IMAGES, _IMAGES)
      ]
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


class RulesTest(parameterized.TestCase):
  @parameterized.product(
    channels=(1, 6),
    strides=(1, 2, 3),
    padding=('SAME', 'VALID'),
    kernel=((1, 1), (3, 3), (2, 5)),
  )
  def test_convolution(self, channels, strides, padding, kernel):
    _check(
      lambda x, w: tf.nn.conv2d(x, w, strides, padding),
      _random(6, 9, 10, channels),
      _random(*kernel, channels, 4),
    )

  @parameterized.product(
    multiplier=(1, 2),
    strides=(1, 2, 3),
    padding=('SAME', 'VALID'),
    kernel=((1, 1), (3, 3), (2, 5)),
  )
  def test_depthwise_convolution(self, multiplier, strides, padding, kernel):
    _check(
      lambda x, w: tf.nn.depthwise_conv2d(
        x, w, (1, strides, strides, 1), padding
      ),
      _random(6, 9, 10, 3),
      _random(*kernel, 3, multiplier),
    )

  @parameterized.parameters(
    (lambda x, w: x + w,),
    (lambda x, w: w + x,),
    (tf.nn.bias_add,),
    (lambda x, w: x * w,),
    (lambda x, w: w * x,),
    (lambda x, w: tf.reduce_mean(x, (1, 2), keepdims=True) * w,),
  )
  def test_by_channel(self, layer):
    _check(layer, _random(6, 2, 3, 4), _random(4))

  def test_product(self):
    _check(tf.matmul, _random(6, 5), _random(5, 4))

  @parameterized.parameters(
    (lambda x, w: tf.nn.conv2d(x, w, 1, 'SAME', dilations=2), (3, 3, 4, 2)),
    (lambda x, w: tf.nn.conv2d(x, w, 1, 'SAME'), (3, 3, 2, 2)),
    (lambda x, w: tf.nn.conv2d(x, w, 1, [(0, 0)] * 4), (3, 3, 4, 2)),
    (
      lambda x, w: tf.nn.depthwise_conv2d(
        x, w, [1] * 4, [(0, 0), (1, 1), (1, 1), (0, 0)]
      ),
      (3, 3, 4, 2),
    ),
    (lambda x, w: x * w, (5, 4)),
    (lambda x, w: w * w, (4,)),
    (lambda x, w: w + tf.ones((4, 4)), (4,)),
    (lambda x, w: tf.matmul(x[:, 0, 0], w, transpose_b=True), (3, 4)),
    (lambda x, w: tf.sin(w), (4,)),
  )
  def test_knows_what_it_does_not_know(self, layer, shape):
    with tf.Graph().as_default():
      x = tf.compat.v1.placeholder(tf.float32, (None, 5, 5, 4))
      weight = tf.constant(_random(*shape), tf.float32)
      layer(x, weight)
      for op in weight.consumers():
        self.assertIsNone(layer_gradients.find_rule(op, weight))


if __name__ == '__main__':
  absltest.main()
