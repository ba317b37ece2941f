"""What a job takes on machines that are not here: memory, FLOPs, traffic, seconds, and advice."""
