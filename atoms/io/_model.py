"""A sparse autoencoder from elsewhere, ready to encode and decode."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from .. import _core
from .._arrays import array_of, as_codes
from .._checks import Sent, check_choice, check_count, narrow, part_by_part
from .._config import context, one_blas_thread
from .._rows import by_blocks, rows_of
from .._shown import Shown, Table
from ..sae._in_model import InModel
from ..sae._model import BLOCK, Batch, Model, blocks, decode, stacked
from ._stored import StoredMatrix

__all__ = ["PretrainedSAE"]

_ACTIVATIONS = ("jumprelu", "relu", "topk")
HELD = 1 << 28  # bytes of a part of the weights that stay in their file: 4 each as read, 5 in the core
_NORMS = ("none", "layer_norm", "constant_norm_rescale")


class PretrainedSAE(InModel, Shown, Sent):
    """A sparse autoencoder or transcoder that was trained by another tool, for use only.

    Whatever the file's conventions (transposed weights, a decoder bias subtracted from the input, input
    scaling, whitening, gates, decoder norms), reading folds them in, so that every model is

    * ``z = n(x) W_enc + b_enc``, ``a = z 1[z > threshold]`` (strict), or the k largest positive z for
      ``"topk"``, and
    * ``x_hat = n^-1(a W_dec + b_dec)``, plus ``x W_skip`` for transcoders with a skip connection,

    where n is the identity unless `input_norm` says otherwise. A gated autoencoder is exactly of this form:
    with ``z = exp(r_mag) (x - b_dec) W_gate + b_mag`` it is active where
    ``z > max(0, b_mag - exp(r_mag) b_gate)``.

    `atoms.load` makes one; it goes where a `SparseAutoencoder` goes: `transform`, `inverse_transform`, the
    attributes below in `atoms.theory`, and ``SparseAutoencoder.fit(X, init=...)``.

    Parameters
    ----------
    W_enc : ndarray (d_in, d_sae)
        Encoder.
    b_enc : ndarray (d_sae,)
        Its bias.
    W_dec : ndarray (d_sae, d_out)
        Decoder.
    b_dec : ndarray (d_out,)
        Its bias.
    threshold : ndarray (d_sae,), optional
        Not negative; zeros if None. Only for ``"jumprelu"``.
    activation : {"jumprelu", "relu", "topk"}
        What decides which latents are active, see above.
    k : int, optional
        For ``"topk"``.
    center : ndarray (d_in,), optional
        Subtracted from n(x) before `W_enc` (many tools subtract the decoder bias); `b_enc` as given then
        applies to the difference. The attribute `b_enc` has it folded in.
    input_norm : {"none", "layer_norm", "constant_norm_rescale"}
        Of each sample, as SAELens defines them.
    W_skip : ndarray (d_in, d_out), optional
        Skip connection, of a transcoder.
    is_transcoder : bool
        The output is at another place of the model than the input.
    config : dict, optional
        What the file said, untouched.
    source : str
        Format it came from.
    num_threads : int, optional
        None for the package's setting.

    Attributes
    ----------
    W_enc, b_enc, W_dec, b_dec, threshold : ndarray of float32
        As above, in C order.
    n_features_in_, d_sae, d_out : int
    metric : None
        For interfaces that ask: it was trained in Euclidean geometry.
    sites_, site_norms_
        Of a crosscoder, as `SparseAutoencoder` has them; else None. Its rows are those of all sites side by side.

    Raises
    ------
    ValueError
        Shapes that do not agree, NaN or infinity (naming the weight), negative thresholds, k out of range.

    Notes
    -----
    Encoding costs ``2 d_in d_sae`` operations a sample and goes through the core. The weights take
    8 d_in d_sae bytes; the core's copy, made when it is first needed, takes 5 more. What was loaded with
    ``in_memory=False`` takes neither: `W_enc` and `W_dec` are then no arrays, but what becomes one by ``np.asarray`` or
    by rows (``W_dec[3]``, ``W_dec[3:8]``).

    Examples
    --------
    >>> import numpy as np
    >>> from atoms.io import PretrainedSAE
    >>> sae = PretrainedSAE(np.eye(3), np.zeros(3), np.eye(3), np.zeros(3), threshold=np.full(3, 0.5))
    >>> x = np.array([[1.0, 0.25, -2.0]])
    >>> sae.transform(x).toarray()
    array([[1., 0., 0.]], dtype=float32)
    >>> sae.reconstruct(x)
    array([[1., 0., 0.]], dtype=float32)
    """

    metric = None
    sites_: tuple[slice, ...] | None = None
    site_norms_: np.ndarray | None = None
    _model: Model | None = None  # made when it is first needed, by each process for itself

    @one_blas_thread
    def __init__(
        self,
        W_enc: Any,
        b_enc: Any,
        W_dec: Any,
        b_dec: Any,
        *,
        threshold: Any = None,
        activation: str = "jumprelu",
        k: int | None = None,
        center: Any = None,
        input_norm: str = "none",
        W_skip: Any = None,
        is_transcoder: bool = False,
        config: dict[str, Any] | None = None,
        source: str = "",
        num_threads: int | None = None,
    ) -> None:
        check_choice(activation, "activation", _ACTIVATIONS)
        check_choice(input_norm, "input_norm", _NORMS)
        W_enc, W_dec = _real(W_enc, "W_enc"), _real(W_dec, "W_dec")
        if W_enc.ndim != 2 or W_dec.ndim != 2 or 0 in W_enc.shape or 0 in W_dec.shape:
            raise ValueError(f"W_enc, W_dec: expected matrices, got shapes {W_enc.shape} and {W_dec.shape}")
        (d_in, d_sae), d_out = W_enc.shape, W_dec.shape[1]
        if threshold is None:
            threshold = np.zeros(d_sae, np.float32)
        if center is None:
            center = np.zeros(d_in, np.float32)
        self.n_features_in_, self.d_sae, self.d_out = d_in, d_sae, d_out
        self.W_enc = _weight(W_enc, "W_enc", (d_in, d_sae))
        self.W_dec = _weight(W_dec, "W_dec", (d_sae, d_out))
        self.b_dec = _weight(b_dec, "b_dec", (d_out,))
        self.threshold = _weight(threshold, "threshold", (d_sae,))
        self.W_skip = None if W_skip is None else _weight(W_skip, "W_skip", (d_in, d_out))
        self._center = _weight(center, "center", (d_in,))
        self._b_enc = _weight(b_enc, "b_enc", (d_sae,))
        self.b_enc = _weight(self._b_enc - self._at_center(), "b_enc", (d_sae,))
        self.is_transcoder = bool(is_transcoder) or W_skip is not None
        self.activation, self.k, self.input_norm = activation, k, input_norm
        if config is not None and not isinstance(config, Mapping):
            raise TypeError(f"config: expected a dictionary, got {type(config).__name__}")
        self.config, self.source, self.num_threads = dict(config or {}), source, num_threads
        self._check()

    def _at_center(self) -> Any:
        """What the encoder makes of the center."""
        if not self._center.any():
            return np.float32(0)
        if isinstance(self.W_enc, StoredMatrix):
            return self.W_enc.T.times(self._center)
        return self._center.astype(np.float64) @ self.W_enc

    def _check(self) -> None:
        """That weights, activation and k go together."""
        d_in, k = self.n_features_in_, self.k
        if self.d_out != d_in and not self.is_transcoder:
            raise ValueError(f"W_dec: expected {d_in} columns as W_enc has rows, got {self.d_out}")
        if self.threshold.min() < 0 or (self.activation != "jumprelu" and self.threshold.any()):
            raise ValueError(
                f"threshold: expected {'zeros' if self.activation != 'jumprelu' else 'no negative numbers'}"
            )
        if (k is None) == (self.activation == "topk"):
            raise ValueError(f"k: activation {self.activation!r} {'needs' if k is None else 'has no'} k")
        if k is not None and check_count(k, "k") > self.d_sae:
            raise ValueError(f"k: expected 1 to d_sae = {self.d_sae}, got {k}")

    def __repr__(self) -> str:
        what = f"{self.activation}, k={self.k}" if self.k else self.activation
        what += ", transcoder" if self.is_transcoder else ""
        what += f", {len(self.sites_)} sites" if self.sites_ else ""
        what += f", {self.input_norm}" if self.input_norm != "none" else ""
        return f"PretrainedSAE(d_in={self.n_features_in_}, d_sae={self.d_sae}, {what}, from {self.source or 'arrays'})"

    def _table(self) -> Table:
        out = "" if not self.is_transcoder else f", to {self.d_out:,} features of another place"
        rows = [
            ("latents", f"{self.d_sae:,} of {self.n_features_in_:,} features{out}"),
            ("activation", self.activation if self.k is None else f"{self.activation}, k = {self.k}"),
            ("input", self.input_norm if self.input_norm != "none" else "as it is"),
            ("from", self.source or "arrays"),
        ]
        return Table("PretrainedSAE", rows)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_model"}

    def _portable(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        weights: dict[str, Any] = {
            name: getattr(self, name) for name in ("W_enc", "W_dec", "b_dec", "threshold", "W_skip")
        }
        rule = {name: getattr(self, name) for name in ("activation", "k", "input_norm", "is_transcoder")}
        return (
            {**weights, "center": self._center, "bias": self._b_enc},
            rule,
            saelens_metadata(self.config) if self.source == "saelens" else {},
        )

    def _encode(self, x: np.ndarray, work: Any = None) -> sp.csr_array:
        ctx = context(self.num_threads)
        if isinstance(self.W_enc, StoredMatrix):
            return self._encode_by_parts(ctx, self.W_enc.T, x, work)
        if self._model is None:
            self._model = self._core(ctx, self.W_enc.T, slice(0, self.d_sae))
        return self._model.encode(ctx, Batch(x), work)

    def _core(self, ctx: Any, W: np.ndarray, latents: slice, model: Model | None = None) -> Model:
        """The core's model of some latents, whose rows of the encoder are W; in the place of `model` where it fits."""
        if model is None or model.d_sae != len(W):
            k = 0 if self.k is None else min(self.k, len(W))
            # tied, so that the core holds one matrix: only its encoder is used (the decoder may have another width)
            model = Model(ctx, self.n_features_in_, len(W), self.activation, k=k, tied=True, frozen=True)
        model.set("W_dec", W)
        model.set("b_enc", self._b_enc[latents])
        model.set("b_dec", self._center)
        model.set("threshold", self.threshold[latents])
        return model

    def _encode_by_parts(self, ctx: Any, W: StoredMatrix, x: np.ndarray, work: Any) -> sp.csr_array:
        """A part of the latents after the other: each z is what it is beside all others."""
        model, found = None, []
        for latents in blocks(self.d_sae, max(1, HELD // (9 * self.n_features_in_))):
            model = self._core(ctx, W[latents], latents, model)
            found.append(model.encode(ctx, Batch(x), work))
            if self.k is not None and len(found) == 2:
                found = [_largest(sp.hstack(found, format="csr"), self.k)]
        return sp.csr_array(sp.hstack(found, format="csr")) if len(found) > 1 else found[0]

    def _decode(self, codes: sp.csr_array) -> np.ndarray:
        ctx = context(self.num_threads)
        if not isinstance(self.W_dec, StoredMatrix):
            return decode(ctx, codes, self.W_dec, self.b_dec)
        out, bias = np.zeros((codes.shape[0], self.d_out), np.float32), self.b_dec
        used = np.unique(codes.indices)
        # one part at least: where nothing is active the bias is left
        for part in blocks(max(1, len(used)), max(1, HELD // (4 * self.d_out))):
            some = used[part]
            out += decode(ctx, sp.csr_array(codes[:, some]), self.W_dec.take(some), bias)
            bias = np.zeros_like(bias)
        return out

    def _normalised(self, x: np.ndarray) -> tuple[np.ndarray, Any, Any]:
        """n(x) in float32, and the factor and shift that undo it."""
        x = np.ascontiguousarray(x, np.float32)
        if self.input_norm == "layer_norm":
            mean = x.mean(axis=1, keepdims=True, dtype=np.float64)
            std = x.std(axis=1, keepdims=True, ddof=1, dtype=np.float64)
            return ((x - mean) / (std + 1e-5)).astype(np.float32), std, mean
        if self.input_norm == "constant_norm_rescale":
            norm = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
            with np.errstate(divide="ignore", invalid="ignore"):
                factor = norm / np.sqrt(x.shape[1])
                return np.where(norm > 0, x / factor, 0).astype(np.float32), factor, 0.0
        return x, None, None

    def _blocks(self, X: Any) -> Iterator[np.ndarray]:
        rows = rows_of(X)
        if rows.d != self.n_features_in_:
            raise ValueError(f"X has {rows.d} features, but this model expects {self.n_features_in_}")
        yield from rows.blocks(BLOCK)

    @by_blocks
    def transform(self, X: Any) -> sp.csr_array:
        """Codes of activations (n, d_in): CSR array (n, d_sae) of float32.

        Raises
        ------
        ValueError
            Another number of features, NaN or infinity in X.
        """
        work = _core.sae_work()
        return stacked(part_by_part(self._blocks(X), lambda x, _: self._encode(self._normalised(x)[0], work)))

    @by_blocks
    def inverse_transform(self, codes: Any) -> np.ndarray:
        """``codes W_dec + b_dec``, (n, d_out) float32, from codes (n, d_sae), sparse or dense.

        Raises
        ------
        ValueError
            Where the output also depends on the input (`input_norm`, `W_skip`): use `reconstruct`.
        """
        if self.input_norm != "none" or self.W_skip is not None:
            why = "a skip connection" if self.W_skip is not None else f"input_norm {self.input_norm!r}"
            raise ValueError(f"codes: with {why} they do not determine the output; use reconstruct(X)")
        codes = sp.csr_array(as_codes(codes))
        if codes.shape[1] != self.d_sae:
            raise ValueError(f"codes: expected {self.d_sae} columns (d_sae), got {codes.shape[1]}")
        return self._decode(codes)

    @by_blocks
    @one_blas_thread
    def reconstruct(self, X: Any) -> np.ndarray:
        """What the model makes of activations (n, d_in): (n, d_out) float32.

        Transcoders give the activations at their output's place, not a copy of X.
        """
        return np.concatenate(part_by_part(self._blocks(X), lambda x, _: self._rebuilt(x)))

    def _rebuilt(self, x: np.ndarray) -> np.ndarray:
        n, factor, shift = self._normalised(x)
        y = self._decode(self._encode(n))
        if factor is not None and not self.is_transcoder:
            y = (y * factor + shift).astype(np.float32)
        if self.W_skip is not None:
            y += np.ascontiguousarray(x, np.float32) @ self.W_skip
        return y


def _largest(codes: sp.csr_array, k: int) -> sp.csr_array:
    """The k largest of each row; of equal ones the first."""
    row = np.repeat(np.arange(codes.shape[0]), np.diff(codes.indptr))
    order = np.lexsort((codes.indices, -codes.data, row))
    rank = np.empty(codes.nnz, np.int64)
    rank[order] = np.arange(codes.nnz) - codes.indptr[row[order]]
    keep = rank < k
    indptr = np.concatenate([[0], np.cumsum(np.minimum(np.diff(codes.indptr), k))])
    return narrow(codes.data[keep], codes.indices[keep], indptr, codes.shape)


def _real(a: Any, name: str) -> Any:
    """An array of real numbers, or a matrix that stays in its file."""
    if isinstance(a, StoredMatrix):
        return a
    a = array_of(a, name)
    if a.dtype.kind in "cSUMmO":
        raise ValueError(f"{name}: expected real numbers, got dtype {a.dtype}")
    return a


def _weight(a: Any, name: str, shape: tuple[int, ...]) -> Any:
    a, stored = _real(a, name), isinstance(a, StoredMatrix)
    if a.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {a.shape}")
    if not stored:
        # always a copy: a mapped file may be changed or cut while the model is in use
        with np.errstate(over="ignore"):
            a = np.array(a, np.float32, order="C")
    if not (a.finite() if stored else np.isfinite(a).all()):
        raise ValueError(f"{name}: contains NaN or infinity")
    return a


def is_legacy(config: dict[str, Any]) -> bool:
    """Whether a configuration is one of SAELens before 6."""
    metadata = config.get("metadata")
    version = config.get("sae_lens_version") or (
        metadata.get("sae_lens_version") if isinstance(metadata, dict) else None
    )
    found = re.match(r"(\d+)", version) if isinstance(version, str) else None
    return found is None or int(found[1]) < 6


# keys of a legacy configuration that SAELens 6 keeps under metadata: old name, new name
_METADATA = {
    "hook_point": "hook_name", "hook_point_head_index": "hook_head_index",
    **{k: k for k in (
        "model_name", "hook_name", "hook_head_index", "model_class_name", "model_from_pretrained_kwargs",
        "prepend_bos", "exclude_special_tokens", "neuronpedia_id", "context_size", "seqpos_slice", "dataset_path",
    )},
}  # fmt: skip


def saelens_metadata(config: dict[str, Any]) -> dict[str, Any]:
    """Where a SAELens model comes from (model, hook point, data), and how its activations are shaped."""
    if is_legacy(config):
        found = {new: config[old] for old, new in _METADATA.items() if config.get(old) is not None}
        shape = "hook_z" if "hook_z" in str(found.get("hook_name", "")) else "none"
    else:
        metadata = config.get("metadata")
        found, shape = dict(metadata) if isinstance(metadata, dict) else {}, "none"
    return {**found, "reshape_activations": config.get("reshape_activations", shape)}
