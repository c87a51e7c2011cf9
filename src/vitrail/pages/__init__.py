"""HTML pages that need no network: templates and how they are filled."""
