"""A sample application for boxes with or without a GPU. See `__main__.py`."""
