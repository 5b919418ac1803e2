"""Drawn faces that a detector finds: identities from a seed, with expressions and poses, as people at a web camera."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

OVERSAMPLING = 3
BLUR = 0.8
"""Pixels, as of a small camera; without it, the detector finds fewer faces."""
EYE_LEVEL = -0.12
Colour = tuple[int, int, int]
Point = tuple[float, float]
CIRCLE: list[Point] = [(math.cos(2 * math.pi * i / 48), math.sin(2 * math.pi * i / 48)) for i in range(48)]


@dataclass(frozen=True)
class Identity:
    """What stays the same of a person. Lengths are fractions of the half width or half height of the head."""

    skin: Colour
    hair: Colour
    iris: Colour
    lips: Colour
    clothes: Colour
    wall: Colour
    width: float
    """Of the head over its height."""
    eye_distance: float
    eye_size: float
    brow_weight: float
    nose: float
    mouth: float
    hairline: float
    long_hair: bool

    @staticmethod
    def of(seed: int) -> "Identity":
        """Draw an identity."""
        rng = np.random.default_rng([seed, 5])

        def pick(*colours: Colour) -> Colour:
            return _toned(colours[rng.integers(len(colours))], rng.uniform(0.9, 1.1))

        return Identity(
            skin=pick((236, 196, 172), (224, 172, 140), (198, 140, 104), (150, 100, 72), (112, 74, 52)),
            hair=pick((38, 28, 24), (82, 54, 36), (150, 112, 66), (120, 60, 36), (168, 164, 160)),
            iris=pick((70, 46, 30), (84, 110, 130), (80, 104, 70)),
            lips=pick((176, 92, 88), (150, 74, 72), (192, 108, 104)),
            clothes=pick((60, 80, 120), (120, 50, 50), (70, 100, 70), (90, 90, 96)),
            wall=pick((176, 184, 188), (150, 160, 150), (190, 176, 160), (120, 132, 150)),
            width=rng.uniform(0.7, 0.8),
            eye_distance=rng.uniform(0.4, 0.47),
            eye_size=rng.uniform(0.16, 0.2),
            brow_weight=rng.uniform(0.035, 0.06),
            nose=rng.uniform(0.24, 0.32),
            mouth=rng.uniform(0.3, 0.38),
            hairline=rng.uniform(0.5, 0.64),
            long_hair=bool(rng.integers(2)),
        )


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Expression and position of a face.

    Attributes:
        smile: -1 (corners down) to 1.
        jaw: 0 (closed) to 1 (wide open).
        brow: -1 (lowered) to 1 (raised).
        slant: of the brows, -1 (inner ends lowered, as in anger) to 1 (inner ends raised, as in grief).
        blink: -0.5 (wide open) to 1 (closed).
        yaw: -1 to 1, turned to the left or right of the picture.
        roll: degrees, clockwise.
        centre: x and y of the head, as fractions of width and height of the picture.
        size: height of the head, as a fraction of the height of the picture.
    """

    smile: float = 0.0
    jaw: float = 0.0
    brow: float = 0.0
    slant: float = 0.0
    blink: float = 0.0
    yaw: float = 0.0
    roll: float = 0.0
    centre: Point = (0.5, 0.47)
    size: float = 0.55


def draw(
    people: Sequence[tuple[Identity, Pose]], height: int = 240, width: int = 320, room: Identity | None = None
) -> NDArray[np.uint8]:
    """Draw people before a wall.

    Args:
        people: identities and poses, from back to front.
        height, width: of the picture in pixels.
        room: whose wall it is; None takes that of the first, and black where there is nobody.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    size = width * OVERSAMPLING, height * OVERSAMPLING
    owner = people[0][0] if room is None and people else room
    picture = Image.new("RGB", size) if owner is None else _paint_wall(owner, *size)
    for identity, pose in people:
        _Head(identity, pose, *size).draw(picture)
    picture = picture.reduce(OVERSAMPLING).filter(ImageFilter.GaussianBlur(BLUR))
    return np.asarray(picture).copy()


def _paint_wall(identity: Identity, width: int, height: int) -> Image.Image:
    """Lighter at the top."""
    light = np.linspace(1.08, 0.8, height)[:, None, None] * np.array(identity.wall)
    return Image.fromarray(light.clip(0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)


def find_landmarks(identity: Identity, pose: Pose, height: int, width: int) -> NDArray[np.float32]:
    """Return where `draw` puts the landmarks of a face.

    Returns:
        (5, 2) float32, x and y in pixels of the left eye, the right eye, the nose and the corners of the mouth; left
        is that of the picture.
    """
    head = _Head(identity, pose, width, height)
    corner = head.mouth_corner()
    points = [(-identity.eye_distance, EYE_LEVEL), (identity.eye_distance, EYE_LEVEL), (0.0, identity.nose)]
    points += [(-corner[0], corner[1]), corner]
    return np.array([head.at(head.feature(point)) for point in points], np.float32)


class _Head:
    """Draws one head. Coordinates run from -1 to 1 over the head's width (to the right) and height (down)."""

    def __init__(self, identity: Identity, pose: Pose, width: int, height: int) -> None:
        self.who, self.pose = identity, pose
        self.half = height * pose.size / 2
        self.middle = width * pose.centre[0], height * pose.centre[1]
        self.turn = math.cos(math.radians(pose.roll)), math.sin(math.radians(pose.roll))

    def draw(self, picture: Image.Image) -> None:
        """Draw everything, from back to front."""
        self.pen = ImageDraw.Draw(picture)
        who, pose = self.who, self.pose
        dark_hair = _toned(who.hair, 0.8)
        if who.long_hair:
            self.oval((0, 0.15), 1.12, 1.15, dark_hair)
        self.polygon([(-2.3, 3.2), (-1.9, 1.6), (-0.5, 1.12), (0.5, 1.12), (1.9, 1.6), (2.3, 3.2)], who.clothes)
        self.polygon([(-0.45, 0.5), (0.45, 0.5), (0.5, 1.25), (0, 1.45), (-0.5, 1.25)], _toned(who.skin, 0.72))
        self.oval((0, -0.12), 1.06, 1.0, who.hair)
        for side in (-1, 1):
            self.oval((side * 0.97 - 0.1 * pose.yaw, 0.02), 0.1, 0.17, _toned(who.skin, 0.85))
        for step in np.linspace(0, 1, 14):  # lighter towards the forehead and the nose
            at = (0.18 * pose.yaw * step, 0.06 - 0.1 * step)
            reach = 1 - 0.62 * step
            self.oval(at, 0.94 * reach, (0.94 + 0.06 * pose.jaw) * reach, _toned(who.skin, 0.8 + 0.26 * step))
        self.hair()
        for side in (-1, 1):
            self.eye(side)
        self.nose()
        self.mouth()

    def at(self, point: Point) -> Point:
        """Return where a point of the head lies in the picture."""
        x, y = point[0] * self.half * self.who.width, point[1] * self.half
        cos, sin = self.turn
        return self.middle[0] + cos * x - sin * y, self.middle[1] + sin * x + cos * y

    def feature(self, point: Point) -> Point:
        """Return where a point of the front of the face lies on the head: it moves as the head turns."""
        x, y = point
        yaw = self.pose.yaw
        return x * (1 - 0.18 * abs(yaw)) + 0.3 * yaw * (1 - 0.4 * x * x), y

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self.pen.polygon([self.at(point) for point in points], fill=colour)

    def oval(self, centre: Point, across: float, down: float, colour: Colour) -> None:
        self.polygon([(centre[0] + across * x, centre[1] + down * y) for x, y in CIRCLE], colour)

    def line(self, points: Sequence[Point], weight: float, colour: Colour) -> None:
        width = max(1, round(weight * self.half))
        self.pen.line([self.at(point) for point in points], fill=colour, width=width, joint="curve")

    def hair(self) -> None:
        who = self.who
        angles = np.linspace(np.pi, 2 * np.pi, 30).tolist()
        top = [(1.04 * np.cos(a), 0.02 + 1.02 * np.sin(a)) for a in angles]
        fringe = [(0.92 * np.cos(a), -0.2 - (who.hairline - 0.2) * -np.sin(a)) for a in reversed(angles)]
        self.polygon([*top, (1.0, -0.1), *fringe, (-1.0, -0.1)], who.hair)

    def eye(self, side: int) -> None:
        who, pose = self.who, self.pose
        x, y, size = side * who.eye_distance, EYE_LEVEL, who.eye_size
        opened = size * 0.62 * (1 - pose.blink) * (1 - 0.2 * max(0.0, pose.smile))
        at = self.feature((x, y))
        self.oval(self.feature((x, y - 0.01)), size * 1.45, size * 0.95, _toned(who.skin, 0.78))
        if opened > 0.01:
            self.oval(at, size, opened, (238, 234, 230))
            iris = min(opened, size * 0.5)
            self.oval(at, size * 0.5, iris, who.iris)
            self.oval(at, size * 0.24, iris * 0.5, (12, 10, 10))
            self.oval((at[0] - 0.03, at[1] - iris * 0.35), size * 0.1, iris * 0.16, (250, 250, 250))
        arc = [self.feature((x + size * 1.1 * u, y - opened * (1 - u * u))) for u in np.linspace(-1, 1, 9).tolist()]
        self.line(arc, 0.03, (40, 28, 24))
        lift = -0.3 - 0.09 * pose.brow
        tilt = 0.07 * pose.slant - 0.02 * pose.brow  # by which the outer end lies lower
        brow = [
            self.feature((x + side * 0.2 * u, y + lift + 0.13 + 0.05 * u * u + tilt * u))
            for u in np.linspace(-1, 1, 9).tolist()
        ]
        self.line(brow, who.brow_weight, _toned(who.hair, 0.75))

    def nose(self) -> None:
        who, yaw = self.who, self.pose.yaw
        tip = who.nose
        shade, light = _toned(who.skin, 0.7), _toned(who.skin, 1.14)
        side = -1 if yaw > 0 else 1
        self.line([self.feature(p) for p in [(side * 0.07, -0.12), (side * 0.1, tip - 0.08)]], 0.03, shade)
        self.line([self.feature(p) for p in [(0.05 * yaw, -0.1), (0.08 * yaw, tip - 0.06)]], 0.06, light)
        self.oval(self.feature((0.08 * yaw, tip)), 0.17, 0.075, _toned(who.skin, 0.88))
        for nostril in (-1, 1):
            self.oval(self.feature((nostril * 0.09 + 0.06 * yaw, tip + 0.03)), 0.05, 0.025, _toned(who.skin, 0.4))

    def mouth_corner(self) -> Point:
        """Return the right corner on the head."""
        smile = self.pose.smile
        return self.who.mouth * (1 + 0.22 * smile), 0.52 + 0.02 * self.pose.jaw - 0.1 * smile

    def mouth(self) -> None:
        who, pose = self.who, self.pose
        (half, corner), middle, gap = self.mouth_corner(), 0.52 + 0.02 * pose.jaw, 0.2 * pose.jaw

        def curve(bow: float, drop: float) -> Callable[[float], Point]:
            def place(u: float) -> Point:
                y = middle * (1 - u * u) + corner * u * u
                return self.feature((half * u, y + bow * (1 - u * u) + drop * (1 - u**4)))

            return place

        def band(upper: Callable[[float], Point], lower: Callable[[float], Point], colour: Colour) -> None:
            steps = np.linspace(-1, 1, 21).tolist()
            self.polygon([upper(u) for u in steps] + [lower(u) for u in reversed(steps)], colour)

        bow = 0.06 * pose.smile
        inner_top, inner_bottom = curve(bow, 0.0), curve(bow, gap)
        band(curve(bow - 0.075, 0.0), inner_top, _toned(who.lips, 0.88))
        band(inner_bottom, curve(bow + 0.09, gap), who.lips)
        if gap > 0.01:
            band(inner_top, inner_bottom, (52, 20, 20))
            band(inner_top, curve(bow, min(0.06, gap * 0.5)), (232, 228, 222))
        else:
            self.line([inner_top(u) for u in np.linspace(-1, 1, 15).tolist()], 0.02, _toned(who.lips, 0.45))
        for side in (-1, 1):  # the fold beside a smile
            if pose.smile > 0.2:
                fold = [self.feature((side * x, v)) for x, v in [(0.28, 0.3), (0.46, 0.42), (0.5, 0.54)]]
                self.line(fold, 0.02 * pose.smile, _toned(who.skin, 0.72))


def _toned(colour: Colour, factor: float) -> Colour:
    red, green, blue = (int(min(255, max(0, part * factor))) for part in colour)
    return red, green, blue
