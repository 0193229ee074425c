"""Rows that come from elsewhere: `import_arrays` copies the arrays of other programs to a root of published files."""

from datamodels.train.exchange.importer import import_arrays

__all__ = ["import_arrays"]
