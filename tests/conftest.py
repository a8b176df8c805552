"""Set-up that all tests share."""

from absl import flags

# absltest's temporary folders are flags, which pytest does not parse.
flags.FLAGS.mark_as_parsed()
