"""Search of settings: a space, trials that are runs, the winner over several seeds beside the recipe as it is."""
