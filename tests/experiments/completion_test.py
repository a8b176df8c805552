"""Tests of the completion script, in a real bash."""

import pathlib
import shutil
import subprocess

from absl.testing import absltest
from absl.testing import parameterized

from experiments import completion
from tff_medical.data import loading

_BASH = shutil.which('bash')
_ASK = """
source {script}
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_tff_medical
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@absltest.skipIf(_BASH is None, 'no bash')
class CompletionTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.script = completion.script()

  def _complete(self, *words):
    path = pathlib.Path(self.create_tempdir().full_path, 'script')
    path.write_text(self.script)
    quoted = ' '.join(f"'{word}'" for word in words)
    done = subprocess.run(
      [_BASH, '-c', _ASK.format(script=path, words=quoted)],
      check=True,
      capture_output=True,
      text=True,
    )
    self.assertEqual(done.stderr, '')
    return done.stdout.split()

  @parameterized.parameters(
    (('-m', 'experiments.tr'), ['experiments.tradeoff', 'experiments.train']),
    (('-m', 'experiments.train', '--priv'), ['--privacy_unit=']),
    (('-m', 'experiments.train', '--dry'), ['--dry_run=']),
    (('-m', 'experiments.tradeoff', '--flagf'), ['--flagfile=']),
    (('-m', 'experiments.train', '--runtime', '=', 't'), ['tff']),
    (('-m', 'experiments.train', '--clipping', '=', 'f'), ['fixed']),
    (('-m', 'experiments.verify', '--epsilons'), []),
    (('-m', 'other', '--rounds'), []),
    (('-c', 'x'), []),
  )
  def test_words(self, words, expected):
    self.assertEqual(self._complete('python', *words), expected)

  def test_all_values_of_a_flag_without_a_letter_of_it(self):
    words = ('python', '-m', 'experiments.train', '--dataset', '=')
    self.assertEqual(self._complete(*words), list(loading.DATASETS))

  def test_every_command_and_flag_is_known(self):
    modules = self._complete('python', '-m', 'experiments.')
    expected = [f'experiments.{name}' for name in completion.commands()]
    self.assertEqual(modules, expected)
    self.assertContainsSubset(
      {'experiments.train', 'experiments.completion'}, modules
    )


if __name__ == '__main__':
  absltest.main()
