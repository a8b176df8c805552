"""The short form of `serving_faults`."""

from __future__ import annotations

import tempfile

from absl.testing import absltest

from tests.faults import serving_faults


class ServingFaultsTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.path = serving_faults.export_model(folder.name)

  def test_every_request_ends_in_an_answer_or_the_name_of_the_image(self):
    wrong = dict(serving_faults.malformed_images())
    self.assertGreaterEqual(len(wrong), 75)
    self.assertLen(set(wrong.values()) & {b''}, 1)
    result = serving_faults.run(self.path, 60, each=True)
    self.assertEqual(result.lost, [])
    self.assertEqual(result.tried, 60 + len(wrong))
    self.assertGreater(result.answered, 40)
    self.assertGreaterEqual(result.refused, len(wrong))

  def test_a_request_that_is_lost_is_seen(self):
    # A malformed image that is none is answered, which must be noticed.
    good = next(iter(serving_faults.good_images().values()))
    original = serving_faults.malformed_images
    serving_faults.malformed_images = lambda: iter([('good', good)])
    try:
      result = serving_faults.run(self.path, 0, each=True)
    finally:
      serving_faults.malformed_images = original
    self.assertEqual(result.lost, ['good: was answered'])


if __name__ == '__main__':
  absltest.main()
