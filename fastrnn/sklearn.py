"""Recurrent networks as scikit-learn estimators (``pip install 'fastrnn[sklearn]'``): `fit`, `predict`, `score`,
cross-validation and grid search on sequences of any length.
"""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np

from fastrnn.checks import boolean, by_name, finite, named_cell, positive
from fastrnn.extras import needed
from fastrnn.layers import Activation, Dense
from fastrnn.layers.rnn import of_cell
from fastrnn.training import CategoricalCrossentropy, EarlyStopping, History, MeanSquaredError, Optimizer, Sequential
from fastrnn.training.losses import Loss
from fastrnn.training.optimizers import OPTIMIZERS
from fastrnn.types import Array

__all__ = ["SequenceClassifier", "SequenceRegressor"]

base, selection, multiclass, utils, validation = (
    needed(f"sklearn.{name}", "sklearn")
    for name in ("base", "model_selection", "utils.multiclass", "utils", "utils.validation")
)
BaseEstimator: Any = base.BaseEstimator
ClassifierMixin: Any = base.ClassifierMixin
RegressorMixin: Any = base.RegressorMixin

PARAMETERS = """
    X holds N sequences of finite numbers (dimensionless), converted to float32. It is one of:

    * a list, or a one-dimensional object array, of N arrays (T_n, I): T_n steps of I features each;
    * a (N, T, I) array;
    * a (N, F) array, read as N sequences of F steps of one feature.

    aeon and sktime use (cases, channels, time): pass ``X.swapaxes(1, 2)``, or ``[x.T for x in X]`` for a list.

    The worker processes of a search with ``n_jobs`` share the CPUs: each uses as many threads as its
    ``OMP_NUM_THREADS``, which joblib sets to limit it.

    Parameters
    ----------
    cell : {"lstm", "lstm_peephole", "gru_after", "gru_before", "rnn_tanh", "rnn_relu", "rnn_sigmoid", "rnn_identity"}
        "gru_after" applies the reset gate after the recurrent product (as PyTorch and Keras 3), "gru_before" before it;
        "rnn_*" names the activation of a simple RNN.
    hidden_size : int
        H, hidden units in each layer and direction.
    num_layers : int
        Number of stacked recurrent layers.
    bidirectional : bool
        Process each sequence in both directions.
    dropout : float
        Dropout rate between the recurrent layers during training, in [0, 1).
    epochs, batch_size : int
        Epochs, and samples per optimizer step.
    optimizer : {"adam", "adamw", "rmsprop", "sgd"} or fastrnn.training.Optimizer
        An Optimizer is copied for every fit, without its moments and step count.
    learning_rate : float or schedule, optional
        Overrides the optimizer's own.
    random_state : int, numpy.random.RandomState or None
        Seeds the initial weights, the order of samples and dropout; an int gives the same model every time.
    progress : bool
        Show a progress bar (tqdm) in `fit`.
    early_stopping : bool
        Hold out samples for validation (stratified by class), stop when their loss has stopped improving, and restore
        the weights of the best epoch.
    validation_fraction : float
        Fraction of the samples to hold out with `early_stopping`, in (0, 1).
    n_iter_no_change : int
        Epochs without improvement before training stops.
    tol : float
        Smallest decrease of the loss that counts as an improvement.

    Attributes
    ----------
    model_ : fastrnn.Sequential
        The network: recurrent layers, then a dense layer on their last state.
    history_ : fastrnn.training.History
        Losses of every epoch.
    n_features_in_ : int
        I, or F.
    feature_names_in_ : (F,) array of str
        Column names; set only if X was a table that has them.
"""


class Estimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn is not typed
    """Common base of `SequenceClassifier` and `SequenceRegressor`."""

    def __init__(
        self,
        cell: str = "lstm",
        hidden_size: int = 32,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        dropout: float = 0.0,
        epochs: int = 50,
        batch_size: int = 32,
        optimizer: str | Optimizer = "adam",
        learning_rate: Any = 0.01,
        random_state: Any = None,
        progress: bool = False,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
    ) -> None:
        self.cell = cell
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.random_state = random_state
        self.progress = progress
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _train(self, sequences: list[Array] | Array, y: Array, outputs: int, loss: Loss, weights: Any) -> None:
        """Build a new model with this many outputs and train it."""
        if weights is not None:
            weights = validation.check_array(
                weights, dtype=np.float64, ensure_2d=False, allow_nd=True, input_name="sample_weight"
            )
        data, options = (sequences, y, weights), self._stopping()
        rng = np.random.default_rng(utils.check_random_state(self.random_state).randint(2**31, size=4))
        layer = self._recurrent(sequences[0].shape[1], rng)
        features = self.hidden_size * (1 + layer.bidirectional)
        self.model_ = Sequential([layer, Dense(features, outputs, rng=rng)])
        optimizer = copy.deepcopy(by_name("optimizer", self.optimizer, Optimizer, OPTIMIZERS))
        optimizer.load_state_dict({"steps": 0})
        if self.learning_rate is not None:
            optimizer.learning_rate = self.learning_rate
        self.model_.compile(optimizer, loss)
        if options:
            data, (x, *rest) = self._parts(data, y if loss.classes else None, int(rng.integers(2**31)))
            options["validation_data"] = (x, rest[0], None, rest[1])
        sequences, y, weights = data
        options |= {"batch_size": self.batch_size, "rng": rng, "progress": self.progress}
        self.history_: History = self.model_.fit(sequences, y, self.epochs, sample_weight=weights, **options)

    def _stopping(self) -> dict[str, Any]:
        """Return the arguments of `Sequential.fit` that `early_stopping` needs."""
        boolean("early_stopping", self.early_stopping)
        if not self.early_stopping:
            return {}
        patience = positive("n_iter_no_change", self.n_iter_no_change)
        return {"callbacks": [EarlyStopping("val_loss", patience, finite("tol", self.tol, 0.0))]}

    def _parts(self, data: tuple[Any, ...], classes: Array | None, seed: int) -> tuple[Any, Any]:
        """Split the samples into a training and a held-out part, stratified by class."""
        kept, aside = selection.train_test_split(
            np.arange(len(data[1])), test_size=self.validation_fraction, stratify=classes, random_state=seed
        )
        return tuple([some(a, kept) for a in data]), tuple([some(a, aside) for a in data])

    def _recurrent(self, input_size: int, rng: np.random.Generator) -> Any:
        options = {"bidirectional": self.bidirectional, "dropout": self.dropout, "return_sequences": False}
        return of_cell(named_cell(self.cell), input_size, self.hidden_size, self.num_layers, rng=rng, **options)

    def _outputs(self, X: Any) -> Array:
        """Return the model's outputs (N, K) for new sequences, in float64 as scikit-learn requires."""
        validation.check_is_fitted(self)
        y: Array = self.model_.predict(self._sequences(X, reset=False), batch_size=self.batch_size)
        return y.astype(np.float64)

    _table: bool  # whether fit was given a (N, F) array

    def _sequences(self, X: Any, reset: bool) -> list[Array] | Array:
        """Return X checked, as a list of (T_n, I) or as (N, T, I); `reset` is True in `fit`."""
        ndim = depth(X)
        table = ndim is not None and ndim < 3
        if table:
            if not reset and not self._table:
                raise ValueError(
                    f"X: expected sequences of {self.n_features_in_} features, as in fit; got shape (N, F)"
                )
            X = validation.validate_data(self, X, reset=reset, dtype=np.float32)[:, :, None]
        elif ndim is None:
            X = [validation.check_array(s, dtype=np.float32, input_name=f"X[{n}]") for n, s in enumerate(X)]
            widths = sorted({s.shape[1] for s in X})
            if len(widths) > 1:
                raise ValueError(f"X: expected equal numbers of features, got {', '.join(map(str, widths))}")
        else:
            X = validation.check_array(X, dtype=np.float32, allow_nd=True, input_name="X")
            if X.ndim != 3:
                raise ValueError(f"X: expected shape (N, T, I), (N, F), or a list of (T_n, I), got {X.shape}")
        if reset:
            self._table = table
        if not table:
            self._features(X[0].shape[1], reset)
        return X  # type: ignore[no-any-return]

    def _features(self, features: int, reset: bool) -> None:
        if reset:
            self.n_features_in_ = features
            self.__dict__.pop("feature_names_in_", None)  # of an earlier fit
        elif self._table or features != self.n_features_in_:
            kind = f"a table of {self.n_features_in_} columns" if self._table else f"{self.n_features_in_} features"
            raise ValueError(
                f"X: {type(self).__name__} expects {kind}, as in fit; got sequences of {features} features"
            )


class SequenceClassifier(ClassifierMixin, Estimator):  # type: ignore[misc]
    __doc__ = f"""Classify sequences with a recurrent network, trained to minimise the cross-entropy.
{PARAMETERS}
    classes_ : (K,) array
        The labels, in the order of the columns of `predict_proba`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.sklearn import SequenceClassifier
    >>> rng = np.random.default_rng(0)
    >>> X = [rng.standard_normal((T, 2)) for T in rng.integers(5, 15, 60)]
    >>> y = np.array(["falls", "rises"])[[int(x.sum() > 0) for x in X]]
    >>> model = SequenceClassifier("gru_after", 8, epochs=20, random_state=0).fit(X, y)
    >>> float(model.score(X, y)) > 0.9
    True
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train a new network.

        Parameters
        ----------
        X : N sequences
        y : (N,) array
            Labels.
        sample_weight : (N,) array, optional
            Weight of each sequence in the loss, at least 0; see `Sequential.fit`.

        Raises
        ------
        TypeError, ValueError
            If X or y is not valid, or a parameter is wrong; the message names it.
        """
        required(self, y)
        y = validation.column_or_1d(y, warn=True)
        validation.assert_all_finite(y, input_name="y")
        sequences = self._sequences(X, reset=True)
        validation.check_consistent_length(sequences, y)
        multiclass.check_classification_targets(y)
        self.classes_, y = np.unique(y, return_inverse=True)
        self._train(sequences, y, len(self.classes_), CategoricalCrossentropy(from_logits=True), sample_weight)
        return self

    def predict_proba(self, X: Any) -> Array:
        """Compute the probability of each class.

        Parameters
        ----------
        X : N sequences

        Returns
        -------
        (N, K) array
        """
        probabilities: Array = Activation("softmax")(self._outputs(X))
        return probabilities

    def predict(self, X: Any) -> Array:
        """Return the label of the most probable class.

        Parameters
        ----------
        X : N sequences

        Returns
        -------
        (N,) array
        """
        best = self._outputs(X).argmax(axis=1)
        found: Array = self.classes_[best]
        return found


class SequenceRegressor(RegressorMixin, Estimator):  # type: ignore[misc]
    __doc__ = f"""Predict one or more numbers for each sequence with a recurrent network, trained to minimise the mean
    squared error. Scale targets to about unit size for faster learning, for instance with
    sklearn.compose.TransformedTargetRegressor.
{PARAMETERS}
    Examples
    --------
    >>> import numpy as np
    >>> from fastrnn.sklearn import SequenceRegressor
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((60, 10, 1))
    >>> model = SequenceRegressor("gru_after", 8, epochs=20, random_state=0).fit(X, X.mean(axis=(1, 2)))
    >>> model.predict(X).shape
    (60,)
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train a new network.

        Parameters
        ----------
        X : N sequences
        y : (N,) or (N, K) array
            Numbers, dimensionless.
        sample_weight : (N,) array, optional
            Weight of each sequence in the loss, at least 0; see `Sequential.fit`.

        Raises
        ------
        TypeError, ValueError
            If X or y is not valid, or a parameter is wrong; the message names it.
        """
        required(self, y)
        y = validation.check_array(y, dtype=np.float32, ensure_2d=False, input_name="y")
        sequences = self._sequences(X, reset=True)
        validation.check_consistent_length(sequences, y)
        self._single = y.ndim == 1
        y = y.reshape(len(y), -1)
        self._train(sequences, y, y.shape[1], MeanSquaredError(), sample_weight)
        return self

    def predict(self, X: Any) -> Array:
        """Predict the numbers of each sequence.

        Parameters
        ----------
        X : N sequences

        Returns
        -------
        (N,) or (N, K) array, as y in `fit`
        """
        found = self._outputs(X)
        return found[:, 0] if self._single else found


def some(a: Any, which: Array) -> Any:
    """Select elements of a list or an array; None stays None."""
    return a if a is None else [a[i] for i in which] if isinstance(a, list) else a[which]


def depth(X: Any) -> int | None:
    """Return the number of axes of X, or None for a list or an object array of sequences."""
    listed = isinstance(X, list | tuple) or (isinstance(X, np.ndarray) and X.dtype.hasobject and X.ndim == 1)
    if not listed:
        return getattr(X, "ndim", 2)  # scikit-learn rejects non-arrays
    if any(np.ndim(s) == 2 for s in X):
        return None
    return 1 + max([np.ndim(s) for s in X], default=0)


def required(estimator: Any, y: Any) -> None:
    if y is None:
        raise ValueError(f"y: {type(estimator).__name__} requires y to be passed, but the target y is None")
