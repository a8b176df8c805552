"""Tests that BUILD has a target for every module and that Bazel accepts it."""

import importlib.util
import pathlib
import shutil
import subprocess

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def _generator():
  path = _ROOT / '.ci' / 'build_file.py'
  spec = importlib.util.spec_from_file_location('build_file', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


class BuildFileTest(absltest.TestCase):
  def test_is_what_the_sources_call_for(self):
    self.assertEqual(
      (_ROOT / 'BUILD').read_text(),
      _generator().build_file(),
      'run: python .ci/build_file.py > BUILD',
    )

  def test_generator_sees_modules_tests_commands_and_imports(self):
    text = _generator().build_file()
    self.assertIn('py_library(\n    name = "tff_medical/privacy/ledger"', text)
    self.assertIn('py_test(\n    name = "tests/build_file_test"', text)
    self.assertIn('py_binary(\n    name = "experiments/train"', text)
    train = text.split('name = "experiments/train"')[1].split('\n)\n')[0]
    self.assertIn('":tff_medical/privacy/ledger"', train)

  def test_bazel_parses_it(self):
    bazel = shutil.which('bazel')
    if bazel is None:
      self.skipTest('no bazel: apt-get install bazel-bootstrap')
    folder = pathlib.Path(self.create_tempdir().full_path)
    workspace = folder / 'workspace'
    workspace.mkdir()
    (workspace / 'WORKSPACE').touch()
    shutil.copy(_ROOT / 'BUILD', workspace)
    for package in ('tff_medical', 'experiments', 'tests'):
      (workspace / package).symlink_to(_ROOT / package)

    def query(expression):
      return subprocess.run(
        [
          bazel,
          f'--output_user_root={folder / "bazel"}',
          '--batch',
          'query',
          expression,
        ],
        cwd=workspace,
        check=False,
        capture_output=True,
        text=True,
      )

    done = query('tests(//...)')
    self.assertEqual(done.returncode, 0, done.stderr)
    found = {line.rsplit(':')[-1] for line in done.stdout.splitlines()}
    expected = {
      str(p.relative_to(_ROOT).with_suffix(''))
      for p in (_ROOT / 'tests').rglob('*_test.py')
    }
    self.assertEqual(found, expected)
    # Every source and dependency is a file or target that is there.
    done = query('labels(srcs, //...) + labels(deps, //...)')
    self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == '__main__':
  absltest.main()
