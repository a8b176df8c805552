"""Tests of how a program ends, with real signals to this process."""

import os
import signal
import threading
import time

from absl.testing import absltest
from absl.testing import parameterized

from tff_medical.program import ending

# Long enough for any machine; no test that passes waits for it.
_SECS = 60.0


def _signal(signum):
  os.kill(os.getpid(), signum)


def _wait(until=lambda: False):
  """Does what a round does: steps of Python, until it is interrupted."""
  end = time.monotonic() + _SECS
  while not until():
    if time.monotonic() > end:
      raise AssertionError('nothing interrupted it')
    time.sleep(0.01)


class DeferredTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.before = [
      signal.getsignal(s) for s in (*ending.SIGNALS, ending._NUDGE)
    ]

  def tearDown(self):
    super().tearDown()
    after = [signal.getsignal(s) for s in (*ending.SIGNALS, ending._NUDGE)]
    self.assertEqual(after, self.before)
    self.assertNotIn('ending', [t.name for t in threading.enumerate()])

  @parameterized.parameters(*ending.SIGNALS)
  def test_first_signal_requests_the_end_alone(self, signum):
    with ending.deferred() as end:
      self.assertFalse(end.requested.is_set())
      self.assertIsNone(end.signum)
      _signal(signum)
      self.assertTrue(end.requested.is_set())
      self.assertEqual(end.signum, signum)

  @parameterized.parameters(*ending.SIGNALS)
  def test_second_signal_interrupts_at_once(self, signum):
    with self.assertRaises(ending.Ended) as caught:
      with ending.deferred():
        _signal(signal.SIGINT)
        _signal(signum)
        self.fail('it went on')
    self.assertEqual(caught.exception.signum, signum)
    self.assertIsInstance(caught.exception, KeyboardInterrupt)
    self.assertNotIsInstance(caught.exception, ending.Abandoned)

  def test_what_takes_too_long_is_abandoned(self):
    with ending.deferred(patience_secs=0.1) as end:
      with self.assertRaises(ending.Abandoned) as caught:
        with end.abandonable():
          _signal(signal.SIGTERM)
          _wait()
      self.assertEqual(caught.exception.signum, signal.SIGTERM)
      with self.assertRaises(ending.Abandoned):
        with end.abandonable():
          self.fail('it began')

  def test_a_lock_that_is_waited_for_is_abandoned_too(self):
    lock = threading.Lock()
    lock.acquire()
    with ending.deferred(patience_secs=0.1) as end:
      with self.assertRaises(ending.Abandoned):
        with end.abandonable():
          _signal(signal.SIGTERM)
          lock.acquire(timeout=_SECS)

  def test_an_interruption_that_a_library_has_replaced_is_abandoned_too(self):
    with ending.deferred(patience_secs=0.1) as end:
      with self.assertRaises(ending.Abandoned) as caught:
        with end.abandonable():
          _signal(signal.SIGTERM)
          with self.assertRaises(ending.Abandoned):
            _wait()
          raise KeyboardInterrupt  # As Ray does.
      self.assertEqual(caught.exception.signum, signal.SIGTERM)

  def test_what_is_not_abandonable_is_finished(self):
    with ending.deferred(patience_secs=0.0) as end:
      with end.abandonable():
        pass
      _signal(signal.SIGTERM)
      _wait(lambda: end._overdue)
      time.sleep(0)

  def test_without_patience_it_waits_for_the_end(self):
    with ending.deferred(patience_secs=None) as end:
      with end.abandonable():
        _signal(signal.SIGTERM)
        time.sleep(0.1)
    self.assertFalse(end._overdue)

  def test_nested_blocks_share_what_they_saw(self):
    with ending.deferred() as outer:
      with ending.deferred() as inner:
        self.assertIs(outer, inner)
        _signal(signal.SIGTERM)
      self.assertTrue(outer.requested.is_set())

  def test_handlers_that_were_there_get_later_signals(self):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *args: seen.append(args[0]))
    try:
      with ending.deferred():
        _signal(signal.SIGTERM)
      self.assertEqual(seen, [])
      _signal(signal.SIGTERM)
      self.assertEqual(seen, [signal.SIGTERM])
    finally:
      signal.signal(signal.SIGTERM, before)

  def test_in_another_thread_it_does_no_harm(self):
    found = []

    def work():
      with ending.deferred() as end, end.abandonable():
        found.append(end.requested.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    self.assertEqual(found, [False])

  def test_a_signal_that_was_blocked_arrives(self):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    self.addCleanup(
      signal.pthread_sigmask, signal.SIG_UNBLOCK, [signal.SIGTERM]
    )
    with ending.deferred() as end:
      _signal(signal.SIGTERM)
      self.assertTrue(end.requested.is_set())


class CommandTest(parameterized.TestCase):
  """An `End` with `leave`, as a command has it for its whole life."""

  def setUp(self):
    super().setUp()
    self.left = []

  def _install(self, **options):
    end = ending.End(leave=lambda *how: self.left.append(how), **options)
    end.install()
    self.addCleanup(end.uninstall)
    return end

  def test_signal_interrupts_wherever_the_main_thread_is(self):
    self._install()
    with self.assertRaises(ending.Ended) as caught:
      _signal(signal.SIGTERM)
      _wait()
    self.assertEqual(caught.exception.signum, signal.SIGTERM)
    self.assertEmpty(self.left)

  def test_deferred_uses_its_handlers(self):
    end = self._install(patience_secs=0.1)
    with ending.deferred() as found:
      self.assertIs(found, end)
      _signal(signal.SIGTERM)
      with self.assertRaises(ending.Abandoned):
        with found.abandonable():
          _wait()
    self.assertEmpty(self.left)

  def test_leaves_at_once_before_its_work_began(self):
    end = self._install()
    end.at_once = True
    with ending.deferred():
      _signal(signal.SIGTERM)
    self.assertIn((signal.SIGTERM, ''), self.left)

  def test_leaves_at_a_second_signal(self):
    self._install()
    with ending.deferred():
      _signal(signal.SIGINT)
      _signal(signal.SIGTERM)
      _wait(lambda: self.left)
    signum, how = self.left[0]
    self.assertEqual(signum, signal.SIGTERM)
    self.assertIn('again', how)

  def test_an_echo_is_no_second_signal(self):
    end = self._install(echo_secs=_SECS, patience_secs=0.2)
    with ending.deferred():
      _signal(signal.SIGTERM)
      _signal(signal.SIGTERM)
      _wait(lambda: end._overdue)
    self.assertEmpty(self.left)

  def test_leaves_at_the_deadline(self):
    self._install(patience_secs=0.1, deadline_secs=0.2)
    with ending.deferred():
      _signal(signal.SIGTERM)
      _wait(lambda: self.left)
    self.assertEqual(self.left[0][0], signal.SIGTERM)


if __name__ == '__main__':
  absltest.main()
