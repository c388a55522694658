"""`sld info`: the contents of a scene file."""

from __future__ import annotations

from pathlib import Path

from sld_core.commands.common import held_out_text


def add(commands) -> None:
    parser = commands.add_parser("info", help="show the contents of a scene file")
    parser.add_argument("scene", type=Path, metavar="SCENE.sld")
    parser.set_defaults(run=_info)


def _info(args) -> None:
    from sld_core import scene_file

    scene = scene_file.load(args.scene)
    low, high = scene.landmarks.xyz_L3.min(0), scene.landmarks.xyz_L3.max(0)
    camera, report = scene.camera, scene.report
    unit = "m" if scene.metric else "units of the scene"
    rows = {
        "name": scene.name,
        "file": f"{args.scene.stat().st_size:,d} bytes",
        "landmarks": len(scene.landmarks),
        "extent": " x ".join(f"{s:.1f}" for s in high - low) + f" {unit}",
        "metric": "yes" if scene.metric else "no: poses are in units of the scene, not in metres",
        "backbone": scene.config.backbone,
        "head": scene.config.head.kind,
        "templates": _templates_text(scene.templates),
        "weights": f"{sum(p.numel() for p in scene.head.state_dict().values()):,d}",
        "camera": f"{camera.width}x{camera.height}, fx {camera.fx:.1f}, fy {camera.fy:.1f}, cx "
        f"{camera.cx:.1f}, cy {camera.cy:.1f}",
        "taught in": f"{report.teach_s:.0f} s "
        f"({', '.join(f'{k} {v:.1f}' for k, v in report.seconds.items())})",
        "counts": ", ".join(f"{k} {v}" for k, v in report.counts.items()),
    }
    if report.validation.get("queries"):
        rows["held-out frames"] = held_out_text(report.validation)
    for key, value in rows.items():
        print(f"{key:16s} {value}")


def _templates_text(templates) -> str:
    """What the fine pass has to look for."""
    if templates is None:
        return "none: taught by an older sld, or without the fine pass"
    levels, landmarks, side, _ = templates.patch_SLPP.shape
    zooms = ", ".join(f"{zoom:g}" for zoom in templates.zoom_S)
    return f"{landmarks} of {side}x{side} pixels, {levels} levels of detail ({zooms})"
