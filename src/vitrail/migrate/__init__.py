"""Settings, files and flags of other projects, translated into ours. No torch."""
