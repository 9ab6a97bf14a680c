"""One file, one method. A file put here is found; nothing else needs to change."""
