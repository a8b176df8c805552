"""The parts of the command `tune`."""
