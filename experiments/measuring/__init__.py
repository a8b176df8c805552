"""Parts of the benchmarks: timing, and the floor of bare TensorFlow."""
