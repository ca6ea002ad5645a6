"""The return value of `fit`: losses and metrics of every epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class History:
    """Losses and metrics of every epoch, by name.

    Attributes
    ----------
    history : dict of lists of float
        ``history["loss"][epoch]``; also each metric by name, and with validation the same names after ``"val_"``.

    Examples
    --------
    >>> from fastrnn.training import History
    >>> history = History()
    >>> history.append({"loss": 0.5})
    >>> history.append({"loss": 0.25})
    >>> history
    History of 2 epochs: loss 0.25
    """

    history: dict[str, list[float]] = field(default_factory=dict)

    def append(self, logs: Mapping[str, float]) -> None:
        """Add the logs of one epoch.

        Parameters
        ----------
        logs : mapping of names to floats
        """
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)

    def __len__(self) -> int:
        return len(self.history.get("loss", ()))

    def __repr__(self) -> str:
        last = ", ".join(f"{name} {values[-1]:.4g}" for name, values in self.history.items())
        return f"History of {len(self)} epochs" + (f": {last}" if last else "")
