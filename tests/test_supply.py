"""fastrnn opens no network connection, from import to files."""

from __future__ import annotations

import pytest
from support.python import Python

from fastrnn.backends import available_backends

# Audit events: the interpreter reports every socket, in any thread and from any library.
LISTEN = """
import sys
heard = []
def hook(event, arguments):
    if event.split(".")[0] in ("socket", "urllib", "http", "ftplib", "smtplib", "imaplib", "poplib", "telnetlib"):
        heard.append(event)
sys.addaudithook(hook)
"""

COMPUTE = """
import numpy as np
import fastrnn
x, W, U = (np.ones(shape, np.float32) for shape in ((5, 3, 4), (16, 4), (16, 4)))
result = fastrnn.lstm_forward(x, W, U, training=True, threads=2)
fastrnn.lstm_backward(result.y, result.cache)
net = fastrnn.GRU(4, 4, 2, reset_after=True, rng=0)
net(x)
net.stream(3).step(x[0])
model = fastrnn.Sequential([fastrnn.LSTM(4, 4, return_sequences=False, rng=0), fastrnn.Dense(4, 1, rng=0)])
model.compile("adam", loss="mse")
model.fit(x, x[:, 0, :1], epochs=1, rng=0)
model.predict(x)
fastrnn.show_config()
"""

FILES = """
fastrnn.save("model", model)
fastrnn.load("model")
model.save_weights("weights")
model.load_weights("weights")
"""

SILENCE = """
assert not heard, heard
import socket
socket.socket().close()
assert heard == ["socket.__new__"], heard  # it does listen
"""


def expect_silence(python: Python, work: str) -> None:
    done = python("-c", LISTEN + work + SILENCE)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", [name for name in available_backends() if name != "numba"])  # takes a minute
def test_no_network(backend: str, python: Python) -> None:
    expect_silence(python, f"import fastrnn; fastrnn.use_backend({backend!r})" + COMPUTE)


def test_files_open_no_network(python: Python) -> None:
    pytest.importorskip("safetensors")
    expect_silence(python, COMPUTE + FILES)


def test_the_command_line_opens_no_network(python: Python) -> None:
    expect_silence(python, "sys.argv = ['fastrnn', 'info']; from fastrnn.__main__ import main; assert main() == 0")
