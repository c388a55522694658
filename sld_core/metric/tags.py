"""Scale from AprilTags or ArUco markers of known size that the images show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np

from sld_core import geometry
from sld_core.camera import images
from sld_core.config.mapping import MetricConfig
from sld_core.metric.scale import Scale, log_median
from sld_core.spread import spread
from sld_core.types import Camera, Progress, Reconstruction, SldError

FAMILIES = {  # of tags, and what OpenCV calls them
    "apriltag_36h11": "DICT_APRILTAG_36h11",
    "apriltag_25h9": "DICT_APRILTAG_25h9",
    "apriltag_16h5": "DICT_APRILTAG_16h5",
    "aruco_4x4_50": "DICT_4X4_50",
}
DIAGONAL = 2**0.5
EDGES = (  # two corners, and their distance in sides
    (0, 1, 1.0),
    (1, 2, 1.0),
    (2, 3, 1.0),
    (3, 0, 1.0),
    (0, 2, DIAGONAL),
    (1, 3, DIAGONAL),
)
MAX_PAIRS = 200  # of views, from which the place of a tag is proposed


@dataclass(frozen=True)
class Sighting:
    """One tag in one frame: its corners (4, 2) in pixels, corner origin."""

    frame: int
    xy_42: np.ndarray


def tag_scale(
    reconstruction: Reconstruction,
    config: MetricConfig,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Scale:
    """From the sides and diagonals of all tags whose corners can be triangulated: the median of
    size / length.

    A tag whose sightings do not fit one place (printed twice, or moved) is left out, with a
    note."""
    if config.tag_size_m <= 0:
        reason = "the size of the tags is not given (metric.tag_size_m, metres)"
        return Scale("tags", None, reason, absent=True)
    sightings = find_tags(reconstruction, config, progress)
    if not sightings:
        return Scale(
            "tags",
            None,
            f"no tag of {config.tag_family} was found in the images; is metric.tag_family right?",
        )
    notes, logs, views = [], [], 0
    for tag, seen in sorted(sightings.items()):
        result = _log_scales(reconstruction, seen, config)
        if isinstance(result, str):
            notes.append(f"tag {tag} is left out: {result}")
        else:
            logs.append(result)
            views += len(seen)
    if not logs:
        return Scale("tags", None, "; ".join(notes), notes=notes)
    scale, mad = log_median(np.concatenate(logs))
    residual = {"tags_mad_percent": mad, "tags": float(len(logs)), "tags_views": float(views)}
    return Scale("tags", scale, residual=residual, notes=notes)


def find_tags(
    reconstruction: Reconstruction,
    config: MetricConfig,
    progress: Callable[[Progress], None] = lambda _: None,
) -> dict[int, list[Sighting]]:
    """The sightings of every tag id in at most `config.max_tag_frames` frames."""
    chosen = spread(range(len(reconstruction.frames)), config.max_tag_frames)
    sightings = defaultdict(list)
    for k, i in enumerate(chosen):
        progress(Progress("looking for tags", k / len(chosen)))
        frame = reconstruction.frames[i]
        # as large as the camera says, or an error
        image, _ = images.fit(images.read_image(frame.image_path), frame.camera, 10**6)
        for tag, xy in detect(image, config.tag_family):
            sightings[tag].append(Sighting(i, xy))
    return dict(sightings)


def detect(image_HW3: np.ndarray, family: str) -> list[tuple[int, np.ndarray]]:
    """Ids and corners (4, 2; pixels, corner origin) of the tags in an RGB image."""
    if not hasattr(cv2, "aruco"):
        raise SldError(
            f"OpenCV {cv2.__version__} finds no tags: install OpenCV 4.7 or later, or an earlier "
            "one with its contrib modules"
        )
    dictionary = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, FAMILIES[family]))
    gray = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2GRAY)
    corners, ids = _detect_markers(gray, dictionary)
    found = []
    for tag, xy in zip(ids, corners):
        sharp = _on_edges(gray, xy.reshape(4, 2).astype(float), dictionary.markerSize + 2)
        if sharp is not None:
            found.append((int(tag), sharp + 0.5))
    return found


def _detect_markers(gray_HW: np.ndarray, dictionary) -> tuple[Sequence[np.ndarray], np.ndarray]:
    """Corners and ids by OpenCV. Before 4.7, as in Ubuntu 24.04, there is no ArucoDetector, and
    parameters made by their class instead of the function crash the process."""
    if hasattr(cv2.aruco, "ArucoDetector"):
        parameters = cv2.aruco.DetectorParameters()
        parameters.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_SUBPIX
        found = cv2.aruco.ArucoDetector(dictionary, parameters).detectMarkers(gray_HW)
    else:
        parameters = cv2.aruco.DetectorParameters_create()
        parameters.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_SUBPIX
        found = cv2.aruco.detectMarkers(gray_HW, dictionary, parameters=parameters)
    corners, ids, _ = found
    return corners, np.empty(0, int) if ids is None else np.ravel(ids)


def _on_edges(gray_HW: np.ndarray, xy_42: np.ndarray, modules: int) -> np.ndarray | None:
    """Corners (4, 2; pixel centres at integers) as intersections of lines fitted to the edges of
    the black square; None where an edge cannot be seen. OpenCV's corner refinement moves blurred
    corners inwards: lengths came out 0.4 to 1.4 % too short."""
    for _ in range(3):
        lines = [
            _edge(gray_HW, xy_42[k], xy_42[(k + 1) % 4], xy_42.mean(0), modules) for k in range(4)
        ]
        if any(line is None for line in lines):
            return None
        meet = np.array([np.cross(lines[k - 1], lines[k]) for k in range(4)])
        moved = meet[:, :2] / np.where(np.abs(meet[:, 2:]) > 1e-12, meet[:, 2:], np.nan)
        if not np.abs(moved - xy_42).max() < 3:  # NaN too
            return None
        xy_42 = moved
    return xy_42


def _edge(
    gray_HW: np.ndarray, a_2: np.ndarray, b_2: np.ndarray, centre_2: np.ndarray, modules: int
) -> np.ndarray | None:
    """The line (3,) of one side from about a to b: where, across it, black turns to white."""
    along = b_2 - a_2
    length = float(np.linalg.norm(along))
    normal = np.array([along[1], -along[0]]) / max(length, 1e-9)
    normal *= np.sign(normal @ (a_2 + b_2 - 2 * centre_2)) or 1.0
    # the border is one module wide, and so is the white around it
    reach = np.clip(0.6 * length / modules, 1.5, 4.0)
    part = np.linspace(0.1, 0.9, int(np.clip(length, 8, 64)))
    across = np.linspace(-reach, reach, 25)
    xy = (a_2 + part[:, None] * along)[:, None] + across[:, None] * normal
    profile = cv2.remap(
        gray_HW, xy.astype(np.float32), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    ).astype(float)
    rise = np.diff(profile, axis=1)
    rise = np.where(rise > 0.2 * rise.max(1, keepdims=True), rise, 0)
    good = rise.sum(1) > 20  # grey values from black to white
    if good.sum() < 4:
        return None
    offset = (rise[good] @ ((across[1:] + across[:-1]) / 2)) / rise[good].sum(1)
    away = np.abs(offset - np.median(offset))
    kept = away <= 3 * max(float(np.median(away)), 0.05)
    slope, start = np.polyfit(part[good][kept], offset[kept], 1)
    p, q = a_2 + start * normal, b_2 + (start + slope) * normal
    return np.cross([*p, 1.0], [*q, 1.0])


def _log_scales(
    reconstruction: Reconstruction, seen: list[Sighting], config: MetricConfig
) -> np.ndarray | str:
    """log(size / length) of the six lines of a tag, or why it cannot be used."""
    frames = [s.frame for s in seen]
    if len(set(frames)) < len(frames):
        return "one image shows it twice"
    if len(seen) < 2:
        return "only one image shows it"
    xy = np.stack([s.xy_42 for s in seen])
    cameras = [reconstruction.frames[i].camera for i in frames]
    T = np.stack([geometry.invert(reconstruction.frames[i].T_world_camera) for i in frames])
    corners, good = _place(cameras, T, xy, config.tag_reprojection_px)
    lost = len(seen) - int(good.sum())
    if good.sum() < 2 or lost >= max(2, 0.25 * len(seen)):
        return (
            f"{lost} of {len(seen)} sightings do not fit the place of the others; was it printed "
            "twice, or moved?"
        )
    if _parallax_deg(T[good], corners.mean(0)) < config.min_tag_parallax_deg:
        return (
            "it was seen from one direction only (less than "
            f"{config.min_tag_parallax_deg:g} deg of parallax)"
        )
    lengths = np.array([np.linalg.norm(corners[a] - corners[b]) for a, b, _ in EDGES])
    logs = np.log(config.tag_size_m * np.array([sides for _, _, sides in EDGES]) / lengths)
    if np.ptp(logs) > config.max_tag_skew:
        return (
            f"its sides differ by {100 * np.ptp(logs):.0f} %; it is not flat, or too small in the "
            "images"
        )
    return logs


@dataclass(frozen=True)
class _Fit:
    """A proposed place of a tag: its corners (4, 3), which views (V,) agree, and their summed
    squared error."""

    corners_43: np.ndarray
    good_V: np.ndarray
    error: float

    def better(self, other: _Fit) -> _Fit:
        """The one with more views or, at as many, the smaller error."""
        mine, theirs = self.good_V.sum(), other.good_V.sum()
        if mine != theirs:
            return self if mine > theirs else other
        return self if self.error <= other.error else other


def _place(
    cameras: list[Camera], T_V44: np.ndarray, xy_V42: np.ndarray, max_error_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """Corners (4, 3) that most views agree on, and which views (V,) do; proposed by pairs of views,
    refined with all that agree."""
    P = np.stack([c.K @ T[:3] for c, T in zip(cameras, T_V44)])
    best = _Fit(np.zeros((4, 3)), np.zeros(len(P), bool), np.inf)
    for two in spread(list(combinations(range(len(P)), 2)), MAX_PAIRS):
        corners = _triangulate(P[list(two)], xy_V42[list(two)])
        best = best.better(_fit(P, xy_V42, corners, max_error_px))
    for _ in range(3):
        if best.good_V.sum() >= 2:
            corners = _triangulate(P[best.good_V], xy_V42[best.good_V])
            best = best.better(_fit(P, xy_V42, corners, max_error_px))
    return best.corners_43, best.good_V


def _fit(
    P_V34: np.ndarray, xy_V42: np.ndarray, corners_43: np.ndarray, max_error_px: float
) -> _Fit:
    h = np.einsum("vij,cj->vci", P_V34, np.column_stack([corners_43, np.ones(4)]))
    ahead = (h[:, :, 2] > 1e-9).all(1)
    xy = h[:, :, :2] / np.where(h[:, :, 2:] > 1e-9, h[:, :, 2:], np.inf)
    error = np.linalg.norm(xy - xy_V42, axis=2).max(1)
    good = ahead & (error <= max_error_px)
    return _Fit(corners_43, good, float((error[good] ** 2).sum()))


def _triangulate(P_V34: np.ndarray, xy_V42: np.ndarray) -> np.ndarray:
    """Corners (4, 3) with least reprojection error: the linear solution, its rows reweighted by
    depth (Hartley and Sturm, 1997)."""
    out = np.zeros((4, 3))
    for c in range(4):
        rows = xy_V42[:, c, :, None] * P_V34[:, None, 2] - P_V34[:, :2]  # V, 2, 4
        weight = np.ones(len(P_V34))
        for _ in range(4):
            A = (rows * weight[:, None, None]).reshape(-1, 4)
            x, *_ = np.linalg.lstsq(A[:, :3], -A[:, 3], rcond=None)
            depth = P_V34[:, 2, :3] @ x + P_V34[:, 2, 3]
            weight = 1 / np.maximum(np.abs(depth), 1e-9)
        out[c] = x
    return out


def _parallax_deg(T_V44: np.ndarray, point_3: np.ndarray) -> float:
    """Largest angle between the rays from the views to a point."""
    centres = -np.einsum("vji,vj->vi", T_V44[:, :3, :3], T_V44[:, :3, 3])
    rays = point_3 - centres
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    return float(np.degrees(np.arccos(np.clip(rays @ rays.T, -1, 1).min())))
