"""Tests of libraries whose code runs at first use."""

import os
import pathlib
import subprocess
import sys
import textwrap
import threading

from absl.testing import absltest

from experiments.running import late_imports

_LIBRARY = """
with open(__file__ + '.log', 'a') as log:
  log.write('run\\n')
try:
  missing
except NameError:
  pass
import late_example
assert not hasattr(late_example, 'missing')
from late_example import part
value = 3
"""


class LateImportsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir())
    package = self.folder / 'late_example'
    package.mkdir()
    (package / '__init__.py').write_text(_LIBRARY)
    (package / 'part.py').write_text('value = 4\n')
    self.log = package / '__init__.py.log'
    finders, path = list(sys.meta_path), list(sys.path)
    self.addCleanup(sys.meta_path.__setitem__, slice(None), finders)
    self.addCleanup(sys.path.__setitem__, slice(None), path)
    self.addCleanup(self._forget)
    sys.path.insert(0, os.fspath(self.folder))
    late_imports.install(['late_example', 'late_missing'])

  def _forget(self):
    for name in [n for n in sys.modules if n.startswith('late_example')]:
      del sys.modules[name]

  def runs(self):
    return self.log.read_text().count('run') if self.log.exists() else 0

  def test_import_statements_do_not_run_the_library(self):
    import late_example
    import late_example as again

    self.assertIs(again, late_example)
    self.assertEqual(late_example.__name__, 'late_example')
    self.assertEqual(self.runs(), 0)

  def test_an_attribute_runs_it_once(self):
    import late_example

    self.assertEqual(late_example.value, 3)
    self.assertEqual(late_example.part.value, 4)
    self.assertEqual(self.runs(), 1)

  def test_afterwards_it_is_an_ordinary_module(self):
    import late_example

    with self.assertRaises(AttributeError):
      _ = late_example.nothing
    self.assertIs(type(late_example), type(sys))
    self.assertEqual(
      late_example.__spec__.loader.get_filename(), late_example.__file__
    )

  def test_a_submodule_runs_the_library_before(self):
    import late_example.part

    self.assertEqual(late_example.part.value, 4)
    self.assertEqual(self.runs(), 1)

  def test_a_name_of_it_runs_the_library(self):
    from late_example import value

    self.assertEqual(value, 3)

  def test_threads_see_the_library_whole(self):
    import late_example

    values = []
    threads = [
      threading.Thread(target=lambda: values.append(late_example.value))
      for _ in range(8)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    self.assertEqual(values, [3] * 8)
    self.assertEqual(self.runs(), 1)

  def test_a_library_that_is_not_installed_cannot_be_imported(self):
    with self.assertRaises(ModuleNotFoundError):
      import late_missing  # noqa: F401


class CommandsTest(absltest.TestCase):
  def test_imports_of_a_training_run_no_late_library_which_then_work(self):
    code = textwrap.dedent("""
      import sys
      from experiments.running import late_imports
      late_imports.install()
      import experiments.train
      names = late_imports.LIBRARIES
      loaded = [n for n in sys.modules if n.startswith(tuple(f'{n}.' for n in names))]
      assert not loaded, loaded
      import tensorflow as tf, numpy as np, pandas
      frame = pandas.DataFrame({'x': np.ones(4, np.float32)})
      model = tf.keras.Sequential([tf.keras.layers.Dense(1, input_shape=(1,))])
      assert model.predict(frame, verbose=0).shape == (4, 1)
      from tensorflow_privacy.privacy.dp_query import discrete_gaussian_utils
      noise = discrete_gaussian_utils.sample_discrete_gaussian(2, (5,), tf.int32)
      assert noise.shape == (5,)
      print('fine')
    """)
    done = subprocess.run(
      [sys.executable, '-c', code],
      cwd=pathlib.Path(__file__).resolve().parents[3],
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertIn('fine', done.stdout, done.stderr[-2000:])


if __name__ == '__main__':
  absltest.main()
