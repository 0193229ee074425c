"""`counted` under its former name, until every caller imports it from `progress`."""

from datamodels.launch.progress import counted

__all__ = ["counted"]
