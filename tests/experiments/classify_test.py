"""The command prints what the model says, or one line and exit code 2."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import flagsaver
from absl.testing import parameterized
import numpy as np
from scipy import special
import tensorflow as tf

from experiments import classify
from tff_medical import evaluation
from tff_medical import export
from tff_medical import models
from tff_medical.privacy import card_format

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
    rng = np.random.default_rng(0)
    cls.images = rng.integers(0, 256, (_COUNT, 28, 28, 1), dtype=np.uint8)
    cls.paths = []
    for i, image in enumerate(cls.images):
      path = cls.folder / f'{"long" * i}{i}.png'
      path.write_bytes(tf.io.encode_png(image).numpy())
      cls.paths.append(os.fspath(path))

  def _run(self, model, *paths):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      with flagsaver.flagsaver(saved_model=model and f'{self.folder}/{model}'):
        code = classify.main(['classify', *paths])
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
      ('binary', [good, os.fspath(text)], 'not a PNG or JPEG'),
    ):
      with self.subTest(message):
        code, out, err = self._run(model, *paths)
        self.assertEqual((code, out), (2, []))
        self.assertStartsWith(err, 'error: ')
        self.assertEqual(err.count('\n'), 1)
        self.assertIn(message, err)

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
    # As a user has it, where the command itself keeps TensorFlow quiet.
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
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
      with self.assertRaises(SystemExit) as raised:
        classify._parse(['classify', '--save_model=x'])
    self.assertEqual(raised.exception.code, 2)
    self.assertStartsWith(err.getvalue(), 'error: Unknown command line flag')


if __name__ == '__main__':
  absltest.main()
