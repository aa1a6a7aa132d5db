"""A stand-in for CIFAR-10 that needs no download: pictures of ten shapes, drawn by NumPy.

Every shape is a signed distance: a function of the place, negative inside and positive outside.
"""

import numpy as np

SIZE = 32  # height and width of a picture
CHUNK = 60  # pictures drawn at once: few enough for their arrays to stay in the cache
CLASSES = "arrow circle cross heart hourglass moon ring square star triangle".split()

# How hard the pictures are: with these, the net is about 80 % right after the default two epochs.
MIN_RADIUS, MAX_RADIUS = 6, 12  # of a shape, in pixels
MAX_TURN = 0.5  # of a shape either way, in radians
BARS = 3  # behind a shape
MAX_SPOT = 4  # radius of the spot in front of it, in pixels
MAX_GRAIN = 0.35  # from the darkest grain to the lightest, where black to white is 1


def length(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y)  # np.hypot is careful about overflow, and several times slower


def distance_to(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The signed distance to a shape of about one unit in radius; x goes right and y goes down."""
    match shape:
        case "arrow":
            shaft = np.maximum(abs(x + 0.45) - 0.55, abs(y) - 0.28)
            head = np.maximum(-x, 0.6 * x + 0.8 * abs(y) - 0.6)
            return np.minimum(shaft, head)
        case "circle":
            return length(x, y) - 0.85
        case "cross":
            x, y = abs(x), abs(y)
            return np.maximum(np.maximum(x, y) - 0.95, np.minimum(x, y) - 0.3)
        case "heart":
            x = abs(x)
            lobe = length(x - 0.42, y + 0.3) - 0.48
            tip = np.maximum(0.75 * x + 0.66 * y - 0.6, 0.66 * (x - 0.42) - 0.75 * (y + 0.3))
            return np.minimum(lobe, np.maximum(tip, -0.4 - y))
        case "hourglass":
            x, y = abs(x), abs(y)
            return np.maximum(y - 0.85, 0.8 * x - 0.6 * y - 0.08)
        case "moon":
            return np.maximum(length(x, y) - 0.95, 0.75 - length(x - 0.5, y))
        case "ring":
            return abs(length(x, y) - 0.7) - 0.2
        case "square":
            return np.maximum(abs(x), abs(y)) - 0.75
        case "star":
            tenth = np.float32(np.pi / 5)  # fold the five points, each with two mirrored halves
            angle = abs((np.arctan2(x, -y) + tenth) % (2 * tenth) - tenth)
            radius = length(x, y)
            return 0.35 * radius * np.cos(angle) + 0.937 * radius * np.sin(angle) - 0.35
        case "triangle":
            return np.maximum(y, 0.866 * abs(x) - 0.5 * y) - 0.5


def draw_shapes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw images, uint8 (count, 3, 32, 32), and labels, int64 (count,): places in CLASSES.

    There are equally many of each class; the same seed draws the same pictures.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count, dtype=np.int64) % len(CLASSES))
    images = np.empty((count, 3, SIZE, SIZE), np.uint8)
    for start in range(0, count, CHUNK):
        chunk = slice(start, start + CHUNK)
        for channel, plane in enumerate(draw_chunk(labels[chunk], rng)):
            images[chunk, channel] = (255 * plane).clip(0, 255)
    return images, labels


def draw_chunk(labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """One picture per label, as a red, a green and a blue plane: float32 (count, 32, 32)."""

    def random(low: float, high: float) -> np.ndarray:  # a number for each picture
        return rng.uniform(low, high, (len(labels), 1, 1)).astype(np.float32)

    # Pixels from the middle, as a column and a row: what depends on one of them is soon computed.
    y, x = (places.astype(np.float32) - (SIZE - 1) / 2 for places in np.ogrid[:SIZE, :SIZE])

    # A background that changes slowly: light where the shape is dark, or the other way round.
    light = 0.55 * rng.integers(2, size=(len(labels), 1, 1)).astype(np.float32)
    slope = random(-0.01, 0.01) * x + random(-0.01, 0.01) * y
    tones = color(random(0, 1), light + random(0.05, 0.35))
    canvas = [tone + slope * random(-1, 1) for tone in tones]

    # Clutter: bars with round ends, in any colour.
    for _ in range(BARS):
        turn = random(0, 2 * np.pi)
        along, across = rotate(x - random(-14, 14), y - random(-14, 14), turn)
        distance = length(np.maximum(abs(along) - random(0, 8), 0), across) - random(0.6, 2.5)
        paint(canvas, distance, color(random(0, 1), random(0.1, 0.9)))

    # The shape, at a place where it is wholly in the picture.
    radius = random(MIN_RADIUS, MAX_RADIUS)
    room = SIZE / 2 - 1 - radius
    u, v = rotate(x - room * random(-1, 1), y - room * random(-1, 1), random(-MAX_TURN, MAX_TURN))
    distance = np.empty_like(u)
    for label, shape in enumerate(CLASSES):
        rows = labels == label
        r = radius[rows]
        distance[rows] = r * distance_to(shape, u[rows] / r, v[rows] / r)
    paint(canvas, distance, color(random(0, 1), 0.55 - light + random(0.05, 0.35)))

    # Something small in front of it, and grain.
    spot = length(x - random(-14, 14), y - random(-14, 14)) - random(0, MAX_SPOT)
    paint(canvas, spot, color(random(0, 1), random(0.1, 0.9)))
    grain = rng.random((len(labels), SIZE, SIZE), dtype=np.float32) - np.float32(0.5)
    grain *= random(0, MAX_GRAIN)
    return [plane + grain for plane in canvas]


def rotate(x: np.ndarray, y: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates as seen by something that is turned by the angle."""
    cos, sin = np.cos(angle), np.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def color(hue: np.ndarray, lightness: np.ndarray) -> list[np.ndarray]:
    """Red, green and blue of a hue in 0..1 and a lightness in 0..1."""
    waves = [np.cos(2 * np.pi * (hue + third / 3)) for third in range(3)]
    return [(lightness + 0.3 * wave).clip(0, 1) for wave in waves]


def paint(canvas: list[np.ndarray], distance: np.ndarray, tones: list[np.ndarray]) -> None:
    """Put a colour where the distance, in pixels, is negative; the edge is one pixel wide."""
    cover = (0.5 - distance).clip(0, 1)
    for plane, tone in zip(canvas, tones, strict=True):
        plane += cover * (tone - plane)
