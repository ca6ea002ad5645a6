"""Forty audio streams that begin, pause and end at any time, served by one pool: where in each is there a voice?

The voices are buzzing tones in noise, made here; a frame is 16 ms, of which the model sees the loudness of eight bands.
"""

from __future__ import annotations

import time

import numpy as np
from checking import arguments, claim

import fastrnn

RATE, FRAME, BANDS, STREAMS = 8000, 128, 8, 40


def recordings(n: int, frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return features (n, frames, BANDS) of noise with voices in it, and where the voices are, (n, frames, 1)."""
    turns = np.cumsum(rng.random((n, frames)) < 0.06, axis=1)  # a voice begins or ends in one of 16 frames
    voiced = (turns + rng.integers(2, size=(n, 1))) % 2 == 1
    pitch = rng.uniform(90, 250, (n, 1)) * (1 + 0.05 * np.sin(np.arange(frames * FRAME) / 900))
    phase = 2 * np.pi * np.cumsum(pitch, axis=1) / RATE
    buzz = sum(np.sin(k * phase) / k for k in range(1, 9))
    sound = rng.standard_normal(buzz.shape) + 0.5 * buzz * np.repeat(voiced, FRAME, axis=1)
    spectrum = np.abs(np.fft.rfft(sound.reshape(n, frames, FRAME))[..., 1 : 1 + 4 * BANDS]) ** 2
    bands = np.log(spectrum.reshape(n, frames, BANDS, 4).mean(axis=-1)) - np.log(FRAME)
    return bands.astype(np.float32), voiced[..., None].astype(np.float32)


def served(pool: fastrnn.Pool, x: np.ndarray, rng: np.random.Generator) -> tuple[list[np.ndarray], float, int]:
    """Return the result of each stream, frame by frame, the seconds used, and the number of steps."""
    begins = rng.integers(30, size=len(x))
    heard: list[list[np.ndarray]] = [[] for _ in x]
    sessions: dict[int, int] = {}
    seconds, now = 0.0, 0
    while any(len(own) < x.shape[1] for own in heard):
        for i in np.flatnonzero(begins == now):
            sessions[int(i)] = pool.open()
        here = [i for i in sessions if rng.random() < 0.9]  # the frames of the other streams are late
        begin = time.perf_counter()
        y = pool.step([sessions[i] for i in here], x[here, [len(heard[i]) for i in here]]) if here else []
        seconds += time.perf_counter() - begin
        for i, p in zip(here, y, strict=True):
            heard[i].append(p)
            if len(heard[i]) == x.shape[1]:
                pool.close(sessions.pop(i))
        now += 1
    return [np.stack(own) for own in heard], seconds, now


def main() -> None:
    quick, rng = arguments(__doc__)
    x, voiced = recordings(200 if quick else 300, 120, rng)
    model = fastrnn.Sequential(
        [fastrnn.GRU(BANDS, 32, reset_after=True, rng=0), fastrnn.Dense(32, 1, "sigmoid", rng=1)]
    )
    model.compile(fastrnn.training.Adam(0.01), "binary_crossentropy")
    model.fit(x, voiced, epochs=10, rng=2)

    x, voiced = recordings(STREAMS, 300, rng)
    told, seconds, steps = served(model.pool(STREAMS), x, rng)
    right = np.mean((np.stack(told) > 0.5) == (voiced > 0.5))
    print(f"{STREAMS} streams: {seconds / steps * 1e6:.0f} us for a step of all, {right:.1%} of frames right")
    claim("more than nine of ten frames are classified correctly", right > 0.9)
    alone = model.predict(x)
    claim("each stream's results are bit-identical to those alone", np.array_equal(np.stack(told), alone))


if __name__ == "__main__":
    main()
