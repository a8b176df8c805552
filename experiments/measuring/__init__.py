"""What the benchmarks share: timing, and the floor of bare TensorFlow."""
