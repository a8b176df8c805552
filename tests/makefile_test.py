"""Tests that the Makefile finds a Python that suits, or says how to get one."""

import os
import pathlib
import shutil
import subprocess

from absl.testing import absltest
from absl.testing import parameterized

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_TOOLS = ('sh', 'rm', 'touch', 'mkdir', 'cp', 'chmod')
# Stands for a Python of one version: it answers the Makefile's questions, makes
# an environment that holds itself, and writes down what pip is asked for.
_PYTHON = """#!/bin/sh
case "$1 $2" in
  "-c "*ensurepip*) exit {unsuitable} ;;
  "-c "*) echo {version} ;;
  "--version ") echo Python {version}.0 ;;
  "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  "-m pip") echo "$@" > "{log}" ;;
esac
"""


class SetUpTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.bin = self.folder / 'bin'
    self.bin.mkdir()
    for name in _TOOLS:
      (self.bin / name).symlink_to(shutil.which(name))

  def _python(self, name, version, *, suits=None):
    """Puts a Python on the search path."""
    if suits is None:
      suits = version in ('3.9', '3.10', '3.11')
    path = self.bin / name
    path.write_text(
      _PYTHON.format(
        version=version, unsuitable=int(not suits), log=self.folder / 'log'
      )
    )
    path.chmod(0o755)
    return path

  def _make(self, *arguments):
    venv = self.folder / 'venv'
    environment = {
      k: v
      for k, v in os.environ.items()
      if k not in ('PYTHON', 'MAKEFLAGS', 'MAKELEVEL')
    }
    return subprocess.run(
      [
        *(shutil.which('make'), f'VENV={venv}', 'SHELL=sh'),
        *(str(venv / '.installed'), *arguments),
      ],
      check=False,
      capture_output=True,
      cwd=_ROOT,
      env={**environment, 'PATH': str(self.bin)},
      text=True,
    )

  def test_installs_the_locks_with_the_first_python_that_suits(self):
    self._python('python3', '3.13')
    self._python('python3.11', '3.11', suits=False)  # Debian's, without venv.
    self._python('python3.10', '3.10')
    done = self._make()
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('3.10.0', done.stdout)
    asked = (self.folder / 'log').read_text()
    self.assertIn('--no-deps', asked)
    self.assertIn(
      '-r requirements.txt -r requirements-dev.txt '
      '-r requirements-backbone.txt -r requirements-cluster.txt',
      asked,
    )

  def test_a_changed_lock_installs_again(self):
    self._python('python3', '3.11')
    self._make()
    (self.folder / 'log').unlink()
    self.assertIn('up to date', self._make().stdout)
    os.utime(self.folder / 'venv' / '.installed', (0, 0))
    self._make()
    self.assertTrue((self.folder / 'log').exists())

  def test_libraries_for_gpus_are_installed_once(self):
    self._python('python3', '3.11')
    done = self._make('gpu')
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('-m experiments.warm_gpu', done.stdout)
    asked = (self.folder / 'log').read_text()
    self.assertIn('--no-deps -r requirements-gpu.txt', asked)
    (self.folder / 'log').unlink()
    self.assertIn('-m experiments.warm_gpu', self._make('gpu').stdout)
    self.assertFalse((self.folder / 'log').exists())

  @parameterized.parameters('3.12', '3.13', '3.8')
  def test_names_a_remedy_where_no_python_suits(self, version):
    self._python('python3', version)
    done = self._make()
    self.assertEqual(done.returncode, 2)
    error, *remedies = done.stderr.splitlines()
    self.assertStartsWith(error, 'error: Python 3.9, 3.10 or 3.11')
    self.assertIn(f'python3 is Python {version}.0', error)
    remedies = '\n'.join(remedies)
    for word in ('uv python install 3.11', 'pyenv', 'Debian 12', 'deadsnakes'):
      self.assertIn(word, remedies)
    self.assertFalse((self.folder / 'venv').exists())

  def test_python_can_be_named(self):
    self._python('python3.11', '3.11')
    done = self._make(f'PYTHON={self._python("mine", "3.9")}')
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('3.9.0', done.stdout)

  @parameterized.parameters('too_new', 'not_there')
  def test_a_named_python_that_does_not_suit_is_an_error(self, name):
    self._python('python3.11', '3.11')
    self._python('too_new', '3.13')
    done = self._make(f'PYTHON={name}')
    self.assertEqual(done.returncode, 2)
    self.assertIn(f'{name} is ', done.stderr)
    self.assertFalse((self.folder / 'venv').exists())

  @parameterized.parameters('other', 'not_there')
  def test_a_named_python_that_would_be_ignored_is_an_error(self, name):
    self._python('python3', '3.11')
    self._python('same', '3.11')
    self._python('other', '3.10')
    self._make()
    done = self._make(f'PYTHON={name}')
    self.assertEqual(done.returncode, 2)
    self.assertIn('run make clean first', done.stderr)
    self.assertEqual(self._make('PYTHON=same').returncode, 0)


if __name__ == '__main__':
  absltest.main()
