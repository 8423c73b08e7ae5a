"""Video files, written frame by frame, so that memory does not grow with length."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trpo.envs import MissingExtraError
from trpo.runs.disk import replacing


class GifWriter:
    """A GIF written frame by frame, each with a palette of its own; Pillow's writer holds all of them until the end."""

    def __init__(self, path: Path, size: tuple[int, int], fps: float):
        self._file, self._period, self._count = path.open("wb"), 100 / fps, 0
        self._file.write(b"GIF89a" + size[0].to_bytes(2, "little") + size[1].to_bytes(2, "little") + b"\x00\x00\x00")
        self._file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")  # repeat for ever

    def add(self, frame: np.ndarray) -> None:
        from PIL import GifImagePlugin, Image

        # The format counts hundredths of a second: each end of a frame is rounded, so that no error adds up.
        length = round((self._count + 1) * self._period) - round(self._count * self._period)
        image = Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE)
        self._file.writelines(GifImagePlugin.getdata(image, duration=10 * length, include_color_table=True))
        self._count += 1

    def close(self) -> None:
        self._file.write(b";")  # the trailer
        self._file.close()


class Mp4Writer:
    """H.264 in an MP4, encoded by an ffmpeg process."""

    def __init__(self, path: Path, size: tuple[int, int], fps: float):
        # Not imageio_ffmpeg.write_frames: it forks with a Python hook, which may deadlock under JAX's threads.
        ffmpeg = importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
        self._size = size[0] // 2 * 2, size[1] // 2 * 2  # the format's colours are shared by 2 × 2 pixels
        raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{self._size[0]}x{self._size[1]}", "-r", f"{fps:.6g}")
        codec = ("-c:v", "libx264", "-crf", "20", "-pix_fmt", "yuv420p", "-movflags", "+faststart")
        # As a path: ffmpeg would take run:1/v.mp4 for a protocol, and -d/v.mp4 for an option.
        command = [ffmpeg, "-y", "-loglevel", "error", *raw, "-i", "-", "-an", *codec, f"file:{path}"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        self._pipe: Any = self._process.stdin

    def add(self, frame: np.ndarray) -> None:
        width, height = self._size
        try:
            self._pipe.write(np.ascontiguousarray(frame[:height, :width]).data)
        except BrokenPipeError:
            self.close()

    def close(self) -> None:
        _, message = self._process.communicate()
        if self._process.returncode:
            raise ValueError(f"ffmpeg failed: {message.decode(errors='replace').strip()}; a .gif needs no ffmpeg")


Writer = GifWriter | Mp4Writer
WRITERS: dict[str, type[Writer]] = {".gif": GifWriter, ".mp4": Mp4Writer}
FASTEST = {".gif": 30, ".mp4": 60}
"""Frames a second that are worth writing: faster simulations keep every k-th frame, and their speed."""


def check_video(out: Path) -> None:
    """Refuse a file that cannot be written, before anything is filmed."""
    if out.suffix.lower() not in WRITERS:
        raise ValueError(f"out={str(out)!r}: must end in .mp4 or .gif")
    if out.suffix.lower() == ".mp4" and not can_write_mp4():
        raise MissingExtraError(
            "recording .mp4 needs pip install 'trpo[video]'; a file that ends in .gif needs nothing"
        )


def can_write_mp4() -> bool:
    """Return whether the ``video`` extra is installed."""
    return importlib.util.find_spec("imageio_ffmpeg") is not None


def write_video(out: Path, fps: float, frames: Iterator[np.ndarray], max_frames: int) -> None:
    """Write up to ``max_frames`` RGB frames ``[height, width, 3]`` of one size, one or more; whole or not at all."""
    first = next(frames)
    height, width = first.shape[:2]
    with replacing(out) as temporary:
        writer = WRITERS[out.suffix.lower()](temporary, (width, height), fps)
        try:
            for frame in itertools.islice(itertools.chain([first], frames), max_frames):
                writer.add(frame)
        except BaseException:
            with contextlib.suppress(Exception):
                writer.close()
            raise
        writer.close()
