"""Tests of the command that shows a data set."""

import contextlib
import io
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from experiments import data as command
from experiments.config import settings
from tests.experiments import npz
from tff_medical import _validate


class DataTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)

  def _look(self, **flags):
    flags.setdefault('output_dir', str(self.temp / 'look'))
    with contextlib.redirect_stdout(io.StringIO()) as out:
      command.main(lambda: settings.Flags.of(**flags))
    return out.getvalue()

  def test_of_a_named_data_set(self):
    printed = self._look(
      dataset='medmnist/breastmnist',
      data_dir=npz.write(self.temp),
      num_clients=4,
    )
    self.assertRegex(printed, r'all +malignant +30 +6 +12\n')
    self.assertIn('Clients: 4, of 15 to 15 labels', printed)
    self.assertLen(list((self.temp / 'look').glob('*.unnoised.*')), 7)

  def test_default_number_of_clients_follows_the_images(self):
    of_few = {
      'dataset': 'medmnist/breastmnist',
      'data_dir': npz.write(self.temp),
    }
    self.assertIn('Clients: 60, of 1 to 1 labels', self._look(**of_few))
    with self.assertRaisesRegex(_validate.InputError, 'at most the 60'):
      self._look(**of_few, num_clients=300)

  def test_of_own_images_names_no_patient(self):
    folder = self.temp / 'PAT77'
    rng = np.random.default_rng(0)
    for i in range(24):
      path = folder / f'site {i % 2}' / 'ab'[i % 4 // 2] / f'PAT{i}' / 'x.png'
      path.parent.mkdir(parents=True)
      pixels = rng.integers(0, 255, (12, 9), np.uint8)
      Image.fromarray(pixels).save(path)
    printed = self._look(
      dataset='folder',
      data_dir=str(folder),
      folder_levels='site/class/patient',
      image_size=16,
      partition='natural_site',
      prepared_dir=str(self.temp / 'prepared'),
    )
    self.assertIn('sites: 2', printed)
    page = (self.temp / 'look' / command.data_report.PAGE).read_text()
    self.assertIn('PNG 8 bits', page)
    self.assertNotIn('PAT', printed)
    for path in (self.temp / 'look').glob('*.[ch]*'):
      self.assertNotIn('PAT', path.read_text())

  @parameterized.parameters(
    ({'rounds': 5}, 'rounds=5 would be ignored by a look at the data'),
    ({'output_dir': None}, 'output_dir must be given'),
    ({'dataset': 'folder'}, 'data_dir must be given'),
    ({'channels': 1}, 'channels=1 would be ignored with dataset=synthetic'),
  )
  def test_refuses(self, flags, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      command.check(settings.Flags.of(**{'output_dir': 'x', **flags}))

  def test_refuses_a_file_in_the_place_of_the_folder(self):
    path = self.temp / 'file'
    path.write_text('')
    with self.assertRaisesRegex(_validate.InputError, 'must be a folder'):
      command.check(settings.Flags.of(output_dir=str(path)))


if __name__ == '__main__':
  absltest.main()
