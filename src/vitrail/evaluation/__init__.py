"""How good answers are: metrics, reports and pictures, for single-label and multi-label data."""
