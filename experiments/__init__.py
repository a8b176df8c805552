"""Experiments: commands that turn absl flags into the library's objects."""
