import pathlib

from absl.testing import absltest
import numpy as np
import tensorflow_datasets as tfds

from tff_medical.data import phantoms
from tff_medical.data import synthetic

_SPEC = phantoms.PhantomSpec(
  num_train=40, num_validation=10, num_test=20, num_sites=3, channels=3
)


class SyntheticTest(tfds.testing.DatasetBuilderTestCase):
  """Runs TFDS's own checks of a builder."""

  DATASET_CLASS = synthetic.Synthetic
  BUILDER_CONFIG_NAMES_TO_TEST = [synthetic.SyntheticConfig(spec=_SPEC)]
  SPLITS = {'train': 40, 'validation': 10, 'test': 20}
  EXAMPLE_DIR = str(pathlib.Path(__file__).parent)  # Nothing is read from it.


class ConfigTest(absltest.TestCase):
  def test_name_follows_from_the_spec(self):
    names = {
      synthetic.SyntheticConfig(spec=spec).name
      for spec in (
        _SPEC,
        phantoms.PhantomSpec(),
        phantoms.PhantomSpec(seed=1),
        phantoms.PhantomSpec(difficulty=0.31),
        phantoms.PhantomSpec(num_train=2999),
      )
    }
    self.assertLen(names, 5)

  def test_named_configs_are_found_by_their_spec(self):
    folder = self.create_tempdir().full_path
    builder = synthetic.builder_for_spec(phantoms.PhantomSpec(), folder)
    self.assertEqual(builder.info.full_name, 'synthetic/default/1.0.0')
    builder = synthetic.builder_for_spec(_SPEC, folder)
    self.assertIn('synthetic/28px_4c_', builder.info.full_name)

  def test_default_config_is_the_default_spec(self):
    configs = synthetic.Synthetic.builder_configs
    self.assertEqual(configs['default'].spec, phantoms.PhantomSpec())
    self.assertEqual(synthetic.Synthetic.default_builder_config.name, 'default')


class RecordsTest(absltest.TestCase):
  def test_info_and_records(self):
    builder = synthetic.builder_for_spec(_SPEC, self.create_tempdir().full_path)
    builder.download_and_prepare()
    info = builder.info
    self.assertEqual(info.supervised_keys, ('image', 'label'))
    self.assertEqual(
      info.features['label'].names, list(phantoms.CLASS_NAMES[:4])
    )
    self.assertEqual(info.features['site'].num_classes, 3)
    self.assertIn('tff_medical', info.citation)
    records = tfds.as_numpy(builder.as_dataset(split='test', batch_size=-1))
    split = phantoms.generate(_SPEC)['test']
    np.testing.assert_array_equal(records['image'], split.images)
    np.testing.assert_array_equal(records['label'], split.labels)
    np.testing.assert_array_equal(records['site'], split.sites)
    np.testing.assert_array_equal(records['patient'], split.patients)


if __name__ == '__main__':
  absltest.main()
