"""Forward passes without gradients: metrics of a split, predictions of a file."""
