"""Set-up that all tests share."""

import os
import signal
import tempfile

from absl import flags

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
