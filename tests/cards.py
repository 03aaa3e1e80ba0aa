"""A drawn card as a product, put into a drawn scene by a known homography."""

import cv2
import numpy as np

from scoring.product import Detection


def png(pixels: np.ndarray) -> bytes:
    """RGB or RGBA pixels as a PNG file's bytes."""
    order = cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR
    return cv2.imencode(".png", cv2.cvtColor(pixels, order))[1].tobytes()


def draw_card(seed: int, width: int = 352, height: int = 440) -> np.ndarray:
    """Print of random letters, sizes and colours on light paper, from edge to edge."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(60, 256, (height // 20 + 1, width // 20 + 1, 3), dtype=np.uint8)
    pixels = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(90):
        letter, font = chr(rng.integers(ord("A"), ord("Z") + 1)), int(rng.integers(0, 5))
        corner = (int(rng.integers(-10, width)), int(rng.integers(0, height + 20)))
        ink, size = rng.integers(0, 160, 3).tolist(), float(rng.uniform(0.6, 2.4))
        cv2.putText(pixels, letter, corner, font, size, ink, int(2 * size), cv2.LINE_AA)
    return pixels


def scene(width: int = 480, height: int = 640, seed: int = 3) -> np.ndarray:
    """A textured background: blurred noise, blobs and another product in a corner."""
    rng = np.random.default_rng(seed)
    picture = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (0, 0), 2.5)
    picture = cv2.normalize(picture, None, 30, 225, cv2.NORM_MINMAX)  # pyright: ignore
    for x, y, radius in rng.integers((0, 0, 5), (width, height, 40), (30, 3)).tolist():
        cv2.circle(picture, (x, y), radius, rng.integers(0, 256, 3).tolist(), -1, cv2.LINE_AA)
    stranger = cv2.resize(draw_card(99), (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    picture[-len(stranger) :, : width // 4] = stranger
    return picture


def placed(background: np.ndarray, packaging: np.ndarray, quad: np.ndarray) -> np.ndarray:
    """The packaging's four corners brought to ``quad`` (4, 2) pixels of the background."""
    height, width = packaging.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    homography = cv2.getPerspectiveTransform(corners, quad.astype(np.float32))
    size = (background.shape[1], background.shape[0])
    mask = cv2.warpPerspective(np.full((height, width), 255, np.uint8), homography, size)
    shown = cv2.warpPerspective(packaging, homography, size, flags=cv2.INTER_AREA)
    return np.where(mask[:, :, None] > 127, shown, background)


def quad_in(frame: np.ndarray, *corners: float) -> np.ndarray:
    """(4, 2) pixels from x1, y1, ... in fractions of the frame."""
    return np.array(corners).reshape(4, 2) * (frame.shape[1], frame.shape[0])


def iou(detection: Detection, quad: np.ndarray, frame: np.ndarray) -> float:
    """Intersection over union of two polygons, drawn at four times the frame's size."""
    height, width = 4 * frame.shape[0], 4 * frame.shape[1]
    drawn = []
    for polygon in (detection.outline * (width, height), quad * 4):
        canvas = np.zeros((height, width), np.uint8)
        drawn.append(cv2.fillPoly(canvas, [np.round(polygon).astype(np.int32)], 1).astype(bool))
    return float((drawn[0] & drawn[1]).sum() / (drawn[0] | drawn[1]).sum())


CARD = draw_card(7)
UPRIGHT = (0.25, 0.2, 0.75, 0.2, 0.75, 0.7, 0.25, 0.7)
