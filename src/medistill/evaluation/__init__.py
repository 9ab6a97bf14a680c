"""Measuring what a distilled set is worth, beside random images and beside the full data."""
