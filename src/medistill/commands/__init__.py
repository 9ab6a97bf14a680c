"""The verbs, one module each, as Python functions; the command line only parses and prints."""
