"""The model in numpy, and what is measured on it."""
