"""Reading, checking and preparing images. Knows nothing of methods, training or reports."""
