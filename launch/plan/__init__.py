"""What a setting costs: bytes, hours, money."""

from datamodels.launch.plan.plan import Plan, Terms
from datamodels.launch.plan.rates import maker
from datamodels.launch.plan.sizes import arrays_of, store_as_it_is
from datamodels.launch.plan.text import describe

__all__ = ["Plan", "Terms", "arrays_of", "describe", "maker", "store_as_it_is"]
