"""Sections of the page: each function computes what the template of its name shows."""

from datamodels.launch.report.sections.counterfactual import counterfactual
from datamodels.launch.report.sections.fit import fit
from datamodels.launch.report.sections.models import models
from datamodels.launch.report.sections.quality import quality
from datamodels.launch.report.sections.suspects import duplicates, harmful

__all__ = ["counterfactual", "duplicates", "fit", "harmful", "models", "quality"]
