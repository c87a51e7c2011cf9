"""What a trained model teaches: its answers to views, or labels of every token, kept on the disk, and their losses."""
