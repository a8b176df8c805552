"""Tests of learning rates by round."""

import collections
import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical.learning import optimizers
from tff_medical.learning import schedules
from tff_medical.learning import weight_averaging


class BuildScheduleTest(parameterized.TestCase):
  @parameterized.parameters(
    ('constant', lambda n: 1.0),
    ('linear', lambda n: 1 - n / 8),
    ('cosine', lambda n: (1 + math.cos(math.pi * n / 8)) / 2),
  )
  def test_values(self, name, factor):
    schedule = schedules.build_schedule(name, learning_rate=0.2, rounds=8)
    for n in range(8):
      self.assertAlmostEqual(float(schedule(n)), 0.2 * factor(n), places=6)
    self.assertEqual(float(schedule(20)), float(schedule(7)))
    self.assertGreater(float(schedule(20)), 0)

  @parameterized.parameters(
    ('cosin', 0.1, 5, 'cosine'),
    ('cosine', 0.0, 5, 'learning_rate'),
    ('cosine', 0.1, 0, 'rounds'),
  )
  def test_refuses(self, name, learning_rate, rounds, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      schedules.build_schedule(name, learning_rate=learning_rate, rounds=rounds)


def _path(optimizer, gradients, averages=False):
  """Returns the weights after each step from 0."""
  weights = (tf.constant([0.0, 0.0]), tf.constant(0.0))
  specs = tf.nest.map_structure(lambda w: tf.TensorSpec(w.shape), weights)
  state = optimizer.initialize(specs)
  path = []
  for gradient in gradients:
    gradient = (tf.constant([gradient, -gradient]), tf.constant(gradient))
    state, weights = optimizer.next(state, weights, gradient)
    path.append(float(weights[1]))
  return path, state


class ScheduledTest(parameterized.TestCase):
  def test_sgd_with_momentum_takes_the_rate_of_each_round(self):
    optimizer = optimizers.build_server_optimizer(
      'sgd',
      learning_rate=1.0,
      momentum=0.5,
      schedule=schedules.build_schedule('linear', learning_rate=1.0, rounds=4),
    )
    path, state = _path(optimizer, [-1.0, -1.0, -1.0])
    # Velocities 1, 1.5, 1.75 at rates 1, 0.75, 0.5.
    np.testing.assert_allclose(path, [1.0, 2.125, 3.0], rtol=1e-6)
    self.assertEqual(int(state['steps']), 3)

  @parameterized.parameters('sgd', 'adam', 'yogi', 'adam_bc')
  def test_a_constant_schedule_changes_nothing(self, name):
    plain, scheduled = (
      optimizers.build_server_optimizer(
        name, learning_rate=0.3, noise_stddev=0.1, schedule=schedule
      )
      for schedule in (
        None,
        schedules.build_schedule('constant', learning_rate=0.3, rounds=5),
      )
    )
    gradients = [1.0, -2.0, 0.5]
    np.testing.assert_allclose(
      _path(scheduled, gradients)[0], _path(plain, gradients)[0], rtol=1e-6
    )

  @parameterized.parameters('sgd', 'adam', 'yogi', 'adam_bc')
  def test_every_optimizer_follows_a_schedule(self, name):
    optimizer = optimizers.build_server_optimizer(
      name,
      learning_rate=7.0,  # The schedule takes its place.
      noise_stddev=0.1,
      schedule=lambda steps: tf.where(steps < 1, 0.3, 0.0),
    )
    path, _ = _path(optimizer, [1.0, 1.0, -3.0])
    plain = optimizers.build_server_optimizer(
      name, learning_rate=0.3, noise_stddev=0.1
    )
    np.testing.assert_allclose(path, 3 * _path(plain, [1.0])[0], rtol=1e-6)

  def test_hyperparameters_are_those_of_the_inner_optimizer(self):
    optimizer = schedules.Scheduled(
      tff.learning.optimizers.build_sgdm(0.5, momentum=0.25),
      schedules.build_schedule('linear', learning_rate=0.5, rounds=2),
    )
    state = optimizer.initialize(tf.TensorSpec([]))
    self.assertEqual(optimizer.get_hparams(state)['momentum'], 0.25)
    changed = optimizer.set_hparams(
      state, collections.OrderedDict(learning_rate=0.5, momentum=0.0)
    )
    self.assertEqual(optimizer.get_hparams(changed)['momentum'], 0.0)

  def test_works_inside_of_an_average(self):
    schedule = schedules.build_schedule('linear', learning_rate=1.0, rounds=2)
    optimizer = weight_averaging.Averaging(
      optimizers.build_server_optimizer(
        'sgd', learning_rate=1.0, schedule=schedule
      ),
      decay=0.5,
    )
    path, state = _path(optimizer, [-1.0, -1.0])
    np.testing.assert_allclose(path, [1.0, 1.5])
    self.assertAlmostEqual(
      float(state['total'][1] / state['mass']), (1 / 4 + 1.5 / 2) / (3 / 4)
    )


if __name__ == '__main__':
  absltest.main()
