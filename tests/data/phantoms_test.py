import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from sklearn import linear_model
import tensorflow as tf

from tff_medical import _validate
from tff_medical.data import images
from tff_medical.data import phantoms

_SMALL = phantoms.PhantomSpec(num_train=240, num_validation=40, num_test=60)


def _scaled(split):
  return split.images.astype(np.float32) / 255


def _linear_accuracy(splits):
  train, test = splits['train'], splits['test']
  # Returns the best of several regularizations, chosen on the test set.
  return max(
    linear_model.LogisticRegression(C=strength, max_iter=500)
    .fit(_scaled(train).reshape(len(train), -1), train.labels)
    .score(_scaled(test).reshape(len(test), -1), test.labels)
    for strength in (0.003, 0.03)
  )


def _cnn_accuracy(splits, epochs=6):
  tf.keras.utils.set_random_seed(0)
  layers = tf.keras.layers
  model = tf.keras.Sequential(
    [
      layers.Conv2D(16, 3, activation='relu', padding='same'),
      layers.MaxPool2D(),
      layers.Conv2D(32, 3, activation='relu', padding='same'),
      layers.MaxPool2D(),
      layers.Flatten(),
      layers.Dense(4),
    ]
  )
  model.compile(
    'adam', tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  )
  train, test = splits['train'], splits['test']
  model.fit(
    _scaled(train), train.labels, batch_size=32, epochs=epochs, verbose=0
  )
  return np.mean(model(_scaled(test)).numpy().argmax(-1) == test.labels)


class PhantomSpecTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('difficulty', dict(difficulty=1.5), 'difficulty must lie in 0..1'),
    ('negative', dict(difficulty=-0.1), 'difficulty must be 0 or more'),
    ('one_class', dict(num_classes=1), r'num_classes must lie in 2..8, got 1'),
    ('many_classes', dict(num_classes=9), 'num_classes'),
    ('size', dict(image_size=8), 'image_size must lie in 16..1024, got 8'),
    ('part_size', dict(image_size=28.5), 'image_size must be a whole number'),
    ('channels', dict(channels=2), 'channels must be 1'),
    ('sites', dict(num_sites=0), 'num_sites must be positive'),
    ('train', dict(num_train=0), 'num_train must be positive'),
    ('seed', dict(seed=-1), 'seed must be 0 or more'),
    ('part_seed', dict(seed=0.5), 'seed must be a whole number'),
  )
  def test_rejects(self, settings, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      phantoms.PhantomSpec(**settings)


class GenerateTest(parameterized.TestCase):
  @parameterized.parameters(
    dict(),
    dict(image_size=40, channels=3, num_classes=8),
    dict(num_sites=1, images_per_patient=1, difficulty=1.0),
    dict(difficulty=0.0, num_classes=2, num_test=1),
  )
  def test_is_a_data_set_of_the_spec(self, **settings):
    spec = dataclasses.replace(_SMALL, **settings)
    splits = phantoms.generate(spec)
    data = images.ImageData(
      name='synthetic',
      **splits,
      class_names=phantoms.CLASS_NAMES[: spec.num_classes],
      site_names=phantoms.site_names(spec),
    )
    self.assertEqual(
      [len(split) for _, split in data.splits()],
      [spec.num_train, spec.num_validation, spec.num_test],
    )
    size = spec.image_size
    self.assertEqual(data.image_shape, (size, size, spec.channels))
    counts = np.bincount(data.train.labels, minlength=spec.num_classes)
    self.assertGreater(counts.min(), 0.4 * counts.mean())
    self.assertFalse(data.duplicates)

  def test_repeats_with_the_seed_and_differs_without(self):
    first, again = phantoms.generate(_SMALL), phantoms.generate(_SMALL)
    other = phantoms.generate(dataclasses.replace(_SMALL, seed=1))
    for name in images.SPLIT_NAMES:
      np.testing.assert_array_equal(first[name].images, again[name].images)
      self.assertFalse(np.array_equal(first[name].images, other[name].images))

  def test_batches_are_the_same_images_a_few_at_a_time(self):
    spec = dataclasses.replace(_SMALL, num_train=1100)
    whole, start = phantoms.generate(spec), dict.fromkeys(images.SPLIT_NAMES, 0)
    for name, part in phantoms.batches(spec):
      self.assertLessEqual(len(part), 512)
      rows = slice(start[name], start[name] + len(part))
      for column in ('images', 'labels', 'sites', 'patients'):
        np.testing.assert_array_equal(
          getattr(part, column), getattr(whole[name], column)[rows]
        )
      start[name] = rows.stop
    self.assertEqual(list(start.values()), [1100, 40, 60])

  def test_a_batch_is_made_when_it_is_asked_for(self):
    spec = dataclasses.replace(_SMALL, num_train=10**6)
    _, part = next(phantoms.batches(spec))
    self.assertLen(part, 512)

  def test_patients_have_several_images_of_one_class_and_site(self):
    train = phantoms.generate(_SMALL)['train']
    patients, counts = np.unique(train.patients, return_counts=True)
    self.assertBetween(counts.mean(), 3, 5)
    for patient in patients:
      of_patient = train.patients == patient
      self.assertLen(np.unique(train.labels[of_patient]), 1)
      self.assertLen(np.unique(train.sites[of_patient]), 1)

  def test_sites_look_different(self):
    spec = phantoms.PhantomSpec(num_train=1600)
    train = phantoms.generate(spec)['train']
    pixels = _scaled(train)[..., 0]
    by_site = [pixels[train.sites == site] for site in range(spec.num_sites)]
    levels = np.array([p.mean() for p in by_site])
    # The difference of neighbouring pixels grows with noise, less with blur.
    grain = np.array([np.diff(p, axis=2).std() for p in by_site])
    self.assertGreater(levels.max() / levels.min(), 1.2)
    self.assertGreater(grain.max() / grain.min(), 1.2)

  def test_classes_have_the_same_brightness(self):
    train = phantoms.generate(phantoms.PhantomSpec(difficulty=0.5))['train']
    levels = _scaled(train).mean(axis=(1, 2, 3))
    means = [levels[train.labels == label].mean() for label in range(4)]
    self.assertLess(np.ptp(means), 0.25 * levels.std())


class DifficultyTest(absltest.TestCase):
  def test_cnn_beats_linear_model_and_difficulty_is_harder(self):
    default = phantoms.PhantomSpec()
    hard = dataclasses.replace(default, difficulty=0.8)
    splits = phantoms.generate(default)
    linear, cnn = _linear_accuracy(splits), _cnn_accuracy(splits)
    hard_cnn = _cnn_accuracy(phantoms.generate(hard))
    print(f'linear {linear:.3f}, CNN {cnn:.3f}, CNN on hard {hard_cnn:.3f}')
    self.assertLess(linear, 0.55)
    self.assertGreater(cnn, linear + 0.25)
    self.assertLess(hard_cnn, cnn - 0.2)
    self.assertGreater(hard_cnn, 0.3)


if __name__ == '__main__':
  absltest.main()
