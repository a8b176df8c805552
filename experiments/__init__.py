"""Experiments: commands that turn absl flags into the library's objects."""

import os

from experiments.running import endings

# TensorFlow's C++ logs would drown the progress bar; its errors also come as
# exceptions. It reads this when it is imported, so it has to stand here.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

# Imports take seconds, in which a signal must end the command well, too.
if endings.is_starting():
  endings.install()
