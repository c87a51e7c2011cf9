"""Processes that train together: how they start, find each other, agree, and notice that one is lost."""
