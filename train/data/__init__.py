"""Data sets: training and test images with labels, in the column order of the published files.

Each data set has a file here; sources.py says what the file defines, and how to add one.
"""

from datamodels.train.data.images import Dataset, Images, Split, chunks, fits, gather
from datamodels.train.data.memory import free_host_memory
from datamodels.train.data.sources import fetch, load, pack

__all__ = ["Dataset", "Images", "Split", "chunks", "fetch", "fits", "free_host_memory", "gather", "load", "pack"]
