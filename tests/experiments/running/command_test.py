"""Tests of what running a command changes in its process."""

import contextlib
import gc
import sys
from unittest import mock

from absl import flags
from absl.testing import absltest

from experiments.running import command
from experiments.running import endings


class GarbageTest(absltest.TestCase):
  def test_is_not_looked_for_while_a_command_imports_and_is_again_after(self):
    self.addCleanup(gc.enable)
    self.addCleanup(gc.unfreeze)
    during = []
    with contextlib.ExitStack() as stack:
      for patch in (
        mock.patch.object(sys, 'argv', ['command']),
        mock.patch.object(command, '_parsed', None),
        mock.patch.object(endings, 'install'),
        mock.patch.object(flags, 'FLAGS', return_value=['command']),
      ):
        stack.enter_context(patch)
      command.parse()
      self.assertFalse(gc.isenabled())
      with self.assertRaises(SystemExit):
        command.run(lambda: during.append(gc.isenabled()))
    self.assertEqual(during, [True])
    self.assertGreater(gc.get_freeze_count(), 0)


if __name__ == '__main__':
  absltest.main()
