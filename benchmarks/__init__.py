"""What was measured: speed, memory and accuracy, beside rivals and beside the plan."""
