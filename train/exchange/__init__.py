"""Rows that come from elsewhere.

`merge` brings in those of other stores of a setting, `import_arrays` copies arrays of other programs to a new root,
`import_huggingface` reads an export back, `fetch_published` downloads published files.
"""

from datamodels.train.exchange.fetch import (
    BUCKET,
    PRICE,
    PRICE_SOURCE,
    PUBLISHED_SIZES,
    fetch_published,
    published_files,
)
from datamodels.train.exchange.huggingface import import_huggingface, list_values
from datamodels.train.exchange.importer import import_arrays
from datamodels.train.exchange.merge import Merged, merge

__all__ = [
    "BUCKET",
    "PRICE",
    "PRICE_SOURCE",
    "PUBLISHED_SIZES",
    "Merged",
    "fetch_published",
    "import_arrays",
    "import_huggingface",
    "list_values",
    "merge",
    "published_files",
]
