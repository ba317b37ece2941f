"""What a trained adapter reacts to: mutagenesis, attributions, motifs, and tracks over a genome."""
