"""From videos to the features of faces, stage by stage beside other programs, on the same pictures in one run:

    pip install --no-deps facenet-pytorch==2.6.0 torchvision==0.26.0   # its pins exclude torch 2.11
    pip install --no-deps scikit-image                                 # photographs without a face
    python benchmarks/faces.py [--quick] [--json FILE]

Detection is compared with facenet-pytorch, which runs the same weights, on drawn people and on the portrait of Grace
Hopper that comes with matplotlib, turned; faces are compared before anything is timed. The encoder is ViT-base with
random weights, which take the same time as trained ones; its peer is the transformers library. A ratio is that of two
calls one right after the other, the median over several pairs, because a shared machine changes its speed from second
to second.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import av
import matplotlib.cbook
import numpy as np

sys.path[0] = str(Path(__file__).parents[1])  # this file is named like a package it measures

import emi

# isort: split
import torch
import transformers
from PIL import Image

from benchmarks._gemm import beside_products
from benchmarks._machine import header_line, in_own_process, peak_mb
from benchmarks._timing import figure, in_pairs, seconds_of
from cache.system.machine import available_cores
from emi.demo.drawing import Identity, Pose, draw
from extract.backbones import family_of, identify
from extract.backbones.precision import DTYPES
from extract.faces.mtcnn import Detector, Faces
from extract.faces.mtcnn.boxes import overlaps
from extract.faces.video import Video
from extract.settings import ExtractSettings
from extract.threads import one_thread_per_operation

SIZES = ((288, 352), (480, 640), (720, 1280))
PICTURES, BATCH, LEAST_PAIRS = 16, 8, 5
WITH_FACES = {"astronaut", "camera", "coins"}
"""Pictures of scikit-image that show a person, or a head on a coin."""
Made = TypeVar("Made")
SAME = 0.9
"""Intersection over union from which two boxes are one face."""
FPS, RATE, SECONDS, VIDEOS = 6, 25, 10, 4
LARGEST = 8 * 197, 768, 3072
"""The largest product of the encoder, of a batch of 8 images."""
CROPS, BATCHES = 64, (1, 8, 32)
"""Faces that are embedded, and those of transformers' batches."""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one size, one pair, a small encoder")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    pairs = 1 if options.quick else LEAST_PAIRS
    transformers.logging.disable_progress_bar()
    print(
        f"{header_line()}, torch {torch.__version__}, {torch.get_num_threads()} threads; load {os.getloadavg()[0]:.2f}"
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_vit(Path(folder) / "vit", small=options.quick)
        write_videos(Path(folder) / "clips", seconds=1 if options.quick else SECONDS)
        rows = []
        for row in measured(Path(folder) / "clips", checkpoint, SIZES[: 1 if options.quick else None], pairs):
            rows.append(row)
            told = (f"{key} {figure(value) if isinstance(value, float) else value}" for key, value in row.items())
            print("  ".join(told), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def measured(clips: Path, checkpoint: Path, sizes: Sequence[tuple[int, int]], pairs: int) -> Iterator[dict[str, Any]]:
    """Yield the rows as they are measured."""
    for size in sizes:
        yield detection(*size, pairs)
    yield false_alarms()
    yield decoding(clips)
    yield from embedding(checkpoint, pairs)
    for backbone in ("mtcnn", str(checkpoint)):
        yield in_own_process(["torch"], media_to_cache, str(clips), backbone)


def detection(height: int, width: int, pairs: int) -> dict[str, Any]:
    """Compare the faces of pictures of one size, then time both."""
    detector, pictures = Detector(), pictures_of(height, width)

    def ours() -> list[Faces]:
        return [faces for part in on_all_cores(detector, pictures) for faces in part]

    row: dict[str, Any] = {"name": f"detect {width}x{height}"}
    try:
        from facenet_pytorch import MTCNN
    except ModuleNotFoundError as error:
        return {**row, "emi pictures/s": PICTURES / seconds_of(ours), "error": str(error)}
    peer = MTCNN(keep_all=True, min_face_size=40)
    images = [Image.fromarray(picture) for picture in pictures]

    def one_by_one() -> None:
        for image in images:
            peer.detect(image)

    def in_batches() -> None:
        for at in range(0, len(images), BATCH):
            peer.detect(images[at : at + BATCH])

    row["faces"], row["the same"] = same_faces(peer.detect(images)[0], ours())
    single = in_pairs(one_by_one, ours, pairs)
    batched = in_pairs(in_batches, ours, pairs)
    return row | {
        "emi pictures/s": PICTURES / statistics.median(own for _, own in single + batched),
        "facenet-pytorch pictures/s": PICTURES / statistics.median(other for other, _ in single),
        f"in batches of {BATCH}": PICTURES / statistics.median(other for other, _ in batched),
        "x one by one": statistics.median(other / own for other, own in single),
        "x batches": statistics.median(other / own for other, own in batched),
    }


def same_faces(expected: Sequence[np.ndarray | None], found: Sequence[Faces]) -> tuple[int, int]:
    """Return how many faces either finds, and how many of them have one box."""
    faces = same = 0
    for boxes, ours in zip(expected, found, strict=True):
        theirs = np.zeros((0, 4), np.float32) if boxes is None else np.asarray(boxes, np.float32)
        faces += max(len(theirs), len(ours))
        same += int((overlaps(theirs, ours.boxes) >= SAME).any(axis=1).sum()) if len(ours) else 0
    return faces, same


def false_alarms() -> dict[str, Any]:
    """Count the pictures without a face in which one is found: photographs and micrographs, turned four ways."""
    folders = [
        Path(spec.origin).parent / place
        for package, place in (("sklearn", "datasets/images"), ("skimage", "data"))
        if (spec := importlib.util.find_spec(package)) and spec.origin
    ]
    files = [file for folder in folders for file in sorted(folder.iterdir()) if file.suffix in (".png", ".jpg")]
    detector, pictures, alarms = Detector(), 0, 0
    for file in (file for file in files if file.stem not in WITH_FACES):
        picture = Image.open(file).convert("RGB")
        picture.thumbnail((640, 640))
        for turn in range(4):
            pictures += 1
            alarms += len(detector(np.rot90(np.array(picture), turn)[None].copy())[0]) > 0
    return {"name": "pictures without a face", "pictures": pictures, "with a false alarm": alarms}


def pictures_of(height: int, width: int) -> np.ndarray:
    """Return (PICTURES, height, width, 3) uint8."""
    file = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    portrait = Image.open(file).convert("RGB").resize((height * 512 // 600, height))
    pictures = []
    for i in range(PICTURES):
        if i % 2:
            people = [(Identity.of(i + k), Pose(centre=(0.3 + 0.4 * k, 0.5), jaw=k / 2, roll=i - 8)) for k in range(2)]
            pictures.append(draw(people, height, width))
        else:
            canvas = Image.new("RGB", (width, height), (90, 110, 120))
            canvas.paste(portrait.rotate(2 * i - 16), ((width - portrait.width) // 2, 0))
            pictures.append(np.asarray(canvas))
    return np.stack(pictures)


def write_videos(folder: Path, seconds: int) -> None:
    """Write videos of one drawn person each, 640 x 480 pixels at 25 pictures per second."""
    folder.mkdir()
    for number in range(VIDEOS):
        with av.open(str(folder / f"{number}.mp4"), "w") as out:
            track = out.add_stream("libx264", rate=RATE)
            track.height, track.width, track.pix_fmt = 480, 640, "yuv420p"
            for i in range(seconds * RATE):
                pose = Pose(jaw=abs(np.sin(i / 5)), smile=np.sin(i / 20), centre=(0.5 + 0.1 * np.sin(i / 30), 0.5))
                frame = av.VideoFrame.from_ndarray(draw([(Identity.of(number), pose)], 480, 640))
                frame.pts, frame.time_base = i, Fraction(1, RATE)
                out.mux(track.encode(frame))
            out.mux(track.encode())


def decoding(folder: Path) -> dict[str, Any]:
    """Read the pictures at 6 per second, one video after the other, in one thread of Python."""
    videos = sorted(folder.iterdir())

    def read() -> int:
        return sum(len(block.images) for video in videos for block in Video(video, fps=FPS))

    pictures, seconds = read(), statistics.median(seconds_of(read) for _ in range(3))
    return {"name": "decode 640x480 at 6/s", "pictures/s": pictures / seconds, "x real time": pictures / FPS / seconds}


def save_vit(folder: Path, *, small: bool) -> Path:
    """Save ViT-base with random weights, as google/vit-base-patch16-224-in21k is."""
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "intermediate_size": 192} if small else {}
    transformers.ViTModel(transformers.ViTConfig(**sizes)).save_pretrained(folder)
    transformers.ViTImageProcessorPil().save_pretrained(folder)
    return folder


def embedding(checkpoint: Path, pairs: int) -> Iterator[dict[str, Any]]:
    """Time the encoder on aligned crops of 112 pixels, image processors included, beside transformers.

    Of a precision that is not emi's there is one pair.
    """
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (CROPS, 112, 112, 3), dtype=np.uint8)
    precision, _ = ExtractSettings(device="cpu").resolved_precision(("fp32", "bf16"))
    ours = emi_encoder(checkpoint, precision, crops)
    flops = flops_per_image(checkpoint)
    shares = {
        name: beside_products(ours, flops * CROPS, LARGEST, DTYPES[precision], pairs, packed=name == "packed").percent
        for name in ("plain", "packed")
    }
    for dtype in dict.fromkeys(("fp32", precision)):
        for size in BATCHES:
            timed = in_pairs(library_encoder(checkpoint, dtype, crops, size), ours, pairs if dtype == precision else 1)
            other, own = (statistics.median(times) for times in zip(*timed, strict=True))
            yield {
                "name": f"embed: transformers, {dtype}, batches of {size}",
                "faces/s": CROPS / other,
                f"emi, {precision}, faces/s": CROPS / own,
                "x": statistics.median(other / own for other, own in timed),
                "x real time": CROPS / FPS / own,
                "GFLOP/s": flops * CROPS / own / 1e9,
                **{f"% of {name} GEMM": share for name, share in shares.items()},
            }


def emi_encoder(checkpoint: Path, precision: str, crops: np.ndarray) -> Callable[[], object]:
    """Return a call that embeds the crops as an extraction does."""
    identity = identify(str(checkpoint))
    with one_thread_per_operation():
        backbone: Any = family_of(str(checkpoint)).load(identity, torch.device("cpu"), precision)

    def embed(images: np.ndarray) -> None:
        with torch.inference_mode():
            backbone.embed(list(images))

    return lambda: on_all_cores(embed, crops)


def on_all_cores(call: Callable[[np.ndarray], Made], pictures: np.ndarray) -> list[Made]:
    """Share out pictures as an extraction does: one thread per operation, a batch per core."""
    cores = available_cores()
    with one_thread_per_operation(), ThreadPoolExecutor(cores) as pool:
        return list(pool.map(call, np.array_split(pictures, cores)))


def library_encoder(checkpoint: Path, precision: str, crops: np.ndarray, size: int) -> Callable[[], object]:
    """Return a call that embeds the crops as transformers' documentation shows, with all threads."""
    processor = transformers.AutoImageProcessor.from_pretrained(checkpoint)
    model = transformers.AutoModel.from_pretrained(checkpoint, dtype=DTYPES[precision]).eval()

    def run() -> None:
        with torch.inference_mode():
            for at in range(0, len(crops), size):
                inputs = processor(list(crops[at : at + size]), return_tensors="pt").to(DTYPES[precision])
                model(**inputs).last_hidden_state[:, 0].float()

    return run


def flops_per_image(checkpoint: Path) -> int:
    """Count the floating-point operations of one image."""
    from torch.utils.flop_counter import FlopCounterMode

    model = transformers.AutoModel.from_pretrained(checkpoint, attn_implementation="eager").eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, 224, 224))
    return counter.get_total_flops()


def media_to_cache(clips: str, backbone: str) -> dict[str, Any]:
    """Extract all videos; run in a process of its own, whose memory is measured."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = seconds_of(lambda: emi.extract(clips, Path(folder) / "c.zarr", backbone=backbone))
        store = emi.open_cache(Path(folder) / "c.zarr")
        length = sum(store[id].seconds for id in store.ids)
    name = f"videos to cache, {Path(backbone).name}"
    return {"name": name, "x real time": length / seconds, "peak MB": peak_mb()}


if __name__ == "__main__":
    main()
