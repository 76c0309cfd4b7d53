"""A world in which it is known what each sample is worth: see `__main__.py`."""
