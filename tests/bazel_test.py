"""Tests that Bazel accepts BUILD and finds every file by it."""

import pathlib
import shutil
import subprocess
import tempfile

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_BAZEL = shutil.which('bazel')


def _files(package, pattern='*.py'):
  return {str(p.relative_to(_ROOT)) for p in (_ROOT / package).rglob(pattern)}


def _without_ending(paths):
  return {path[: -len('.py')] for path in paths}


@absltest.skipIf(_BAZEL is None, 'no bazel: apt-get install bazel-bootstrap')
class BazelTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    # Bazel unpacks itself into it, once for all tests.
    cls.state = cls.enter_context(tempfile.TemporaryDirectory())

  def _query(self, expression, workspace=_ROOT):
    """Returns the labels that Bazel finds, as paths."""
    root = f'--output_user_root={self.state}'
    done = subprocess.run(
      [_BAZEL, root, '--batch', 'query', expression],
      cwd=workspace,
      check=False,
      capture_output=True,
      text=True,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    return {line.split('//:')[-1] for line in done.stdout.splitlines()}

  def test_every_test_is_a_target(self):
    expected = _without_ending(_files('tests', '*_test.py'))
    self.assertEqual(self._query('tests(//...)'), expected)

  def test_every_command_is_a_target(self):
    commands = {
      path
      for package in ('experiments', 'tools')
      for path in _files(package)
      if "\nif __name__ == '__main__':" in (_ROOT / path).read_text()
    }
    self.assertContainsSubset(
      _without_ending(commands), self._query('kind(py_binary, //...)')
    )

  def test_libraries_hold_every_module_and_data_file(self):
    packages = ('tff_medical', 'experiments', 'tools')
    labels = ' + '.join(f'//:{package}' for package in packages)
    found = self._query(f'labels(srcs, {labels})')
    expected = set().union(*(_files(package) for package in packages))
    self.assertEqual(found, expected)
    found = self._query(
      'labels(data, //:tff_medical + //:experiments + //:tests)'
    )
    self.assertContainsSubset(
      {'tff_medical/py.typed', 'tff_medical/data/checksums.tsv', 'README.md'}
      | _files('experiments', '*.flags')
      | _files('results', '*.csv'),
      found,
    )

  def test_sources_and_dependencies_are_there(self):
    self._query('labels(srcs, //...) + labels(deps, //...)')

  def test_a_new_file_needs_no_change(self):
    workspace = pathlib.Path(self.create_tempdir().full_path)
    for path in ('tests/new/one_test.py', 'tff_medical/new/two.py'):
      (workspace / path).parent.mkdir(parents=True)
      (workspace / path).touch()
    (workspace / 'WORKSPACE').touch()
    shutil.copy(_ROOT / 'BUILD', workspace)
    self.assertEqual(
      self._query('tests(//...)', workspace), {'tests/new/one_test'}
    )
    self.assertEqual(
      self._query('labels(srcs, //:tff_medical)', workspace),
      {'tff_medical/new/two.py'},
    )


if __name__ == '__main__':
  absltest.main()
