"""Rows that come from elsewhere.

`merge` brings in those of other stores of a setting, `import_arrays` copies arrays of other programs to a new root.
"""

from datamodels.train.exchange.importer import import_arrays
from datamodels.train.exchange.merge import Merged, merge

__all__ = ["Merged", "import_arrays", "merge"]
