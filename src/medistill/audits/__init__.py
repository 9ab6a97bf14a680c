"""What a package gives away, measured: one file for each check."""
