"""Part of the demo's drive through the rendered room, as frames on disk: what teaching is tried with."""
from sld_core import room


def write_drive(folder):
    """`folder` with 30 frames to map from (map.txt) and 7 queries between them (query.txt), without depth."""
    drive = room.drive(0, 240)
    room.write_sequence(folder, room.Room.make(0), room.DEMO_CAMERA, drive[:60:2], drive[11:50:6])
    for path in folder.glob("frames/*.depth.png"):
        path.unlink()
    return folder
