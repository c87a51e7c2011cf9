"""Multi-process training: launchers, rendezvous, collective operations, sharding, and a watchdog for hanging ranks."""
