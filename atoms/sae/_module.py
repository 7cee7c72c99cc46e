"""An autoencoder as a PyTorch module. PyTorch is imported here and nowhere else in this room, when it is asked for."""

from __future__ import annotations

import re
import types
from typing import Any

import numpy as np
import torch

from .._frames import without_frames

__all__: list[str] = []


class _Named(str):
    """SAELens calls ``cfg.architecture()``, SAEBench reads ``cfg.architecture``."""

    def __call__(self) -> str:
        return str(self)


class _Settings(types.SimpleNamespace):
    """A configuration as SAELens's and SAEBench's functions ask for it: what is not known is None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None

    def get(self, name: str, default: Any = None) -> Any:
        return vars(self).get(name, default)

    def to_dict(self) -> dict[str, Any]:
        return {k: v.to_dict() if isinstance(v, _Settings) else v for k, v in vars(self).items()}


def _configuration(weights: dict[str, Any], rule: dict[str, Any], metadata: dict[str, Any]) -> _Settings:
    block = re.match(r"blocks\.(\d+)\.", str(metadata.get("hook_name", "")))
    shape = {} if block is None else {"hook_layer": int(block[1])}
    (d_in, d_sae), d_out = np.shape(weights["W_enc"]), np.shape(weights["W_dec"])[1]
    architecture = {"relu": "standard", "batchtopk": "jumprelu"}.get(rule["activation"], rule["activation"])
    if rule["is_transcoder"]:
        architecture = ("skip_" if weights.get("W_skip") is not None else "") + "transcoder"
    return _Settings(
        **{
            "reshape_activations": "none", "model_from_pretrained_kwargs": {}, "prepend_bos": True,
            **shape, **metadata, "d_in": d_in, "d_sae": d_sae, "d_out": d_out, "k": rule["k"],
            "architecture": _Named(architecture), "normalize_activations": rule["input_norm"],
            "apply_b_dec_to_input": False, "metadata": _Settings(**{"model_from_pretrained_kwargs": {}, **metadata}),
        }
    )  # fmt: skip


class TorchSAE(torch.nn.Module):
    """What `SparseAutoencoder.to_torch` gives: ``z = (n(x) - center) W_enc + bias``, then as it says there."""

    W_enc: torch.Tensor
    bias: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    W_skip: torch.Tensor | None
    center: torch.Tensor
    threshold: torch.Tensor

    def __init__(
        self, weights: dict[str, Any], rule: dict[str, Any], metadata: dict[str, Any], dtype: Any, device: Any
    ) -> None:
        super().__init__()
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype, dtype)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"dtype: expected one of PyTorch's floating types, got {dtype!r}")

        def tensor(name: str) -> Any:
            # a copy: what the autoencoder gives cannot be written to, and is its own
            return torch.from_numpy(np.array(weights[name], np.float32)).to(device, dtype)

        for name in ("W_enc", "bias", "W_dec", "b_dec"):
            self.register_parameter(name, torch.nn.Parameter(tensor(name)))
        skip = None if weights.get("W_skip") is None else torch.nn.Parameter(tensor("W_skip"))
        self.register_parameter("W_skip", skip)
        self.register_buffer("center", tensor("center"))
        self.register_buffer("threshold", tensor("threshold"))
        self.activation, self.k = rule["activation"], rule["k"]
        self.input_norm, self.is_transcoder = rule["input_norm"], rule["is_transcoder"]
        self.cfg = _configuration(weights, rule, metadata)
        self.hook_dict: dict[str, Any] = {}  # where SAELens looks for hook points, of which there are none
        self.use_error_term = False
        self.hook_z_reshaping_mode = self.cfg.reshape_activations == "hook_z"
        self._scale: Any = None  # factor and shift that undo the last encode's normalisation
        self._tell()

    # -------------------------------------------------------------- the model

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Codes (..., d_sae) of activations (..., d_in), in the module's own type."""
        n, self._scale = self._normalised(self._flat(x))
        z = (n - self.center) @ self.W_enc + self.bias
        if self.activation != "topk":
            return torch.where(z > self.threshold, z, 0)
        values, places = z.relu().topk(int(self.k), dim=-1)
        return torch.zeros_like(z).scatter(-1, places, values)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """``codes W_dec + b_dec``, (..., d_out).

        Where each sample is normalised (`input_norm`), the scale of the last `encode` is put back, as SAELens does,
        and its codes must be the ones given here. A skip connection is added by `forward` alone.
        """
        y = codes.to(self.dtype) @ self.W_dec + self.b_dec
        if self.input_norm == "none" or self.is_transcoder:
            return y
        scale, self._scale = self._scale, None
        if scale is None or scale[0].shape[:-1] != y.shape[:-1]:
            raise ValueError(
                f"codes: with input_norm {self.input_norm!r} they do not determine the output: decode must follow the "
                "encode that gave them; or call the module itself"
            )
        factor, shift = scale
        out: torch.Tensor = y * factor + shift
        return out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions (of a transcoder, its outputs), shaped as x and of its type."""
        y = self.decode(self.encode(x))
        if self.W_skip is not None:
            y = y + self._flat(x) @ self.W_skip
        if self.hook_z_reshaping_mode:
            y = y.reshape(x.shape)
        return y.to(x.dtype)

    def _flat(self, x: torch.Tensor) -> torch.Tensor:
        """x in the module's type, heads side by side where it reads heads."""
        if self.hook_z_reshaping_mode:
            x = x.flatten(-2)
        if x.shape[-1] != len(self.center):
            raise ValueError(f"x: expected (..., {len(self.center)}), got shape {tuple(x.shape)}")
        return x.to(self.dtype)

    def _normalised(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """n(x), and the factor and shift that undo it."""
        if self.input_norm == "layer_norm":
            mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
            return (x - mean) / (std + 1e-5), (std, mean)
        if self.input_norm == "constant_norm_rescale":
            factor = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
            # a row of zeros stays one, and so do its gradients
            return torch.where(factor > 0, x / torch.where(factor > 0, factor, 1), 0), (factor, 0.0)
        return x, None

    # ------------------------------------------- what SAELens and SAEBench ask for

    @property
    def b_enc(self) -> torch.Tensor:
        """Bias for raw activations, ``bias - center W_enc``: as large as their mean, and as coarse."""
        return self.bias - self.center @ self.W_enc

    @property
    def dtype(self) -> torch.dtype:
        return self.W_enc.dtype

    @property
    def device(self) -> torch.device:
        return self.W_enc.device

    def _tell(self) -> None:
        self.cfg.device, self.cfg.dtype = str(self.device), str(self.dtype).removeprefix("torch.")

    def _apply(self, *args: Any, **kwargs: Any) -> TorchSAE:
        """What `to`, `half`, `cuda` and the others go through: the configuration follows."""
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._tell()
        return self

    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        """Make decoder rows of Euclidean norm 1, as SAEBench demands: the same reconstructions, latents in other units."""
        if self.activation == "topk":
            raise ValueError("fold_W_dec_norm: TopK would choose other latents; leave the decoder as it is")
        norm = self.W_dec.norm(dim=1).clamp(min=1e-8)
        self.W_dec /= norm[:, None]
        self.W_enc *= norm
        self.bias *= norm
        self.threshold *= norm

    def turn_off_forward_pass_hook_z_reshaping(self) -> None:
        self.hook_z_reshaping_mode = False

    def turn_on_forward_pass_hook_z_reshaping(self) -> None:
        self.hook_z_reshaping_mode = True


class TorchDictionary(torch.nn.Module):
    """A dictionary whose codes no encoder gives: `encode` is its `transform`, on the CPU and without gradients."""

    W_dec: torch.Tensor
    b_dec: torch.Tensor
    input_norm = "none"  # decoding depends on the codes alone

    def __init__(self, dictionary: Any) -> None:
        super().__init__()
        self._transform = without_frames(dictionary)
        for name in ("W_dec", "b_dec"):
            self.register_buffer(name, torch.tensor(np.asarray(getattr(dictionary, name), np.float32)))

    def encode(self, x: Any) -> Any:
        codes = self._transform(x.detach().reshape(-1, x.shape[-1]).to("cpu", torch.float32).numpy())
        return torch.from_numpy(codes.toarray()).to(self.W_dec.device).reshape(*x.shape[:-1], -1)

    def decode(self, codes: Any) -> Any:
        return codes @ self.W_dec + self.b_dec
