"""One self-contained HTML page about a setting, or about two of them: docs/report.md."""

from datamodels.launch.report.comparison import write_comparison
from datamodels.launch.report.page import is_up_to_date, refuse_unfitted, write_report

__all__ = ["is_up_to_date", "refuse_unfitted", "write_comparison", "write_report"]
