"""Training recipes, one file each: ``RECIPE``, and a docstring with command, hardware, time and result."""
