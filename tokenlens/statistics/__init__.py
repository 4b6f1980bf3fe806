"""Moments, intervals and tests, with NumPy and SciPy alone."""
