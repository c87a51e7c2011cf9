"""Features of images: computed once and kept, searched, drawn as a map, and probed for what they tell apart."""
