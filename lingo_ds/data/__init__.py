"""From files of DNA to batches of token ids."""
