"""A speech recogniser in PyTorch with one additional line: `fastrnn.torch.replace(model)`.

Three bidirectional LSTM layers of 320 units read 80 mel bands; a linear layer and connectionist temporal classification
(Graves et al., "Connectionist temporal classification: labelling unsegmented sequence data with recurrent neural
networks", ICML 2006) turn them into 28 letters. The model, the loss, the optimizer and the weights stay PyTorch's; only
the LSTM is computed by fastrnn. The speech is synthetic: each letter is a spectrum of its own, prolonged, in noise.

    pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    python docs/examples/speech_torch.py

Trains both for a few steps from the same weights, on utterances of equal length and, packed, of unequal lengths. Exits
with an error unless all losses agree to 1e-4 of their size, and packed utterances take less time. All times are medians
of alternating calls on one thread.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from checking import claim, quick
from published import in_turns, one_thread
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn.torch

BANDS, HIDDEN, LAYERS, LETTERS, BLANK = 80, 320, 3, 28, 0
BATCH, FRAMES, STEPS = 8, 200, 4

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class Recogniser(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(BANDS, HIDDEN, LAYERS, bidirectional=True)
        self.letters = torch.nn.Linear(2 * HIDDEN, 1 + LETTERS)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Map (T, B, 80) and (B,) to the log probabilities of blank and each letter, (T, B, 29)."""
        if (lengths == len(x)).all():
            y, _ = self.lstm(x)
        else:
            packed, _ = self.lstm(pack_padded_sequence(x, lengths, enforce_sorted=False))
            y, _ = pad_packed_sequence(packed)
        return self.letters(y).log_softmax(dim=-1)


def made_up_speech(lengths: torch.Tensor) -> Batch:
    """Return frames (T, B, 80) and lengths (B,), letters (B, L) and lengths (B,): a letter every ten frames."""
    spoken = lengths // 10
    letters = torch.randint(1, 1 + LETTERS, (len(lengths), int(spoken.max())))
    spectra = torch.randn(1 + LETTERS, BANDS)
    x = spectra[letters].repeat_interleave(10, dim=1).swapaxes(0, 1)
    return x + torch.randn(x.shape), lengths, letters, spoken


def trainer(model: torch.nn.Module, batch: Batch) -> Callable[[], float]:
    """Return a function that makes one training step and returns the loss before it."""
    x, lengths, letters, spoken = batch
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.ctc_loss(model(x, lengths), letters, lengths, spoken, BLANK)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def compare(what: str, batch: Batch, seconds: float) -> float:
    """Train with PyTorch's LSTM and with fastrnn's; return the ratio of the times."""
    before = Recogniser()
    after = copy.deepcopy(before)
    report = fastrnn.torch.replace(after)
    print(f"{what}:\n{report}")
    steps = {"PyTorch": trainer(before, batch), "fastrnn": trainer(after, batch)}
    losses = {name: torch.tensor([step() for _ in range(STEPS)]) for name, step in steps.items()}
    for name, values in losses.items():
        print(f"  losses with {name}'s LSTM:", *(f"{loss:.5f}" for loss in values))
    difference = ((losses["fastrnn"] - losses["PyTorch"]) / losses["PyTorch"]).abs().max()
    claim(f"they agree to {difference:.0e} of their size", difference < 1e-4)
    times = in_turns(steps, seconds)
    for name, time in times.items():
        print(f"  {name:8} {1e3 * time:7.1f} ms a step of training")
    ratio = times["PyTorch"] / times["fastrnn"]
    print(f"  {ratio:.2f} times as fast with fastrnn")
    return ratio


def main() -> None:
    short = quick("Train a speech recogniser.")
    one_thread()
    torch.manual_seed(0)
    frames, seconds = (FRAMES // 5, 2) if short else (FRAMES, 30)
    whole = torch.full((BATCH,), frames)
    compare(f"{BATCH} utterances of {frames} frames", made_up_speech(whole), seconds)
    lengths = torch.linspace(frames // 2, frames, BATCH).long()
    ratio = compare(f"{BATCH} utterances of {frames // 2} to {frames} frames", made_up_speech(lengths), seconds)
    claim("packed utterances take less time", ratio > 1)


if __name__ == "__main__":
    main()
