"""A small convolutional model and its gradient, one unit at a time.

The gradient is computed eagerly, image by image, by TensorFlow's own gradient
of a convolution: an independent check of what `learning` computes at once.
"""

import collections

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

SHAPE = (6, 5, 2)


def predict(weights, x, training=True):
  del training
  kernel, scale, wide, matrix, bias = weights[0]
  x = tf.nn.conv2d(x, kernel, 2, 'SAME') * scale
  x = tf.nn.conv2d(tf.nn.relu(x), wide, 1, 'VALID')
  return tf.reduce_mean(x, axis=(1, 2)) @ matrix + bias


def loss(output, label, sample_weight=None):
  del sample_weight
  if label.shape.rank == 2:
    losses = tf.nn.sigmoid_cross_entropy_with_logits(
      tf.cast(label, tf.float32), output
    )
  else:
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(label, output)
  return tf.reduce_mean(losses)


def weights(outputs=3):
  rng = np.random.default_rng(7)
  shapes = ((3, 3, 2, 5), (5,), (2, 2, 5, 4), (4, outputs), (outputs,))
  return tuple(rng.normal(size=s).astype(np.float32) for s in shapes)


def model(multi_label=False):
  y = tf.TensorSpec((None, 3) if multi_label else (None,), tf.int64)
  return tff.learning.models.FunctionalModel(
    initial_weights=(weights(), ()),
    predict_on_batch_fn=tf.function(predict),
    loss_fn=loss,
    input_spec=collections.OrderedDict(
      x=tf.TensorSpec((None, *SHAPE), tf.float32), y=y
    ),
  )


def units(seed, count, images=1, multi_label=False):
  """Returns x, y and mask of random units; the first image is always real."""
  rng = np.random.default_rng(seed)
  mask = (rng.random((count, images)) < 0.6).astype(np.float32)
  mask[:, 0] = 1
  labels = (count, images, 3) if multi_label else (count, images)
  return collections.OrderedDict(
    x=rng.normal(size=(count, images, *SHAPE)).astype(np.float32),
    y=rng.integers(2, size=labels),
    mask=mask,
  )


def gradients_one_by_one(trainable, data, predict=predict):
  """Returns the flat gradient of each unit, [units, parameters]."""
  found = []
  for x, y, mask in zip(data['x'], data['y'], data['mask']):
    variables = [tf.Variable(w) for w in trainable]
    with tf.GradientTape() as tape:
      losses = [
        loss(predict((variables, ()), x[k : k + 1]), tf.constant(y[k : k + 1]))
        for k in np.flatnonzero(mask)
      ]
      total = tf.add_n(losses) / len(losses) if losses else tf.constant(0.0)
    gradient = tape.gradient(
      total, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    found.append(flat(gradient))
  return np.array(found)


def flat(values):
  return np.concatenate([np.ravel(v) for v in values])


def line(size=1):
  """A model of one weight [size], 0 at first, with squared loss."""
  return tff.learning.models.FunctionalModel(
    initial_weights=((np.zeros(size, np.float32),), ()),
    predict_on_batch_fn=tf.function(
      lambda weights, x, training: tf.reduce_sum(weights[0][0] * x, axis=1)
    ),
    loss_fn=lambda output, label, sample_weight=None: tf.reduce_mean(
      tf.square(output - label)
    ),
    input_spec=collections.OrderedDict(
      x=tf.TensorSpec((None, size)), y=tf.TensorSpec((None,))
    ),
  )


def points(x, y):
  """Returns units of `line`, given as [units] or [units, images]."""
  x, y = (np.array(v, np.float32).reshape(len(x), -1) for v in (x, y))
  return collections.OrderedDict(
    x=x[..., np.newaxis], y=y, mask=np.ones_like(y)
  )
