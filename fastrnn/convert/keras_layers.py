"""Convert Keras layers, and reject unsupported ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastrnn.convert import keras_files
from fastrnn.convert.keras_cells import cells, one_direction, two_directions
from fastrnn.convert.keras_files import Piece
from fastrnn.convert.keras_options import ALONE, LENGTHS, Taken, expect, flag, size, weights
from fastrnn.convert.stack import dense_of, loaded
from fastrnn.frameworks import CUDNN, KERAS, KERAS_RNN, keras_activation
from fastrnn.functions import FUNCTIONS
from fastrnn.layers import (
    Activation,
    Dense,
    Dropout,
    Embedding,
    GlobalAveragePooling1D,
    GlobalMaxPooling1D,
    Layer,
    LayerNormalization,
    RepeatVector,
)

#: Keras' names of the functions of Dense and Activation.
PLAIN = tuple(map(keras_activation, FUNCTIONS))

#: Layers that only act in training and are not supported.
NOISE = (
    *("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianNoise", "GaussianDropout", "AlphaDropout"),
    "ActivityRegularization",
)


def converted(piece: Piece, taken: Taken) -> list[Layer]:
    """Return our layers: none for a layer without effect, several for stacked cells."""
    if piece.kind == KERAS_RNN:
        return [layer for one in cells(piece) for layer in converted(one, taken)]
    layers = counterparts(piece, taken)
    for layer in layers:
        if layer.parameters():
            layer.trainable = trained(piece)
    return layers


def trained(piece: Piece) -> bool:
    """Return whether Keras trains the layer and the layers that it wraps."""
    wrapped = [piece.config.get(key) for key in ("layer", "backward_layer")]
    inner = {one["config"].get("trainable", True) for one in wrapped if isinstance(one, dict)}
    if len(inner) > 1:
        raise ValueError(f"{piece.title}: trainable: expected the same for both directions, got only one frozen")
    return piece.config.get("trainable", True) is not False and inner != {False}


def counterparts(piece: Piece, taken: Taken) -> list[Layer]:
    kinds: dict[str, Callable[[Piece, Taken], Layer]] = {
        **dict.fromkeys((*KERAS.families, *CUDNN), one_direction),
        "Bidirectional": two_directions,
        "TimeDistributed": time_distributed,
        "Dense": dense,
        "Embedding": embedding,
        "Dropout": dropout,
        "Activation": activation,
        "ReLU": relu,
        "Softmax": softmax,
        "LayerNormalization": normalization,
        "RepeatVector": repeat,
        "GlobalAveragePooling1D": pooling,
        "GlobalMaxPooling1D": pooling,
    }
    if piece.kind in ("InputLayer", "Identity") or (piece.kind == "Masking" and taken.lengths):
        return []
    if piece.kind in NOISE:
        if taken.inference:
            return []
        raise ValueError(f"{piece.title}: not supported; inference=True drops layers that only act in training")
    if piece.kind not in kinds:
        hint = LENGTHS if piece.kind == "Masking" else f"expected one of {', '.join(kinds)}; {ALONE}"
        raise ValueError(f"{piece.title}: not supported; {hint}")
    return [kinds[piece.kind](piece, taken)]


def check_masks(pieces: Sequence[Piece]) -> None:
    """Raise ValueError unless lengths in calls are equivalent: they must affect all recurrent layers and no others."""
    recurrent: Piece | None = None
    masked = False
    for piece in pieces:
        masks = piece.kind == "Masking" or (piece.kind == "Embedding" and bool(piece.config.get("mask_zero")))
        if masks and recurrent is not None:
            raise ValueError(f"{piece.title}: expected before every recurrent layer, got after {recurrent.title}")
        if masked and piece.kind == "Softmax":
            raise ValueError(f"{piece.title}: expected no mask, because Keras applies the mask of steps to features")
        if masked and piece.kind == "GlobalMaxPooling1D":
            raise ValueError(f"{piece.title}: expected no mask, because Keras ignores it in this layer")
        masked |= masks
        masked &= piece.kind != "GlobalAveragePooling1D"
        if piece.kind in (*KERAS.families, *CUDNN, KERAS_RNN, "Bidirectional"):
            recurrent = piece
            own = piece.config.get("layer") if piece.kind == "Bidirectional" else {"config": piece.config}
            masked &= bool(((own or {}).get("config") or {}).get("return_sequences"))


def time_distributed(piece: Piece, taken: Taken) -> Layer:
    """Convert the wrapped layer: our stateless layers already act on every step."""
    expect(piece, taken)
    inner = keras_files.inner(piece, "layer", piece.weights)
    if inner.kind not in ("Dense", "Activation", "Dropout"):
        raise ValueError(f"{inner.title}: not supported in a TimeDistributed; expected Dense")
    (layer,) = converted(inner, taken)
    return layer


def dense(piece: Piece, taken: Taken) -> Dense:
    config = expect(piece, taken, activation=PLAIN)
    units, bias = size(piece, "units"), flag(piece, "use_bias", True)
    kernel, *b = weights(piece, ("kernel", (None, units)), *([("bias", (units,))] if bias else []))
    return dense_of(kernel.T, b[0] if bias else None, config.get("activation"))


def embedding(piece: Piece, taken: Taken) -> Embedding:
    expect(piece, taken)
    n, E = size(piece, "input_dim"), size(piece, "output_dim")
    (table,) = weights(piece, ("embeddings", (n, E)))
    return loaded(Embedding(n, E, dtype=table.dtype, rng=0), {"weight": table})


def dropout(piece: Piece, taken: Taken) -> Dropout:
    expect(piece, taken)
    rate = piece.config.get("rate")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ValueError(f"{piece.title}: rate: expected a number in [0, 1), got {rate!r:.80}")
    return Dropout(rate)


def activation(piece: Piece, taken: Taken) -> Activation:
    return Activation(expect(piece, taken, activation=PLAIN).get("activation", ""))


def normalization(piece: Piece, taken: Taken) -> LayerNormalization:
    config = expect(piece, taken, axis=(-1, [-1], 2, [2]))
    scale, center = (flag(piece, key, True) for key in ("scale", "center"))
    epsilon = config.get("epsilon")
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float):
        raise ValueError(f"{piece.title}: epsilon: expected a number, got {epsilon!r:.80}")
    if not scale and not center:
        raise ValueError(f"{piece.title}: scale, center: expected one of them, which gives the number of features")
    names = [name for name, there in (("weight", scale), ("bias", center)) if there]
    found = dict(zip(names, weights(piece, *[(name, (None,)) for name in names]), strict=True))
    first = found[names[0]]
    return loaded(LayerNormalization(len(first), epsilon, scale=scale, center=center, dtype=first.dtype), found)


def repeat(piece: Piece, taken: Taken) -> RepeatVector:
    expect(piece, taken)
    return RepeatVector(size(piece, "n"), batch_first=True)


def pooling(piece: Piece, taken: Taken) -> Layer:
    expect(piece, taken, data_format=("channels_last",))
    return {"GlobalAveragePooling1D": GlobalAveragePooling1D, "GlobalMaxPooling1D": GlobalMaxPooling1D}[piece.kind](
        batch_first=True
    )


def relu(piece: Piece, taken: Taken) -> Activation:
    expect(piece, taken)
    return Activation("relu")


def softmax(piece: Piece, taken: Taken) -> Activation:
    expect(piece, taken, axis=(-1,))
    return Activation("softmax")
