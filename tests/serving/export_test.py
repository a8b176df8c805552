"""An export serves alone, agrees with training and is whole or absent."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import special
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import _validate
from tff_medical import models
from tff_medical.learning import evaluation
from tff_medical.models import backbones
from tff_medical.models import transfer
from tff_medical.privacy import card_format
from tff_medical.program import checkpoints
from tff_medical.serving import export
from tff_medical.serving import pretrained
from tff_medical.serving import serving_module

# Runs where nothing but TensorFlow is imported.
_SERVE = """
import sys
import numpy as np
import tensorflow as tf

folder, images, found = sys.argv[1:]
signatures = tf.saved_model.load(folder).signatures
images = np.load(images)
encoded = [tf.io.encode_png(image).numpy() for image in images]
floats = tf.constant(images.astype(np.float32) / 255)
arrays = {}
for name, out in (
    ('float', signatures['serving_default'](images=floats)),
    ('bytes', signatures['serve_bytes'](encoded=tf.constant(encoded))),
):
  for key, value in out.items():
    arrays[f'{name}_{key}'] = value.numpy()
np.savez(found, **arrays)
for package in ('tensorflow_federated', 'tff_medical', 'kymatio'):
  assert package not in sys.modules, package
"""


def _card(**changes):
  card = dict.fromkeys(card_format.REQUIRED_KEYS, 'stated')
  card.update(epsilon=7.5, delta=1e-5, rounds=100, test_metrics={'auc': 0.9})
  return {**card, **changes}


def _model(outputs=2, channels=1, name='cnn_small'):
  model = models.build(
    name,
    input_shape=(28, 28, channels),
    num_outputs=outputs,
    seed=0,
  )
  # Centre the outputs, so that no class or side of 0.5 is missing.
  logits = evaluation.predict(model, _images(channels))
  *body, bias = model.get_weights()
  model.set_weights([*body, bias - logits.mean(0)])
  return model


def _save(path, model=None, **changes):
  options = {
    'class_names': ('normal', 'pneumonia'),
    'multi_label': False,
    'privacy_card': _card(),
  }
  export.save(path, model or _model(), **{**options, **changes})


def _images(channels):
  return np.random.default_rng(1).integers(
    0, 256, (6, 28, 28, channels), dtype=np.uint8
  )


class _InFolder(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.folder / 'saved_model'


class TraceAheadTest(_InFolder):
  @parameterized.parameters(False, True)
  def test_an_export_takes_what_was_traced_ahead(self, is_transfer):
    model, network = _model(), None
    if is_transfer:
      frozen = tf.keras.Sequential(
        [tf.keras.layers.Flatten(input_shape=(20, 28, 3))]
      )
      model = transfer.linear(frozen, 2, seed=1)
      network = models.Transfer(frozen, {}, {}, lambda n, s: model)
    before = threading.enumerate()
    with mock.patch.object(
      serving_module, 'decode', side_effect=serving_module.decode
    ) as decode:
      serving_module._traced_decoder.cache_clear()
      export.trace_ahead(model, transfer=network)
      for thread in set(threading.enumerate()) - set(before):
        thread.join()
      self.assertEqual(decode.call_count, 1)
      _save(self.path, model, transfer=network)
      self.assertEqual(decode.call_count, 1)


class ServingTest(_InFolder):
  @parameterized.parameters(('cnn_small', False, 1), ('cnn_small', True, 3))
  def test_a_process_with_tensorflow_alone_agrees(
    self, name, multi_label, channels
  ):
    model = _model(3, channels, name)
    names = ('a', 'b', 'c')
    _save(self.path, model, class_names=names, multi_label=multi_label)
    images = _images(channels)
    np.save(self.folder / 'images.npy', images)
    subprocess.run(
      [sys.executable, '-c', _SERVE, self.path]
      + [self.folder / 'images.npy', self.folder / 'found.npz'],
      check=True,
      cwd=self.folder,
    )
    logits = evaluation.predict(model, images)
    if multi_label:
      expected, index = special.expit(logits), (logits >= 0).astype(int)
    else:
      expected, index = special.softmax(logits, 1), logits.argmax(1)
    self.assertGreater(np.unique(index).size, 1)
    with np.load(self.folder / 'found.npz') as found:
      for signature in ('float', 'bytes'):
        np.testing.assert_allclose(
          found[f'{signature}_probabilities'], expected, atol=1e-5
        )
        np.testing.assert_array_equal(found[f'{signature}_class_index'], index)
        self.assertEqual(found[f'{signature}_class_index'].dtype, np.int64)

  def test_frozen_layers_and_what_is_trained_are_one_model(self):
    backbone = backbones.load('scattering', image_shape=(28, 28, 1))
    head = transfer.linear(backbone.model, 3, seed=1)
    network = models.Transfer(backbone.model, {}, {}, lambda n, s: head)
    images = _images(1)
    kept = backbone.model(images.astype(np.float32) / 255).numpy()
    expected = special.softmax(evaluation.predict(head, kept), 1)
    names = ('a', 'b', 'c')
    _save(self.path, head, class_names=names, transfer=network)
    np.save(self.folder / 'images.npy', images)
    subprocess.run(
      [sys.executable, '-c', _SERVE, self.path]
      + [self.folder / 'images.npy', self.folder / 'found.npz'],
      check=True,
      cwd=self.folder,
    )
    with np.load(self.folder / 'found.npz') as found:
      for signature in ('float', 'bytes'):
        np.testing.assert_allclose(
          found[f'{signature}_probabilities'], expected, atol=1e-6
        )
    # The digest of the card is that of the trained weights alone.
    self.assertEqual(
      export.load_card(self.path)['weights_sha256'],
      checkpoints.weights_digest(head.get_weights()),
    )
    read = pretrained.read_weights(self.path)
    self.assertLen(read, len(head.get_weights()))
    for found, expected in zip(read, head.get_weights()):
      np.testing.assert_array_equal(found, expected)

  def test_any_number_of_images(self):
    _save(self.path)
    signatures = tf.saved_model.load(os.fspath(self.path)).signatures
    png = tf.io.encode_png(np.zeros((28, 28, 1), np.uint8)).numpy()
    for count in (0, 1, 5):
      for out in (
        signatures['serving_default'](images=tf.zeros((count, 28, 28, 1))),
        signatures['serve_bytes'](
          encoded=tf.constant([png] * count, tf.string)
        ),
      ):
        self.assertEqual(out['probabilities'].shape, (count, 2))
        self.assertEqual(out['class_index'].shape, (count,))

  def test_no_images_for_a_multi_label_model(self):
    _save(self.path, _model(3), class_names=tuple('abc'), multi_label=True)
    signatures = tf.saved_model.load(os.fspath(self.path)).signatures
    for out in (
      signatures['serving_default'](images=tf.zeros((0, 28, 28, 1))),
      signatures['serve_bytes'](encoded=tf.constant([], tf.string)),
    ):
      self.assertEqual(out['probabilities'].shape, (0, 3))
      self.assertEqual(out['class_index'].shape, (0, 3))

  def test_images_of_another_shape_are_refused_with_both_shapes(self):
    _save(self.path)
    signatures = tf.saved_model.load(os.fspath(self.path)).signatures
    for shape in (
      (2, 29, 28, 1),
      (2, 28, 27, 1),
      (2, 28, 28, 3),
      (0, 28, 29, 1),
      (28, 28, 1),
      (1, 2, 28, 28, 1),
      (),
    ):
      stated = re.escape(f'({", ".join(map(str, shape))})')
      with self.assertRaisesRegex(
        tf.errors.InvalidArgumentError,
        rf'images must have shape \[N, 28, 28, 1\], got {stated}',
      ):
        signatures['serving_default'](images=tf.zeros(shape))
    for files in (b'a', [[b'a']]):
      with self.assertRaisesRegex(
        tf.errors.InvalidArgumentError, r'encoded must have shape \[N\], one'
      ):
        signatures['serve_bytes'](encoded=tf.constant(files))

  @parameterized.parameters(0, 3)
  def test_the_wrong_image_of_a_request_is_named(self, place):
    _save(self.path)
    signatures = tf.saved_model.load(os.fspath(self.path)).signatures
    for value, found in (
      (np.nan, 'NaN'),
      (np.inf, '0 to inf'),
      (-np.inf, '-inf to 0'),
      (1.5, r'0 to 1\.5'),
    ):
      images = np.zeros((4, 28, 28, 1), np.float32)
      images[place, 5, 6] = value
      with self.assertRaisesRegex(
        tf.errors.InvalidArgumentError,
        rf'images must be in 0..1 .*image {place} of images holds {found}\]',
      ):
        signatures['serving_default'](images=tf.constant(images))
    encoded = [tf.io.encode_png(np.zeros((9, 9, 1), np.uint8)).numpy()] * 4
    encoded[place] = encoded[place][:-20]
    with self.assertRaisesRegex(
      tf.errors.InvalidArgumentError,
      f'image {place} of encoded cannot be decoded: .* damaged or cut short',
    ):
      signatures['serve_bytes'](encoded=tf.constant(encoded))

  def test_converts_to_tflite(self):
    model = _model()
    _save(self.path, model)
    converter = tf.lite.TFLiteConverter.from_saved_model(
      os.fspath(self.path), signature_keys=['serving_default']
    )
    runner = tf.lite.Interpreter(
      model_content=converter.convert()
    ).get_signature_runner('serving_default')
    images = _images(1)
    found = runner(images=images.astype(np.float32) / 255)
    expected = special.softmax(evaluation.predict(model, images), 1)
    np.testing.assert_allclose(found['probabilities'], expected, atol=1e-5)

  def test_wrong_input_is_refused_in_words(self):
    _save(self.path)
    signatures = tf.saved_model.load(os.fspath(self.path)).signatures
    for wrong in (255.0, -1.0, np.nan):
      with self.assertRaisesRegex(
        tf.errors.InvalidArgumentError, 'images must be in 0..1'
      ):
        signatures['serving_default'](images=tf.fill((1, 28, 28, 1), wrong))
    with self.assertRaisesRegex(
      tf.errors.InvalidArgumentError, 'neither a PNG nor a JPEG'
    ):
      signatures['serve_bytes'](encoded=tf.constant([b'GIF89a']))

  def test_a_model_that_tff_cloned_can_be_saved(self):
    model = _model()
    tff.learning.models.functional_model_from_keras(
      model,
      models.loss(False),
      (
        tf.TensorSpec([None, 28, 28, 1], tf.float32),
        tf.TensorSpec([None], tf.int64),
      ),
    )
    _save(self.path, model)
    self.assertTrue((self.path / 'saved_model.pb').exists())


class AssetsTest(_InFolder):
  def test_names_and_card_travel_inside(self):
    names = ('normal', 'Lungenentzündung')
    card = _card(note='δ', test_metrics={'auc': np.float32(0.5), 'x': np.nan})
    _save(self.path, class_names=names, privacy_card=card)
    moved = self.path.rename(self.folder / 'elsewhere')
    self.assertEqual(export.load_class_names(moved), names)
    self.assertEqual(
      export.load_card(moved),
      {
        **card,
        'test_metrics': {'auc': 0.5, 'x': None},
        'weights_sha256': checkpoints.weights_digest(
          pretrained.read_weights(moved)
        ),
      },
    )
    self.assertEqual(
      sorted(file.name for file in (moved / 'assets').iterdir()),
      [export.CLASS_NAMES_FILE, export.PRIVACY_CARD_FILE],
    )

  def test_the_file_is_strict_json_without_privacy_too(self):
    card = _card(epsilon=np.inf, delta=None, test_metrics=[np.nan, -np.inf])
    _save(self.path, privacy_card=card)
    file = self.path / 'assets' / export.PRIVACY_CARD_FILE

    def refuse(constant):
      raise AssertionError(constant)

    read = json.loads(file.read_text('utf-8'), parse_constant=refuse)
    self.assertEqual(read['epsilon'], 'inf')
    self.assertEqual(read['test_metrics'], [None, '-inf'])

  def test_nothing_names_the_machine_it_was_made_on(self):
    _save(self.path)
    here = os.fspath(pathlib.Path(export.__file__).parent)
    for file in self.path.rglob('*'):
      if file.is_file():
        content = file.read_bytes()
        for place in (here, os.fspath(self.folder), tempfile.gettempdir()):
          self.assertNotIn(place.encode(), content, msg=file)


class AtomicTest(_InFolder):
  def _partly_saved_then(self, error):
    def save(module, path, signatures):
      del module, signatures
      pathlib.Path(path, 'assets').mkdir(parents=True)
      pathlib.Path(path, 'saved_model.pb').write_bytes(b'half')
      raise error

    return mock.patch.object(tf.saved_model, 'save', save)

  def _files(self):
    return {
      file.relative_to(self.folder): file.read_bytes()
      for file in self.folder.rglob('*')
      if file.is_file()
    }

  @parameterized.parameters(False, True)
  def test_a_full_disk_leaves_what_was_there(self, exported_before):
    if exported_before:
      _save(self.path)
    before = self._files()
    full = tf.errors.ResourceExhaustedError(None, None, 'No space left')
    with self._partly_saved_then(full):
      with self.assertRaisesRegex(OSError, 'No space left') as raised:
        _save(self.path, privacy_card=_card(rounds=1))
    self.assertEqual(raised.exception.errno, errno.ENOSPC)
    self.assertEqual(raised.exception.filename, os.fspath(self.path))
    self.assertEqual(self._files(), before)
    self.assertLen(list(self.folder.iterdir()), int(exported_before))

  def test_an_interrupt_leaves_nothing(self):
    with self._partly_saved_then(KeyboardInterrupt()):
      with self.assertRaises(KeyboardInterrupt):
        _save(self.path)
    self.assertEmpty(list(self.folder.iterdir()))

  def test_a_failed_rename_puts_the_earlier_export_back(self):
    _save(self.path)
    before = self._files()
    rename = os.rename

    def fail_for_new(source, target):
      if os.fspath(source).endswith('.new'):
        raise OSError(errno.EIO, 'broken disk')
      rename(source, target)

    with mock.patch.object(os, 'rename', fail_for_new):
      with self.assertRaisesRegex(OSError, 'broken disk'):
        _save(self.path, privacy_card=_card(rounds=1))
    self.assertEqual(self._files(), before)

  def test_every_file_is_on_the_disk_before_the_rename(self):
    flushed = set()
    fsync, rename = os.fsync, os.rename

    def record(descriptor):
      flushed.add(os.fstat(descriptor).st_ino)
      fsync(descriptor)

    def check(source, target):
      for place in (pathlib.Path(source), *pathlib.Path(source).rglob('*')):
        self.assertIn(place.stat().st_ino, flushed, msg=place)
      rename(source, target)

    with mock.patch.object(os, 'fsync', record):
      with mock.patch.object(os, 'rename', check):
        _save(self.path)
    self.assertTrue((self.path / 'saved_model.pb').exists())

  def test_an_earlier_export_is_replaced_whole(self):
    _save(self.path, _model(3), class_names=('a', 'b', 'c'))
    _save(self.path, privacy_card=_card(rounds=7))
    self.assertEqual(export.load_card(self.path)['rounds'], 7)
    self.assertEqual(
      export.load_class_names(self.path), ('normal', 'pneumonia')
    )
    self.assertEqual([p.name for p in self.folder.iterdir()], ['saved_model'])

  def test_other_folders_and_files_are_not_replaced(self):
    self.path.mkdir()
    (self.path / 'thesis.tex').write_text('years of work')
    with self.assertRaisesRegex(_validate.InputError, 'is not a saved model'):
      _save(self.path)
    self.assertTrue((self.path / 'thesis.tex').exists())
    with self.assertRaisesRegex(_validate.InputError, 'is not a saved model'):
      _save(self.path / 'thesis.tex')


class RefusalTest(_InFolder):
  @parameterized.parameters(*card_format.REQUIRED_KEYS)
  def test_a_card_must_be_complete(self, key):
    card = _card()
    del card[key]
    with self.assertRaisesRegex(_validate.InputError, f'lacks {key};'):
      _save(self.path, privacy_card=card)
    self.assertFalse(self.path.exists())

  @parameterized.parameters(
    ({'epsilon': float('nan')}, 'epsilon must be a number'),
    ({'epsilon': -1.0}, 'epsilon must be 0 or more'),
    ({'epsilon': 'low'}, 'epsilon must be a number'),
    ({'delta': 1.0}, 'delta must lie between 0 and 1'),
    ({'mechanism': object()}, r"privacy_card\['mechanism'\] must be text"),
  )
  def test_a_card_must_state_a_guarantee(self, changes, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      _save(self.path, privacy_card=_card(**changes))

  @parameterized.parameters(
    (('a',), 'one name for each of the 2 outputs'),
    (('a', 'a'), 'must be different'),
    (('a', ''), 'not empty'),
    (('a', 'b\nc'), 'without line breaks'),
  )
  def test_class_names_must_fit(self, names, message):
    with self.assertRaisesRegex(_validate.InputError, message):
      _save(self.path, class_names=names)

  def test_only_exports_have_a_card(self):
    tf.saved_model.save(tf.Module(), os.fspath(self.path))
    for folder in (self.path, self.folder / 'missing'):
      for load in (export.load_card, export.load_class_names):
        with self.assertRaisesRegex(_validate.InputError, 'not a model export'):
          load(folder)

  def test_a_damaged_card_is_not_believed(self):
    _save(self.path)
    file = self.path / 'assets' / export.PRIVACY_CARD_FILE
    file.write_text('{"epsilon": 0.1')
    with self.assertRaisesRegex(_validate.InputError, 'is not JSON'):
      export.load_card(self.path)
    file.write_text('{"epsilon": 0.1}')
    with self.assertRaisesRegex(_validate.InputError, 'lacks delta'):
      export.load_card(self.path)

  @parameterized.parameters(
    export.CLASS_NAMES_FILE,
    export.PRIVACY_CARD_FILE,
  )
  def test_an_asset_must_be_a_file_of_text(self, name):
    load = {
      export.CLASS_NAMES_FILE: export.load_class_names,
      export.PRIVACY_CARD_FILE: export.load_card,
    }[name]
    _save(self.path)
    asset = self.path / 'assets' / name

    def sparse():
      with asset.open('wb') as file:
        file.truncate(2**40)

    for make, message in (
      (lambda: os.mkfifo(asset), 'it is not a regular file'),
      (lambda: asset.symlink_to('/dev/zero'), 'it is not a regular file'),
      (lambda: asset.symlink_to(asset), 'Too many levels of symbolic links'),
      (lambda: asset.symlink_to('missing'), 'No such file'),
      (lambda: asset.write_bytes(b'a\xff'), 'is not UTF-8 text .* at byte 1'),
      (sparse, 'more than the 16777216 bytes allowed'),
      (asset.mkdir, 'Is a directory'),
    ):
      with self.subTest(message):
        asset.unlink()
        make()
        with self.assertRaisesRegex(_validate.InputError, message):
          load(self.path)

  @parameterized.parameters(
    ('[' * 100_000, 'is not JSON'),
    ('{"epsilon": ' + '1' * 10_000 + '}', 'is not JSON|lacks'),
    ('[1]', 'must be a JSON object, got list'),
    ('7', 'must be a JSON object, got int'),
  )
  def test_a_card_is_a_json_object(self, text, message):
    _save(self.path)
    (self.path / 'assets' / export.PRIVACY_CARD_FILE).write_text(text)
    with self.assertRaisesRegex(_validate.InputError, message):
      export.load_card(self.path)


if __name__ == '__main__':
  absltest.main()
