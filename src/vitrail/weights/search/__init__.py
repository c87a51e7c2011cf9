"""Where in a file the weights of a model are: tensors grouped by prefix, read as models, and the one subtree chosen."""
