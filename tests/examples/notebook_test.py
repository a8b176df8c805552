"""Tests that the notebooks run, in the kernel that a reader would use."""

import os
import pathlib
from unittest import mock

from absl.testing import absltest
import nbclient
import nbformat

_EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / 'examples'
_SECS_A_CELL = 600


class QuickstartTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.temp = self.create_tempdir().full_path
    self.notebook = nbformat.read(_EXAMPLES / 'quickstart.ipynb', as_version=4)

  def _run(self):
    """Returns the texts and the images that the cells gave."""
    environment = {
      'IPYTHONDIR': os.path.join(self.temp, 'ipython'),
      'JUPYTER_RUNTIME_DIR': os.path.join(self.temp, 'jupyter'),
      'TMPDIR': self.temp,
      'TF_CPP_MIN_LOG_LEVEL': '3',
    }
    # The kernel reads the backend itself, and shows figures in the notebook.
    environment['MPLBACKEND'] = 'module://matplotlib_inline.backend_inline'
    with mock.patch.dict(os.environ, environment):
      nbclient.NotebookClient(
        self.notebook,
        timeout=_SECS_A_CELL,
        kernel_name='python3',
        resources={'metadata': {'path': str(_EXAMPLES)}},
      ).execute()
    outputs = [o for c in self.notebook.cells for o in c.get('outputs', [])]
    texts = [o['text'] for o in outputs if o.get('name') == 'stdout']
    images = [o for o in outputs if 'image/png' in o.get('data', {})]
    return ''.join(texts), images

  def test_is_kept_without_outputs(self):
    for cell in self.notebook.cells:
      if cell.cell_type == 'code':
        self.assertEmpty(cell.outputs)
        self.assertIsNone(cell.execution_count)

  def test_trains_exports_and_plots(self):
    text, images = self._run()
    self.assertIn('12 rounds: all planned rounds were run', text)
    epsilon = float(text.split('ε ')[1].split()[0])
    self.assertBetween(epsilon, 7.0, 8.0)
    self.assertIn('not covered by ε:\n- ', text)
    self.assertLen(images, 1)
    [folder] = pathlib.Path(self.temp).glob('quickstart_*')
    ledger = (folder / 'privacy_ledger.jsonl').read_text()
    self.assertEqual(ledger.count('"charges"'), 12)
    self.assertTrue((folder / 'saved_model' / 'saved_model.pb').exists())


if __name__ == '__main__':
  absltest.main()
