"""Dense depth per image: measured, from PatchMatch, or completed from what is known with a
monocular network."""
