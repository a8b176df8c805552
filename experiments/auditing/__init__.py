"""The parts of the command `audit`."""
