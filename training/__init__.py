"""Fitting a scale network to any model: a table from forward passes alone (the profile), then a fit that needs no model."""
