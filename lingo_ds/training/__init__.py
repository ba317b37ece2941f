"""One run: set up, loop, checkpoint, resume, report."""
