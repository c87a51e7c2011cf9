"""What changes the weights: optimizers and their parameter groups, schedules, and the guard against NaN."""
