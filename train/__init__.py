"""Masks, trainer and store of a datamodels setting."""
