"""`python -m datamodels` is the `datamodels` command."""

from datamodels.launch.cli import script

script()
