"""Weight files of any project: opened without running them, recognised, renamed, adapted and converted."""
