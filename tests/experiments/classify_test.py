"""Tests of classification: a model's answers, or one line and exit code 2."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import types

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import special
import tensorflow as tf

from experiments import classify
from experiments.running import command
from tests.data import dicom_writing
from tff_medical import models
from tff_medical.data.decoders import decoded
from tff_medical.learning import evaluation
from tff_medical.privacy import card_format
from tff_medical.serving import export
from tff_medical.serving import image_files

_ROOT = pathlib.Path(classify.__file__).parent.parent
_COUNT = 4


def _card(epsilon):
  card = dict.fromkeys(card_format.REQUIRED_KEYS, 'stated')
  card.update(
    epsilon=epsilon,
    delta=1e-5,
    unit='client',
    neighboring_relation='add_or_remove_one',
    rounds=100,
    accountant='PLD',
    accountant_version='dp-accounting 0.6.0',
    dataset='pneumoniamnist',
  )
  return card


class ClassifyTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.folder = pathlib.Path(folder.name)
    cls.models = {}
    for name, multi_label, epsilon in (
      ('binary', False, 7.96512),
      ('findings', True, np.inf),
    ):
      model = models.build(
        'cnn_small', input_shape=(28, 28, 1), num_outputs=2, seed=1
      )
      export.save(
        cls.folder / name,
        model,
        class_names=('effusion', 'mass'),
        multi_label=multi_label,
        privacy_card=_card(epsilon),
      )
      cls.models[name] = model
    export.save(
      cls.folder / 'own',
      cls.models['binary'],
      class_names=('effusion', 'mass'),
      multi_label=False,
      privacy_card=_card(1.0),
      decoding_policy=decoded.DecodingPolicy(frames='all'),
    )
    rng = np.random.default_rng(0)
    cls.images = rng.integers(0, 256, (_COUNT, 28, 28, 1), dtype=np.uint8)
    cls.paths = []
    for i, image in enumerate(cls.images):
      path = cls.folder / f'{"long" * i}{i}.png'
      path.write_bytes(tf.io.encode_png(image).numpy())
      cls.paths.append(os.fspath(path))

  def _run(self, model, *paths, labels_from_folders=False):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      values = types.SimpleNamespace(
        saved_model=model and f'{self.folder}/{model}',
        labels_from_folders=labels_from_folders,
      )
      code = command.call(functools.partial(classify.main, values), paths)
    return code, out.getvalue().splitlines(), err.getvalue()

  def test_classes_and_probabilities_of_each_image(self):
    code, (guarantee, header, *rows), err = self._run('binary', *self.paths)
    self.assertEqual((code, err), (0, ''))
    self.assertEqual(
      guarantee,
      'Model trained on pneumoniamnist for 100 rounds, (7.966, 1e-05)-'
      'differentially private for each client (add or remove one; PLD '
      'dp-accounting 0.6.0)',
    )
    self.assertEqual(header.split(), ['image', 'class', 'effusion', 'mass'])
    p = special.softmax(
      evaluation.predict(self.models['binary'], self.images), 1
    )
    self.assertLen(rows, _COUNT)
    for row, path, expected in zip(rows, self.paths, p):
      name, label, *printed = row.split()
      self.assertEqual(name, path)
      self.assertEqual(label, ('effusion', 'mass')[expected.argmax()])
      np.testing.assert_allclose(
        [float(x) for x in printed], expected, atol=6e-5
      )
    self.assertLen({row.index(' 0.') for row in rows}, 1)

  def test_findings_of_a_multi_label_model(self):
    code, (guarantee, _, *rows), _ = self._run('findings', *self.paths)
    self.assertEqual(code, 0)
    self.assertIn('WITHOUT a privacy guarantee', guarantee)
    logits = evaluation.predict(self.models['findings'], self.images)
    for row, path, (effusion, mass) in zip(rows, self.paths, logits):
      found = [
        name
        for name, value in (('effusion', effusion), ('mass', mass))
        if value >= 0
      ]
      expected = f'{path.ljust(len(self.paths[-1]))}  {", ".join(found)}'
      self.assertStartsWith(row, expected if found else expected + 'none')

  def test_files_are_decoded_as_the_training_s_were(self):
    frames = np.random.default_rng(1).integers(0, 4096, (3, 40, 56))
    frames = frames.astype(np.uint16)
    # White and black are at the ends of this window, and turned over.
    scan = dicom_writing.content(
      frames,
      stored=12,
      WindowCenter=2048,
      WindowWidth=1024,
      PhotometricInterpretation='MONOCHROME1',
    )
    path = self.folder / 'scan.any'
    path.write_bytes(scan)
    code, (_, _, *rows), err = self._run('own', os.fspath(path), self.paths[0])
    self.assertEqual((code, err), (0, ''))
    low, high = 2048 - 0.5 - 1023 / 2, 2048 - 0.5 + 1023 / 2  # PS3.3 C.11.2.1.2
    grey = 1 - np.clip((frames - low) / (high - low), 0, 1)
    seen = tf.image.resize(grey[..., np.newaxis], (28, 28), antialias=True)
    images = np.concatenate([seen, self.images[:1] / 255.0])
    p = special.softmax(
      self.models['binary'](images.astype(np.float32)).numpy(), 1
    )
    self.assertLen(rows, 4)
    for row, name, expected in zip(
      rows,
      [f'{path}#0', f'{path}#1', f'{path}#2', self.paths[0]],
      p,
    ):
      image, _, *printed = row.split()
      self.assertEqual(image, name)
      np.testing.assert_allclose(
        [float(x) for x in printed], expected, atol=2e-3
      )

  def test_a_file_that_training_would_leave_out(self):
    path = self.folder / 'short.dcm'
    path.write_bytes(dicom_writing.content(np.ones((40, 40), np.uint16))[:-900])
    code, out, err = self._run('own', os.fspath(path))
    self.assertEqual((code, out), (2, []))
    self.assertRegex(err, r"^error: image '.*short.dcm' .*\n$")

  def test_a_large_jpeg_is_decoded_as_in_training(self):
    """By the graph as by whoever reads the file, at a fraction of its size."""
    pixels = np.random.default_rng(3).integers(0, 256, (300, 260, 1), np.uint8)
    path = self.folder / 'large.jpg'
    path.write_bytes(tf.io.encode_jpeg(pixels, quality=90).numpy())
    found = {}
    for reduced in (False, True):
      policy = decoded.DecodingPolicy(reduced_decoding=reduced)
      export.save(
        self.folder / 'reduced',
        self.models['binary'],
        class_names=('effusion', 'mass'),
        multi_label=False,
        privacy_card=_card(1.0),
        decoding_policy=policy,
      )
      self.assertEqual(
        export.load_decoding_policy(self.folder / 'reduced'), policy
      )
      model = tf.saved_model.load(str(self.folder / 'reduced'))
      images = image_files.read(path, policy, (28, 28, 1))
      served, read = (
        model.signatures[name](tf.constant(values))['probabilities'].numpy()
        for name, values in (
          ('serve_bytes', [path.read_bytes()]),
          ('serving_default', images),
        )
      )
      np.testing.assert_allclose(served, read, atol=0.01)
      graph = model.signatures['serve_bytes'].graph.as_graph_def()
      ratios = {
        node.attr['ratio'].i
        for function in graph.library.function
        for node in function.node_def
        if node.op == 'DecodeJpeg'
      }
      self.assertEqual(ratios, {1, 2, 4, 8} if reduced else {1})
      found[reduced] = images
    self.assertGreater(np.abs(found[True] - found[False]).max(), 2 / 255)

  def test_a_damaged_policy_is_one_line(self):
    folder = self.folder / 'damaged_policy'
    shutil.copytree(self.folder / 'own', folder)
    asset = folder / 'assets' / image_files.POLICY_FILE
    for text in (
      '',
      '[]',
      '{"frames": "none"}',
      '{"value_range": null, "reduced_decoding": 1}',
      asset.read_text() + '}',
    ):
      asset.write_text(text)
      code, out, err = self._run('damaged_policy', self.paths[0])
      self.assertEqual((code, out), (2, []))
      self.assertIn(f'{image_files.POLICY_FILE} of the model is damaged', err)

  def test_labels_of_folders(self):
    logits = evaluation.predict(self.models['binary'], self.images)
    predicted = [('effusion', 'mass')[i] for i in logits.argmax(1)]
    other = {'effusion': 'mass', 'mass': 'effusion'}
    # All images but the first are in the folder of their class, whose name is
    # spelt differently.
    labels = [other[predicted[0]], *(name.upper() for name in predicted[1:])]
    paths = []
    for path, label in zip(self.paths, labels):
      folder = self.folder / 'labelled' / label
      folder.mkdir(parents=True, exist_ok=True)
      paths.append(os.fspath(folder / pathlib.Path(path).name))
      pathlib.Path(paths[-1]).write_bytes(pathlib.Path(path).read_bytes())
    code, lines, err = self._run('binary', *paths, labels_from_folders=True)
    self.assertEqual((code, err), (0, ''))
    self.assertEqual(lines[1].split()[:3], ['image', 'label', 'class'])
    shown = [tuple(line.split()[1:3]) for line in lines[2:-1]]
    self.assertEqual(shown, list(zip(labels, predicted)))
    self.assertEqual(
      lines[-1],
      f'{_COUNT - 1} of {_COUNT} images have the class of their folder',
    )

  @parameterized.parameters(
    ('normal, benign', 'normal__benign', True),
    ('normal, benign', 'benign', False),
    ('effusion, mass', 'mass', True),
    ('none', 'mass', False),
  )
  def test_agreement(self, text, label, expected):
    names = ('normal, benign', 'effusion', 'mass')
    prediction = classify.Prediction('a.png', label, text, ())
    self.assertEqual(classify._agrees(prediction, names), expected)

  def test_bad_input_is_one_line_and_exit_code_2(self):
    text = self.folder / 'note.png'
    text.write_text('not an image')
    good = self.paths[0]
    for model, paths, message in (
      (None, [good], '--saved_model must name'),
      ('missing', [good], 'not a model exported'),
      ('.', [good], 'not a model exported'),
      ('binary', [], 'no images given'),
      ('binary', [good, 'missing.png'], "'missing.png' cannot be read: No"),
      ('binary', [os.fspath(self.folder)], 'cannot be read: Is a dir'),
      ('binary', [good, os.fspath(text)], "note.png' is neither a PNG nor"),
    ):
      with self.subTest(message):
        code, out, err = self._run(model, *paths)
        self.assertEqual((code, out), (2, []))
        self.assertStartsWith(err, 'error: ')
        self.assertEqual(err.count('\n'), 1)
        self.assertIn(message, err)

  def _refused(self, model, path):
    code, out, err = self._run(model, self.paths[0], os.fspath(path))
    self.assertEqual((code, out), (2, []))
    self.assertStartsWith(err, 'error: ')
    self.assertEqual(err.count('\n'), 1)
    return err

  def test_what_is_no_file_is_not_waited_for(self):
    fifo, socket_path = self.folder / 'fifo.png', self.folder / 'socket.png'
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as server:
      server.bind(os.fspath(socket_path))
    loop = self.folder / 'loop.png'
    loop.symlink_to(loop)
    for path, reason in (
      (fifo, 'it is not a regular file'),
      ('/dev/zero', 'it is not a regular file'),
      (socket_path, 'No such device'),
      (loop, 'Too many levels of symbolic links'),
      (self.folder / ('x' * 300), 'File name too long'),
      ('a\0b', 'No file has such a name'),
      ('', 'No such file'),
    ):
      with self.subTest(reason):
        self.assertIn(
          f'cannot be read: {reason}', self._refused('binary', path)
        )

  def test_the_reason_is_that_of_the_exported_graph(self):
    png = pathlib.Path(self.paths[0]).read_bytes()
    for name, content, reason in (
      ('empty', b'', 'is neither a PNG nor a JPEG'),
      ('cut', png[:-20], 'cannot be decoded: the PNG or JPEG is damaged or'),
      (
        'large',
        png[:16] + b'\0\0\x40\0' * 2 + png[24:],
        'is 16384 x 16384 pixels, more than the 67108864 allowed',
      ),
    ):
      with self.subTest(name):
        path = self.folder / f'{name}.png'
        path.write_bytes(content)
        err = self._refused('binary', path)
        self.assertStartsWith(err, f'error: image {os.fspath(path)!r} {reason}')

  def test_a_file_too_large_is_not_read(self):
    path = self.folder / 'sparse.png'
    with path.open('wb') as file:
      file.truncate(2**40)
    err = self._refused('binary', path)
    self.assertIn('has more than the 67108864 bytes allowed', err)

  def test_any_name_of_a_file(self):
    png = pathlib.Path(self.paths[0]).read_bytes()
    folder = self.folder / 'names'
    folder.mkdir()
    for name in (b'two\nlines.png', b'\xff.png', 'ähre.png'.encode()):
      path = os.path.join(os.fsencode(folder), name)
      pathlib.Path(os.fsdecode(path)).write_bytes(png)
      code, out, err = self._run('binary', os.fsdecode(path))
      self.assertEqual((code, err), (0, ''))
      self.assertLen(out, 3)
      out[2].encode()

  def test_a_model_with_other_names_or_things_in_it(self):
    for name, change, reason in (
      (
        'names',
        lambda f: (f / 'assets/class_names.txt').write_text('one\n'),
        'has 1 names for 2 outputs',
      ),
      ('fifo', lambda f: os.mkfifo(f / 'variables/x'), 'not a regular file'),
    ):
      with self.subTest(name):
        folder = self.folder / f'with_{name}'
        shutil.copytree(self.folder / 'binary', folder)
        change(folder)
        self.assertIn(reason, self._refused(folder.name, self.paths[0]))

  def test_a_damaged_model_is_one_line(self):
    model = models.build('cnn', input_shape=(8, 8, 1), num_outputs=2)
    path = self.folder / 'damaged'
    export.save(
      path,
      model,
      class_names=('a', 'b'),
      multi_label=False,
      privacy_card=_card(1.0),
    )
    for file in ('variables/variables.data-00000-of-00001', 'saved_model.pb'):
      (path / file).write_bytes((path / file).read_bytes()[:1000])
      code, out, err = self._run('damaged', self.paths[0])
      self.assertEqual((code, out), (2, []))
      self.assertRegex(err, r'^error: the model in .* is damaged.*\n$')

  def test_the_command_works_without_tff(self):
    block = (
      'import runpy, sys; sys.modules["tensorflow_federated"] = None; '
      'runpy.run_module("experiments.classify", run_name="__main__")'
    )
    # A user's environment does not silence TensorFlow; the command must.
    env = dict(os.environ)
    env.pop('TF_CPP_MIN_LOG_LEVEL', None)
    result = subprocess.run(
      [sys.executable, '-c', block]
      + [f'--saved_model={self.folder}/binary', self.paths[0]],
      cwd=_ROOT,
      env=env,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual((result.returncode, result.stderr), (0, ''))
    self.assertLen(result.stdout.splitlines(), 3)

  def test_an_unknown_flag_exits_with_2(self):
    done = subprocess.run(
      [sys.executable, '-m', 'experiments.classify', '--save_model=x'],
      cwd=_ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual((done.returncode, done.stdout), (2, ''))
    self.assertRegex(done.stderr, '^error: Unknown command line flag.*\n$')


if __name__ == '__main__':
  absltest.main()
