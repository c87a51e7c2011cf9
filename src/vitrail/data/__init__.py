"""Which images: folders, lists, shards, tables and named sets; their splits, order and loading."""
