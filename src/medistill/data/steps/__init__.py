"""Steps of preprocessing, one file each."""
