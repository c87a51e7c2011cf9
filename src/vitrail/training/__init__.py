"""What makes a model: losses, optimizer, schedule, the loop, and saves that resume exactly."""
