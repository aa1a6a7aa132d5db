"""What a training loop needs and a lesson does not. Nothing in here imports the files above it."""
