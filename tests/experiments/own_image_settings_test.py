"""Tests of the flags of own images, and of training on a folder of them."""

import json
import pathlib
import subprocess
import sys

from absl import flags as absl_flags
from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from PIL import Image

from experiments import train
from experiments.config import assembly
from experiments.config import flags
from experiments.config import settings as settings_lib
from experiments.running import exit_codes
from tff_medical import _validate
from tff_medical.data import loading
from tff_medical.data import own_images
from tff_medical.serving import export

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_TABLE = ('--dataset=table', '--data_dir=list.csv')
_FOLDER = ('--dataset=folder', '--data_dir=scans')


def _read(*arguments):
  values = absl_flags.FlagValues()
  read = flags.define(values)
  values(['train', '--output_dir=runs/x', '--clipping=none', *arguments])
  return read().resolve()


class FlagsTest(parameterized.TestCase):
  def test_defaults_are_those_of_the_library(self):
    self.assertEqual(_read(*_FOLDER).own.options(), own_images.OwnImages())

  def test_values_reach_the_library(self):
    own = _read(
      *_TABLE,
      '--file_column=Image Index',
      '--label_columns=Edema,"Mass, large"',
      '--uncertain=leave_out',
      '--blank=0',
      '--patient_column=who',
      '--frames=middle',
      '--value_range=-160,240',
      '--max_bad_fraction=0.01',
    ).own.options()
    self.assertEqual(own.columns.file, 'Image Index')
    self.assertEqual(own.labels.columns, ('Edema', 'Mass, large'))
    self.assertEqual(own.labels.uncertain, 'leave_out')
    self.assertEqual(own.decoding.value_range, (-160.0, 240.0))
    self.assertEqual(own.decoding.frames, 'middle')
    self.assertEqual(own.max_bad_fraction, 0.01)

  @parameterized.parameters(
    (['--frames=2'], 'frames=2 would be ignored with dataset=synthetic'),
    ([*_FOLDER, '--file_column=x'], 'file_column=x .*dataset=folder'),
    ([*_TABLE, '--folder_levels=class'], 'folder_levels=class .*dataset=table'),
    (['--dataset=folder'], 'data_dir must be given with dataset=folder'),
    ([*_FOLDER, '--folder_levels=site'], 'which folder is the class'),
    ([*_FOLDER, '--frames=last'], 'frames must be first, middle, all'),
    ([*_FOLDER, '--slice_axis=x'], 'slice_axis must be one of'),
    ([*_FOLDER, '--dicom_values=hu'], 'value_range must be given'),
    ([*_FOLDER, '--value_range=5'], 'value_range must be LOW,HIGH'),
    ([*_FOLDER, '--value_range=5,1'], 'LOW below HIGH'),
    ([*_FOLDER, '--channels=2'], 'channels must be 1'),
    (
      [*_FOLDER, '--dataset_name=own:a'],
      'dataset_name must be 1 to 64 letters',
    ),
    (['--dataset_name=a'], 'dataset_name=a would be .*dataset=synthetic'),
    ([*_FOLDER, '--max_bad_fraction=2'], 'max_bad_fraction'),
    ([*_TABLE, '--uncertain=ignore'], 'uncertain must be one of'),
    ([*_TABLE, '--one_hot'], 'several columns'),
    ([*_TABLE, '--no_finding=x'], 'no_finding=x would be ignored'),
  )
  def test_refuses(self, arguments, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      _read(*arguments)

  @parameterized.parameters(
    ('folder', 'folder', True),
    ('folder', 'table', True),
    ('folder', 'own:a', True),
    ('own:a', 'table', True),
    ('own:a', 'own:a', True),
    ('own:a', 'own:b', False),
    ('own:a', 'own:ab', False),
    ('synthetic', 'folder', False),
    ('own:a', 'medmnist/pathmnist (not the official file)', False),
  )
  def test_own_images_are_told_apart_by_their_names(self, one, other, same):
    self.assertEqual(own_images.may_be_same(one, other), same)
    self.assertEqual(own_images.may_be_same(other, one), same)

  def test_are_recorded_for_own_images_alone(self):
    self.assertNotIn('frames', _read().used())
    used = _read(*_TABLE, '--patient_column=who').used()
    self.assertEqual(used['patient_column'], 'who')
    self.assertNotIn('folder_levels', used)

  def test_places_may_change_when_a_run_goes_on(self):
    may_change = settings_lib.may_change()
    self.assertContainsSubset(
      {'data_dir', 'image_dir', 'prepared_dir', 'decode_workers'}, may_change
    )
    self.assertNoCommonElements(
      {'frames', 'label_columns', 'max_bad_fraction'}, may_change
    )

  def assertNoCommonElements(self, first, second):
    self.assertEqual(first & set(second), set())


class TrainTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.temp = pathlib.Path(self.create_tempdir().full_path)
    rng = np.random.default_rng(0)
    for site in ('north', 'south'):
      for name, light in (('ill', 120), ('well', 0)):
        folder = self.temp / 'scans' / site / name
        folder.mkdir(parents=True)
        for i in range(30):
          pixels = rng.integers(0, 60, (20, 24)) + light
          Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{i}.png')
    self.flags = {
      'dataset': 'folder',
      'data_dir': str(self.temp / 'scans'),
      'folder_levels': 'site/class',
      'prepared_dir': str(self.temp / 'prepared'),
      'privacy_unit': 'record',
      'partition': 'natural_site',
      'noise_multiplier': 0.5,
      'rounds': 2,
      'output_dir': str(self.temp / 'run'),
    }

  def test_trains_with_sites_as_clients(self):
    train.run(settings_lib.Flags.of(**self.flags))
    config = json.loads((self.temp / 'run' / 'config.json').read_text())
    metrics = (self.temp / 'run' / 'metrics.csv').read_text()
    self.assertIn('site/1/auc', metrics)
    self.assertNotIn('site/2/auc', metrics)
    self.assertStartsWith(config['data_digest'], 'hmac-sha256:')
    (card,) = (self.temp / 'run' / 'saved_model').rglob('*card*.json')
    self.assertNotIn(str(self.temp), card.read_text())
    # It goes on with the same data, and with no other.
    more = settings_lib.Flags.of(**{**self.flags, 'rounds': 3})
    train.run(more)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(
      self.temp / 'scans' / 'north' / 'ill' / '0.png'
    )
    with self.assertRaisesRegex(_validate.InputError, 'data'):
      train.run(settings_lib.Flags.of(**{**self.flags, 'rounds': 4}))

  def test_a_named_set_may_start_from_another_named_one(self):
    train.run(settings_lib.Flags.of(**self.flags, dataset_name='first'))
    model = str(self.temp / 'run' / 'saved_model')
    card = export.load_card(model)
    self.assertEqual(card['dataset'], 'own:first')
    given = {
      **self.flags,
      'initial_model': model,
      'output_dir': str(self.temp / 'second'),
    }
    for name in (None, 'first'):
      settings = settings_lib.Flags.of(**given, dataset_name=name).resolve()
      with self.assertRaisesRegex(
        _validate.InputError, 'on own:first as well .*--dataset_name'
      ):
        assembly.load_task(settings)
    settings = settings_lib.Flags.of(**given, dataset_name='second').resolve()
    task = assembly.load_task(settings)
    self.assertEqual(task.data.name, 'own:second')
    self.assertEqual(task.provenance['dataset'], 'own:first')

  def test_two_records_at_the_default_delta_are_refused_before_training(self):
    folder = self.temp / 'few'
    for split in ('train', 'test'):
      for name, light in (('ill', 250), ('well', 5)):
        (folder / split / name).mkdir(parents=True)
        pixels = np.full((9, 9), light + (split == 'test'), np.uint8)
        Image.fromarray(pixels).save(folder / split / name / '1.png')
    # One of three becomes the validation split.
    pixels = np.full((9, 9), 240, np.uint8)
    Image.fromarray(pixels).save(folder / 'train' / 'ill' / '2.png')
    given = {
      **self.flags,
      'data_dir': str(folder),
      'folder_levels': None,
      'partition': 'iid',
      'num_clients': 1,
      'noise_multiplier': 20.0,
    }
    with self.assertRaisesRegex(
      _validate.InputError, 'target_delta must be smaller for 2 units'
    ):
      train.run(settings_lib.Flags.of(**given))
    self.assertFalse((self.temp / 'run').exists())

  def test_prepared_images_are_kept_elsewhere(self):
    inside = str(self.temp / 'scans' / 'prepared')
    with self.assertRaisesRegex(_validate.InputError, 'prepared_dir must not'):
      loading.load(
        'folder',
        data_dir=self.flags['data_dir'],
        own=own_images.OwnImages(
          folder_levels='site/class', prepared_dir=inside
        ),
      )
    self.assertFalse(pathlib.Path(inside).exists())

  def test_wrong_flags_take_no_tensorflow(self):
    program = (
      'import sys; from experiments.config import flags; '
      'from experiments.running import command; read = flags.define(); '
      'command.parse(check=lambda: ('
      'print("tensorflow" in sys.modules, flush=True), read().resolve()))'
    )
    result = subprocess.run(
      [
        *(sys.executable, '-c', program, '--output_dir=x', '--clipping=none'),
        *('--dataset=table', '--data_dir=x.csv', '--uncertain=ignore'),
      ],
      cwd=_ROOT,
      capture_output=True,
      text=True,
    )
    self.assertEqual(result.returncode, exit_codes.BAD_INPUT)
    self.assertLen(result.stderr.splitlines(), 1)
    self.assertIn('False', result.stdout)


class LoadingTest(absltest.TestCase):
  def test_names_are_known_without_loading(self):
    for name in own_images.NAMES:
      source = loading.source(name)
      self.assertIsNone(source.num_train)
      self.assertIsNone(source.class_names)

  def test_options_that_have_no_use_are_refused(self):
    with self.assertRaisesRegex(_validate.InputError, 'difficulty'):
      loading.load('folder', data_dir='x', difficulty=0.5)
    with self.assertRaisesRegex(_validate.InputError, 'own .*synthetic'):
      loading.load('synthetic', own=own_images.OwnImages(channels=1))
    with self.assertRaisesRegex(_validate.InputError, 'data_dir must be given'):
      loading.load('table')


if __name__ == '__main__':
  absltest.main()
