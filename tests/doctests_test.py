"""Tests that every doctest of the repository is run, and can fail."""

import pathlib
import shutil
import subprocess
import sys

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_BROKEN = '"""Says what is not so.\n\n>>> 1 + 1\n3\n"""\n'
# Written by tools or by runs, not by hand.
_NOT_SOURCES = ('build', 'dist', 'runs')


def _folders_with_doctests():
  """Returns the top-level folders, as each has to be named to pytest."""
  for folder in _ROOT.iterdir():
    if (
      folder.is_dir()
      and not folder.name.startswith('.')
      and folder.name not in _NOT_SOURCES
      and any('>>> ' in path.read_text() for path in folder.rglob('*.py'))
    ):
      yield folder.name


class DoctestsTest(absltest.TestCase):
  def test_a_broken_one_fails_wherever_doctests_are(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    shutil.copy(_ROOT / 'pyproject.toml', folder)
    folders = sorted(_folders_with_doctests())
    self.assertContainsSubset(['experiments', 'tff_medical'], folders)
    for name in folders:
      (folder / name / 'deep').mkdir(parents=True)
      (folder / name / 'deep' / f'{name}_module.py').write_text(_BROKEN)
    done = subprocess.run(
      [sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider'],
      check=False,
      capture_output=True,
      cwd=folder,
      text=True,
    )
    self.assertEqual(done.returncode, 1, done.stdout)
    for name in folders:
      self.assertRegex(done.stdout, rf'FAILED {name}/deep/{name}_module\.py')
    self.assertIn(f'{len(folders)} failed', done.stdout)


if __name__ == '__main__':
  absltest.main()
