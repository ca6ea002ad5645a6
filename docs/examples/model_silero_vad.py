"""Detect speech: Silero VAD, a published voice activity detector, with its LSTM streaming on fastrnn.

Every 32 ms the network reads 512 new samples of sound at 16 kHz and the 64 before them, and returns the probability of
speech. A spectrum and four convolutions over time compute 128 features; an LSTM cell of 128 units remembers earlier
chunks (Silero Team, https://github.com/snakers4/silero-vad, MIT). The package contains the network as ONNX; its
safetensors file has the weights of another training.

    pip install --no-deps silero-vad==6.2.3 && pip install onnx onnxruntime
    python docs/examples/model_silero_vad.py

Here NumPy computes the convolutions, and fastrnn the LSTM, which `from_onnx` reads: `stream().step` keeps the state
from one chunk to the next. `fastrnn.onnx.Session` runs the ONNX model itself without any further code: the LSTM on
fastrnn and the rest on onnxruntime. The sound is synthetic: a voice of a few vowels and hisses, which speaks for two of
every three seconds. Exits with an error unless every probability is within 1e-5 of onnxruntime's, and speech is
detected where it is. All times are medians of alternating calls on one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from checking import claim, quick
from published import file_of, in_turns, one_thread

import fastrnn.onnx

RATE, CHUNK, CONTEXT = 16_000, 512, 64  # samples per second; new samples in a chunk, and old ones before them
WINDOW, HOP = 256, 128  # samples of a spectrum, and distance between two spectra
H = 128
DEFAULT, PLAIN, SEQUENCE = "silero_vad.onnx", "silero_vad_openvino_16k.onnx", "silero_vad_16k_sequence.onnx"
VOWELS = np.array([[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480], [570, 840, 2410]])

Task = Callable[[], object]


def file(name: str) -> Path:
    return file_of("silero-vad", name)


def resonance(f: np.ndarray, formants: np.ndarray) -> np.ndarray:
    """Return how much a throat with these resonances (3, n) passes at the frequencies f (n,), all in Hz; complex."""
    widths = np.array([[60], [90], [120]])
    return np.prod(formants**2 / (formants**2 - f**2 + 1j * widths * f), axis=0)


def made_up_voice(seconds: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return sound (n,), roughly within -1..1, and whether the voice is speaking (n,): five syllables a second, then a
    rest.
    """
    t = np.arange(seconds * RATE) / RATE
    speaking = t % 3 < 2
    syllable, within = np.divmod(5 * t, 1)
    vowels = VOWELS[rng.integers(len(VOWELS), size=5 * seconds)][syllable.astype(int)]
    glide = np.hanning(RATE // 10) / np.hanning(RATE // 10).sum()
    formants = np.stack([np.convolve(formant, glide, "same") for formant in vowels.T])
    pitch = 130 * (1.15 - 0.15 * (t % 3)) * (1 + 0.05 * np.sin(2 * np.pi * 2.5 * t))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    tone = sum((resonance(k * pitch, formants) * np.exp(1j * k * phase)).imag / k for k in range(1, 40))
    tone *= np.clip(6 * np.minimum(within - 0.2, 1 - within), 0, 1) / np.abs(tone).max()
    hiss = rng.standard_normal(len(t)) * np.clip(1 - 10 * np.abs(within - 0.1), 0, 1) * (syllable % 2)
    sound = speaking * (0.5 * tone + 0.02 * hiss) + 3e-4 * rng.standard_normal(len(t))
    return sound.astype(np.float32), speaking


def chunks_of(sound: np.ndarray) -> np.ndarray:
    """Return (N, 576): 512 samples each, after the last 64 of the previous chunk."""
    new = sound[: len(sound) // CHUNK * CHUNK].reshape(-1, CHUNK)
    old = np.vstack([np.zeros((1, CONTEXT), np.float32), new[:-1, -CONTEXT:]])
    return np.hstack([old, new])


class Convolution:
    """A convolution with three taps over time and relu, with zeros around x (N, T, I), as one matrix product."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray, T: int, stride: int) -> None:
        self.W, self.b = weight.transpose(2, 1, 0).reshape(-1, len(bias)), bias  # (3 * I, O), (O,)
        self.taps = np.arange(0, T, stride)[:, None] + np.arange(3)  # the steps that each output reads

    def __call__(self, x: np.ndarray) -> np.ndarray:
        N, T, I = x.shape
        padded = np.zeros((N, T + 2, I), x.dtype)
        padded[:, 1:-1] = x
        seen = padded[:, self.taps].reshape(N, len(self.taps), -1)
        return np.maximum(seen @ self.W + self.b, 0)


class Detector:
    """Silero VAD on NumPy and fastrnn, with the weights of an ONNX model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        weights = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
        sample = np.pad(np.arange(CONTEXT + CHUNK), (0, CONTEXT), "reflect")
        self.windows = np.lib.stride_tricks.sliding_window_view(sample, WINDOW)[::HOP]  # (4, 256) samples of a chunk
        self.spectrum = np.ascontiguousarray(weights["stft.forward_basis_buffer"][:, 0].T)  # (256, 2 * 129)
        self.convolutions = [
            Convolution(weights[f"encoder.{n}.weight"], weights[f"encoder.{n}.bias"], T, stride)
            for n, (T, stride) in enumerate([(4, 1), (4, 2), (2, 2), (1, 1)])
        ]
        self.lstm = fastrnn.from_onnx(model)
        self.stream = self.lstm.stream()
        self.W, self.b = weights["output.weight"][0, :, 0], weights["output.bias"][0]

    def features(self, chunks: np.ndarray) -> np.ndarray:
        """(N, 576) -> (N, 128)."""
        waves = chunks[:, self.windows] @ self.spectrum  # (N, 4, 258): real parts, then imaginary ones
        x = np.hypot(waves[..., :129], waves[..., 129:])
        for convolution in self.convolutions:
            x = convolution(x)
        return x[:, 0]

    def probability(self, h: np.ndarray) -> np.ndarray:
        """(..., 128) -> (...)."""
        return 1 / (1 + np.exp(-(np.maximum(h, 0) @ self.W + self.b)))

    def hear(self, chunk: np.ndarray) -> np.ndarray:
        """Process the next chunk: (1, 576) -> (1,)."""
        return self.probability(self.stream.step(self.features(chunk)))

    def hear_all(self, chunks: np.ndarray) -> np.ndarray:
        """Process a whole recording: (N, 576) -> (N,)."""
        return self.probability(self.lstm(self.features(chunks))[0])


def in_onnxruntime(model: Path | bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def in_both(model: Path) -> Any:
    """Return the model with the LSTM on fastrnn and the rest on onnxruntime."""
    return fastrnn.onnx.Session(model, threads=1)


def hear_each(net: Any, chunks: np.ndarray, **more: np.ndarray) -> np.ndarray:
    """Run (N, 576) -> (N,) chunk by chunk through an ONNX model of the package."""
    state, probabilities = np.zeros((2, 1, H), np.float32), []
    for chunk in chunks[:, None]:
        probability, state = net.run(None, {"input": chunk, "state": state, **more})
        probabilities.append(probability[0, 0])
    return np.array(probabilities)


def hear_sequence(net: Any, chunks: np.ndarray) -> np.ndarray:
    """Run (N, 576) -> (N,) in one call of the package's ONNX model for sequences."""
    zeros = np.zeros((1, 1, H), np.float32)
    return net.run(None, {"input": chunks, "h": zeros, "c": zeros})[0].ravel()


def remember_each(net: Any, features: np.ndarray) -> None:
    """Run the LSTM alone in onnxruntime, over features (N, 1, 128), chunk by chunk."""
    h = c = np.zeros((1, 1, H), np.float32)
    for x in features[:, None]:
        _, h, c = net.run(None, {"x": x, "h0": h, "c0": c})


def streaming(detector: Detector, chunks: np.ndarray) -> dict[str, Task]:
    """Return the functions that process chunk by chunk, to be timed."""
    features, out = detector.features(chunks)[:, None], np.empty((1, H), np.float32)
    default, plain, plain_both = in_onnxruntime(file(DEFAULT)), in_onnxruntime(file(PLAIN)), in_both(file(PLAIN))
    lstm = in_onnxruntime(fastrnn.to_onnx(detector.lstm, state=True).SerializeToString())
    return {
        f"{DEFAULT} in onnxruntime": lambda: hear_each(default, chunks, sr=np.array(RATE)),
        f"{PLAIN} in onnxruntime": lambda: hear_each(plain, chunks),
        f"{PLAIN}, its LSTM in fastrnn": lambda: hear_each(plain_both, chunks),
        "NumPy and fastrnn": lambda: [detector.hear(chunk) for chunk in chunks[:, None]],
        "the LSTM alone in onnxruntime": lambda: remember_each(lstm, features),
        "the LSTM alone in fastrnn": lambda: [detector.stream.step(x, out=out) for x in features],
    }


def at_once(detector: Detector, chunks: np.ndarray) -> dict[str, Task]:
    """Return the functions that process the whole recording in one call, to be timed."""
    features = detector.features(chunks)
    sequence, sequence_both = in_onnxruntime(file(SEQUENCE)), in_both(file(SEQUENCE))
    return {
        f"{SEQUENCE} in onnxruntime": lambda: hear_sequence(sequence, chunks),
        f"{SEQUENCE}, its LSTM in fastrnn": lambda: hear_sequence(sequence_both, chunks),
        "NumPy and fastrnn": lambda: detector.hear_all(chunks),
        "the LSTM alone in fastrnn": lambda: detector.lstm(features),
    }


def main() -> None:
    short = quick("Say when somebody is speaking.")
    one_thread()
    sound, speaking = made_up_voice(6 if short else 30, np.random.default_rng(0))
    chunks = chunks_of(sound)
    voiced = speaking[: len(chunks) * CHUNK].reshape(-1, CHUNK).all(axis=1)
    detector = Detector(onnx.load(file(SEQUENCE)))
    heard = np.concatenate([detector.hear(chunk) for chunk in chunks[:, None]])
    print(f"{len(chunks)} chunks; probabilities from {heard.min():.4f} to {heard.max():.4f}; the first three seconds:")
    print("".join("_.-^"[int(4 * min(p, 0.99))] for p in heard[:94]))
    found = heard > 0.5
    claim(f"the voice is found in {found[voiced].mean():.0%} of the chunks where it is", found[voiced].mean() > 0.9)
    claim(f"and in {found[~voiced].mean():.0%} where it is not", found[~voiced].mean() < 0.2)

    expected = hear_each(in_onnxruntime(file(DEFAULT)), chunks, sr=np.array(RATE))
    others = {
        "chunk by chunk": heard,
        "the whole recording at once": detector.hear_all(chunks),
        f"{PLAIN} with its LSTM in fastrnn": hear_each(in_both(file(PLAIN)), chunks),
        f"{SEQUENCE} with its LSTM in fastrnn": hear_sequence(in_both(file(SEQUENCE)), chunks),
    }
    for name, probabilities in others.items():
        error = np.abs(probabilities - expected).max()
        claim(f"onnxruntime's probabilities to {error:.1e}: {name}", error < 1e-5)
    for what, tasks in {"chunk by chunk": streaming, "the whole recording at once": at_once}.items():
        print(what)
        for name, time in in_turns(tasks(detector, chunks), 0.5 if short else 20).items():
            print(f"  {name:54} {time / len(chunks) * 1e6:6.1f} us a chunk")


if __name__ == "__main__":
    main()
