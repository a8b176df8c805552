"""Tests of all commands: help and refusals of wrong flags come at once."""

import concurrent.futures
import pathlib
import re
import subprocess
import sys
import typing

from absl.testing import absltest

from experiments.config import settings as settings_lib

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_COMMANDS = sorted(
  path.stem
  for path in (_ROOT / 'experiments').glob('*.py')
  if "if __name__ == '__main__':" in path.read_text(encoding='utf-8')
)
_WITH_SETTINGS = ('compare', 'tradeoff', 'train', 'tune')
# Flags of absl, of TensorFlow and of the packages that it imports.
_FOREIGN = (
  'alsologtostderr', 'flagfile', 'helpfull', 'log_dir', 'only_check_args',
  'pdb', 'run_with_pdb', 'tfds_dir', 'verbosity', 'xml_output_file',
)  # fmt: skip
# Packages that take seconds to import.
_SLOW = ('tensorflow', 'tensorflow_federated', 'jax', 'keras')
# Packages without which the flags of a training are read and refused.
_NOT_FOR_FLAGS = ('scipy', 'pandas', 'matplotlib', 'tqdm')


class _Ended(typing.NamedTuple):
  """End of a command.

  Attributes:
    code: Exit code.
    printed: Text on stdout.
    errors: Lines on stderr, without the times of imports.
    slow: Packages of `_SLOW` that were imported.
    not_for_flags: Packages of `_NOT_FOR_FLAGS` that were imported.
  """

  code: int
  printed: str
  errors: list[str]
  slow: list[str]
  not_for_flags: list[str]


def _run(command, *arguments):
  done = subprocess.run(
    [sys.executable, '-X', 'importtime', '-m', f'experiments.{command}']
    + list(arguments),
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  lines = done.stderr.splitlines()
  times = [x for x in lines if x.startswith('import time:')]
  imported = {x.rpartition('|')[2].strip() for x in times}
  assert 'absl.flags' in imported, command
  return _Ended(
    done.returncode,
    done.stdout,
    [x for x in lines if x not in times],
    sorted(imported & set(_SLOW)),
    sorted(imported & set(_NOT_FOR_FLAGS)),
  )


def _run_all(*cases):
  """Returns how each case ended; two run at once."""
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    return list(pool.map(lambda case: _run(*case), cases))


def _shown(text):
  """Returns the flags that a help text shows."""
  return re.findall(r'^  --(\w+)', text, re.M)


class HelpTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    ended = _run_all(*((command, '--help') for command in _COMMANDS))
    cls.ended = dict(zip(_COMMANDS, ended))

  def test_there_are_commands(self):
    self.assertContainsSubset([*_WITH_SETTINGS, 'audit', 'plan'], _COMMANDS)

  def test_ends_with_0_and_says_what_the_command_does(self):
    for command, ended in self.ended.items():
      with self.subTest(command):
        self.assertEqual((ended.code, ended.errors), (0, []))
        path = _ROOT / 'experiments' / f'{command}.py'
        first = path.read_text(encoding='utf-8').splitlines()[0]
        self.assertStartsWith(ended.printed, first.lstrip('r').strip('"'))
        self.assertIn(f'python -m experiments.{command}', ended.printed)
        # In a plain docstring, a backslash at the end joins two lines.
        self.assertNotRegex(ended.printed, r'\S {5,}--')

  def test_shows_each_flag_of_its_own_once(self):
    for command, ended in self.ended.items():
      with self.subTest(command):
        shown = _shown(ended.printed)
        self.assertEqual(sorted(set(shown)), sorted(shown))
        self.assertNoCommonElements(_FOREIGN, shown)
        if command in _WITH_SETTINGS:
          self.assertContainsSubset(settings_lib.names(), shown)
        elif command not in ('completion', 'verify'):
          self.assertNotEmpty(shown)
    self.assertCountEqual(
      _shown(self.ended['train'].printed), ['dry_run', *settings_lib.names()]
    )
    self.assertCountEqual(
      _shown(self.ended['references'].printed),
      ['kind', *settings_lib.REFERENCE_FLAGS],
    )
    self.assertContainsSubset(
      ['epsilons', 'seeds', 'jobs'], _shown(self.ended['tradeoff'].printed)
    )

  def test_needs_no_tensorflow(self):
    for command, ended in self.ended.items():
      self.assertEmpty(ended.slow, command)

  def test_flags_of_a_training_need_neither_scipy_nor_tables(self):
    """They take longer to import than all modules of the settings together."""
    self.assertEmpty(self.ended['train'].not_for_flags)

  def test_lines_fit_a_terminal(self):
    for command, ended in self.ended.items():
      for line in ended.printed.splitlines():
        self.assertLessEqual(len(line), 80, (command, line))


class WrongFlagsTest(absltest.TestCase):
  def _check(self, case, ended, message):
    with self.subTest(' '.join(case)):
      self.assertEqual((ended.code, ended.printed), (2, ''))
      self.assertLen(ended.errors, 1)
      self.assertRegex(ended.errors[0], f'^error: .*{message}')
      self.assertEmpty(ended.slow)

  def test_an_unknown_flag_is_one_line_before_tensorflow(self):
    cases = [(command, '--no_such_flag=1') for command in _COMMANDS]
    for case, ended in zip(cases, _run_all(*cases)):
      self._check(case, ended, 'no_such_flag')

  def test_so_is_a_value_that_cannot_be_used(self):
    slip = self.create_tempfile(
      content='#   python -m experiments.train --flagfile=...\n--roundz=3\n'
    ).full_path
    cases = {
      ('train', '--rounds=many'): '--rounds',
      ('train', '--clipping=adaptve'): "did you mean 'adaptive'",
      ('train', '--dataset=medmnist/brestmnist'): 'did you mean',
      ('train', '--target_epsilon=8'): 'output_dir must be given',
      ('train', 'stray'): "unexpected argument 'stray'",
      ('train', '--flagfile=nowhere'): 'nowhere does not exist',
      (
        'train',
        '--flagfile=experiments/presets/study_pneumonia_record.flags',
      ): 'epsilons is no flag of this command: .* is for experiments.tradeoff',
      # A slip of the user's own is not blamed on the command of the file.
      ('train', f'--flagfile={slip}'): 'Unknown command line flag .*rounds',
      ('train', '--nosuch=1', '--', '--flagfile=nowhere'): 'nosuch',
      ('train', '--flagfile= experiments/presets/demo.flags', '--nosuch=1'): (
        'nosuch'
      ),
      ('references', '--ema_decay=.9'): 'ema_decay=0.9 would be ignored',
      ('audit', '--canaries=many'): '--canaries',
      ('benchmark', '--rounds=many'): '--rounds',
      ('compare', '--seeds=0', '--target_epsilon=1'): 'seeds',
      ('tradeoff', '--target_epsilon=1'): 'target_epsilon is decided',
    }
    for case, ended in zip(cases, _run_all(*cases)):
      self._check(case, ended, cases[case])


if __name__ == '__main__':
  absltest.main()
