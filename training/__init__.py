"""Training a scale for any model: forward passes alone fill a table (the profile), then a fit that needs no model."""
