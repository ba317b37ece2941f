"""The method: the triplet budget, importance, and which triplets stay.

Arithmetic, and one class that applies it.
"""
