"""Trainings behind a backbone, from flags to the exported model."""

from __future__ import annotations

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow as tf

from experiments import audit
from experiments import references
from experiments import train
from experiments.config import assembly
from experiments.config import backbone_features
from experiments.config import settings as settings_lib
from tests.experiments import npz
from tff_medical import _validate
from tff_medical.auditing import verification
from tff_medical.data import images
from tff_medical.serving import export
from tff_medical.serving import pretrained


class BackboneTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)
    self.output = self.temp / 'run'
    self.flags = settings_lib.Flags.of(
      dataset='medmnist/breastmnist',
      data_dir=npz.write(self.temp),
      backbone='scattering',
      features_dir=str(self.temp / 'features'),
      output_dir=str(self.output),
      rounds=2,
      noise_multiplier=0.2,
    )

  @parameterized.parameters(
    {'privacy_unit': 'record'},
    {'num_clients': 12, 'clients_per_round': 6.0},
    {'privacy_unit': 'record', 'mechanism': 'local_dp_sgd'},
  )
  def test_the_export_predicts_what_the_trained_head_does(self, **changed):
    flags = self.flags.changed(eval_split='test', **changed)
    train.run(flags)
    settings = flags.resolve()
    task = assembly.load_task(settings)
    head = task.keras_model
    weights = pretrained.read_weights(self.output / 'saved_model')
    self.assertEqual(
      [w.shape for w in weights], [w.shape for w in head.weights]
    )
    head.set_weights(weights)
    test = task.data.test
    expected = tf.nn.softmax(head(test.features.rows(np.arange(len(test)))))
    served = tf.saved_model.load(str(self.output / 'saved_model'))
    found = served.signatures['serving_default'](
      images=tf.constant(test.images.astype(np.float32) / 255)
    )['probabilities']
    np.testing.assert_allclose(found, expected, atol=1e-5)
    metrics = task.metrics(np.log(np.maximum(found, 1e-30)), 'test')
    summary = json.loads((self.output / 'summary.json').read_text())
    self.assertAlmostEqual(metrics['auc'], summary['metrics']['auc'], places=4)
    card = export.load_card(self.output / 'saved_model')
    self.assertEqual(card['backbone']['name'], 'scattering')
    # Wavelets were trained on nothing that ε could leave out.
    self.assertNotIn('backbone', ' '.join(card['not_covered']))
    for check in verification.verify(self.output):
      self.assertTrue(check.is_right, check)

  def test_a_run_goes_on_with_its_backbone_alone(self):
    flags = self.flags.changed(privacy_unit='record')
    train.run(flags)
    other = self.temp / 'moved'
    self.assertEqual(
      train.run(flags.changed(rounds=3, features_dir=str(other))).rounds, 3
    )
    with self.assertRaisesRegex(_validate.InputError, 'another --backbone'):
      train.run(flags.changed(rounds=4, backbone_image_size=32))

  def test_baselines_and_initial_models(self):
    central = self.temp / 'central'
    references.run(
      'central',
      self.flags.for_reference().changed(
        output_dir=str(central), num_clients=8
      ),
    )
    model = str(central / 'saved_model')
    self.assertEqual(export.load_card(model)['backbone']['name'], 'scattering')
    given = self.flags.changed(
      privacy_unit='record', initial_model=model, clipping='none'
    ).changed(noise_multiplier=None)
    task = assembly.load_task(given.resolve())
    for weight, read in zip(
      task.keras_model.get_weights(),
      pretrained.read_weights(central / 'saved_model'),
    ):
      np.testing.assert_array_equal(weight, read)
    with self.assertRaisesRegex(
      _validate.InputError, 'backbone scattering, .* 28 x 28.*32 x 32'
    ):
      assembly.load_task(given.changed(backbone_image_size=32).resolve())
    with self.assertRaisesRegex(_validate.InputError, 'the run has none'):
      assembly.load_task(
        given.changed(
          backbone=None, features_dir=None, model='cnn_small'
        ).resolve()
      )

  def test_an_audit_puts_canaries_beside_features(self):
    train.run(self.flags.changed(privacy_unit='record', rounds=1))
    with self.assertRaisesRegex(_validate.InputError, 'backbone scattering'):
      audit.audit(str(self.output), canaries=0, inversion_images=1)
    results = audit.audit(str(self.output), canaries=20)
    self.assertFalse(results['exceeds_upper_bound'])
    self.assertEqual(results['canaries'], 20)


_SPLIT = images.Split(
  images=np.zeros((2, 28, 28, 1), np.uint8), labels=np.arange(2)
)
_IMAGES = images.ImageData(
  name='small',
  train=_SPLIT,
  validation=_SPLIT,
  test=_SPLIT,
  class_names=('a', 'b'),
)


class RefusalTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'model': 'cnn'}, 'model=cnn would be ignored with backbone=scattering'),
    ({'augmentations': 2}, 'augmentations=2 would be ignored with backbone='),
    ({'backbone': None, 'backbone_layers': 'a'}, 'ignored with no backbone'),
    ({'backbone': None, 'features_dir': 'a'}, 'ignored with no backbone'),
  )
  def test_settings_that_would_be_ignored(self, changed, message):
    flags = settings_lib.Flags.of(
      backbone='scattering', privacy_unit='record', noise_multiplier=1.0,
      output_dir='x',
    )  # fmt: skip
    flags.resolve()
    with self.assertRaisesRegex(_validate.InputError, message):
      flags.changed(**changed).resolve()

  def test_names_are_refused_before_the_data(self):
    flags = settings_lib.Flags.of(
      dataset='npz:missing', backbone='scatering', noise_multiplier=1.0,
      output_dir='x',
    )  # fmt: skip
    with self.assertRaisesRegex(_validate.InputError, "mean 'scattering'"):
      assembly.load_task(flags.resolve())

  @parameterized.parameters(
    ({'backbone_layers': 'a'}, '^backbone_layers of backbone'),
    ({'backbone_weights': '/no'}, '^backbone_weights must not'),
    (
      {'backbone': 'scattering+efficientnet-lite0', 'backbone_image_size': 64},
      '^backbone_image_size must not be given',
    ),
  )
  def test_messages_name_the_flag(self, changed, message):
    """`image_size` alone would be taken for `--image_size`."""
    flags = settings_lib.Flags.of(
      backbone='scattering', privacy_unit='record', noise_multiplier=1.0,
      output_dir='x',
    ).changed(**changed)  # fmt: skip
    with self.assertRaisesRegex(_validate.InputError, message):
      backbone_features.load(flags.resolve(), _IMAGES)

  def test_a_backbone_of_the_same_data(self):
    backbone_features.refuse_same_data('backbone b', ('medmnist/a',), 'c')
    with self.assertRaisesRegex(_validate.InputError, 'was trained on c'):
      backbone_features.refuse_same_data('backbone b', ('x', 'c (copy)'), 'c')


if __name__ == '__main__':
  absltest.main()
