"""Data sets: folders, lists, shards, tables and named sets of images; their splits, sampling and loading."""
