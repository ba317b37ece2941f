"""Everything that learns: the flat bank, its layout, and the hooks that add it to the backbone."""
