"""Tests that what the README shows can be run."""

import pathlib
import re

from absl.testing import absltest

from experiments.config import settings

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_README = _ROOT / 'README.md'


class ReadmeTest(absltest.TestCase):
  def test_flags_it_names_exist(self):
    named = set(re.findall(r'`--(\w+)`', _README.read_text()))
    known = set(settings.names()) | {'help'}
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

  def test_program_for_tff_users_runs(self):
    program = next(
      block
      for block in re.findall(r'```python\n(.*?)```', _README.read_text(), re.S)
      if 'build_dp_fed_avg' in block
    )
    names = {}
    exec(compile(program, str(_README), 'exec'), names)  # pylint: disable=exec-used
    self.assertLessEqual(names['mechanism'].noise_multiplier, 1.5)
    self.assertEqual(int(names['state'].aggregator.is_init_state), 1)


if __name__ == '__main__':
  absltest.main()
