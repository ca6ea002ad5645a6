"""Changes of files at structured places (JSON, HDF5, protocol buffers, tensors), and of plain bytes."""

from __future__ import annotations

import copy
import io
import json
import random
import zipfile
from typing import Any

import h5py
import numpy as np
import onnx

JUNK = (None, True, False, -1, 0, 1, 2, 7, 10**18, 10**400, 1e308, float("nan"), float("inf"), "", "x", [], {}, [[]])

MEMBERS = ("config.json", "model.weights.h5")


def zipped(*contents: bytes, how: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", how) as archive:
        for member, content in zip(MEMBERS, contents, strict=True):
            archive.writestr(zipfile.ZipInfo(member), content, how)
    return made.getvalue()


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) in parsed JSON."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in inner for place in ((tree, key), *places(value))]


def changed_json(rng: random.Random, tree: Any) -> Any:
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        every = places(tree)
        if not every:
            return rng.choice(JUNK)
        container, key = rng.choice(every)
        value, (there, other) = container[key], rng.choice(every)
        how = rng.randrange(5)
        if how == 0:
            container[key] = copy.deepcopy(rng.choice(JUNK))
        elif how == 1:
            del container[key]
        elif how == 2:
            container[key] = copy.deepcopy(there[other])
        elif type(value) is int:
            container[key] = value + rng.choice((-1, 1, value, 1 << 31))
        elif isinstance(value, str):
            container[key] = rng.choice([v for c, k in every if isinstance(v := c[k], str)])
        elif isinstance(container, list):
            container.append(copy.deepcopy(value))
        else:
            container["new"] = copy.deepcopy(value)
    return tree


def changed_text(rng: random.Random, text: str) -> str:
    return json.dumps(changed_json(rng, json.loads(text)))


def changed_bytes(rng: random.Random, data: bytes) -> bytes:
    new = bytearray(data or b"?")
    for _ in range(rng.choice((1, 1, 2, 5))):
        new[rng.randrange(len(new))] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
    return bytes(new[: rng.randrange(len(new))] if rng.random() < 0.1 else new)


def changed_safetensors(rng: random.Random, data: bytes) -> bytes:
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    about = header.get("__metadata__") or {}
    if "sha256" in about and rng.random() < 0.9:
        del about["sha256"]
    if "fastrnn" in about and rng.random() < 0.7:
        about["fastrnn"] = changed_text(rng, about["fastrnn"])
    else:
        header = changed_json(rng, header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + n :]


def changed_keras(rng: random.Random, data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        config, weights = (archive.read(member) for member in MEMBERS)
    if rng.random() < 0.8:
        config = changed_text(rng, config.decode()).encode()
    else:
        weights = changed_arrays(rng, weights)
    return zipped(config, weights, how=rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def changed_h5(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.2:
        return changed_arrays(rng, data)
    made = io.BytesIO(data)
    with h5py.File(made, "r+") as file:
        file.attrs["model_config"] = changed_text(rng, file.attrs["model_config"])
    return made.getvalue()


def changed_arrays(rng: random.Random, data: bytes) -> bytes:
    """Replace an array, a group or an attribute of an HDF5 file by something else."""
    made = io.BytesIO(data)
    with h5py.File(made, "r+") as file:
        members: list[str] = []
        file.visit(members.append)
        path = rng.choice(members)
        how = rng.randrange(9)
        if how == 0 and file[path].attrs:
            file[path].attrs[rng.choice(list(file[path].attrs))] = rng.choice((0, "x", [b"kernel:0"], np.ones((2, 2))))
            return made.getvalue()
        old = file[path]
        shape = tuple(min(n, 9) for n in old.shape) if isinstance(old, h5py.Dataset) else (2,)
        kind = old.dtype if isinstance(old, h5py.Dataset) else np.float32
        del file[path]
        if how == 1:
            file[path] = np.ones(tuple(rng.choice((0, 1, n, n + 1)) for n in shape), kind)
        elif how == 2:
            file[path] = np.ones(shape, rng.choice(("f2", "f8", "i4", "c8", "S3", ">f4", "?")))
        elif how == 3:
            file.create_dataset(path, shape, "f4", chunks=shape or None, compression="gzip" if shape else None)
        elif how == 4:
            file.create_dataset(path, (10**9, *shape), "f4", chunks=(1, *shape))
        elif how == 5:
            file[path] = rng.choice((h5py.SoftLink("/"), h5py.ExternalLink("nothing.h5", "/")))
        elif how == 6:
            file.create_group(path)
        elif how == 7:
            file[path] = rng.choice((3.0, "text"))
    return made.getvalue()


def messages(message: Any) -> list[Any]:
    """Yield a protocol buffer message and all messages inside it."""
    found = [message]
    for field, value in message.ListFields():
        if field.message_type is not None:
            found += [m for one in (value if field.is_repeated else [value]) for m in messages(one)]
    return found


def changed_onnx(rng: random.Random, data: bytes) -> bytes:
    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        every = messages(model)
        message = rng.choice(every)
        field = rng.choice(message.DESCRIPTOR.fields)
        value = getattr(message, field.name)
        if field.message_type is not None:
            others = [copy.deepcopy(m) for m in every if m.DESCRIPTOR is field.message_type]  # none is inside itself
            if field.is_repeated and len(value) and rng.random() < 0.4:
                del value[rng.randrange(len(value))]
            elif field.is_repeated and others:
                value.add().CopyFrom(rng.choice(others))
            elif others and rng.random() < 0.5:
                value.CopyFrom(rng.choice(others))
            else:
                message.ClearField(field.name)
        elif field.is_repeated and len(value) and rng.random() < 0.4:
            del value[rng.randrange(len(value))]
        else:
            new = scalar(rng, field, [m.name for m in every if isinstance(getattr(m, "name", 0), str)])
            if not field.is_repeated:
                setattr(message, field.name, new)
            elif len(value) and rng.random() < 0.7:
                value[rng.randrange(len(value))] = new
            else:
                value.append(new)
    return bytes(model.SerializeToString())


def scalar(rng: random.Random, field: Any, names: list[str]) -> Any:
    if field.cpp_type == field.CPPTYPE_STRING:
        text = rng.choice(["", "x", "Identity", "Squeeze", "GRU", "reverse", "tanh", "Affine", *names])
        return text.encode() if field.type == field.TYPE_BYTES else text
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
    if field.cpp_type == field.CPPTYPE_ENUM:
        return rng.choice(field.enum_type.values).number
    wide = (-1, 1 << 40) if field.cpp_type == field.CPPTYPE_INT64 else ()
    return rng.choice((0, 1, 2, 3, 6, 7, 10, 11, 16, 99, (1 << 31) - 1, *wide))
