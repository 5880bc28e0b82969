"""Films some episodes, through imageio and its ffmpeg, which are optional."""

from __future__ import annotations

import contextlib
import math
import os
from inspect import signature
from pathlib import Path

import gymnasium
import numpy as np

from rl_bench.errors import ConfigError, RlBenchError, StorageError

SUFFIXES = (".mp4", ".gif")
FRAMES_PER_SECOND = 15  # the speed at which Procgen is played by people
SMALLEST_SIDE = 256  # smaller frames are enlarged by a whole factor
PAUSE_FRAMES = 5  # the last frame of an episode stays for a third of a second


def check(path: Path, observations: gymnasium.Space) -> None:
    """Refuse what cannot be filmed, before anything is played. Raises: ConfigError."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--video: '{path}' must end in {' or '.join(SUFFIXES)}")
    shape = observations.shape or ()
    if len(shape) != 3 or observations.dtype != np.uint8:
        raise ConfigError("--video: this environment's observations are not pictures")
    if not path.parent.is_dir():
        raise ConfigError(f"--video: there is no directory '{path.parent}'")
    _require_packages(path.suffix.lower())


def _require_packages(suffix: str) -> None:
    try:
        import imageio.v2  # noqa: F401

        if suffix == ".mp4":
            import imageio_ffmpeg

            imageio_ffmpeg.get_ffmpeg_exe()
            if "audio_path" not in signature(imageio_ffmpeg.write_frames).parameters:
                raise ImportError(f"imageio-ffmpeg {imageio_ffmpeg.__version__} is too old")
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"--video: {suffix} needs packages that are missing ({error}); "
            "pip install --no-deps -r requirements-video.txt"
        ) from error


class Film:
    """Keeps the frames of the first episode of the first environments; `save` writes them."""

    def __init__(self, num_episodes: int) -> None:
        self.frames: list[list[np.ndarray]] = [[] for _ in range(num_episodes)]

    def see(self, obs: np.ndarray, episodes: np.ndarray) -> None:
        """Keep the frames `obs` [B, H, W, C] of filmed environments in their first episode.

        `episodes` [B] are the numbers of their episodes, from 0.
        """
        for i, frames in enumerate(self.frames[: len(obs)]):
            if episodes[i] == 0:
                frames.append(obs[i].copy())

    def save(self, path: Path) -> None:
        """Write one episode after the other. Raises: StorageError, RlBenchError without ffmpeg."""
        import imageio.v2 as imageio

        temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
        how = {"fps": FRAMES_PER_SECOND} if path.suffix.lower() == ".mp4" else {
            "duration": 1000 / FRAMES_PER_SECOND, "loop": 0,
        }  # fmt: skip
        try:
            with imageio.get_writer(temporary, **how) as writer:
                for frames in self.frames:
                    for frame in [*frames, *frames[-1:] * PAUSE_FRAMES]:
                        writer.append_data(enlarge(frame))  # type: ignore[attr-defined]
            os.replace(temporary, path)
        except OSError as error:
            raise StorageError(f"cannot write '{path}': {error}") from error
        except (ImportError, RuntimeError, ValueError) as error:
            raise RlBenchError(f"--video: '{path}' was not made: {error}") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def enlarge(frame: np.ndarray) -> np.ndarray:
    """Repeat the pixels of a frame [H, W, C] until each side has 256 at least.

    One channel becomes 3.
    """
    factor = max(1, math.ceil(SMALLEST_SIDE / min(frame.shape[:2])))
    large = frame.repeat(factor, axis=0).repeat(factor, axis=1)
    return large if frame.shape[2] == 3 else large[..., :1].repeat(3, axis=2)
