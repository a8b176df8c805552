"""Set-up that all tests share."""

import os
import tempfile

from absl import flags

# absltest's temporary folders are flags, which pytest does not parse.
flags.FLAGS.mark_as_parsed()

# Records that TFDS prepares in tests do not go to the user's own folder.
os.environ['TFDS_DATA_DIR'] = tempfile.mkdtemp(prefix='tff_medical_tfds_')
