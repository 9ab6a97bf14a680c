"""Slow, obvious implementations that tests compare against."""
