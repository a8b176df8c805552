"""Experiments: commands that turn absl flags into the library's objects."""

import os

# TensorFlow's C++ logs would drown the progress bar; its errors also come as
# exceptions. It reads this when it is imported, so it has to stand here.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
