"""Tests of canaries: what they send is their direction, and nothing else is."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from tests.auditing import canary_runs
from tff_medical import _validate
from tff_medical import runtime
from tff_medical.auditing import canaries as canaries_lib
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling

_COUNT = 40


def _canaries(included=True):
  return canaries_lib.Canaries(np.full(_COUNT, included), key=7)


def _directions(canaries):
  dimensions = 2 * canary_runs.SIDE**2 + 2
  return np.concatenate(list(canaries.directions(dimensions)))


def _mechanism(unit, population, clip_norm=1.0):
  return mechanisms.GaussianMechanism(
    sampling=sampling.FullParticipation(population),
    clipping=mechanisms.FixedClipping(clip_norm),
    privacy_unit=unit,
  )


class DirectionsTest(absltest.TestCase):
  def test_are_isotropic_and_differ(self):
    found = _directions(_canaries())
    self.assertEqual(found.shape, (_COUNT, 2 * canary_runs.SIDE**2 + 2))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=0.1)
    products = found @ found.T - np.diag(np.sum(found**2, axis=1))
    self.assertLess(np.abs(products).max(), 6 / found.shape[1] ** 0.5)

  def test_come_from_the_key_alone(self):
    other = canaries_lib.Canaries(np.zeros(_COUNT, bool), key=8)
    again = _directions(_canaries(included=False))
    np.testing.assert_array_equal(_directions(_canaries()), again)
    self.assertGreater(np.abs(_directions(other) - again).max(), 0.01)

  def test_draw_is_fair_and_fresh(self):
    first, second = (canaries_lib.Canaries.draw(2000) for _ in range(2))
    self.assertNotEqual(first.key, second.key)
    self.assertBetween(first.included.sum(), 850, 1150)  # 6.7 sigma
    self.assertBetween((first.included ^ second.included).sum(), 850, 1150)

  def test_refuses_bad_counts(self):
    for count in (0, -1, 2**24 - 10**6 + 1):
      with self.assertRaisesRegex(_validate.InputError, 'canaries'):
        canaries_lib.Canaries.draw(count)


class ContributionTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    runtime.set_local_context()

  @parameterized.parameters('client', 'group', 'record')
  def test_a_canary_sends_its_direction_at_the_clip_norm(self, unit):
    canaries = _canaries()
    make = {
      'client': canary_runs.client_process,
      'group': canary_runs.group_process,
      'record': canary_runs.record_process,
    }[unit]
    inner = {
      'client': canary_runs.client_feed,
      'group': canary_runs.group_feed,
      'record': canary_runs.unit_feed,
    }[unit](6)
    feed = canaries_lib.CanaryFeed(inner, canaries, canary_runs.SHAPE)
    unit = 'record' if unit == 'record' else 'client'
    process = make(_mechanism(unit, feed.num_units, 0.5), canaries)
    state = process.initialize()
    for number in (0, 13):
      state = process.initialize()
      state = process.next(state, feed(np.array([6 + number]))).state
      moved = np.concatenate(
        [np.ravel(w) for w in process.get_model_weights(state).trainable]
      )
      direction = _directions(canaries)[number]
      direction = direction / np.linalg.norm(direction)
      np.testing.assert_allclose(
        moved * feed.num_units, -0.5 * direction, atol=1e-6
      )

  def test_others_train_as_without_canaries(self):
    model = canary_runs.linear_model()
    wrapped = canaries_lib.with_canaries(model, _canaries(), length=10.0)
    rng = np.random.default_rng(0)
    x = rng.random((5, *canary_runs.SHAPE), np.float32)
    y = rng.integers(0, 2, 5)
    weights = tuple(
      tf.constant(rng.normal(size=w.shape), tf.float32)
      for w in model.initial_weights[0]
    )
    results = []
    for tested in (model, wrapped):
      with tf.GradientTape() as tape:
        tape.watch(weights)
        output = tested.predict_on_batch((weights, ()), x, True)
        loss = tested.loss(output, y)
      results.append((loss, tape.gradient(loss, weights), output))
    self.assertAlmostEqual(float(results[0][0]), float(results[1][0]))
    for plain, other in zip(results[0][1], results[1][1]):
      np.testing.assert_allclose(plain, other, atol=1e-6)
    np.testing.assert_allclose(results[0][2], results[1][2][:, :-1], atol=1e-6)
    np.testing.assert_array_equal(results[1][2][:, -1], np.zeros(5))


class FeedTest(absltest.TestCase):
  def test_canaries_that_are_out_have_no_data(self):
    included = np.arange(_COUNT) % 2 == 0
    canaries = canaries_lib.Canaries(included, key=1)
    feed = canaries_lib.CanaryFeed(
      canary_runs.client_feed(5), canaries, canary_runs.SHAPE
    )
    self.assertEqual(feed.num_units, 45)
    datasets = feed(np.array([0, 4, 5, 6, 7]))  # canaries 0, 1 and 2
    self.assertLen(datasets, 4)
    marks = [float(next(iter(d))['x'][0, 3, 3, 0]) for d in datasets[2:]]
    self.assertEqual(marks, [-1_000_000, -1_000_002])
    self.assertGreaterEqual(
      float(tf.reduce_min(next(iter(datasets[0]))['x'])), 0
    )

  def test_absent_canaries_may_send_zero(self):
    canaries = canaries_lib.Canaries(np.arange(_COUNT) % 2 == 0, key=1)
    feed = canaries_lib.CanaryFeed(
      canary_runs.client_feed(5),
      canaries,
      canary_runs.SHAPE,
      keeps_absent=True,
    )
    sizes = [len(list(d)) for d in feed(np.array([5, 6, 7, 8, 9]))]
    self.assertEqual(sizes, [1, 1, 1, 0, 0])

  def test_canaries_of_units_form_one_more_site(self):
    feed = canaries_lib.CanaryFeed(
      canary_runs.unit_feed(9), _canaries(), canary_runs.SHAPE
    )
    datasets = feed(np.array([0, 8, *range(9, 9 + 20)]))
    self.assertLen(datasets, 2)
    batches = list(datasets[-1])
    self.assertEqual([len(b['x']) for b in batches], [16, 4])
    self.assertEqual(batches[0]['mask'].shape, (16, 1))
    self.assertEmpty(list(feed(np.array([0]))[-1]))

  def test_canaries_of_groups_form_one_more_group(self):
    feed = canaries_lib.CanaryFeed(
      canary_runs.group_feed(20), _canaries(), canary_runs.SHAPE
    )
    datasets = feed(np.array([0, 8, 9, *range(20, 20 + 20)]))
    self.assertLen(datasets, 2)
    sizes = [[b['mask'].shape for b in dataset] for dataset in datasets]
    self.assertEqual(sizes, [[(3, 4)], [(16, 1), (4, 1)]])


if __name__ == '__main__':
  absltest.main()
