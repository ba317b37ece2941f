"""Readers of file formats: lines, tables, FASTA, and stretches of a genome."""
