"""The names of classes: what may be one, which order they come in, and how a model's are matched with a data set's."""
