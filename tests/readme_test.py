"""Tests that what the README shows can be run."""

import os
import pathlib
import re
import subprocess
import sys

from absl.testing import absltest

from experiments.config import settings
from tff_medical.auditing import verification

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_README = _ROOT / 'README.md'


class ReadmeTest(absltest.TestCase):
  def test_flags_it_names_exist(self):
    named = set(re.findall(r'`--(\w+)`', _README.read_text()))
    known = set(settings.names()) | {'dry_run', 'help'}
    self.assertNotEmpty(named)
    self.assertContainsSubset(named, known)

  def test_files_it_names_exist(self):
    for page in (_README, _ROOT / 'CONTRIBUTING.md'):
      text = page.read_text()
      named = re.findall(
        r'(?:tff_medical|experiments|tests|docs|results)/[\w/.]+', text
      )
      linked = re.findall(r'\]\(([\w/.-]+)\)', text)
      self.assertNotEmpty(named)
      for path in named + linked:
        self.assertTrue((_ROOT / path.rstrip('.')).exists(), path)

  def test_program_runs_to_its_export_and_goes_on(self):
    program = next(
      block
      for block in re.findall(r'```python\n(.*?)```', _README.read_text(), re.S)
      if 'build_dp_sgd' in block
    )
    folder = pathlib.Path(self.create_tempdir().full_path)
    printed = [
      subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', program],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': str(_ROOT)},
        check=True,
        capture_output=True,
        text=True,
      )
      for _ in range(2)
    ]
    self.assertEqual([done.stderr for done in printed], ['', ''])
    first, again = (done.stdout.splitlines() for done in printed)
    self.assertLen(first, 61)
    # All rounds were saved, so that nothing is trained or charged again.
    self.assertEqual(again, first[-1:])
    auc, epsilon = map(float, re.findall(r'\d+\.\d+', first[-1]))
    self.assertGreater(auc, 0.9)
    self.assertBetween(epsilon, 2.8, 3.0)
    checks = verification.verify(folder / 'my_run' / 'saved_model')
    self.assertEqual([c for c in checks if not c.is_right], [])


if __name__ == '__main__':
  absltest.main()
