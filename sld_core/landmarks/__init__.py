"""Which points become landmarks, and which frame shows which."""
