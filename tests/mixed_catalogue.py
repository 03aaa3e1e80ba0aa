"""A small catalogue for tests of the scoring job: a made-up world among files that cannot be scored."""

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from mlflow import MlflowClient

from catalog.world import WorldConfig, make_world
from training.models import EngagementModel, ModelSpec, save_checkpoint

ROOT = Path(__file__).parents[1]
RUN_TIMEOUT_S = 240


@dataclass(frozen=True)
class Catalogue:
    """A made-up world among broken files, a small model and a place for MLflow."""

    folder: Path
    truth: dict[str, dict[str, Any]]

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        return kept | {"MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db"}

    def processes(self) -> dict[int, str]:
        """Process ids and command lines of what jobs on this catalogue have started and that still runs."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                # Ray's own agents notice the end of their raylet by polling, minutes later on a busy machine
                agent = command.startswith(("ray::DashboardAgent", "ray::RuntimeEnvAgent"))
                started_here = bytes(self.folder) in (process / "environ").read_bytes()
                if started_here and not agent and process.name != str(os.getpid()):
                    found[int(process.name)] = command
        return found

    def stacks(self) -> str:
        """What the processes that still run are doing, for a failed test's message."""
        dumps = [
            subprocess.run([f"{Path(sys.executable).parent}/py-spy", "dump", "--pid", str(pid)], capture_output=True)
            for pid in self.processes()
        ]
        return b"\n".join(dump.stdout + dump.stderr for dump in dumps).decode(errors="replace")

    def inputs(self, videos: str = "videos") -> list[str]:
        tables = ["--videos", f"{self.folder}/{videos}.parquet", "--products", f"{self.folder}/products.parquet"]
        return [*tables, "--model", f"{self.folder}/model.pt"]

    def flags(self, output: str, videos: str = "videos", examined: int = 0) -> list[str]:
        """Of jobs.score; examining maps, which takes its time, only where a test asks for it."""
        return [*self.inputs(videos), "--output", f"{self.folder}/{output}", "--faithfulness-videos", str(examined)]

    def score(self, *flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jobs.score", *flags]
        return subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)


def write_clip(path: Path, seconds: float, fps: int = 5) -> None:
    """Moving noise, 64 x 64."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 256, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for n in range(max(1, int(seconds * fps))):
            frame = np.ascontiguousarray(noise[:, n : n + 64])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=8000, layout="mono")
        for n in range(10):
            samples = np.random.default_rng(n).normal(0, 0.1, (1, 1024)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 8000, n * 1024, Fraction(1, 8000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_strange_card(path: Path) -> None:
    """Print of random letters that is in no video."""
    rng = np.random.default_rng(5)
    card = np.full((400, 300, 3), 235, np.uint8)
    for _ in range(80):
        corner, ink = rng.integers((-10, 0), (300, 420)).tolist(), rng.integers(0, 160, 3).tolist()
        letter, size = chr(rng.integers(ord("A"), ord("Z") + 1)), float(rng.uniform(0.6, 2.2))
        cv2.putText(card, letter, corner, int(rng.integers(0, 5)), size, ink, 2, cv2.LINE_AA)
    cv2.imwrite(str(path), card)


def write_broken_files(folder: Path, whole: Path) -> None:
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text('{"error": "video was removed"}\n')
    (folder / "truncated.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    write_sound(folder / "audio_only.mp4")
    write_clip(folder / "one_frame.mp4", 0)
    write_clip(folder / "too_long.mp4", 8)
    write_strange_card(folder / "strange.png")
    (folder / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    cv2.imwrite(str(folder / "blank.png"), np.full((200, 200, 3), 255, np.uint8))


def make_catalogue(folder: Path) -> Catalogue:
    world = make_world(folder, videos=6, seed=0, config=WorldConfig(seconds=(3.0, 3.0)))
    videos, products = pq.read_table(world.videos).to_pylist(), pq.read_table(world.products).to_pylist()
    uri = {row["video_id"]: row["video_uri"] for row in videos}
    some = min(uri)
    write_broken_files(folder, folder / uri[some])
    rows = [{k: row[k] for k in ("video_id", "video_uri", "product_id")} for row in videos]
    rows += [
        {"video_id": name, "video_uri": f"{name}.mp4", "product_id": None}
        for name in ("empty", "text", "truncated", "audio_only", "missing", "too_long", "one_frame")
    ]
    pictures = {"image_missing": "nowhere.png", "image_corrupt": "corrupt.png", "image_blank": "blank.png"}
    for name, picture in {**pictures, "stranger": "strange.png"}.items():
        rows.append({"video_id": name, "video_uri": uri[some], "product_id": f"product {name}"})
        products.append({"product_id": f"product {name}", "image_uris": [picture]})
    rows.append({"video_id": "no_product", "video_uri": uri[some], "product_id": None})
    pq.write_table(pa.Table.from_pylist(rows), folder / "videos.parquet")
    schema = pq.read_schema(world.products)
    pq.write_table(pa.Table.from_pylist(products, schema=schema), folder / "products.parquet")
    many = [row | {"video_id": f"{row['video_id']} copy {n}"} for n in range(10) for row in rows[:6]]
    pq.write_table(pa.Table.from_pylist(many), folder / "many.parquet")
    torch.manual_seed(0)
    save_checkpoint(EngagementModel(ModelSpec(architecture="r3d_18_w16", input_size=64)), folder / "model.pt")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    client.create_experiment("pe-scoring", artifact_location=(folder / "artifacts").as_uri())
    return Catalogue(folder, {row["video_id"]: row for row in pq.read_table(world.truth).to_pylist()})
