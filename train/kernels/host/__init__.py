"""The kernels of train.kernels for a CPU, in numba."""
