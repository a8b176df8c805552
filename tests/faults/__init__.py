"""Harnesses that break runs, files and input, and check what is left."""
