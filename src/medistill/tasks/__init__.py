"""What labels mean: one file for each kind of task, and all that follows from labels."""
