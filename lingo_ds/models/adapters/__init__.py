"""Everything that learns: the flat bank, its layout, and what adds it to the backbone."""
