"""What the pool keeps of each of its processes."""
