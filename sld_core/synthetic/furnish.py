"""The walls of the room, and furniture along them in random order.

Every piece is built in the frame of its wall: x to the right along the wall, y into the wall (so
the room is at y < 0), z up from the floor. The order of the random draws is part of the room: a
seed must keep making the same one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from sld_core.geometry import make_transform, rotation_from_vector, transform
from sld_core.synthetic import textures as tx
from sld_core.synthetic.light import Lamp
from sld_core.synthetic.raster import Quad

HEIGHT_M = 2.6
WALL_TEXELS_PER_M = 330
FURNITURE_TEXELS_PER_M = 420
FLUSH_M = 0.012  # thickness of what hangs on a wall or lies on the floor
WOODS = ((150, 104, 62), (112, 72, 44), (196, 160, 112), (92, 60, 40))
PAINTS = ((214, 208, 192), (120, 142, 150), (168, 84, 64), (86, 112, 92), (222, 214, 170))


def furnish(rng: np.random.Generator) -> tuple[list[Quad], list[Lamp]]:
    """All surfaces and lamps, floor at z = 0 and the room centred on the origin. The middle, 1.3 m
    by 1 m to each side, stays free."""
    width, depth = rng.uniform(5.6, 6.2), rng.uniform(4.6, 5.0)
    builder = Builder(rng)
    _shell(builder, width, depth)
    pieces = [PIECES[i] for i in rng.permutation(len(PIECES))]
    for turn in range(4):
        span, across = (width, depth) if turn % 2 == 0 else (depth, width)
        builder.frame = _wall_frame(turn, across / 2)
        _along_wall(builder, [pieces.pop() for _ in range(3)], span)
    return builder.quads, _lamps(width, depth)


class Builder:
    """Collects the surfaces of a room. Coordinates are given in `frame` (4x4, to world)."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.quads: list[Quad] = []
        self.frame = np.eye(4)

    def panel(
        self, origin, edge_u, edge_v, texture: tx.Texture, texels_per_m=FURNITURE_TEXELS_PER_M
    ) -> None:
        """A textured parallelogram from its top-left corner."""
        rows = max(8, int(np.linalg.norm(edge_v) * texels_per_m))
        columns = max(8, int(np.linalg.norm(edge_u) * texels_per_m))
        corner = transform(self.frame, np.array([origin], float))[0]
        u, v = (self.frame[:3, :3] @ np.array(edge, float) for edge in (edge_u, edge_v))
        self.quads.append(Quad(corner, u, v, texture(self.rng, rows, columns)))

    def front(self, left, y, top, width, height, texture: tx.Texture, **how) -> None:
        """An upright rectangle that faces the room."""
        self.panel((left, y, top), (width, 0, 0), (0, 0, -height), texture, **how)

    def box(
        self, left, front, bottom, width, depth, height, texture: tx.Texture, front_texture=None
    ) -> None:
        """A box from its lower left front corner (front: towards the room) and its size."""
        back, right, top = front + depth, left + width, bottom + height
        self.front(left, front, top, width, height, front_texture or texture)
        self.panel((right, back, top), (-width, 0, 0), (0, 0, -height), texture)
        self.panel((left, back, top), (0, -depth, 0), (0, 0, -height), texture)
        self.panel((right, front, top), (0, depth, 0), (0, 0, -height), texture)
        self.panel((left, back, top), (width, 0, 0), (0, -depth, 0), texture)
        if bottom > 0:
            self.panel((left, front, bottom), (width, 0, 0), (0, depth, 0), texture)

    def hang(self, left, bottom, width, height, texture: tx.Texture) -> None:
        """A flat thing on the wall, in a thin frame."""
        frame, y = tx.wood(self.pick(WOODS)), -2 * FLUSH_M
        self.box(left - 0.02, y, bottom - 0.02, width + 0.04, FLUSH_M, height + 0.04, frame)
        self.front(left, -2.5 * FLUSH_M, bottom + height, width, height, texture)

    def pick(self, options: Sequence):
        return options[self.rng.integers(len(options))]


def _wall_frame(turn: int, distance: float) -> np.ndarray:
    """The frame of a wall at a distance from the room's centre; `turn` quarter turns from the wall
    at +y."""
    R = rotation_from_vector(np.array([0, 0, turn * np.pi / 2]))
    return make_transform(R, R @ [0, distance, 0])


def _shell(builder: Builder, width: float, depth: float) -> None:
    x, y = width / 2, depth / 2
    builder.panel((-x, y, 0), (width, 0, 0), (0, -depth, 0), tx.planks, WALL_TEXELS_PER_M)
    builder.panel((-x, -y, HEIGHT_M), (width, 0, 0), (0, depth, 0), tx.ceiling, 200)
    builder.panel((-1.3, 0.9, FLUSH_M), (2.6, 0, 0), (0, -1.8, 0), tx.rug, 300)
    paints = [tx.random_color(builder.rng, (170, 165, 150), (225, 222, 210)) for _ in range(3)]
    walls = [tx.bricks, *map(tx.plaster, paints)]
    for turn, i in enumerate(builder.rng.permutation(4)):
        span, distance = (width, y) if turn % 2 == 0 else (depth, x)
        builder.frame, left = _wall_frame(turn, distance), -span / 2
        builder.front(left, 0, HEIGHT_M, span, HEIGHT_M, walls[i], texels_per_m=WALL_TEXELS_PER_M)
        builder.box(left, -0.015, 0, span, 0.015, 0.09, tx.wood((226, 222, 212)))


def _along_wall(builder: Builder, pieces: list[Piece], span: float) -> None:
    """Pieces side by side, away from the corners, where the next wall's furniture stands."""
    corner = 0.6
    slot = (span - 2 * corner) / len(pieces)
    for i, piece in enumerate(pieces):
        width = min(slot - 0.08, builder.rng.uniform(0.95, 1.5))
        slack = slot - width
        piece(builder, -span / 2 + corner + i * slot + builder.rng.uniform(0.2, 0.8) * slack, width)


def _lamps(width: float, depth: float) -> list[Lamp]:
    """Two ceiling lamps, each of several points for soft shadows, and weak light from all over the
    room."""
    x, y = width / 4, depth / 4
    warm, cool = np.array([0.42, 0.40, 0.36]), np.array([0.09, 0.10, 0.11])
    spots = product((-x, x), (-0.15, 0.15), (-0.3, 0.3))
    lamps = [Lamp(np.array([lamp_x + dx, dy, HEIGHT_M - 0.25]), warm) for lamp_x, dx, dy in spots]
    return lamps + [Lamp(np.array(p), cool) for p in product((-x, x), (-y, y), (0.9, 1.8))]


# ---- pieces: (builder, left end, width), all along the wall ----

Piece = Callable[[Builder, float, float], None]


def bookshelf(b: Builder, left: float, width: float) -> None:
    wood, depth, height = tx.wood(b.pick(WOODS)), 0.3, b.rng.uniform(1.7, 2.1)
    for x in (left, left + width - 0.03):
        b.box(x, -depth, 0, 0.03, depth, height, wood)
    b.front(left, -0.02, height, width, height, wood)
    levels = np.linspace(0.06, height - 0.03, 6)
    for z in levels:
        b.box(left + 0.03, -depth, z, width - 0.06, depth, 0.025, wood)
    pages = tx.plaster((225, 220, 205))
    for z, above in zip(levels, levels[1:]):
        x = left + 0.035
        while x < left + width - 0.12:
            w, h = b.rng.uniform(0.025, 0.07), b.rng.uniform(0.62, 0.92) * (above - z - 0.025)
            d = b.rng.uniform(0.16, 0.26)
            b.box(x, -0.02 - d, z + 0.025, w, d, h, pages, tx.spine)
            x += w + (0.004 if b.rng.random() < 0.85 else 0.1)


def cupboard(b: Builder, left: float, width: float) -> None:
    color, height = b.pick(PAINTS), b.rng.uniform(1.6, 2.0)
    _chest(b, left, width, 0.45, height, color, doors=2)
    b.box(left + 0.1, -0.4, height, 0.4 * width, 0.32, 0.3, tx.carton)


def sideboard(b: Builder, left: float, width: float) -> None:
    color, height = b.pick(WOODS), b.rng.uniform(0.7, 0.85)
    _chest(b, left, width, 0.42, height, color, doors=3)
    _clutter(b, left, width, height)
    _gallery(b, left, width, 1.25)


def desk(b: Builder, left: float, width: float) -> None:
    wood = tx.wood(b.pick(WOODS))
    b.box(left, -0.62, 0.71, width, 0.62, 0.03, wood)
    for x, y in product((left + 0.02, left + width - 0.07), (-0.6, -0.08)):
        b.box(x, y, 0, 0.05, 0.05, 0.71, wood)
    screen = left + 0.25 * width
    b.box(screen, -0.25, 0.82, 0.55, 0.04, 0.34, tx.plaster((40, 40, 44)))
    b.front(screen + 0.015, -0.25 - FLUSH_M, 1.145, 0.52, 0.31, tx.landscape)
    b.box(screen + 0.2, -0.24, 0.74, 0.12, 0.12, 0.09, tx.plaster((50, 50, 54)))
    b.panel((screen, -0.42, 0.75), (0.46, 0, 0), (0, -0.14, 0), tx.page)
    b.box(left + width - 0.3, -0.5, 0.74, 0.2, 0.28, b.rng.uniform(0.04, 0.12), tx.spine)
    b.box(left + 0.4 * width, -1.0, 0.42, 0.42, 0.4, 0.05, tx.fabric(tx.vivid(b.rng)))  # a stool
    b.box(left + 0.4 * width + 0.19, -0.82, 0, 0.05, 0.05, 0.42, tx.plaster((60, 60, 64)))
    b.hang(left + 0.05, 1.35, width - 0.1, 0.8, tx.whiteboard)


def door(b: Builder, left: float, width: float) -> None:
    wood, x = tx.wood(b.pick(PAINTS)), left + (width - 0.9) / 2
    b.box(x - 0.07, -0.05, 0, 0.07, 0.05, 2.1, wood)
    b.box(x + 0.9, -0.05, 0, 0.07, 0.05, 2.1, wood)
    b.box(x - 0.07, -0.05, 2.1, 1.04, 0.05, 0.08, wood)
    b.front(x, -FLUSH_M, 2.1, 0.9, 2.1, tx.panelled(b.pick(PAINTS)))
    b.front(x + 0.28, -2 * FLUSH_M, 1.7, 0.3, 0.42, tx.page)


def window(b: Builder, left: float, width: float) -> None:
    b.hang(left, 0.95, width, 1.25, tx.window)
    b.box(left - 0.05, -0.16, 0.89, width + 0.1, 0.16, 0.03, tx.wood((228, 224, 214)))
    fins = int(width / 0.09)
    for fin in range(fins):
        b.box(left + fin * width / fins, -0.12, 0.15, 0.06, 0.1, 0.6, tx.plaster((216, 214, 206)))
    _plant(b, left + 0.2, -0.08, 0.92, 0.13)


def boxes(b: Builder, left: float, width: float) -> None:
    z = 0.0
    for _ in range(3):
        w, d, h = b.rng.uniform((0.38, 0.32, 0.25), (0.6, 0.45, 0.36))
        b.box(left + b.rng.uniform(0, 0.15), -d - 0.04, z, w, d, h, tx.carton)
        z += h
    b.box(left + width - 0.42, -0.42, 0, 0.4, 0.36, 0.4, tx.carton)
    b.hang(left, 1.25, width, 0.85, tx.chart)


def armchair(b: Builder, left: float, width: float) -> None:
    cloth, x = tx.fabric(tx.vivid(b.rng, 70, 170)), left + (width - 0.9) / 2
    b.box(x, -0.85, 0.12, 0.9, 0.8, 0.3, cloth)
    b.box(x, -0.25, 0.42, 0.9, 0.2, 0.5, cloth)
    for side in (x, x + 0.75):
        b.box(side, -0.85, 0.42, 0.15, 0.6, 0.2, cloth)
    b.box(x + 0.25, -0.4, 0.44, 0.4, 0.12, 0.36, tx.rug)
    _gallery(b, left, width, 1.15)


def greenery(b: Builder, left: float, width: float) -> None:
    _plant(b, left + 0.35, -0.35, 0, 0.4)
    b.hang(left + 0.1, 1.3, width - 0.2, 0.7, tx.landscape)
    b.box(left + width - 0.5, -0.4, 0, 0.45, 0.36, 0.5, tx.wood(b.pick(WOODS)))
    _plant(b, left + width - 0.28, -0.22, 0.5, 0.18)


def wall_shelves(b: Builder, left: float, width: float) -> None:
    wood = tx.wood(b.pick(WOODS))
    for z in (0.55, 1.05, 1.5):
        b.box(left, -0.26, z, width, 0.26, 0.03, wood)
        _clutter(b, left, width, z + 0.03, depth=0.22, tallest=0.34)
    b.hang(left + width / 2 - 0.17, 1.95, 0.34, 0.34, tx.clock)


def piano(b: Builder, left: float, width: float) -> None:
    wood = tx.wood((70, 44, 30))
    b.box(left, -0.35, 0, width, 0.35, 1.15, wood)
    b.box(left, -0.6, 0.62, width, 0.25, 0.08, wood, tx.spine)
    b.front(left + 0.3 * width, -0.36, 1.1, 0.4 * width, 0.3, tx.page)
    _clutter(b, left, width, 1.15, depth=0.3, tallest=0.25)
    _gallery(b, left, width, 1.5, tallest=0.6)


def noticeboard(b: Builder, left: float, width: float) -> None:
    b.hang(left, 1.0, width, 1.1, tx.fabric((170, 130, 86)))
    for column, row in product(range(4), range(3)):
        w, h = b.rng.uniform(0.14, 0.22) * width, b.rng.uniform(0.22, 0.3)
        x = left + (column * 0.245 + b.rng.uniform(0.01, 0.03)) * width
        top = 2.08 - 0.36 * row - b.rng.uniform(0, 0.04)
        edge_u, notice = (w, 0, b.rng.normal(0, 0.01)), b.pick((tx.page, tx.abstract, tx.chart))
        b.panel((x, -3 * FLUSH_M, top), edge_u, (0, 0, -h), notice)
    b.box(left + 0.1, -0.4, 0, width - 0.2, 0.4, 0.45, tx.wood(b.pick(WOODS)))
    _clutter(b, left + 0.1, width - 0.2, 0.45, tallest=0.35)


PIECES: tuple[Piece, ...] = (
    bookshelf,
    cupboard,
    sideboard,
    desk,
    door,
    window,
    boxes,
    armchair,
    greenery,
    wall_shelves,
    piano,
    noticeboard,
)


def _chest(b: Builder, left, width, depth, height, color: tx.Color, doors: int) -> None:
    """A closed piece with panelled doors side by side."""
    b.box(left, -depth, 0, width, depth, height, tx.wood(color))
    for i in range(doors):
        x = left + i * width / doors
        b.front(x, -depth - FLUSH_M, height, width / doors, height, tx.panelled(color))


def _gallery(b: Builder, left: float, width: float, bottom: float, tallest: float = 0.85) -> None:
    """Two or three pictures side by side."""
    edges = left + np.cumsum([0, *b.rng.dirichlet(np.full(b.rng.integers(2, 4), 12.0))]) * width
    for start, end in zip(edges, edges[1:]):
        height = b.rng.uniform(0.7, 1.0) * tallest
        z = bottom + b.rng.uniform(0, tallest - height)
        picture = b.pick((tx.abstract, tx.landscape, tx.chart))
        b.hang(start + 0.05, z, end - start - 0.1, height, picture)


def _clutter(b: Builder, left, width, z: float, depth: float = 0.34, tallest: float = 0.3) -> None:
    """Small things standing on a surface."""
    x = left + 0.03
    while x < left + width - 0.2:
        w = b.rng.uniform(0.07, 0.2)
        d = b.rng.uniform(0.4, 0.8) * depth
        h = b.rng.uniform(0.3, 1.0) * tallest
        sides = b.pick((tx.carton, tx.spine, tx.abstract, tx.fabric(tx.vivid(b.rng))))
        y = -depth + b.rng.uniform(0, 0.9) * (depth - d)
        b.box(x, y, z, w, d, h, sides, b.pick((tx.page, tx.abstract, tx.carton)))
        x += w + b.rng.uniform(0.02, 0.12)


def _plant(b: Builder, x: float, y: float, z: float, size: float) -> None:
    """A pot with leaves, each a slanted parallelogram seen from both sides."""
    pot = 0.5 * size
    b.box(x - pot / 2, y - pot / 2, z, pot, pot, 0.7 * size, tx.plaster((168, 92, 62)))
    for _ in range(22):
        along = b.rng.normal(0, 1, 3) * [1, 1, 0.4] + [0, 0, 0.9]
        along *= b.rng.uniform(0.6, 1.1) * size / np.linalg.norm(along)
        across = np.cross(along, b.rng.normal(0, 1, 3))
        across *= 0.2 * size / np.linalg.norm(across)
        base = np.array([x, y, z + 0.7 * size]) + b.rng.uniform(-0.3, 0.3, 3) * [size, size, 0]
        base = base + [0, 0, b.rng.uniform(0, size)]
        if (base + along)[1] < -0.02:
            b.panel(base, along / 2 + across, along / 2 - across, tx.foliage)
            b.quads.append(b.quads[-1].flipped())
