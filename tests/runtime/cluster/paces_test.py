from absl.testing import absltest

from tff_medical.runtime.cluster import paces as paces_lib


def _paces(seconds=(1.0, 1.0, 1.0)):
  """Returns paces after runs of cost 1 that took these seconds."""
  paces = paces_lib.Paces()
  for run, took in enumerate(seconds):
    paces.start('quick', run, 1.0, now=100.0)
    paces.end('quick', run, now=100.0 + took)
  return paces


class PacesTest(absltest.TestCase):
  def test_a_run_is_late_by_the_pace_of_the_others_and_its_cost(self):
    paces = _paces((1.0, 50.0, 2.0))  # The median is 2 seconds.
    paces.start('slow', 7, 10.0, now=100.0)
    self.assertEqual(paces.late(now=130.0), [])
    self.assertEqual(paces.late(now=130.1), [7])

  def test_nothing_is_late_before_any_run_has_ended(self):
    paces = paces_lib.Paces()
    paces.start('slow', 0, 1.0, now=0.0)
    self.assertEqual(paces.late(now=1e6), [])

  def test_small_runs_have_a_grace(self):
    paces = _paces((0.001,))
    paces.start('slow', 7, 1.0, now=0.0)
    self.assertEqual(paces.late(now=0.19), [])
    self.assertEqual(paces.late(now=0.21), [7])

  def test_time_in_the_queue_does_not_count(self):
    paces = _paces()
    paces.start('slow', 7, 1.0, now=0.0)
    paces.start('slow', 8, 1.0, now=0.0)
    paces.end('slow', 7, now=1.4)
    self.assertEqual(paces.late(now=2.8), [])
    self.assertEqual(paces.late(now=3.0), [8])

  def test_those_that_will_end_last_come_first(self):
    paces = _paces()
    for worker, run, began in (('a', 1, 4.0), ('b', 2, 0.0), ('a', 3, 4.0)):
      paces.start(worker, run, 1.0, now=began)
    # 3 waits behind 1, which began after 2.
    self.assertEqual(paces.late(now=9.0), [3, 2, 1])

  def test_a_lost_worker_is_not_late(self):
    paces = _paces()
    paces.start('slow', 7, 1.0, now=0.0)
    paces.forget('slow')
    self.assertEqual(paces.late(now=9.0), [])
    paces.forget('never seen')


if __name__ == '__main__':
  absltest.main()
