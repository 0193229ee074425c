"""`python -m datamodels` is the `datamodels` command."""

from datamodels.launch import script

if __name__ == "__main__":
    script()
