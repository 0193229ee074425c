"""Code that Triton compiles: imported only where Triton is installed and about to be used."""
