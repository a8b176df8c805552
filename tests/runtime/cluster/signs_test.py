"""Signs of life of workers, with a simulated Ray and clock."""

import types
from unittest import mock

from absl.testing import absltest

from tff_medical.runtime.cluster import signs as signs_lib


class _RayError(Exception):
  pass


class _Ray:
  """Ray whose workers answer at once, or never.

  Attributes:
    silent: Numbers of the workers that do not answer.
    dead: Numbers of the workers that are no longer there.
    asked: Number of questions.
  """

  exceptions = types.SimpleNamespace(RayError=_RayError)

  def __init__(self):
    self.silent = set()
    self.dead = set()
    self.asked = 0

  def actor(self, number):
    def ask():
      self.asked += 1
      return number

    return types.SimpleNamespace(answer=types.SimpleNamespace(remote=ask))

  def wait(self, refs, **unused):
    return [ref for ref in refs if ref not in self.silent], []

  def get(self, ref):
    if ref in self.dead:
      raise _RayError


class SignsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.now = 1000.0
    self.enter_context(
      mock.patch.object(signs_lib.time, 'monotonic', lambda: self.now)
    )
    self.ray = _Ray()
    self.actors = {number: self.ray.actor(number) for number in range(2)}
    self.signs = signs_lib.Signs(self.ray)

  def _looks(self, seconds):
    """Looks each second; returns when the first workers were silent, and which."""
    for second in range(1, seconds + 1):
      self.now += 1.0
      silent = self.signs.silent(self.actors)
      if silent:
        return second, silent
    return None

  def test_workers_that_answer_are_asked_now_and_then(self):
    self.assertIsNone(self._looks(220))
    self.assertBetween(self.ray.asked, 2 * 15, 2 * 22)

  def test_a_silent_worker_is_given_up(self):
    self.ray.silent.add(1)
    second, silent = self._looks(220)
    self.assertEqual(silent, [1])
    self.assertBetween(
      second,
      signs_lib._ASK_SECS + signs_lib._SILENT_SECS,
      signs_lib._ASK_SECS + signs_lib._SILENT_SECS + 3,
    )

  def test_a_dead_worker_is_given_up_when_it_is_asked(self):
    self.ray.dead.add(0)
    second, silent = self._looks(220)
    self.assertEqual(silent, [0])
    self.assertLess(second, signs_lib._ASK_SECS + 3)

  def test_no_worker_is_blamed_for_a_driver_that_stood_still(self):
    self.ray.silent = {0, 1}
    self.assertIsNone(self._looks(15))  # They were asked.
    self.now += 3600.0
    self.assertEmpty(self.signs.silent(self.actors))
    self.ray.silent.clear()
    self.assertIsNone(self._looks(100))


if __name__ == '__main__':
  absltest.main()
