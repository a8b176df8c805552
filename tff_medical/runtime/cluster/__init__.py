"""Computations on a Ray cluster."""
