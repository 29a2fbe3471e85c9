"""Measure the figures that the documentation shows."""
