"""Experiments: commands that turn absl flags into the library's objects."""

from experiments.running import endings

# Imports take seconds, and a signal must end the command cleanly meanwhile.
if endings.is_starting():
  endings.install()
