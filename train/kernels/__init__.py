"""Own kernels for what moves memory in a training step, each beside the plain PyTorch that it must equal."""
