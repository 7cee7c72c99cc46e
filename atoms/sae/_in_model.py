"""What an autoencoder, ours or another's, or a dictionary offers for the model whose activations it reads."""

from __future__ import annotations

from typing import Any

__all__: list[str] = []


class Described:
    """`describe`, of whatever has atoms and codes."""

    def _place(self) -> dict[str, Any]:
        """What is known of the place in the model, by the names that SAELens has."""
        return {}

    def describe(
        self,
        latents: Any,
        *,
        model: Any = None,
        tokens: Any = None,
        layer: int | str | None = None,
        site: str = "residual",
        tokenizer: Any = None,
        count: int = 8,
        window: int = 24,
    ) -> Any:
        """What some latents are: a page for a notebook, or to be sent as one file.

        Of each latent (each atom of a dictionary): how often it fires and how strongly, its strongest contexts
        (:func:`atoms.evaluation.top_contexts`), the words it raises and lowers
        (:func:`atoms.evaluation.logit_attribution`), and the latents most like it. What is not given is left out.

        Parameters
        ----------
        latents : int or sequence of int
            Which.
        model : torch.nn.Module, optional
            With its head, for the words; runs over `tokens`.
        tokens : what `capture` takes, or Activations, optional
            Contexts in which to look for the latents. Tokens whose norm is more than ten times the median stand in the
            contexts and count for nothing: they would be the strongest of half the latents.
        layer : int or str, optional
            A block, or the name of a module; a file of SAELens may say it.
        site : str
            "residual", "mlp" or "attention", of a layer by number.
        tokenizer : optional
            With ``decode``: words instead of numbers. By default ``model.tokenizer`` where there is one.
        count : int
            Contexts, words and neighbours of each latent.
        window : int
            Tokens of each context.

        Returns
        -------
        atoms.evaluation.Description
            With ``save(path)``.

        Raises
        ------
        ValueError
            Latents that there are not, tokens without a model or a layer, and as `capture` does.

        Examples
        --------
        >>> import numpy as np, atoms
        >>> sae = atoms.io.PretrainedSAE(np.eye(3), np.zeros(3), np.eye(3), np.zeros(3), activation="relu")
        >>> print(sae.describe([1], count=1))
        1 of 3 latents of PretrainedSAE
        <BLANKLINE>
        latent 1
          nearest: 0 0.00
        """
        from .._describe import describe

        asked = {"model": model, "tokens": tokens, "layer": layer, "site": site, "tokenizer": tokenizer}
        return describe(self, latents, self._place(), {**asked, "count": count, "window": window})


class InModel(Described):
    """Methods that `SparseAutoencoder` and `PretrainedSAE` share."""

    def _portable(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Weights by name, the rule by which latents are active, and what is known of the place in the model."""
        raise NotImplementedError

    def _place(self) -> dict[str, Any]:
        return self._portable()[2]

    def to_torch(self, *, device: Any = None, dtype: Any = None, **metadata: Any) -> Any:
        """The autoencoder as a ``torch.nn.Module``, with weights of its own, for the model it came from.

        ``module(x)`` reconstructs activations of any shape (..., d_in) and gives them in their own type;
        ``module.encode(x)`` gives the latents of `transform`, dense (..., d_sae), and ``module.decode(codes)`` goes
        back, both in the module's type. Gradients go through to x and to the parameters; thresholds, a
        buffer, get none, and an autoencoder with input_norm decodes only what it has just encoded.

        It has what the functions of SAELens and SAEBench ask of an SAE (``W_enc``, ``b_enc``, ``W_dec``, ``b_dec``,
        ``threshold``, ``cfg``, ``device``, ``dtype``, ``fold_W_dec_norm``), for raw activations: metric and scaling
        are folded in. To save it as theirs, use `atoms.io.save`.

        Parameters
        ----------
        device : torch.device or str, optional
            By default the CPU.
        dtype : torch.dtype or str, optional
            Of the weights and of what is computed; float32 by default, also for a bfloat16 model, whose
            activations are converted. In 16 bits, latents near their thresholds change.
        **metadata
            Into ``cfg`` and ``cfg.metadata``: ``hook_name``, ``model_name``, ``context_size`` and what else those tools
            use. What a file of SAELens said is there already.

        Returns
        -------
        torch.nn.Module

        Raises
        ------
        ImportError
            PyTorch is not installed.
        ValueError
            A `dtype` that PyTorch has not, or is no floating type.

        Notes
        -----
        8 d_in d_sae bytes in float32. Latents are those of `transform` to rounding (1e-6 of the largest), for the mean
        is subtracted before the product, as there.

        Examples
        --------
        >>> import numpy as np, torch, atoms
        >>> X = np.random.default_rng(0).standard_normal((2000, 16)).astype("float32")
        >>> sae = atoms.SparseAutoencoder(32, target_l0=4, max_steps=50, verbose=False).fit(X)
        >>> module = sae.to_torch(hook_name="blocks.3.hook_resid_post")
        >>> x = torch.from_numpy(X[:6]).reshape(2, 3, 16)
        >>> module(x).shape, module.encode(x).shape, module.cfg.hook_layer
        (torch.Size([2, 3, 16]), torch.Size([2, 3, 32]), 3)
        """
        from ..activations import import_torch

        import_torch()
        from ._module import TorchSAE

        weights, rule, known = self._portable()
        return TorchSAE(weights, rule, {**known, **metadata}, dtype, device)
