"""Runs what docs/pipelines.md shows, as one program in one folder."""

import os
import pathlib
import re
import subprocess
import sys

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PAGE = _ROOT / 'docs' / 'pipelines.md'
_BLOCK = re.compile(r'^```(.+?)\n(.*?)^```$', re.M | re.S)
_SECONDS = 300


def _blocks(kind):
  """Yields the first line number and the text of the blocks of a kind."""
  text = _PAGE.read_text('utf-8')
  for match in _BLOCK.finditer(text):
    if match[1] == kind:
      yield text.count('\n', 0, match.start()) + 1, match[2]


def _program():
  """Returns all Python blocks, each on the lines that it has on the page."""
  lines = []
  for number, block in _blocks('python'):
    lines += [''] * (number - len(lines)) + block.splitlines()
  return '\n'.join(lines) + '\n'


class PipelinesTest(absltest.TestCase):
  def _run(self, command):
    done = subprocess.run(
      command,
      cwd=self.folder,
      env={**os.environ, 'PYTHONPATH': str(_ROOT)},
      check=False,
      capture_output=True,
      text=True,
      timeout=_SECONDS,
    )
    self.assertEqual(done.returncode, 0, f'{done.stdout}\n{done.stderr}')
    return done.stdout

  def test_every_block_runs(self):
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    ((_, nets),) = _blocks('python nets.py')
    (self.folder / 'nets.py').write_text(nets)
    ((_, command),) = _blocks('bash')
    words = command.replace('\\\n', ' ').split()
    self.assertEqual(words[0], '.venv/bin/python')
    trained = self._run([sys.executable, *words[1:]])
    self.assertIn('2 rounds: ', trained)
    config = self.folder / 'runs' / 'own' / 'config.json'
    self.assertIn('"model": "nets:build"', config.read_text())
    (self.folder / 'pipelines.py').write_text(_program(), 'utf-8')
    printed = self._run([sys.executable, '-W', 'ignore', 'pipelines.py'])
    # The same mechanism three times over three rounds costs the same.
    after_three = re.findall(r'ε ([\d.]+) after 3 rounds', printed)
    self.assertLen(after_three, 3)
    self.assertLen(set(after_three), 1)
    self.assertIn(f'3 rounds, ε {after_three[0]}', printed)
    ended = re.findall(r'^(\S+) COMPLETED 0\.\d+$', printed, re.M)
    self.assertEqual(ended, ['0.8', '1.6'])

  def test_all_blocks_but_keras_3_are_run(self):
    kinds = [match[1] for match in _BLOCK.finditer(_PAGE.read_text('utf-8'))]
    self.assertCountEqual(
      set(kinds), {'python', 'python nets.py', 'bash', 'py'}
    )
    ((_, block),) = _blocks('py')
    self.assertIn('TFSMLayer', block)

  def test_links_lead_to_headings(self):
    text = _PAGE.read_text('utf-8')
    headings = re.findall(r'^## (.+)$', text, re.M)
    anchors = {heading.lower().replace(' ', '-') for heading in headings}
    self.assertContainsSubset(re.findall(r'\]\(#([\w-]+)\)', text), anchors)


if __name__ == '__main__':
  absltest.main()
