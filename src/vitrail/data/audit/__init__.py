"""A data set looked through before anything is trained on it: damaged files, duplicates, leaks, odd labels."""
