"""Procedural textures with local detail that does not repeat: (H, W, 3) uint8 RGB, from a random
generator.

The order of the random draws is part of each texture: a seed must keep making the same room."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np

Rng = np.random.Generator
Color = tuple[int, int, int]
Range = tuple[float, float]
Texture = Callable[[Rng, int, int], np.ndarray]  # generator, height, width in texels
LETTERS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"))
FONT = cv2.FONT_HERSHEY_SIMPLEX
SKIES = ((120, 170, 215), (225, 170, 130), (190, 200, 205), (110, 110, 160))
GROUNDS = ((70, 100, 60), (120, 95, 60), (70, 85, 110), (110, 60, 60))
PAPERS = ((240, 236, 224), (28, 40, 66), (232, 196, 80), (190, 60, 50))
# layers of `grain`: grey levels, and the settings of `clouds`; without settings, white noise
PLASTER = (4, ()), (4, (60, 3, 0.8))
FABRIC = (7, None), (8, (8, 5))
CARTON = (5, ()), (4, None)


# ---- noise, colours and marks ----


def clouds(
    rng: Rng, height: int, width: int, coarse: int = 3, octaves: int = 6, decay: float = 0.6
) -> np.ndarray:
    """Fractal noise (H, W) float32 with mean 0 and standard deviation 1; the first octave has
    `coarse` cells along the longer side."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cells = coarse * 2**octave / max(height, width)
        size = max(2, int(height * cells)), max(2, int(width * cells))
        grid = rng.standard_normal(size, np.float32)
        total += decay**octave * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return (total - total.mean()) / (total.std() + 1e-6)


def grain(rng: Rng, height: int, width: int, layers) -> np.ndarray:
    """The sum of several layers of noise, such as PLASTER (H, W), in grey levels."""
    total = np.zeros((height, width), np.float32)
    for amount, how in layers:
        if how is None:
            total += amount * rng.standard_normal((height, width), np.float32)
        else:
            total += amount * clouds(rng, height, width, *how)
    return total


def random_color(rng: Rng, low: Color, high: Color) -> Color:
    return tuple(int(c) for c in rng.integers(low, high))


def vivid(rng: Rng, low: int = 40, high: int = 230) -> Color:
    """A saturated random colour."""
    hsv = np.uint8([[[rng.integers(180), rng.integers(110, 230), rng.integers(low, high)]]])
    return tuple(int(c) for c in cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0])


def shade(color: Color, by: int) -> Color:
    """A colour made darker or lighter by grey levels."""
    return tuple(min(255, max(0, c + by)) for c in color)


def tint(color: Color, amount_HW: np.ndarray) -> np.ndarray:
    """A colour made darker and lighter by `amount_HW` (grey levels)."""
    return to_uint8(np.float32(color) + amount_HW[..., None])


def to_uint8(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, 255).astype(np.uint8)


def scattered(rng: Rng, image: np.ndarray, count: int, x: Range, y: Range) -> Iterator[Range]:
    """Random positions in texels; `x` and `y` are ranges as fractions of the image's sides."""
    height, width = image.shape[:2]
    for _ in range(count):
        yield rng.uniform(*x) * width, rng.uniform(*y) * height


def disc(image: np.ndarray, x: float, y: float, radius: float, color: Color, edge=-1) -> None:
    """A filled circle, or a ring whose edge is so many texels wide."""
    cv2.circle(image, (int(x), int(y)), int(radius), color, edge, cv2.LINE_AA)


def words(rng: Rng, image: np.ndarray, x, y, height_px: float, color: Color, count: int) -> None:
    """Random letters written into the image from (x, y), the lower left."""
    text, place = "".join(rng.choice(LETTERS, count)), (int(x), int(y))
    scale, stroke = height_px / 22, max(1, int(height_px / 9))
    cv2.putText(image, text, place, FONT, scale, color, stroke, cv2.LINE_AA)


def scuff(rng: Rng, image: np.ndarray, per_megapixel: float, strength: float) -> np.ndarray:
    """Adds scratches, chips and spots, as wear does."""
    height, width = image.shape[:2]
    marks = np.zeros((height, width), np.float32)
    count = int(per_megapixel * height * width / 1e6)
    for x, y in scattered(rng, image, count, (0, 1), (0, 1)):
        grey = float(rng.normal(0, strength))
        if rng.random() < 0.5:
            length, angle = rng.exponential(18) + 3, rng.uniform(0, np.pi)
            end = int(x + length * np.cos(angle)), int(y + length * np.sin(angle))
            cv2.line(marks, (int(x), int(y)), end, grey, int(rng.integers(1, 4)))
        else:
            radii, turn = rng.integers(1, 8, 2).tolist(), float(rng.uniform(0, 180))
            cv2.ellipse(marks, (int(x), int(y)), radii, turn, 0, 360, grey, -1)
    return to_uint8(image + cv2.GaussianBlur(marks, (3, 3), 0)[..., None])


# ---- materials ----


def plaster(color: Color) -> Texture:
    return lambda rng, *size: scuff(rng, tint(color, grain(rng, *size, PLASTER)), 700, 26)


def fabric(color: Color) -> Texture:
    return lambda rng, *size: scuff(rng, tint(color, grain(rng, *size, FABRIC)), 300, 22)


def bricks(rng, height, width, rows: int = 26):
    image = np.float32([168, 160, 150]) + 9 * clouds(rng, height, width, 30, 4)[..., None]
    row_px = height / rows
    for row in range(rows):
        top, bottom = int(row * row_px + 2), int((row + 1) * row_px - 1)
        x = -rng.uniform(0, 2) * row_px
        while x < width:
            length = row_px * rng.uniform(2.0, 3.0)
            color = np.float32([150, 78, 60]) + rng.normal(0, 14) + rng.normal(0, 7, 3)
            left = max(0, int(x + 2))
            image[top:bottom, left : max(left, int(x + length - 1))] = color
            x += length
    return scuff(rng, image + 9 * clouds(rng, height, width, 24, 5, 0.9)[..., None], 900, 32)


def wood(color: Color) -> Texture:
    """Grain along the longer side, with knots."""

    def draw(rng, height, width):
        if width < height:
            return np.ascontiguousarray(draw(rng, width, height).swapaxes(0, 1))
        y = np.linspace(0, max(3.0, height / 22), height, dtype=np.float32)[:, None]
        bend = 0.5 * clouds(rng, height, width, 3, 3)
        y = y + bend * np.linspace(0.6, 1.4, width, dtype=np.float32)
        column = np.arange(width, dtype=np.float32)
        row = np.arange(height, dtype=np.float32)[:, None]
        for _ in range(rng.poisson(height * width / 60000)):
            knot_x, knot_y = rng.uniform(0, width), rng.uniform(0, height)
            y += 2.5 * np.exp(-(((column - knot_x) / 22) ** 2 + ((row - knot_y) / 10) ** 2))
        fibre = cv2.blur(rng.standard_normal((height, width), np.float32), (15, 1))
        amount = np.sin(2 * np.pi * y) * 8 + 7 * fibre * 3 + 5 * clouds(rng, height, width)
        return scuff(rng, tint(color, amount), 250, 22)

    return draw


def planks(rng, height, width, rows: int = 30):
    image = np.zeros((height, width, 3), np.uint8)
    edges = np.linspace(0, height, rows + 1).astype(int)
    for top, bottom in zip(edges, edges[1:]):
        x = -int(rng.uniform(0, 0.2) * width)
        while x < width:
            length, darker = int(rng.uniform(0.14, 0.3) * width), rng.normal(0, 11)
            color = tuple(int(c + darker + rng.normal(0, 4)) for c in (164, 122, 82))
            left, right = max(0, x), min(width, x + length)
            if right - left > 4:
                image[top:bottom, left:right] = wood(color)(rng, bottom - top, right - left)
                image[top:bottom, left : left + 2] //= 2
            x += length
        image[top : top + 2] //= 2
    return scuff(rng, image, 500, 25)


def ceiling(rng, height, width):
    image = tint((250, 250, 246), 2 * clouds(rng, height, width))
    step = max(8, int(min(height, width) / 8))
    for y in range(0, height, step):
        for x in range(0, width, step):
            panel = image[y : y + step, x : x + step]
            dots = (rng.random(panel.shape[:2]) < 0.03) * np.float32(rng.uniform(25, 60))
            dots = 1.5 * cv2.GaussianBlur(dots, (3, 3), 0)[..., None]
            panel[:] = to_uint8(panel - dots + rng.normal(0, 4))
    image[::step], image[:, ::step] = 170, 170
    return image


def carton(rng, height, width):
    """Cardboard with tape and a shipping label."""
    image = tint((178, 138, 92), grain(rng, height, width, CARTON))
    left, right = int(0.44 * width), int(0.56 * width)
    tape = 4 * clouds(rng, height, width)[:, : right - left]
    image[:, left:right] = tint((196, 164, 116), tape)
    x, y = int(rng.uniform(0.05, 0.3) * width), int(rng.uniform(0.1, 0.4) * height)
    label = image[y : y + int(0.45 * height), x : x + int(0.55 * width)]
    label[:] = 240
    side = label.shape[0]
    for row in range(3):
        words(rng, label, 4, (0.25 + 0.2 * row) * side, 0.15 * side, (20, 20, 20), 9)
    bars = np.repeat(rng.random(label.shape[1] // 3) < 0.5, 3)
    label[int(0.72 * side) : int(0.95 * side), : len(bars)][:, bars] = 25
    words(rng, image, 0.5 * width, 0.93 * height, 0.1 * width, vivid(rng, 60, 130), 6)
    return scuff(rng, image, 1500, 24)


def panelled(color: Color) -> Texture:
    """A painted cupboard front or door: raised panels, a handle."""

    def draw(rng, height, width):
        image = wood(color)(rng, height, width)
        dx, dy = int(0.12 * width), int(0.07 * height)
        left, right = dx, width - dx
        for top, bottom in ((dy, int(0.45 * height)), (int(0.53 * height), height - dy)):
            panel = wood(shade(color, -9))(rng, bottom - top, right - left)
            image[top:bottom, left:right] = panel
            corners = (left, top), (right, bottom)
            cv2.rectangle(image, *corners, shade(color, -60), 3, cv2.LINE_AA)
            cv2.line(image, (left, bottom + 2), (right, bottom + 2), shade(color, 30), 2)
        cv2.rectangle(image, (0, 0), (width - 1, height - 1), shade(color, -80), 4)
        radius = max(3, int(0.025 * max(height, width)))
        disc(image, 0.9 * width, 0.5 * height, radius, (196, 190, 170))
        return scuff(rng, image, 500, 25)

    return draw


def foliage(rng, height, width):
    """One leaf: veins and spots."""
    color = random_color(rng, (30, 90, 30), (90, 160, 70))
    image = tint(color, 14 * clouds(rng, height, width, 4, 5))
    cv2.line(image, (0, 0), (width, height), (170, 200, 120), max(2, width // 24), cv2.LINE_AA)
    for along in np.linspace(0.1, 0.9, 6):
        x, y = int(along * width), int(along * height)
        for end in ((width, y), (x, height)):
            cv2.line(image, (x, y), end, (140, 180, 100), 2, cv2.LINE_AA)
    return scuff(rng, image, 2500, 24)


# ---- things with a picture on them ----


def rug(rng, height, width):
    """Bands and medallions, each different, as a hand-knotted rug has."""
    image = np.full((height, width, 3), vivid(rng, 90, 150), np.uint8)
    colors = vivid(rng), vivid(rng), (220, 205, 170), vivid(rng, 60, 130)
    for inset, color in zip((0.03, 0.06, 0.13, 0.16), colors):
        dx = int(inset * min(height, width))
        cv2.rectangle(image, (dx, dx), (width - dx, height - dx), color, -1)
    for x, y in scattered(rng, image, 170, (0.04, 0.96), (0.05, 0.95)):
        size = rng.uniform(0.01, 0.06) * width
        sides, turn = int(rng.integers(3, 9)), rng.uniform(0, 7)
        corner = np.arange(2 * sides)
        angle = turn + corner * np.pi / sides
        radius = size * np.where(corner % 2, rng.uniform(0.4, 1), 1)
        star = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1)
        cv2.fillPoly(image, [star.astype(np.int32)], vivid(rng), cv2.LINE_AA)
        disc(image, x, y, size / 4, vivid(rng))
    return to_uint8(image + 9 * rng.standard_normal((height, width, 1), np.float32))


def landscape(rng, height, width):
    """A painted view: sky, ridges, a sun or moon."""
    sky = np.float32(SKIES[rng.integers(4)]) + rng.normal(0, 12, 3)
    ground = np.float32(GROUNDS[rng.integers(4)]) + rng.normal(0, 10, 3)
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    haze = 12 * clouds(rng, height, width, 3, 5)[..., None]
    image = sky * (1 - 0.5 * y) + 100 * y + haze
    sun_x, sun_y = rng.uniform(0.2, 0.8) * width, rng.uniform(0.15, 0.35) * height
    disc(image, sun_x, sun_y, 0.09 * height, (250, 240, 190))
    for ridge in range(5):
        top = 0.35 + 0.13 * ridge + 0.05 * clouds(rng, 1, width, 4, 6)[0, :, None]
        color = ground * (0.6 + 0.2 * ridge) + rng.normal(0, 22, 3)
        hill = color + 14 * clouds(rng, height, width, 10, 5, 0.8)[..., None]
        image = np.where(y > top, hill, image)
    return to_uint8(image)


def abstract(rng, height, width):
    """A poster: shapes, a headline and small print."""
    image = np.full((height, width, 3), rng.choice(PAPERS), np.uint8)
    for x, y in scattered(rng, image, 26, (0, 1), (0, 0.75)):
        size = rng.uniform(0.03, 0.25) * width
        if rng.random() < 0.5:
            color = vivid(rng)
            disc(image, x, y, size / 2, color, -1 if rng.random() < 0.6 else 5)
        else:
            points = np.array([x, y]) + rng.normal(0, size / 1.5, (int(rng.integers(3, 6)), 2))
            cv2.fillPoly(image, [cv2.convexHull(points.astype(np.int32))], vivid(rng), cv2.LINE_AA)
    ink = (250, 250, 245) if image[-1, 0].mean() < 120 else (20, 20, 30)
    words(rng, image, 0.06 * width, 0.86 * height, 0.09 * width, ink, 9)
    for row in range(4):
        words(rng, image, 0.06 * width, (0.9 + 0.025 * row) * height, 0.025 * width, ink, 34)
    return image


def chart(rng, height, width):
    """A map with height lines, roads and names."""
    field = clouds(rng, height, width, 3, 5, 0.5)
    image = cv2.applyColorMap(to_uint8(128 + 45 * field), cv2.COLORMAP_SUMMER)[..., ::-1].copy()
    image[np.abs((field * 4) % 1 - 0.5) < 0.06] = (90, 70, 50)
    for _ in range(9):
        road = np.cumsum(rng.normal(0, 0.06, (14, 2)) + rng.normal(0, 0.04, 2), axis=0)
        road = ((road + rng.uniform(0, 1, 2)) * [width, height]).astype(np.int32)
        cv2.polylines(image, [road], False, vivid(rng), 2, cv2.LINE_AA)
    for x, y in scattered(rng, image, 26, (0, 0.9), (0.05, 1)):
        words(rng, image, x, y, 0.025 * width, (20, 20, 30), int(rng.integers(4, 9)))
    return image


def page(rng, height, width):
    """A printed notice with a picture."""
    image = np.full((height, width, 3), rng.integers(225, 252), np.uint8)
    words(rng, image, 0.08 * width, 0.12 * height, 0.11 * width, vivid(rng, 30, 140), 6)
    top, bottom = int(0.18 * height), int(0.5 * height)
    left, right = int(0.08 * width), int(0.92 * width)
    image[top:bottom, left:right] = landscape(rng, bottom - top, right - left)
    for y in np.arange(0.57, 0.96, 0.05):
        count = int(rng.integers(12, 20))
        words(rng, image, 0.08 * width, y * height, 0.05 * width, (40, 40, 45), count)
    return image


def whiteboard(rng, height, width):
    image = tint((238, 240, 240), 2 * clouds(rng, height, width))
    for x, y in scattered(rng, image, 14, (0.03, 0.75), (0.12, 0.95)):
        size = rng.uniform(0.03, 0.07) * height
        words(rng, image, x, y, size, vivid(rng, 40, 170), int(rng.integers(3, 10)))
    for x, y in scattered(rng, image, 7, (0.03, 0.8), (0.05, 0.8)):
        w, h = 0.14 * width, 0.17 * height
        corner = int(x + w), int(y + h * rng.uniform(0.4, 1))
        cv2.rectangle(image, (int(x), int(y)), corner, vivid(rng, 40, 170), 3, cv2.LINE_AA)
        tip = int(x + w * rng.uniform(1.2, 2.0)), int(y + h * rng.normal(0, 0.7))
        cv2.arrowedLine(image, (int(x + w), int(y)), tip, vivid(rng, 40, 170), 3, cv2.LINE_AA)
    cv2.rectangle(image, (0, 0), (width - 1, height - 1), (120, 124, 130), max(4, height // 50))
    return image


def spine(rng, height, width):
    """The back of a book."""
    color = vivid(rng)
    image = tint(color, 6 * clouds(rng, height, width, 6, 4))
    ink = (245, 235, 200) if sum(color) < 380 else (25, 25, 30)
    for y in rng.uniform(0.03, 0.97, int(rng.integers(2, 6))):
        color = ink if rng.random() < 0.6 else vivid(rng)
        image[int(y * height) : int(y * height) + int(rng.integers(2, 9))] = color
    middle = image[int(0.2 * height) : int(0.8 * height)]
    title = np.ascontiguousarray(middle.swapaxes(0, 1)[::-1])
    words(rng, title, 4, 0.72 * title.shape[0], 0.5 * title.shape[0], ink, 11)
    middle[:] = title[::-1].swapaxes(0, 1)
    return image


def window(rng, height, width):
    """A frame with the garden outside."""
    image = cv2.GaussianBlur(landscape(rng, height, width), (5, 5), 0)
    image = to_uint8(image * 0.8 + 60)
    for x, y in scattered(rng, image, 45, (0, 1), (0.45, 1)):
        radius = rng.uniform(0.01, 0.05) * height
        disc(image, x, y, radius, random_color(rng, (40, 90, 30), (120, 180, 90)))
    for x in (0, width // 2, width - 1):
        cv2.line(image, (x, 0), (x, height), (236, 234, 228), max(6, width // 24))
    for y in (0, int(0.3 * height), height - 1):
        cv2.line(image, (0, y), (width, y), (236, 234, 228), max(6, width // 30))
    return image


def clock(rng, height, width):
    image = np.full((height, width, 3), vivid(rng, 40, 120), np.uint8)
    center, radius = (width // 2, height // 2), int(0.45 * height)
    disc(image, *center, radius, (245, 244, 238))
    for hour in range(12):
        angle = hour * np.pi / 6
        x, y = width / 2 + 0.8 * radius * np.sin(angle), height / 2 - 0.8 * radius * np.cos(angle)
        place, scale = (int(x - 0.1 * radius), int(y + 0.08 * radius)), radius / 170
        cv2.putText(image, str(hour or 12), place, FONT, scale, (20, 20, 20), 2, cv2.LINE_AA)
    for length in (0.5, 0.75):
        angle = rng.uniform(0, 6.28)
        x, y = length * radius * np.sin(angle), length * radius * np.cos(angle)
        tip = int(width / 2 + x), int(height / 2 - y)
        cv2.line(image, center, tip, (20, 20, 20), 5, cv2.LINE_AA)
    return image
