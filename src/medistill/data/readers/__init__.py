"""The readers that medistill comes with, one file each, found by the registry."""
