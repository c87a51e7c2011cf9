"""Every setting, with its type, default and text; recipes and command lines resolved into them. No torch."""
