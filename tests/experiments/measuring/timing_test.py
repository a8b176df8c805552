"""Tests of the timing of contenders in turn."""

import json

from absl.testing import absltest

from experiments.measuring import timing


class TimingTest(absltest.TestCase):
  def test_measures_in_turns_after_warm_up(self):
    calls = []
    contenders = {name: lambda n=name: calls.append(n) for name in 'ab'}
    seconds = timing.measure(contenders, warm_up=1, turns=3)
    self.assertEqual(''.join(calls), 'abababab')
    self.assertEqual({n: len(s) for n, s in seconds.items()}, {'a': 3, 'b': 3})

  def test_ratio_is_the_median_within_turns(self):
    self.assertEqual(timing.median_ratio([1, 2, 9], [4, 4, 9]), 0.5)

  def test_writes_what_it_was_measured_on(self):
    path = self.create_tempfile().full_path
    timing.write_json(path, {'work': {'a_secs': 1.0}}, rounds=3)
    with open(path, encoding='utf-8') as file:
      found = json.load(file)
    self.assertEqual(found['results'], {'work': {'a_secs': 1.0}})
    self.assertEqual(found['rounds'], 3)
    self.assertRegex(found['devices'][0], r'\d+ CPU cores')


if __name__ == '__main__':
  absltest.main()
