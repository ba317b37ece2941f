"""Labelled data sets to train on, one module for each kind of file or folder."""
