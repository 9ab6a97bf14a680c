"""Differential privacy: how much noise a guarantee takes, and where the noise comes from."""
