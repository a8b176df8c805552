"""Tests that a task's parts fit together and evaluate what was trained."""

from absl.testing import absltest
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical import models
from tff_medical.data import images
from tff_medical.learning import evaluation
from tff_medical.learning import tasks


def _split(count, sites=None):
  rng = np.random.default_rng(count)
  labels = np.arange(count) % 2
  pixels = (
    rng.integers(0, 60, (count, 8, 8, 1)) + 150 * labels[:, None, None, None]
  )
  return images.Split(
    images=pixels.astype(np.uint8), labels=labels, sites=sites
  )


def _task(**changed):
  arguments = dict(
    data=images.ImageData(
      name='tiny',
      train=_split(20),
      validation=_split(4),
      test=_split(12, sites=np.arange(12) // 6),
      class_names=('dark', 'bright'),
      site_names=('north', 'south'),
    ),
    partition=(np.arange(12), np.arange(12, 20)),
    model='cnn_small',
    seed=3,
  )
  return tasks.Task(**{**arguments, **changed})


def _logits(task, image_shape):
  """Returns what the TFF model predicts for three black images."""
  with tf.Graph().as_default() as graph:
    logits = task.tff_model.predict_on_batch(
      task.tff_model.initial_weights,
      tf.zeros((3, *image_shape)),
      training=False,
    )
    with tf.compat.v1.Session(graph=graph) as session:
      return session.run(logits)


def _net(shape, num_outputs, seed, reads=None):
  """An own model, which may read a variable that no check of ours sees."""
  inputs = tf.keras.Input(shape)
  outputs = tf.keras.layers.Dense(
    num_outputs, kernel_initializer=tf.keras.initializers.GlorotUniform(seed)
  )(tf.keras.layers.Flatten()(inputs))
  if reads is not None:
    outputs = tf.keras.layers.Lambda(lambda x: x * reads['scale'])(outputs)
  return tf.keras.Model(inputs, outputs)


class TaskTest(absltest.TestCase):
  def test_clients_and_model_agree_on_their_types(self):
    task = _task()
    self.assertEqual(task.num_clients, 2)
    element = task.clients.element_type_structure
    self.assertEqual(task.tff_model.input_spec, task.input_spec)
    self.assertEqual(_logits(task, element['x'].shape).shape, (3, 2))

  def test_seed_decides_the_initial_weights(self):
    weights = [
      np.concatenate([np.ravel(w) for w in t.tff_model.initial_weights[0]])
      for t in (_task(), _task(), _task(seed=4))
    ]
    np.testing.assert_array_equal(weights[0], weights[1])
    self.assertFalse(np.allclose(weights[0], weights[2]))

  def test_takes_a_function_that_builds_the_model(self):
    task = _task(model=_net)
    kernel = task.tff_model.initial_weights[0][0]
    self.assertEqual(kernel.shape, (64, 2))
    np.testing.assert_array_equal(
      kernel, _net((8, 8, 1), 2, 3).get_weights()[0]
    )
    trained = tff.learning.models.ModelWeights(
      tuple(w + 1 for w in task.tff_model.initial_weights[0]), ()
    )
    loaded = task.load_weights(trained)
    np.testing.assert_array_equal(loaded.get_weights()[0], kernel + 1)

  def test_refuses_what_tff_cannot_convert(self):
    reads = {'scale': tf.Variable(2.0)}
    task = _task(model=lambda *arguments: _net(*arguments, reads))
    with self.assertRaisesRegex(_validate.InputError, 'converted by TFF'):
      _ = task.tff_model

  def test_loss_is_smoothed_and_weighted_as_told(self):
    labels, logits = np.array([0, 1]), np.array([[0.5, -1.0], [2.0, 1.0]])
    plain = float(_task().loss(labels, logits))
    task = _task(label_smoothing=0.2, class_weights=(1.0, 3.0))
    expected = models.loss(
      False, label_smoothing=0.2, class_weights=(1.0, 3.0)
    )(labels, logits)
    self.assertEqual(float(task.loss(labels, logits)), float(expected))
    self.assertNotAlmostEqual(float(expected), plain)

  def test_refuses_class_weights_that_do_not_fit_the_classes(self):
    with self.assertRaisesRegex(
      _validate.InputError, 'one number for each of the 2 classes, got 3'
    ):
      _task(class_weights=(1.0, 2.0, 3.0))
    with self.assertRaisesRegex(_validate.InputError, 'label_smoothing'):
      _task(label_smoothing=1.5)

  def test_starts_from_the_weights_of_an_earlier_model(self):
    earlier = models.build(
      'cnn_small', input_shape=(8, 8, 1), num_outputs=2, seed=9
    )
    weights = tuple(earlier.get_weights())
    taken = {}
    for names in (('dark', 'bright'), ('cat', 'dog')):
      initial = models.InitialModel('public', weights, names, card={})
      task = _task(initial_model=initial)
      taken[names] = task.tff_model.initial_weights[0]
      np.testing.assert_array_equal(taken[names][0], weights[0])
    fresh = _task().tff_model.initial_weights[0]
    np.testing.assert_array_equal(taken['dark', 'bright'][-2], weights[-2])
    np.testing.assert_array_equal(taken['cat', 'dog'][-2], fresh[-2])

  def test_evaluates_the_weights_it_is_given_over_all_and_by_site(self):
    task = _task()
    trainable = tuple(
      np.asarray(w) + 0.1 for w in task.tff_model.initial_weights[0]
    )
    weights = tff.learning.models.ModelWeights(trainable, ())
    metrics = task.evaluate(weights, 'test')
    model = models.build(
      'cnn_small', input_shape=(8, 8, 1), num_outputs=2, seed=9
    )
    for variable, value in zip(model.trainable_variables, trainable):
      variable.assign(value)
    pixels = task.data.test.images.astype(np.float32) / 255
    logits = model(pixels)
    expected = evaluation.metrics(
      logits.numpy(),
      task.data.test.labels,
      class_names=task.data.class_names,
    )
    for name, value in expected.items():
      self.assertAlmostEqual(metrics[name], value, places=5)
    self.assertContainsSubset({'site/0/accuracy', 'site/1/auc'}, metrics.keys())


if __name__ == '__main__':
  absltest.main()
