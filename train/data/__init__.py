"""Data sets: training and test images with labels, in the column order of the published files."""

from datamodels.train.data.images import Images, Split, chunks, fits, free_host_memory, gather
from datamodels.train.data.sources import Dataset, fetch, load, pack

__all__ = ["Dataset", "Images", "Split", "chunks", "fetch", "fits", "free_host_memory", "gather", "load", "pack"]
