"""Experiments: commands that turn absl flags into the library's objects."""

from experiments.running import endings

# Imports take seconds, in which a signal must end the command well, too.
if endings.is_starting():
  endings.install()
