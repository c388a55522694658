"""A furnished room, rendered with exact depth and poses: input for the demo and the tests."""

from sld_core.synthetic.drive import DEMO_CAMERA, drive, write_sequence
from sld_core.synthetic.room import Room

__all__ = ["DEMO_CAMERA", "Room", "drive", "write_sequence"]
