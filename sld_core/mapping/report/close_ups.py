"""Pictures made of photographs: depth before and after completion, and one landmark in its most
different views."""

from __future__ import annotations

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Patch

from sld_core import geometry, html
from sld_core.camera.images import index_warp, read_image
from sld_core.landmarks.selection import angular_span
from sld_core.spread import spread
from sld_core.types import Landmarks, Reconstruction, SldError

MARK, UNKNOWN = "#ffd400", "#e3e6e9"
# share of known pixels below which they are drawn as dots: a single pixel would not be seen
SPARSE = 0.05
PANEL = 480  # pixels across of an image in a picture


def depth_pair(
    image_HW3: np.ndarray,
    depth_before_HW: np.ndarray,
    depth_after_HW: np.ndarray,
    *,
    metric: bool = True,
) -> Figure:
    """The image and its depth before and after, on one colour scale; grey is unknown (0).

    The depths may have another resolution than the image. Yellow is far, blue is near."""
    before, after = _known(depth_before_HW), _known(depth_after_HW)
    values = np.concatenate([before.compressed(), after.compressed()])
    low, high = np.percentile(values, [1, 99]) if len(values) else (0.0, 1.0)
    height, width = image_HW3.shape[:2]
    panel = float(np.clip(3.0 * height / width, 1.2, 6))
    figure = Figure(figsize=(9.4, panel + 1.15), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.08)
    axes = figure.subplot_mosaic(
        [["image", "before", "after"], ["key", "scale", "scale"]], height_ratios=(panel, 0.13)
    )
    axes["image"].imshow(_small(image_HW3), extent=(0, width, height, 0))
    axes["image"].set_title("image", loc="left")
    for name, depth in (("before", before), ("after", after)):
        shown = _draw_depth(axes[name], depth, (width, height), low, max(high, low + 1e-6))
        known = 1 - np.ma.getmaskarray(depth).mean()
        axes[name].set_title(f"{name}: {_percent(known)} known", loc="left")
    for name in ("image", "before", "after"):
        axes[name].set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0), aspect="equal")
        axes[name].spines[:].set_visible(False)
    unknown = Patch(color=UNKNOWN, label="no depth known")
    axes["key"].legend(handles=[unknown], loc="upper left", borderaxespad=0, frameon=False)
    axes["key"].set_axis_off()
    label = f"depth, {html.length_unit(metric)}"
    figure.colorbar(shown, cax=axes["scale"], orientation="horizontal", label=label)
    return figure


def sparse_depth(reconstruction: Reconstruction, frame: int) -> np.ndarray:
    """The depths (H, W) that a frame's tracked points give, world units, 0 where there is none: all
    that is known of a scene before its depth is completed."""
    r, camera = reconstruction, reconstruction.frames[frame].camera
    seen = np.flatnonzero(r.obs_frame_M == frame)
    T_camera_world = geometry.invert(r.frames[frame].T_world_camera)
    depth = geometry.transform(T_camera_world, r.points_N3[r.obs_point_M[seen]])[:, 2]
    cell = np.floor(r.obs_xy_M2[seen]).astype(int)
    inside = (cell >= 0).all(1) & (cell < [camera.width, camera.height]).all(1) & (depth > 0)
    out = np.zeros((camera.height, camera.width), np.float32)
    out[cell[inside, 1], cell[inside, 0]] = depth[inside]
    return out


def landmark_track(
    reconstruction: Reconstruction, point: int | None = None, *, metric: bool = True
) -> Figure:
    """One point of the reconstruction in the (up to) four most different images that show it,
    ringed, with a patch of the same size in the world enlarged (after Figure 2 of the paper).
    Without `point`, the one `best_track` chooses."""
    point = best_track(reconstruction) if point is None else point
    views = different_views(reconstruction, point)
    distance = _distances(reconstruction, views)
    rows = 1 if len(views) < 3 else 2
    cameras = [reconstruction.frames[reconstruction.obs_frame_M[i]].camera for i in views]
    panel_height = 4.6 * float(np.median([c.height / c.width for c in cameras])) + 0.55
    figure = Figure(figsize=(9.4, rows * panel_height), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    # of the patch, in pixels of an image at the median distance
    side = 0.11 * float(np.median([c.width for c in cameras]))
    unit = "m" if metric else "units"
    for axes, i, d in zip(panels, views.tolist(), distance.tolist()):
        patch_px = np.clip(side * np.median(distance) / d, side / 2.5, 2.5 * side)
        _draw_view(axes, reconstruction, i, float(patch_px))
        title = _view_title(reconstruction, i, int(views[0]), f"{d:.2g} {unit}")
        axes.set_title(title, loc="left", fontsize=10)
    for axes in panels[len(views) :]:
        axes.set_visible(False)
    return figure


def best_track(reconstruction: Reconstruction, landmarks: Landmarks | None = None) -> int:
    """The point most worth looking at: precise, seen often and from many directions, and one of
    `landmarks`, where two images see any of these."""
    r, n = reconstruction, len(reconstruction.points_N3)
    views = np.bincount(r.obs_point_M, minlength=n)
    good = views >= 2
    if landmarks is not None and good[landmarks.point_L].any():
        good &= np.isin(np.arange(n), landmarks.point_L)
    if not good.any():
        raise SldError("no point of the reconstruction is seen by two images")
    score = np.log2(np.maximum(views, 1)) * angular_span(r)
    # an imprecise track may be one of two things that look alike
    good &= r.error_px_N <= np.median(r.error_px_N[good])
    return int(np.argmax(np.where(good, score, -1)))


def different_views(reconstruction: Reconstruction, point: int, count: int = 4) -> np.ndarray:
    """Indices of up to `count` observations of a point, in different frames, that differ most in
    direction, then distance and session; in the order of the frames."""
    r = reconstruction
    seen = np.flatnonzero(r.obs_point_M == point)
    seen = seen[np.unique(r.obs_frame_M[seen], return_index=True)[1]]
    if len(seen) < 2:
        raise SldError(
            f"point {point} is seen by {len(seen)} images; expected one of 0 to "
            f"{len(r.points_N3) - 1} that two see"
        )
    if (inner := _has_surroundings(r, seen)).sum() >= count:
        seen = seen[inner]
    seen = seen[spread(range(len(seen)), 400)]  # all pairs of them are compared
    centres = np.stack([r.frames[i].T_world_camera[:3, 3] for i in r.obs_frame_M[seen]])
    ray = centres - r.points_N3[point]
    distance = np.maximum(np.linalg.norm(ray, axis=1), 1e-9)
    _, session = np.unique([r.frames[i].session for i in r.obs_frame_M[seen]], return_inverse=True)
    place = np.column_stack(
        [ray / distance[:, None], 0.3 * np.log2(distance), 0.3 * np.eye(session.max() + 1)[session]]
    )
    apart = np.linalg.norm(place[:, None] - place[None], axis=2)
    chosen = list(np.unravel_index(np.argmax(apart), apart.shape))
    if chosen[0] == chosen[1]:  # all alike
        chosen = [0, 1]
    while len(chosen) < min(count, len(seen)):
        nearest = apart[chosen].min(0)
        nearest[chosen] = -1
        chosen.append(int(np.argmax(nearest)))
    return seen[np.sort(chosen)]


def _has_surroundings(reconstruction: Reconstruction, views: np.ndarray) -> np.ndarray:
    """Which of these observations (V,) are not near the border of their image."""
    cameras = [reconstruction.frames[i].camera for i in reconstruction.obs_frame_M[views]]
    size = np.array([(c.width, c.height) for c in cameras])
    xy = reconstruction.obs_xy_M2[views]
    return (np.minimum(xy, size - xy) > 0.08 * size).all(1)


def _known(depth_HW: np.ndarray) -> np.ma.MaskedArray:
    return np.ma.masked_less_equal(np.asarray(depth_HW, float), 0)


def _percent(share: float) -> str:
    return "<1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


def _draw_depth(
    axes: Axes, depth_HW: np.ma.MaskedArray, size: tuple[int, int], low: float, high: float
):
    """The depth in the image's pixels; returns what a colour bar belongs to."""
    axes.set_facecolor(UNKNOWN)
    colors = dict(cmap="viridis", vmin=low, vmax=high)
    width, height = size
    known = ~np.ma.getmaskarray(depth_HW)
    if known.mean() >= SPARSE:
        extent = (0, width, height, 0)
        return axes.imshow(depth_HW, extent=extent, interpolation="nearest", **colors)
    y, x = np.nonzero(known)
    x = (x + 0.5) * width / depth_HW.shape[1]
    y = (y + 0.5) * height / depth_HW.shape[0]
    return axes.scatter(x, y, c=depth_HW[known], s=5, lw=0, **colors)


def _small(image_HW3: np.ndarray) -> np.ndarray:
    scale = PANEL / image_HW3.shape[1]
    if scale >= 1:
        return image_HW3
    return cv2.resize(image_HW3, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _distances(reconstruction: Reconstruction, views: np.ndarray) -> np.ndarray:
    centres = np.stack(
        [reconstruction.frames[i].T_world_camera[:3, 3] for i in reconstruction.obs_frame_M[views]]
    )
    rays = reconstruction.points_N3[reconstruction.obs_point_M[views]] - centres
    return np.maximum(np.linalg.norm(rays, axis=1), 1e-9)


def _view_title(reconstruction: Reconstruction, view: int, first: int, distance: str) -> str:
    r = reconstruction
    frame = r.frames[r.obs_frame_M[view]]
    session = f" of {html.plain(frame.session, 20)}" if frame.session else ""
    point = r.points_N3[r.obs_point_M[view]]
    a, b = (point - r.frames[r.obs_frame_M[i]].T_world_camera[:3, 3] for i in (first, view))
    angle_deg = np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b))
    aside = "" if view == first else f", {angle_deg:.0f}° off the first view"
    return f"{html.plain(frame.name, 30)}{session}\nfrom {distance} away{aside}"


def _draw_view(axes: Axes, reconstruction: Reconstruction, view: int, side_px: float) -> None:
    """The whole image with the point ringed, and the patch around it enlarged in the corner
    farthest from it."""
    image = read_image(reconstruction.frames[reconstruction.obs_frame_M[view]].image_path)
    height, width = image.shape[:2]
    x, y = reconstruction.obs_xy_M2[view]
    axes.imshow(_small(image), extent=(0, width, height, 0), interpolation="antialiased")
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    right, bottom = x < width / 2, y < height / 2
    tall, wide = 0.42, 0.42 * height / width
    corner_x = 1 - wide if right else 0
    corner_y = 0 if bottom else 1 - tall
    inset = axes.inset_axes((corner_x, corner_y, wide, tall))
    half = side_px / 2
    extent = (x - half, x + half, y + half, y - half)
    inset.imshow(_patch(image, x, y, side_px), extent=extent, interpolation="bicubic")
    inset.set(xticks=[], yticks=[])
    for spine in inset.spines.values():
        spine.set(color=MARK, lw=2)
    for where, radius in ((axes, side_px / 2), (inset, side_px / 14)):
        for color, width in (("black", 3), (MARK, 1.8)):
            where.add_patch(Circle((x, y), radius, fill=False, color=color, lw=width))


def _patch(image_HW3: np.ndarray, x: float, y: float, side_px: float) -> np.ndarray:
    """A square around a pixel (corner origin), grey where it leaves the image."""
    pixels = 160
    scale = pixels / side_px
    shift_x, shift_y = pixels / 2 - scale * x, pixels / 2 - scale * y
    A = index_warp(np.array([[scale, 0, shift_x], [0, scale, shift_y]]))
    grey = (200, 200, 200)
    return cv2.warpAffine(image_HW3, A, (pixels, pixels), flags=cv2.INTER_CUBIC, borderValue=grey)
