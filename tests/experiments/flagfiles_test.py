"""Tests of bad flagfiles: one line and exit code 2, never a wait."""

import os
import pathlib
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized

from experiments.config import flags
from experiments.config import settings as settings_lib
from experiments.running import exit_codes
from tff_medical import _validate

_ROOT = pathlib.Path(__file__).resolve().parents[2]
# A command with the flags of `experiments.train`, but without slow imports.
_COMMAND = """
from experiments.running import command
from experiments.config import flags
read = flags.define()
command.run(lambda: print('rounds', read().rounds))
"""


def _binary(folder):
  (folder / 'x').write_bytes(bytes(range(128, 256)) * 9)


def _nulls(folder):
  (folder / 'x').write_bytes(b'--rounds=3\x00\n')


def _pipe(folder):
  os.mkfifo(folder / 'x')


def _folder(folder):
  (folder / 'x').mkdir()


def _circle(folder):
  (folder / 'x').write_text(f'--rounds=3\n--flagfile={folder}/y\n')
  (folder / 'y').write_text(f'--flagfile={folder}/x\n')


def _nested_pipe(folder):
  (folder / 'x').write_text(f'# Comment\n  --flagfile={folder}/y\n')
  os.mkfifo(folder / 'y')


def _unknown_flag(folder):
  (folder / 'x').write_text('--round=3\n')


def _nothing(folder):
  del folder


class FlagfileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def _run(self, *arguments):
    return subprocess.run(
      [sys.executable, '-c', _COMMAND, *arguments],
      capture_output=True,
      text=True,
      timeout=120,
      check=False,
      cwd=_ROOT,
    )

  @parameterized.parameters(
    (_binary, 'flagfile .* is no text'),
    (_nulls, 'flagfile .* is no text'),
    (_pipe, 'flagfile .* is no file'),
    (_folder, 'flagfile .* is no file'),
    (_nothing, 'flagfile .* does not exist'),
    (_circle, 'flagfile .* includes itself'),
    (_nested_pipe, 'flagfile .*y is no file'),
    (_unknown_flag, "Unknown command line flag 'round'"),
  )
  def test_one_line(self, make, message):
    make(self.folder)
    for arguments in (
      [f'--flagfile={self.folder}/x'],
      ['-flagfile', f'{self.folder}/x'],
    ):
      ended = self._run(*arguments)
      self.assertEqual(ended.returncode, exit_codes.BAD_INPUT)
      self.assertRegex(ended.stderr, rf'^error: .*{message}.*\n$')
      self.assertEmpty(ended.stdout)
      with self.assertRaisesRegex(_validate.InputError, message):
        flags.changed(settings_lib.Flags.of(), ' '.join(arguments))

  @parameterized.parameters('--flagfile={}', '--flagfile {}')
  def test_one_of_another_command_names_that_command(self, form):
    path = 'experiments/presets/tradeoff_quick.flags'
    ended = self._run(*form.format(path).split())
    self.assertEqual(ended.returncode, exit_codes.BAD_INPUT)
    self.assertEqual(
      ended.stderr,
      f'error: epsilons is no flag of this command: flagfile {path} is for '
      'experiments.tradeoff; start that command\n',
    )

  def test_good_ones_still_work(self):
    (self.folder / 'y').write_text('--rounds=7\n', encoding='utf-8')
    (self.folder / 'x').write_text(
      f'# ε\n--flagfile={self.folder}/y\n\n--seed=1\n', encoding='utf-8'
    )
    ended = self._run(f'--flagfile={self.folder}/x')
    self.assertEqual((ended.returncode, ended.stdout), (0, 'rounds 7\n'))


if __name__ == '__main__':
  absltest.main()
