"""Training: losses, optimizers, learning-rate schedules, the loop, and saves that resume exactly."""
