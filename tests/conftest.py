"""Set-up that all tests share."""

import os
import signal
import sys
import tempfile

from absl import flags
import pytest

from tff_medical.runtime import tff_worker

# absltest's temporary folders are flags, which pytest does not parse.
flags.FLAGS.mark_as_parsed()

# Where a shell starts the tests in the background they ignore SIGINT, and so
# would TFF's worker, which TFF ends by that signal and then waits for.
signal.signal(signal.SIGINT, signal.default_int_handler)

# TFF leaves its worker behind when a process of tests ends.
tff_worker.guard()

# Records that TFDS prepares in tests do not go to the user's own folder.
os.environ['TFDS_DATA_DIR'] = tempfile.mkdtemp(prefix='tff_medical_tfds_')


@pytest.fixture(scope='module', autouse=True)
def _own_runtime():
  """Keeps a runtime that a module's tests install from the next module's."""
  if 'tensorflow_federated' not in sys.modules:
    yield  # No test that was collected uses it.
    return
  stack = sys.modules['tensorflow_federated'].framework.get_context_stack()
  before = stack.current
  yield
  stack.set_default_context(before)
