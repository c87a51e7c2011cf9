"""A model behind HTTP: the API, dynamic batching, image decoding in worker processes, timeouts and limits."""
