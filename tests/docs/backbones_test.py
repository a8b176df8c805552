"""Runs what docs/backbones.md shows, and holds its tables against the code."""

import contextlib
import io
import pathlib
import re

from absl.testing import absltest

from tests.models.backbones import installed_weights
from tff_medical.models import backbones

_PAGE = pathlib.Path(__file__).resolve().parents[2] / 'docs' / 'backbones.md'


class BackbonesPageTest(absltest.TestCase):
  @installed_weights.needed
  def test_the_blocks_run_as_one_program(self):
    blocks = re.findall(
      r'^```python\n(.*?)^```$', _PAGE.read_text(), re.M | re.S
    )
    self.assertLen(blocks, 2)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
      exec('\n'.join(blocks), {})  # noqa: S102
    lines = printed.getvalue().splitlines()
    self.assertEqual(lines[0], '(4, 152) [1. 1. 1. 1.]')
    self.assertEqual(lines[-1], '(4, 12, 12, 40) (4, 2) (4, 2)')

  @installed_weights.needed
  def test_states_the_length_of_each_layer(self):
    names, lengths = (
      [cell.strip() for cell in line.strip('|').split('|')[1:]]
      for line in _PAGE.read_text().splitlines()
      if re.match(r'\| (layer|features) \|', line)
    )
    every = backbones.load(
      'efficientnet-lite0', image_shape=(28, 28, 1), image_size=32
    ).layer_names
    stated = {}
    for name, length in zip(names, lengths):
      bounds = [int(n) for n in re.findall(r'\d+', name)]
      if bounds:
        for i in range(bounds[0], bounds[-1] + 1):
          stated[f'block_{i}'] = int(length)
      else:
        stated[name] = int(length)
    self.assertEqual(tuple(stated), every)
    backbone = backbones.load(
      'efficientnet-lite0', image_shape=(28, 28, 1), image_size=32, layers=every
    )
    self.assertEqual(backbone.num_features, sum(stated.values()))

  def test_names_every_backbone_and_part(self):
    text = _PAGE.read_text()
    for name in (*backbones.BACKBONES, *backbones.PARTS):
      self.assertIn(f'`{name}`', text)


if __name__ == '__main__':
  absltest.main()
