"""Distributed fine-tuning of frozen language models on genomes: adaptive rank sampling (arXiv 2402.08075)."""
