"""What is read of an exported model is what was exported."""

from __future__ import annotations

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from tff_medical import _validate
from tff_medical import models
from tff_medical.privacy import card
from tff_medical.serving import export
from tff_medical.serving import pretrained


class LoadTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path, 'saved_model')

  def _export(self, name):
    model = models.build(name, input_shape=(32, 32, 3), num_outputs=2, seed=1)
    export.save(
      self.path,
      model,
      class_names=('a', 'b'),
      multi_label=False,
      privacy_card=card.build_open_card(dataset='public', test_metrics={}),
    )
    return model

  @parameterized.parameters(*models.MODELS)
  def test_weights_arrive_in_order(self, name):
    expected = self._export(name)
    initial = pretrained.load(self.path)
    self.assertEqual(initial.class_names, ('a', 'b'))
    self.assertEqual(initial.provenance['dataset'], 'public')
    self.assertEqual(initial.digest, pretrained.load(self.path).digest)
    model = models.build(name, input_shape=(32, 32, 3), num_outputs=2, seed=2)
    initial.put_into(model, ('a', 'b'))
    self.assertLen(initial.weights, len(expected.weights))
    for found, wanted in zip(model.get_weights(), expected.get_weights()):
      np.testing.assert_array_equal(found, wanted)

  @parameterized.parameters('[2024]', 'a\\b')
  def test_a_path_that_tensorflow_takes_for_a_pattern(self, name):
    self.path = self.path.parent / name / 'saved_model'
    self._export('cnn_small')
    with self.assertRaisesRegex(_validate.InputError, 'another name'):
      pretrained.load(self.path)

  @parameterized.parameters(' ä', 'a*b', 'a?b', 'a]b', '{a}')
  def test_other_characters_are_none_of_a_pattern(self, name):
    self.path = self.path.parent / name / 'saved_model'
    model = self._export('cnn_small')
    weights = pretrained.load(self.path).weights
    self.assertLen(weights, len(model.weights))

  @parameterized.parameters('index', 'data-00000-of-00001')
  def test_refuses_damaged_files(self, suffix):
    self._export('cnn_small')
    file = self.path / 'variables' / f'variables.{suffix}'
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with self.assertRaisesRegex(_validate.InputError, 'damaged; export it'):
      pretrained.load(self.path)

  def test_refuses_missing_files(self):
    self._export('cnn_small')
    (self.path / 'variables' / 'variables.index').unlink()
    with self.assertRaisesRegex(_validate.InputError, 'damaged; export it'):
      pretrained.load(self.path)


if __name__ == '__main__':
  absltest.main()
