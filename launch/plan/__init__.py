"""What a setting takes in bytes, hours and money, before it is started."""

from datamodels.launch.plan.plan import Terms, plan
from datamodels.launch.plan.sizes import arrays_of, store_as_it_is
from datamodels.launch.plan.text import describe

__all__ = ["Terms", "arrays_of", "describe", "plan", "store_as_it_is"]
