"""Readers of file formats: lines, tables, FASTA, BED, and stretches of a genome."""
