"""Dense depth per image: measured, from PatchMatch, or completed from what is known with a
monocular network."""

from sld_core.depth.stage import DepthReport, complete

__all__ = ["DepthReport", "complete"]
