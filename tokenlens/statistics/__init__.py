"""Moments, intervals, and tests between images and between seeds; NumPy and SciPy only."""
