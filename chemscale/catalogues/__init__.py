"""Tables of stars: what their values mean, and which star a row belongs to."""
