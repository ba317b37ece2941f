"""What needs no language model: linear models and a small CNN on one-hot bases, on the splits of a run.

They lie in this room because they are trained, chosen on dev and tested once, as a run is: they read the
examples from `data` and are scored by `evaluation`, which are both below. Nothing here needs a backbone.
"""
