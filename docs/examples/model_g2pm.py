"""Choose the pronunciation of Chinese characters: the BiLSTM of g2pM, a published model, on fastrnn.

One Chinese character in fourteen has several pronunciations, of which the sentence determines one. For these, g2pM uses
a bidirectional LSTM of 32 units per direction with two dense layers on top; it looks up the others (Park, Lee, "g2pM:
A neural grapheme-to-phoneme conversion package for Mandarin Chinese based on a new open benchmark dataset", Interspeech
2020, Apache-2.0). The package computes it in NumPy. Its weights have PyTorch's names:

    pip install --no-deps g2pM==0.1.2.5
    python docs/examples/model_g2pm.py

They are stored as a pickle, which could run any code when read; here it may only create NumPy arrays and plain values.

The sentences have unequal lengths. The package reverses each padded sentence to run the second direction; fastrnn takes
the lengths. Exits with an error unless fastrnn gives the package's own pronunciations in less time, with logits that
differ by at most 1e-5 of the largest. All times are medians of alternating calls on one thread.
"""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

import numpy as np
from checking import claim, quick
from published import file_of, in_turns, one_thread

import fastrnn

BEGIN, END = "시", "끝"  # the package adds these around a sentence

SENTENCES = """
然而，他红了20年以后，他竟退出了大家的视线。
音乐使人快乐。
这件事情重要，请你重新考虑。
他们都住在首都。
我在银行工作，他在路上行走。
这条路很长，校长慢慢地走。
他觉得很累，想好好睡觉。
得。
"""  # noqa: RUF001


class ArraysOnly(pickle.Unpickler):
    """Reads plain values and NumPy arrays, and rejects anything else that a pickle requests."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            raise pickle.UnpicklingError(f"refused: {module}.{name}")
        return super().find_class(module, name)


def read(name: str) -> Any:
    with file_of("g2pM", name).open("rb") as file:
        return ArraysOnly(file).load()


def own_model(weights: dict[str, np.ndarray]) -> Any:
    """Return the package's own class, without the pickles that it reads when created; it keeps its last logits."""
    from g2pM import G2pM

    class Own(G2pM):
        def fc_layer(self, inputs: np.ndarray) -> np.ndarray:
            self.logits = super().fc_layer(inputs)
            return self.logits

    own = Own.__new__(Own)
    own.load_variable(weights)
    return own


class Reader:
    """g2pM on fastrnn."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.table = weights["embedding.weight"]  # (5398, 64)
        self.lstm = fastrnn.from_torch(weights, cell="lstm", prefix="lstm.", batch_first=True)
        self.hidden, self.scores = fastrnn.Dense(64, 32, "relu"), fastrnn.Dense(32, 876)
        for dense, part in ((self.hidden, "logit_layer.0."), (self.scores, "logit_layer.2.")):
            dense.load_state_dict({name: weights[part + name] for name in ("weight", "bias")})

    def logits(self, x: np.ndarray, lengths: Any, rows: Any, places: Any) -> np.ndarray:
        """Return scores (N, 876) of the pronunciations of characters ``x[rows, places]`` of sentences x (B, T)."""
        y, _ = self.lstm(self.table[x], lengths=lengths)
        return self.scores(self.hidden(y[rows, places]))


class Batch(NamedTuple):
    """Sentences of unequal length, and the places of the characters with several pronunciations."""

    x: np.ndarray  # (B, T) characters, 0 past a sentence's length
    lengths: np.ndarray  # (B,)
    rows: np.ndarray  # (N,)
    places: np.ndarray  # (N,)


def pad(sentences: list[np.ndarray], several: np.ndarray) -> Batch:
    lengths = np.array([len(sentence) for sentence in sentences])
    x = np.zeros((len(sentences), lengths.max()), np.int32)
    for row, sentence in zip(x, sentences, strict=True):
        row[: len(sentence)] = sentence
    return Batch(x, lengths, *np.nonzero(np.isin(x, several)))


def write_out(sentence: str, dictionary: dict[str, list[str]], chosen: list[str]) -> str:
    """Return the sentence in pinyin, with `chosen` for characters with several pronunciations."""
    rest = iter(chosen)
    options = [dictionary.get(character, [character]) for character in sentence]
    return " ".join(next(rest) if len(several) > 1 else several[0] for several in options)


def compare(batch: Batch, own: Any, reader: Reader) -> None:
    """Claim that both give the same, one sentence at a time and as a batch."""
    logits = reader.logits(*batch)
    expected = []
    for row, length in enumerate(batch.lengths):  # the package's own way: a sentence with all its characters
        own.predict(batch.x[row : row + 1, :length], batch.places[batch.rows == row])
        expected.append(own.logits)
    whole = np.concatenate(expected)
    error = np.abs(logits - whole).max() / np.abs(whole).max()
    sizes = f"{len(batch.x)} sentences of {batch.lengths.min()} to {batch.lengths.max()}"
    claim(
        f"the package's own pronunciations of {len(whole)} characters, {sizes}",
        (logits.argmax(axis=1) == whole.argmax(axis=1)).all(),
    )
    claim(f"scores that differ by {error:.1e} of the largest", error < 1e-5)

    first = np.unique(batch.rows, return_index=True)[1]  # in a batch, the package takes one character of each sentence
    own_first = own.predict(batch.x, batch.places[first])
    claim("as a batch, the same", np.array_equal(own_first, logits[first].argmax(axis=1)))


def main() -> None:
    short = quick("Tell which of its pronunciations a Chinese character has.")
    one_thread()
    rng = np.random.default_rng(0)
    codes, dictionary = read("char2idx.pkl"), read("digest_cedict.pkl")
    classes = {code: pinyin for pinyin, code in read("class2idx.pkl").items()}
    weights = read("np_ckpt.pkl")
    own, reader = own_model(weights), Reader(weights)
    several = np.array([codes[c] for c, options in dictionary.items() if len(options) > 1 and c in codes])

    given = [np.array([codes[c] for c in BEGIN + s + END]) for s in SENTENCES.split()]
    batch = pad(given, several)
    chosen = reader.logits(*batch).argmax(axis=1)
    for n, sentence in enumerate(SENTENCES.split()):
        print(sentence, "\n   ", write_out(sentence, dictionary, [classes[c] for c in chosen[batch.rows == n]]))
    compare(batch, own, reader)

    made_up = [rng.integers(4, len(codes), rng.integers(3, 80)) for _ in range(200)]
    for sentence in made_up:
        sentence[rng.integers(len(sentence))] = rng.choice(several)
    batch = pad(made_up, several)
    compare(batch, own, reader)

    alone = [pad([sentence], several) for sentence in made_up]
    first = np.unique(batch.rows, return_index=True)[1]
    tasks = {
        "g2pM's NumPy, a sentence at a time": lambda: [own.predict(b.x, b.places) for b in alone],
        "fastrnn, a sentence at a time": lambda: [reader.logits(*b).argmax(axis=1) for b in alone],
        "g2pM's NumPy, a batch": lambda: own.predict(batch.x, batch.places[first]),
        "fastrnn, a batch": lambda: reader.logits(
            batch.x, batch.lengths, batch.rows[first], batch.places[first]
        ).argmax(axis=1),
    }
    times = list(in_turns(tasks, 1 if short else 20).items())
    for (own_name, own_time), (name, time) in (times[:2], times[2:]):
        print(f"{own_name:34} {own_time / len(made_up) * 1e6:7.1f} us a sentence")
        print(f"{name:34} {time / len(made_up) * 1e6:7.1f} us a sentence, {own_time / time:.1f} times as fast")
        claim("faster", time < own_time)


if __name__ == "__main__":
    main()
