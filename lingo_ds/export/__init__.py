"""Adapter folders and merged models in formats that others read."""
