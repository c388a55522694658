"""Part of the demo's drive through the rendered room, as frames on disk: what teaching is tried
with."""

from sld_core import synthetic


def write_drive(folder):
    """`folder` with 30 frames to map from (map.txt) and 7 queries between them (query.txt), without
    depth."""
    drive = synthetic.drive(0, 240)
    synthetic.write_sequence(
        folder, synthetic.Room.make(0), synthetic.DEMO_CAMERA, drive[:60:2], drive[11:50:6]
    )
    for path in folder.glob("frames/*.depth.png"):
        path.unlink()
    return folder
