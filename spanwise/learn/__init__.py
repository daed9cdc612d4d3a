"""What is trained, and how a batch becomes optimizer steps."""
