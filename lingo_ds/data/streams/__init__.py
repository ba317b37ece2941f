"""Unlabelled sequences, intervals and variants to predict, read as streams."""
