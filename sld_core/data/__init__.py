"""Ways in: folders, photographs, videos and bags become frames; layouts on disk."""
