"""The verbs of the toolkit as Python functions, each with plain values in and out: vitrail.train and its kind."""
