"""The frozen language model: its files, shapes, shards, quantisation and forward pass on packs."""
