"""Tests that the wheel holds the library alone, installs, imports and trains.

Nothing here needs a network: the environment's own setuptools builds the wheel,
and the libraries that it runs on are those of the environment.
"""

import atexit
import email
import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

import tff_medical

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_SOURCES = ('LICENSE', 'README.md', 'pyproject.toml', 'requirements.txt')
_PROGRAM = pathlib.Path(__file__).with_name('installed_program.py')
# What can be tried without the libraries: every module is in this Python's
# syntax, and the package itself imports.
_CHEAP = """
import compileall, pathlib, sys, tff_medical
folder = pathlib.Path(tff_medical.__file__).parent
assert compileall.compile_dir(folder, quiet=1), 'a module does not compile'
assert 'numpy' not in sys.modules
assert issubclass(tff_medical.InputError, ValueError)
print(folder, tff_medical.__version__)
"""


def _run(*command, cwd=None, timeout=300):
  """Returns what a process printed; the test fails with its output else."""
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  done = subprocess.run(
    [str(part) for part in command],
    check=False,
    capture_output=True,
    cwd=cwd,
    env=environment,
    text=True,
    timeout=timeout,
  )
  if done.returncode:
    raise AssertionError(
      f'{command}\n{done.stdout[-4000:]}{done.stderr[-4000:]}'
    )
  return done.stdout


@functools.lru_cache(maxsize=1)
def _wheel() -> pathlib.Path:
  """Builds the wheel once, from a copy: a build writes beside its sources."""
  folder = pathlib.Path(tempfile.mkdtemp(prefix='tff_medical_wheel_'))
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  ignored = shutil.ignore_patterns('__pycache__')
  for name in _SOURCES:
    shutil.copy(_ROOT / name, folder)
  for name in ('tff_medical', 'experiments', 'tests'):
    shutil.copytree(_ROOT / name, folder / name, ignore=ignored)
  _run(
    *(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-index'),
    *('--no-deps', '--no-build-isolation', '-w', folder / 'dist', '.'),
    cwd=folder,
  )
  (found,) = (folder / 'dist').glob('*.whl')
  return found


def _install(python, folder, *, wheel=None):
  """Returns the Python of a new environment that holds the wheel alone."""
  _run(python, '-m', 'venv', folder)
  inside = folder / 'bin' / 'python'
  _run(
    *(inside, '-m', 'pip', 'install', '--quiet', '--no-index', '--no-deps'),
    wheel or _wheel(),
  )
  return inside


def _interpreter(version):
  """Returns a Python of that version that starts, or None."""
  if version == f'{sys.version_info.major}.{sys.version_info.minor}':
    return sys.executable
  candidates = [shutil.which(f'python{version}')]
  # Interpreters of pyenv start only where its settings choose them.
  pyenv = pathlib.Path(
    os.environ.get('PYENV_ROOT', pathlib.Path.home() / '.pyenv')
  )
  candidates += sorted(pyenv.glob(f'versions/{version}.*/bin/python'))
  for candidate in filter(None, candidates):
    done = subprocess.run(
      [candidate, '-c', 'import ensurepip, venv'],
      check=False,
      capture_output=True,
    )
    if not done.returncode:
      return str(candidate)
  return None


class WheelTest(absltest.TestCase):
  def test_holds_the_library_whole_and_nothing_else(self):
    names = set(zipfile.ZipFile(_wheel()).namelist())
    modules = {
      str(path.relative_to(_ROOT))
      for path in (_ROOT / 'tff_medical').rglob('*')
      if path.is_file() and path.suffix != '.pyc'
    }
    self.assertContainsSubset(modules, names)
    self.assertIn('tff_medical/py.typed', names)
    self.assertIn('tff_medical/data/checksums.tsv', names)
    beside = f'tff_medical-{tff_medical.__version__}'
    self.assertCountEqual(
      {name.split('/')[0] for name in names},
      ['tff_medical', f'{beside}.data', f'{beside}.dist-info'],
    )
    self.assertTrue(
      any(
        n.endswith('licenses/LICENSE') or n.endswith('dist-info/LICENSE')
        for n in names
      )
    )

  def test_metadata_needs_nothing_that_a_resolver_cannot_find(self):
    archive = zipfile.ZipFile(_wheel())
    (path,) = (n for n in archive.namelist() if n.endswith('/METADATA'))
    metadata = email.message_from_string(archive.read(path).decode())
    self.assertIsNone(metadata.get_all('Requires-Dist'))
    self.assertIsNone(metadata.get_all('Provides-Extra'))
    self.assertEqual(metadata['Version'], tff_medical.__version__)
    self.assertEqual(metadata['License'], 'Apache-2.0')
    self.assertEqual(
      set(metadata['Requires-Python'].split(',')), {'>=3.9', '<3.12'}
    )

  def test_brings_the_lock_along(self):
    archive = zipfile.ZipFile(_wheel())
    (path,) = (n for n in archive.namelist() if n.endswith('requirements.txt'))
    self.assertEqual(
      archive.read(path), (_ROOT / 'requirements.txt').read_bytes()
    )
    self.assertRegex(path, r'\.data/data/share/tff-medical/')

  def test_readme_shows_how_it_is_installed(self):
    # InstallTest does the same, with this environment in place of the lock.
    self.assertIn(
      '    pip install --no-deps --ignore-requires-python -r requirements.txt\n'
      '    pip install --no-deps .\n',
      (_ROOT / 'README.md').read_text(),
    )


class InstallTest(parameterized.TestCase):
  def test_trains_from_outside_of_the_repository(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    python = _install(sys.executable, folder / 'venv')
    site_packages = pathlib.Path(
      _run(
        python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'
      ).strip()
    )
    # The locked libraries take 3 GB; those of this environment stand in.
    (site_packages / 'locked.pth').write_text(
      str(pathlib.Path(np.__file__).parents[1])
    )
    program = shutil.copy(_PROGRAM, folder)
    printed = _run(python, program, folder / 'records', cwd=folder)
    self.assertTrue(printed.startswith(str(site_packages)), printed)
    self.assertRegex(printed, r'epsilon [78]\.\d\d, moved')

  @parameterized.parameters('3.9', '3.10', '3.11')
  def test_imports_without_its_libraries(self, version):
    python = _interpreter(version)
    if python is None:
      self.skipTest(f'no Python {version} with venv on this machine')
    folder = pathlib.Path(self.create_tempdir().full_path)
    inside = _install(python, folder / 'venv')
    printed = _run(inside, '-c', _CHEAP, cwd=folder)
    self.assertStartsWith(printed, str(folder / 'venv'))
    message = _run(
      *(inside, '-c'),
      'import tff_medical\ntry: tff_medical.privacy.mechanisms'
      '\nexcept ImportError as e: print(e)',
      cwd=folder,
    )
    self.assertIn('is not installed', message)
    self.assertIn('-r requirements.txt', message)


if __name__ == '__main__':
  absltest.main()
