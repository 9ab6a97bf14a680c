"""What studies found: runs, and the file that keeps them."""
