"""Pronounce words: the GRU encoder-decoder of g2p-en, a published model, run by fastrnn.

g2p-en spells words in ARPAbet phonemes: "zebra" is Z IY1 B R AH0. A GRU of 256 units reads the letters; another starts
from its last state and outputs one phoneme after the other, each of which is its next input, until it outputs </s>
(Park and Kim, https://github.com/Kyubyong/g2p, Apache-2.0; an encoder-decoder as in Cho et al., "Learning phrase
representations using RNN encoder-decoder for statistical machine translation", EMNLP 2014). The package computes it in
NumPy, a word at a time. Its weights are PyTorch's, so fastrnn takes them as they are:

    pip install --no-deps g2p-en==2.1.0
    python docs/examples/model_g2p_en.py

Here fastrnn does the same one word at a time, and then with all words together: it reads them as one batch of unequal
lengths, and outputs their phonemes step by step in parallel. Exits with an error unless both give the package's own
phonemes for every word in less time. All times are medians of alternating calls on one thread.
"""

from __future__ import annotations

import sys
from typing import Any
from unittest import mock

import numpy as np
from checking import claim, quick
from published import file_of, in_turns, one_thread

import fastrnn

START, END, LONGEST = 2, 3, 20  # phonemes <s> and </s>, and the most that the package returns

WORDS = """
about absolute accident acoustic activation adventure aeroplane afternoon algorithm alphabet ancient answer apparatus
architecture asphalt autumn backward balloon beautiful behaviour believe bicycle biscuit blizzard bouquet breakfast
brochure bureau butterfly calculus camouflage capricious cathedral cauliflower chameleon character chocolate chronicle
cinnamon colonel committee conscience courageous crocodile daughter debris delicious diaphragm dictionary diphthong
discipline earthquake echo eloquent embarrass enough entrepreneur epitome exaggerate facade fatigue february fiery
forty freight gauge genuine giraffe gnome government grateful gymnasium handkerchief harmony height hierarchy honest
hygiene hypothesis idiosyncrasy indict island jealous jeopardy journey kaleidoscope kernel knowledge laboratory
language laugh leopard library lieutenant liquorice magazine manoeuvre mathematics mischievous mnemonic mountain
necessary neighbour neural nuisance ocean onomatopoeia orchestra parallel penguin phenomenon phoneme pneumonia
psychology quarantine queue recurrent rehearsal rendezvous reservoir restaurant rhapsody rhythm saxophone schedule
scissors sequence sergeant silhouette sovereign spaghetti squirrel stomach subtle sword symphony technique temperature
thermometer thorough though through tongue tortoise twelfth umbrella unanimous vacuum vegetable vehicle villain
weather wednesday wheelbarrow whistle xylophone yacht yesterday zebra zoology
"""
ONSETS = "b br c ch cl d dr f fl g gl gr h j k kn l m n p ph pl qu r s sc sh sl sn sp str t th tr v w x y z"
RHYMES = "a ab ack ail air and ar e ee eld en er est ew i ice ig ight ing ip o oat od oom or ough u uff um y"


def made_up(count: int, rng: np.random.Generator) -> list[str]:
    """Return made-up words of one to four syllables, which are in no dictionary."""
    syllables = rng.integers(1, 5, count)
    return ["".join(rng.choice(ONSETS.split()) + rng.choice(RHYMES.split()) for _ in range(n)) for n in syllables]


def own_model() -> Any:
    """Return the package's own class; its dictionary and its tagger of sentences are not part of the comparison."""
    unused = ("nltk", "nltk.corpus", "nltk.tokenize", "inflect")
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in unused}):
        from g2p_en.g2p import G2p

        return G2p()


def gru(weights: Any, part: str) -> Any:
    """Return the encoder or the decoder, whose weights have PyTorch's shapes, and the prefixes of its names."""
    names = {"weight_ih": "w_ih", "weight_hh": "w_hh", "bias_ih": "b_ih", "bias_hh": "b_hh"}
    return fastrnn.from_torch({name: weights[f"{part}_{its}"] for name, its in names.items()}, cell="gru_after")


class Speller:
    """g2p-en on fastrnn."""

    def __init__(self) -> None:
        weights = np.load(file_of("g2p-en", "checkpoint20.npz"))
        self.letters, self.phonemes = weights["enc_emb"], weights["dec_emb"]  # (29, 256), (74, 256)
        self.W, self.b = np.ascontiguousarray(weights["fc_w"].T), weights["fc_b"]
        self.encoder, self.decoder = gru(weights, "enc"), gru(weights, "dec")
        self.one = self.decoder.stream()

    def codes(self, word: str) -> list[int]:
        """Return rows of the table of letters, after <pad>, <unk> and </s>, which ends each word."""
        return [3 + ord(letter) - ord("a") if "a" <= letter <= "z" else 1 for letter in word] + [2]

    def spell(self, word: str) -> list[int]:
        """Return a word's phonemes."""
        _, h = self.encoder(self.letters[self.codes(word)])  # (T, 256) in, the last state (1, 256) out
        state, phoneme, spoken = (h[:, None],), START, []
        for _ in range(LONGEST):
            h_t = self.one.step(self.phonemes[phoneme], state=state)
            phoneme = int((h_t @ self.W + self.b).argmax())
            if phoneme == END:
                break
            spoken.append(phoneme)
        return spoken

    def spell_all(self, words: list[str]) -> list[list[int]]:
        """Return the phonemes of each word, computed for all words together."""
        codes = [self.codes(word) for word in words]
        lengths = [len(code) for code in codes]
        x = np.zeros((max(lengths), len(words)), int)  # (T, B); values past a length are never read
        for n, code in enumerate(codes):
            x[: len(code), n] = code
        _, h = self.encoder(self.letters[x], lengths=lengths)
        stream = self.decoder.stream(len(words))
        stream.state = h
        spoken = np.full((LONGEST, len(words)), END)
        phoneme = np.full(len(words), START)
        for t in range(LONGEST):
            phoneme = (stream.step(self.phonemes[phoneme]) @ self.W + self.b).argmax(axis=1)
            spoken[t] = phoneme
            if (spoken[: t + 1] == END).any(axis=0).all():
                break
        return [said[: np.argmax(np.append(said, END) == END)].tolist() for said in spoken.T]


def main() -> None:
    short = quick("Turn words into phonemes.")
    one_thread()
    rng = np.random.default_rng(0)
    words = WORDS.split() + made_up(100, rng)
    own, speller = own_model(), Speller()

    expected = [own.predict(word) for word in words]
    alone = [[own.phonemes[p] for p in speller.spell(word)] for word in words]
    together = [[own.phonemes[p] for p in said] for said in speller.spell_all(words)]
    for word, said in list(zip(words, together, strict=True))[:: len(words) // 12]:
        print(f"{word:14} {' '.join(said)}")
    count = sum(map(len, expected))
    claim(f"a word at a time, the package's own {count} phonemes of {len(words)} words", alone == expected)
    claim("all the words together, the same", together == expected)

    own_name, alone_name, together_name = "g2p-en's NumPy", "fastrnn, a word at a time", "fastrnn, all together"
    tasks = {
        own_name: lambda: [own.predict(word) for word in words],
        alone_name: lambda: [speller.spell(word) for word in words],
        together_name: lambda: speller.spell_all(words),
    }
    times = in_turns(tasks, 1 if short else 20)
    for name, seconds in times.items():
        print(f"{name:26} {seconds / len(words) * 1e6:7.1f} us a word   {times[own_name] / seconds:5.1f} times as fast")
    claim("faster", times[own_name] > max(times[alone_name], times[together_name]))


if __name__ == "__main__":
    main()
