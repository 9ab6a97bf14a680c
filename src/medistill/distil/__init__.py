"""Distilling: the contract of a method, the problem it is given, and the one loop."""
