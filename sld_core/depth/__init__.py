"""Dense depth per image: measured, from PatchMatch, or completed from known depths with a monocular
network."""
