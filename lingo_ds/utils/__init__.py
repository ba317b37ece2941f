"""Errors, files, logging and versions: what every room may use.

Knows nothing of models, data or processes.
"""
