"""Tests on small made-up files; `medmnist_files_test` has real files."""

import dataclasses
import functools
import hashlib
import http.server
import pathlib
import pickle
import re
import threading
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tensorflow_datasets as tfds

from tff_medical import _validate
from tff_medical.data import loading
from tff_medical.data import medmnist
from tff_medical.data import medmnist_info

_COUNTS = {'train': 12, 'val': 4, 'test': 6}


def _arrays(name='breastmnist', size=28, **replaced):
  """Returns arrays in the layout of a set's file, with other pixels."""
  rng = np.random.default_rng(0)
  info = medmnist_info.BY_NAME[name]
  shape = (size, size) if info.channels == 1 else (size, size, info.channels)
  arrays = {}
  for split, n in _COUNTS.items():
    pixels = rng.integers(256, size=(n, *shape)).astype(np.uint8)
    columns = len(info.class_names) if info.multi_label else 1
    labels = rng.integers(2, size=[n, columns]).astype(np.uint8)
    arrays.update({f'{split}_images': pixels, f'{split}_labels': labels})
  return {**arrays, **replaced}


def _write(folder, name='breastmnist', size=28, arrays=None):
  path = pathlib.Path(folder) / medmnist_info.BY_NAME[name].file_name(size)
  with path.open('wb') as file:
    np.savez_compressed(file, **(arrays or _arrays(name, size)))
  return path


def _md5(path):
  return hashlib.md5(path.read_bytes()).hexdigest()


def _files(folder):
  return [p for p in pathlib.Path(folder).rglob('*') if p.is_file()]


class InfoTest(parameterized.TestCase):
  def test_table(self):
    self.assertLen(medmnist_info.BY_NAME, 12)
    digests = [d for info in medmnist_info.BY_NAME.values() for d in info.md5]
    self.assertLen(set(digests), 48)
    for digest in digests:
      self.assertRegex(digest, '^[0-9a-f]{32}$')
    several = [i.name for i in medmnist_info.BY_NAME.values() if i.multi_label]
    self.assertEqual(several, ['chestmnist'])
    self.assertLen(medmnist_info.BY_NAME['chestmnist'].class_names, 14)
    self.assertEqual(
      medmnist_info.BY_NAME['dermamnist'].license, 'CC BY-NC 4.0'
    )

  def test_address(self):
    self.assertEqual(
      medmnist_info.BY_NAME['pathmnist'].url(224),
      'https://zenodo.org/records/10519652/files/pathmnist_224.npz?download=1',
    )

  def test_every_config_has_proper_info(self):
    self.assertLen(medmnist.MedMnist.BUILDER_CONFIGS, 48)
    folder = self.create_tempdir().full_path
    for name, shape in (
      ('chestmnist_64', (64, 64, 1)),
      ('pathmnist_28', (28, 28, 3)),
    ):
      builder = tfds.builder(f'medmnist/{name}', data_dir=folder)
      self.assertEqual(builder.info.features['image'].shape, shape)
      self.assertEqual(builder.info.supervised_keys, ('image', 'label'))
      self.assertIn('medmnistv2', builder.info.citation)
    self.assertEmpty(_files(folder))


class BuilderTest(tfds.testing.DatasetBuilderTestCase):
  """Runs TFDS's own checks on a file that is not the official one."""

  DATASET_CLASS = medmnist.MedMnist
  SPLITS = {'train': 12, 'validation': 4, 'test': 6}

  @classmethod
  def setUpClass(cls):
    cls.EXAMPLE_DIR = cls.enter_class_folder()
    cls.source = _write(cls.EXAMPLE_DIR)
    cls.BUILDER_CONFIG_NAMES_TO_TEST = [
      medmnist.MedMnistConfig(dataset='breastmnist', md5=_md5(cls.source))
    ]
    super().setUpClass()

  @classmethod
  def enter_class_folder(cls):
    folder = absltest.TEST_TMPDIR.value + '/medmnist_builder_test'
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    return folder

  def _make_builder(self, config=None):
    return medmnist.MedMnist(
      source=str(self.source), data_dir=self.tmp_dir, config=config
    )


class FromFileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.data_dir = self.create_tempdir().full_path
    self.tfds_dir = self.create_tempdir().full_path

  def _load(self, dataset='medmnist/breastmnist', **kwargs):
    return loading.load(
      dataset, data_dir=self.data_dir, tfds_dir=self.tfds_dir, **kwargs
    )

  @parameterized.parameters(
    ('breastmnist', 28),
    ('breastmnist', 64),
    ('retinamnist', 28),
    ('chestmnist', 28),
  )
  def test_reads_what_the_file_holds(self, name, size):
    arrays = _arrays(name, size)
    path = _write(self.data_dir, name, size, arrays)
    before = path.stat()
    data = self._load(f'medmnist/{name}', image_size=size)
    for here, there in (
      ('train', 'train'),
      ('validation', 'val'),
      ('test', 'test'),
    ):
      split, n = getattr(data, here), _COUNTS[there]
      np.testing.assert_array_equal(
        split.images, arrays[f'{there}_images'].reshape(n, size, size, -1)
      )
      labels = arrays[f'{there}_labels']
      np.testing.assert_array_equal(
        split.labels, labels if name == 'chestmnist' else labels[:, 0]
      )
      self.assertIsNone(split.sites)
      self.assertIsNone(split.patients)
    self.assertEqual(data.name, f'medmnist/{name}')
    self.assertEqual(data.multi_label, name == 'chestmnist')
    self.assertEqual(data.source_digest, f'md5:{_md5(path)}')
    self.assertEqual(data.described, f'medmnist/{name} (not the official file)')
    self.assertFalse(data.is_public)
    self.assertEqual(data.license, 'CC BY 4.0')
    self.assertEqual(path.stat().st_mtime_ns, before.st_mtime_ns)
    self.assertEqual(_files(self.data_dir), [path])

  def test_other_md5_is_a_warning(self):
    path = _write(self.data_dir)
    with self.assertLogs(level='WARNING') as logs:
      self._load()
    self.assertRegex(
      logs.output[0],
      f'{_md5(path)}, the official file has 750601b1f35ba3300ea97c75c52ff8f6',
    )

  def test_a_changed_file_is_prepared_anew(self):
    first_path = _write(self.data_dir)
    first = self._load()
    arrays = _arrays(train_images=np.full([12, 28, 28], 7, np.uint8))
    _write(self.data_dir, arrays=arrays)
    second = self._load()
    self.assertNotEqual(first.source_digest, second.source_digest)
    self.assertEqual(second.train.images.max(), 7)
    _write(self.data_dir)
    self.assertEqual(_md5(first_path), first.source_digest[len('md5:') :])
    again = self._load()
    np.testing.assert_array_equal(again.train.images, first.train.images)

  def test_second_load_uses_the_prepared_records(self):
    _write(self.data_dir)
    self._load()
    with mock.patch.object(medmnist, 'read_npz') as read:
      self._load()
    read.assert_not_called()

  def test_file_that_changes_meanwhile_is_refused(self):
    path = _write(self.data_dir)
    builder = medmnist.builder_for_file('breastmnist', 28, path, self.tfds_dir)
    path.write_bytes(path.read_bytes() + b' ')
    with self.assertRaisesRegex(_validate.InputError, 'changed meanwhile'):
      builder.download_and_prepare()

  def test_builder_can_be_pickled(self):
    path = _write(self.data_dir)
    builder = medmnist.builder_for_file('breastmnist', 28, path, self.tfds_dir)
    copy = pickle.loads(pickle.dumps(builder))
    copy.download_and_prepare()
    self.assertEqual(copy.info.splits['train'].num_examples, 12)

  @parameterized.named_parameters(
    ('key', lambda a: a.pop('val_labels'), 'val_labels missing'),
    (
      'dtype',
      lambda a: a.update(train_images=np.zeros([12, 28, 28])),
      r'train_images must be uint8 of shape \[N, 28, 28, 1\] or \[N, 28, 28\], got '
      r'float64 \[12, 28, 28\]',
    ),
    (
      'size',
      lambda a: a.update(test_images=np.zeros([6, 64, 64], np.uint8)),
      r'test_images must .* got uint8 \[6, 64, 64\]; is it breastmnist in size',
    ),
    (
      'rgb',
      lambda a: a.update(val_images=np.zeros([4, 28, 28, 3], np.uint8)),
      r'val_images must be .* got uint8 \[4, 28, 28, 3\]',
    ),
    (
      'empty',
      lambda a: a.update(val_images=np.zeros([0, 28, 28], np.uint8)),
      r'val_images must be .* got uint8 \[0, 28, 28\]',
    ),
    (
      'rows',
      lambda a: a.update(val_labels=np.zeros([3, 1], np.uint8)),
      r'val_labels must be 4 rows of integers.*got uint8 \[3, 1\]',
    ),
    (
      'float_labels',
      lambda a: a.update(val_labels=np.zeros([4, 1])),
      'val_labels must be 4 rows of integers.*got float64',
    ),
    (
      'scalar_labels',
      lambda a: a.update(val_labels=np.uint8(1)),
      'val_labels must be 4 rows of integers',
    ),
    (
      'range',
      lambda a: a.update(test_labels=np.full([6, 1], 5, np.uint8)),
      r'breastmnist.npz: test labels must lie in 0..1, got 5 in row 0',
    ),
    (
      'columns',
      lambda a: a.update(train_labels=np.zeros([12, 3], np.uint8)),
      r'train labels must have shape \[N\], got \[12, 3\]',
    ),
    (
      'pickled',
      lambda a: a.update(train_images=np.array([None] * 12)),
      'not a complete MedMNIST .npz file',
    ),
  )
  def test_wrong_arrays(self, change, message):
    arrays = _arrays()
    change(arrays)
    _write(self.data_dir, arrays=arrays)
    with self.assertRaisesRegex(_validate.InputError, message):
      self._load()
    self.assertEmpty(_files(self.tfds_dir))

  @parameterized.named_parameters(
    ('truncated', lambda content: content[: len(content) // 2]),
    ('empty', lambda content: b''),
    ('text', lambda content: b'<html>not found</html>'),
    ('damaged', lambda c: c[:2000] + bytes(1000) + c[3000:]),
    (
      'npy',
      lambda content: (
        b"\x93NUMPY\x01\x00F\x00{'descr': '|u1', 'fortran_order': False, "
        b"'shape': (1,), }".ljust(79)
        + b'\n\x00'
      ),
    ),
  )
  def test_wrong_bytes(self, change):
    path = _write(self.data_dir)
    path.write_bytes(change(path.read_bytes()))
    with self.assertRaisesRegex(
      _validate.InputError, f'{re.escape(str(path))} is not a complete MedMNIST'
    ):
      self._load()
    self.assertEmpty(_files(self.tfds_dir))

  def test_missing_file(self):
    with self.assertRaisesRegex(
      _validate.InputError,
      'cannot read .*breastmnist_64.npz: No such file.*data_dir',
    ):
      self._load(image_size=64)

  def test_unsuitable_tfds_dir(self):
    _write(self.data_dir)
    self.tfds_dir = self.create_tempfile().full_path
    with self.assertRaisesRegex(
      _validate.InputError, f'cannot prepare records in {self.tfds_dir}'
    ):
      self._load()


class _Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *args):
    pass


class DownloadTest(parameterized.TestCase):
  """Tests of downloads with TFDS, from a server on this machine."""

  def setUp(self):
    super().setUp()
    self.served = self.create_tempdir().full_path
    self.tfds_dir = self.create_tempdir().full_path
    handler = functools.partial(_Quiet, directory=self.served)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    self.addCleanup(thread.join)
    self.addCleanup(server.server_close)
    self.addCleanup(server.shutdown)
    self.enter_context(
      mock.patch.object(
        medmnist_info, 'BASE_URL', f'http://127.0.0.1:{server.server_port}/'
      )
    )

  def _builder(self, md5):
    config = medmnist.MedMnistConfig(dataset='breastmnist', md5=md5)
    return medmnist.MedMnist(config=config, data_dir=self.tfds_dir)

  def test_downloads_and_prepares(self):
    arrays = _arrays()
    path = _write(self.served, arrays=arrays)
    builder = self._builder(_md5(path))
    medmnist.check_reachable(builder.builder_config)
    builder.download_and_prepare()
    records = tfds.as_numpy(builder.as_dataset(split='train', batch_size=-1))
    np.testing.assert_array_equal(
      records['image'][..., 0], arrays['train_images']
    )

  def test_wrong_md5_is_an_error_and_is_not_kept(self):
    path = _write(self.served)
    right = _md5(path)
    content = path.read_bytes()
    path.write_bytes(content + b' ')
    with self.assertRaisesRegex(
      _validate.InputError, f'has MD5 .*, expected {right}'
    ):
      self._builder(right).download_and_prepare()
    self.assertFalse(self._builder(right).is_prepared())
    path.write_bytes(content)
    self._builder(right).download_and_prepare()
    self.assertTrue(self._builder(right).is_prepared())

  def test_what_has_the_official_md5_is_public(self):
    md5 = _md5(_write(self.served))
    info = dataclasses.replace(
      medmnist_info.BY_NAME['breastmnist'], md5=(md5,) * 4
    )
    config = medmnist.MedMnistConfig(dataset='breastmnist', md5=md5)
    with mock.patch.dict(medmnist_info.BY_NAME, breastmnist=info):
      with mock.patch.object(medmnist, 'official_config', lambda *_: config):
        for data_dir in (None, self.served):
          data = loading.load(
            'medmnist/breastmnist', data_dir=data_dir, tfds_dir=self.tfds_dir
          )
          self.assertTrue(data.is_public)
          self.assertEqual(data.described, 'medmnist/breastmnist')

  def test_load_refuses_what_is_not_official(self):
    _write(self.served)
    with self.assertRaisesRegex(
      _validate.InputError, 'expected 750601b1f35ba3300ea97c75c52ff8f6'
    ):
      loading.load('medmnist/breastmnist', tfds_dir=self.tfds_dir)

  def test_tfds_checksums_are_compared(self):
    path = _write(self.served)
    url = medmnist_info.BY_NAME['breastmnist'].url(28)
    wrong = tfds.download.checksums.UrlInfo(1, 'f' * 64, path.name)
    with mock.patch.object(medmnist.MedMnist, 'url_infos', {url: wrong}):
      with self.assertRaisesRegex(_validate.InputError, 'wrong checksum'):
        self._builder(_md5(path)).download_and_prepare()

  def test_missing_on_the_server(self):
    with self.assertRaisesRegex(
      _validate.InputError, 'cannot download .*HTTP code: 404.*data_dir'
    ):
      self._builder('0' * 32).download_and_prepare()

  def test_unreachable_is_said_at_once(self):
    with mock.patch.object(medmnist_info, 'BASE_URL', 'http://127.0.0.1:9/'):
      with self.assertRaisesRegex(
        _validate.InputError, 'cannot download http://127.0.0.1:9/breastmnist'
      ):
        loading.load('medmnist/breastmnist', tfds_dir=self.tfds_dir)
    self.assertEmpty(_files(self.tfds_dir))


if __name__ == '__main__':
  absltest.main()
