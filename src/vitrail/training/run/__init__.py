"""A run on disk: its folder, lock, state, saves, log and report, and how it is begun, resumed and stopped."""
