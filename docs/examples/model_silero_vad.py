"""Is anybody speaking? Silero VAD, a published voice activity detector, with its LSTM streaming on fastrnn.

Every 32 ms the net hears 512 samples of sound at 16 kHz, and 64 that it has heard before, and says how probable speech
is. A spectrum and four convolutions over time make 128 features of them; an LSTM cell of 128 units remembers what was
before (Silero Team, https://github.com/snakers4/silero-vad, MIT). The package has the net as ONNX, with weights under
PyTorch's names (and a safetensors file, but with the weights of another training):

    pip install --no-deps silero-vad==6.2.3 && pip install onnx onnxruntime
    python docs/examples/model_silero_vad.py

Here NumPy has the convolutions, and fastrnn the LSTM: `stream().step` keeps the state from one chunk to the next. The
sound is made up: a voice of a few vowels and hisses, which speaks for two seconds of every three. Exits with an error
unless every probability is that of the ONNX model in onnxruntime, to 1e-5, and the voice is found where it is. All
times are of one thread, medians of turns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
from checking import claim, quick
from published import file_of, in_turns, one_thread

import fastrnn

RATE, CHUNK, CONTEXT = 16_000, 512, 64  # samples per second; new ones in a chunk, and old ones before them
WINDOW, HOP = 256, 128  # samples of a spectrum, and from one to the next
H = 128
VOWELS = np.array([[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480], [570, 840, 2410]])


def resonance(f: np.ndarray, formants: np.ndarray) -> np.ndarray:
    """How much a throat with these resonances (3, n) passes of the frequencies f (n,), all in Hz; complex."""
    widths = np.array([[60], [90], [120]])
    return np.prod(formants**2 / (formants**2 - f**2 + 1j * widths * f), axis=0)


def made_up_voice(seconds: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sound (n,), about within -1..1, and whether the voice is speaking (n,): five syllables a second, then a rest."""
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
    """(N, 576): 512 samples each, after the last 64 of the chunk before."""
    new = sound[: len(sound) // CHUNK * CHUNK].reshape(-1, CHUNK)
    old = np.vstack([np.zeros((1, CONTEXT), np.float32), new[:-1, -CONTEXT:]])
    return np.hstack([old, new])


class Convolution:
    """relu of three taps over time, with zeros around x (N, T, I): as one matrix product."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray, T: int, stride: int) -> None:
        self.W, self.b = weight.transpose(2, 1, 0).reshape(-1, len(bias)), bias  # (3 * I, O), (O,)
        self.taps = np.arange(0, T, stride)[:, None] + np.arange(3)  # the steps that each output sees

    def __call__(self, x: np.ndarray) -> np.ndarray:
        N, T, I = x.shape
        padded = np.zeros((N, T + 2, I), x.dtype)
        padded[:, 1:-1] = x
        seen = padded[:, self.taps].reshape(N, len(self.taps), -1)
        return np.maximum(seen @ self.W + self.b, 0)


def read_weights() -> dict[str, np.ndarray]:
    """The 16 kHz net's, by PyTorch's names."""
    graph = onnx.load(file_of("silero-vad", "silero_vad_op18_ifless.onnx")).graph
    return {w.name.removeprefix("model."): onnx.numpy_helper.to_array(w) for w in graph.initializer}


class Detector:
    """Silero VAD on NumPy and fastrnn."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        sample = np.pad(np.arange(CONTEXT + CHUNK), (0, CONTEXT), "reflect")
        self.windows = np.lib.stride_tricks.sliding_window_view(sample, WINDOW)[::HOP]  # (4, 256) samples of a chunk
        self.spectrum = np.ascontiguousarray(weights["stft.forward_basis_buffer"][:, 0].T)  # (256, 2 * 129)
        self.convolutions = [
            Convolution(*(weights[f"encoder.{n}.reparam_conv.{name}"] for name in ("weight", "bias")), T, stride)
            for n, (T, stride) in enumerate([(4, 1), (4, 2), (2, 2), (1, 1)])
        ]
        self.lstm = fastrnn.from_torch(weights, cell="lstm", prefix="decoder.rnn.")
        self.stream = self.lstm.stream()
        self.W, self.b = weights["decoder.decoder.2.weight"][0, :, 0], weights["decoder.decoder.2.bias"][0]

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
        """The next chunk (1, 576) -> (1,)."""
        return self.probability(self.stream.step(self.features(chunk)))

    def hear_all(self, chunks: np.ndarray) -> np.ndarray:
        """A whole recording (N, 576) -> (N,)."""
        return self.probability(self.lstm(self.features(chunks))[0])


def session(model: str | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def of_package(name: str) -> onnxruntime.InferenceSession:
    return session(str(file_of("silero-vad", name)))


def onnx_model(name: str, **more: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """(N, 576) -> (N,), a chunk after the other through the package's own net in onnxruntime."""
    net = of_package(name)

    def hear_each(chunks: np.ndarray) -> np.ndarray:
        state, probabilities = np.zeros((2, 1, H), np.float32), []
        for chunk in chunks[:, None]:
            probability, state = net.run(None, {"input": chunk, "state": state, **more})
            probabilities.append(probability[0, 0])
        return np.array(probabilities)

    return hear_each


def print_times(detector: Detector, chunks: np.ndarray, seconds: float) -> None:
    """Of a chunk, in groups that do the same."""
    features, out = detector.features(chunks)[:, None], np.empty((1, H), np.float32)
    state = {"h": np.zeros((1, 1, H), np.float32), "c": np.zeros((1, 1, H), np.float32)}
    default = onnx_model("silero_vad.onnx", sr=np.array(RATE))
    plain, sequence = onnx_model("silero_vad_openvino_16k.onnx"), of_package("silero_vad_16k_sequence.onnx")
    streaming, whole, ours = "chunk by chunk", "the whole recording at once", "NumPy and fastrnn"
    tasks = {
        (streaming, "onnxruntime, silero_vad.onnx"): lambda: default(chunks),
        (streaming, "onnxruntime, silero_vad_openvino_16k.onnx"): lambda: plain(chunks),
        (streaming, ours): lambda: [detector.hear(chunk) for chunk in chunks[:, None]],
        (streaming, "  of which fastrnn's LSTM"): lambda: [detector.stream.step(x, out=out) for x in features],
        (whole, "onnxruntime, silero_vad_16k_sequence.onnx"): lambda: sequence.run(None, {"input": chunks, **state}),
        (whole, ours): lambda: detector.hear_all(chunks),
    }
    times = in_turns(tasks, seconds)
    for (what, who), time in times.items():
        print(f"{what + ':':28} {who:41} {time / len(chunks) * 1e6:6.1f} us a chunk")
    for what in (streaming, whole):
        peer = min(time for (where, who), time in times.items() if where == what and who.startswith("onnxruntime"))
        print(f"{what}, fastrnn is {peer / times[what, ours]:.1f} times as fast as onnxruntime at its fastest")


def main() -> None:
    short = quick("Say when somebody is speaking.")
    one_thread()
    sound, speaking = made_up_voice(6 if short else 30, np.random.default_rng(0))
    chunks = chunks_of(sound)
    voiced = speaking[: len(chunks) * CHUNK].reshape(-1, CHUNK).all(axis=1)
    detector = Detector(read_weights())
    its_own = onnx_model("silero_vad.onnx", sr=np.array(RATE))

    expected = its_own(chunks)
    streamed = np.concatenate([detector.hear(chunk) for chunk in chunks[:, None]])
    error = np.abs(streamed - expected).max()
    print(f"{len(chunks)} chunks; probabilities from {expected.min():.4f} to {expected.max():.4f}")
    print("".join("_.-^"[int(4 * min(p, 0.99))] for p in streamed[:94]), "the first three seconds")
    claim(f"onnxruntime's probabilities, the largest difference is {error:.1e}", error < 1e-5)
    found = streamed > 0.5
    claim(f"the voice is found in {found[voiced].mean():.0%} of the chunks where it is", found[voiced].mean() > 0.9)
    claim(f"and in {found[~voiced].mean():.0%} where it is not", found[~voiced].mean() < 0.2)
    whole = np.abs(detector.hear_all(chunks) - expected).max()
    claim(f"a whole recording in one call, the largest difference is {whole:.1e}", whole < 1e-5)

    print_times(detector, chunks, 1 if short else 20)


if __name__ == "__main__":
    main()
