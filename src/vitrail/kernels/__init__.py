"""Kernels: what the networks compute, in the form that is fastest on the device that is there."""
