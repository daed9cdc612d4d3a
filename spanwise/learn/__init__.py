"""Training: losses and optimizer steps on batches of branches."""
