"""The checks that medistill comes with, found by the registry."""
