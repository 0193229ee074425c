"""The kernels of datamodels.train.kernels for a CPU, in numba."""
