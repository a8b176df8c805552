"""Runs the program that docs/library.md shows."""

import os
import pathlib
import re
import subprocess
import sys

from absl.testing import absltest

from tff_medical.auditing import verification

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PAGE = _ROOT / 'docs' / 'library.md'


class LibraryPageTest(absltest.TestCase):
  def test_program_runs_to_its_export_and_goes_on(self):
    (program,) = re.findall(
      r'```python\n(.*?)```', _PAGE.read_text('utf-8'), re.S
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
