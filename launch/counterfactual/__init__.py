"""Counterfactuals: what datamodels say that removing training examples does, and what models trained without them say.

docs/evaluation.md says how it is measured.
"""

from datamodels.launch.counterfactual.experiment import Experiment, counterfactual
from datamodels.launch.counterfactual.result import Counterfactuals, Subsets, read_result, told

__all__ = ["Counterfactuals", "Experiment", "Subsets", "counterfactual", "read_result", "told"]
