"""The competitors, each behind the same five methods and each running its own code.

    prepare(X)           normalisation, and thresholds at which L0 is what was asked for
    step(x)              one training step: forward, backward, clipping, Adam, schedules
    encode(x)            codes as the library's inference gives them (dense tensor)
    preactivations(x)    what is compared with the threshold (or ranked by TopK)
    decode(codes)        reconstruction in the units of the raw activations

SAELens is driven through its SAETrainer, dictionary_learning through its trainers'
update(); nothing of them is rewritten here. "PyTorch by hand" is what a careful person
would write: five matrix products, one custom backward for the threshold, fused Adam.

Nothing is held back: JumpReLU thresholds start where L0 has its target (the libraries'
own starting points are dense and would make their steps look worse than they are later
in training), and schedules that the libraries give in steps are scaled to the run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import types
import warnings

os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' progress bars; read when tqdm is imported

import numpy as np
import torch


def threshold_at(pre: torch.Tensor, l0: float) -> torch.Tensor:
    """For each latent, the threshold at which it is active for l0 / d_sae of the rows."""
    n, d_sae = pre.shape
    rank = max(1, min(n - 1, round(n * (1 - l0 / d_sae))))
    return pre.kthvalue(rank, dim=0).values.clamp_min(0)


class Peer:
    """What all have in common. `l0` is the number of active latents asked for."""

    whitened = False  # by the library itself, from all rows that `prepare` is given
    exact_k = False  # True for TopK, which has exactly k latents for each sample and no threshold

    def __init__(self, d_in, d_sae, l0, *, batch_size, steps, lr, seed=0, autocast=False, **options):
        self.d_in, self.d_sae, self.l0 = d_in, d_sae, l0
        self.batch_size, self.steps, self.lr, self.seed = batch_size, steps, lr, seed
        self.autocast, self.options = autocast, options
        torch.manual_seed(seed)

    def settings(self) -> dict:
        return {"lr": self.lr, "batch_size": self.batch_size, "autocast": self.autocast, **self.options}

    def amp(self):
        return torch.autocast("cpu", torch.bfloat16) if self.autocast else contextlib.nullcontext()

    @torch.no_grad()
    def active(self, x: torch.Tensor, threshold=None) -> torch.Tensor:
        """Codes from preactivations and the (possibly replaced) threshold."""
        pre = self.preactivations(x)
        if self.exact_k:
            values, index = pre.topk(self.l0, dim=1, sorted=False)
            return torch.zeros_like(pre).scatter_(1, index, values.relu_())
        return pre * (pre > (self.threshold if threshold is None else threshold))

    @torch.no_grad()
    def l0_now(self, x: torch.Tensor) -> float:
        """L0 of the training forward pass on x."""
        return float(torch.count_nonzero(self.active(x))) / len(x)


# ------------------------------------------------------------------- SAELens


class SAELens(Peer):
    """sae_lens: activations scaled to a mean norm of sqrt(d_in), as its guide recommends, or `whitened` by itself."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from sae_lens.config import LoggingConfig, SAETrainerConfig
            from sae_lens.training.sae_trainer import SAETrainer
        self.whitened = self.options.pop("whitened", False)
        self.normalization = "covariance_whitening" if self.whitened else "expected_average_only_in"
        self.sae = self.build()
        decay = self.steps // 5  # the last fifth of training, as SAELens's guide recommends
        config = SAETrainerConfig(
            total_training_samples=self.steps * self.batch_size,
            train_batch_size_samples=self.batch_size,
            lr=self.lr,
            lr_end=self.lr / 10,
            lr_decay_steps=decay,
            autocast=self.autocast,
            dead_feature_window=max(1, 50_000 // self.batch_size),
            logger=LoggingConfig(log_to_wandb=False),
        )
        self.trainer = SAETrainer(cfg=config, sae=self.sae, data_provider=iter(()))

    def prepare(self, X: torch.Tensor) -> None:
        self.scaler = self.trainer.activation_scaler
        estimate = self.scaler.estimate_whitening if self.whitened else self.scaler.estimate_scaling_factor
        estimate(self.d_in, iter([X]), n_batches_for_norm_estimate=1)

    def step(self, x: torch.Tensor) -> None:
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    @torch.no_grad()
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        self.sae.eval()
        with self.amp():
            return self.sae.encode(self.scaler.scale(x))

    @torch.no_grad()
    def preactivations(self, x: torch.Tensor) -> torch.Tensor:
        return self.sae.encode_with_hidden_pre(self.scaler.scale(x))[1]

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.scaler.unscale(self.sae.decode(codes))

    def directions(self) -> np.ndarray:
        return self.sae.W_dec.detach().numpy()

    def for_inference(self):
        """The SAE for raw activations, as SAELens itself saves it and loads it again."""
        import tempfile

        from sae_lens import SAE

        if self.whitened:
            w = self.scaler.whitening
            self.sae.fold_activation_whitening(
                mean=w.mean, whitening_matrix=w.matrix, unwhitening_matrix=w.inverse_matrix
            )
        else:
            self.sae.fold_activation_norm_scaling_factor(self.scaler.scaling_factor)
        with tempfile.TemporaryDirectory() as folder:
            self.sae.save_inference_model(folder)
            return SAE.load_from_disk(folder)


class SAELensJumpReLU(SAELens):
    """mode "quadratic" (Gemma Scope 2's target L0) or "tanh" (Anthropic's, its guide's first choice)."""

    def build(self):
        from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig

        mode = self.options.setdefault("mode", "quadratic")
        common = dict(
            d_in=self.d_in,
            d_sae=self.d_sae,
            normalize_activations=self.normalization,
            jumprelu_sparsity_loss_mode=mode,
        )
        if mode == "tanh":
            special = dict(
                l0_coefficient=self.options.setdefault("coefficient", 5.0),
                l0_warm_up_steps=self.steps,
                jumprelu_bandwidth=self.options.setdefault("bandwidth", 2.0),
                jumprelu_init_threshold=0.1,
                jumprelu_ste_to_input=True,
                pre_act_loss_coefficient=3e-6,
            )
        else:
            special = dict(
                target_l0=float(self.l0),
                l0_coefficient=self.options.setdefault("coefficient", 1.0),
                jumprelu_bandwidth=self.options.setdefault("bandwidth", 0.05),
            )
        return JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**common, **special))

    def prepare(self, X):
        super().prepare(X)
        if self.options["mode"] != "tanh":
            self.sae.threshold.data = threshold_at(self.preactivations(X), self.l0)

    @property
    def threshold(self):
        return self.sae.threshold.detach()

    @torch.no_grad()
    def hold_l0(self, X):
        self.sae.threshold.data = threshold_at(self.preactivations(X), self.l0)


class SAELensTopK(SAELens):
    exact_k = True

    def build(self):
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

        return TopKTrainingSAE(
            TopKTrainingSAEConfig(
                d_in=self.d_in,
                d_sae=self.d_sae,
                k=round(self.l0),
                normalize_activations=self.normalization,
            )
        )


class SAELensBatchTopK(SAELens):
    def build(self):
        from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

        return BatchTopKTrainingSAE(
            BatchTopKTrainingSAEConfig(
                d_in=self.d_in,
                d_sae=self.d_sae,
                k=float(self.l0),
                normalize_activations=self.normalization,
            )
        )

    @property
    def threshold(self):
        return self.sae.topk_threshold.float()

    @torch.no_grad()
    def l0_now(self, x):
        return float(torch.count_nonzero(self.sae.encode(self.scaler.scale(x)))) / len(x)


class SAELensMatryoshka(SAELensBatchTopK):
    def build(self):
        from sae_lens import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig

        return MatryoshkaBatchTopKTrainingSAE(
            MatryoshkaBatchTopKTrainingSAEConfig(
                d_in=self.d_in,
                d_sae=self.d_sae,
                k=float(self.l0),
                matryoshka_widths=[self.d_sae // 16, self.d_sae // 4, self.d_sae],
                normalize_activations=self.normalization,
            )
        )


# ------------------------------------------------------- dictionary_learning


def without_nnsight() -> None:
    """Its buffer of a language model's activations imports nnsight; training from arrays never uses it."""
    if "nnsight" not in sys.modules and importlib.util.find_spec("nnsight") is None:
        sys.modules["nnsight"] = types.ModuleType("nnsight")
        sys.modules["nnsight"].LanguageModel = None


class DictionaryLearning(Peer):
    """dictionary_learning: activations scaled to a mean squared norm of one, as its trainSAE does."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.count = 0
        without_nnsight()
        self.trainer = self.build()
        self.ae = self.trainer.ae

    def prepare(self, X: torch.Tensor) -> None:
        self.scale = float(1 / X.square().sum(1).mean().sqrt())

    def step(self, x: torch.Tensor) -> None:
        with self.amp():
            self.trainer.update(self.count, x * self.scale)
        self.count += 1

    @torch.no_grad()
    def encode(self, x):
        with self.amp():
            return self.ae.encode(x * self.scale)

    @torch.no_grad()
    def decode(self, codes):
        return self.ae.decode(codes) / self.scale

    @property
    def threshold(self):
        return self.ae.threshold.detach()


class DictionaryLearningJumpReLU(DictionaryLearning):
    def build(self):
        from dictionary_learning.trainers.jumprelu import JumpReluTrainer

        return JumpReluTrainer(
            steps=self.steps,
            activation_dim=self.d_in,
            dict_size=self.d_sae,
            layer=0,
            lm_name="benchmark",
            seed=self.seed,
            lr=self.lr,
            bandwidth=self.options.setdefault("bandwidth", 0.001),
            sparsity_penalty=self.options.setdefault("coefficient", 1.0),
            warmup_steps=max(1, self.steps // 20),
            sparsity_warmup_steps=max(1, self.steps // 20),
            decay_start=max(3, int(0.8 * self.steps)),
            target_l0=float(self.l0),
        )

    def prepare(self, X):
        super().prepare(X)
        self.hold_l0(X)

    @torch.no_grad()
    def hold_l0(self, X):
        self.ae.threshold.data = threshold_at(self.preactivations(X), self.l0)

    @torch.no_grad()
    def preactivations(self, x):
        return self.ae.encode(x * self.scale, output_pre_jump=True)[1]

    def directions(self):
        return self.ae.W_dec.detach().numpy()


class DictionaryLearningBatchTopK(DictionaryLearning):
    def build(self):
        from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

        trainer = BatchTopKTrainer(
            steps=self.steps,
            activation_dim=self.d_in,
            dict_size=self.d_sae,
            k=int(self.l0),
            layer=0,
            lm_name="benchmark",
            seed=self.seed,
            device="cpu",
            lr=self.lr,
            warmup_steps=max(1, self.steps // 20),
            decay_start=max(3, int(0.8 * self.steps)),
            threshold_start_step=self.steps // 2,
            threshold_beta=0.99,
        )
        trainer.dead_feature_threshold = 50_000  # samples; its own ten million would never be reached here
        return trainer

    @torch.no_grad()
    def preactivations(self, x):
        return self.ae.encode(x * self.scale, return_active=True)[2]

    @torch.no_grad()
    def l0_now(self, x):
        return float(torch.count_nonzero(self.ae.encode(x * self.scale, use_threshold=False))) / len(x)

    def directions(self):
        return self.ae.decoder.weight.detach().numpy().T


# ------------------------------------------------------------ PyTorch by hand


class _Jump(torch.autograd.Function):
    """Codes and mean L0 of a JumpReLU; straight-through gradients reach the threshold in one pass."""

    @staticmethod
    def forward(ctx, pre, threshold, width):
        codes = torch.where(pre > threshold, pre, 0)
        ctx.save_for_backward(pre, threshold)
        ctx.width = width
        return codes, torch.count_nonzero(codes) / len(pre)

    @staticmethod
    def backward(ctx, g_codes, g_l0):
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.width / 2
        g_threshold = (torch.where(near, g_codes, 0).sum(0) * threshold) + near.sum(0) * (g_l0 / len(pre))
        return torch.where(pre > threshold, g_codes, 0), g_threshold / -ctx.width, None


class TorchByHand(Peer):
    """JumpReLU with fused Adam; compiled=True puts forward, backward and loss through torch.compile."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        W = torch.nn.functional.normalize(torch.randn(self.d_sae, self.d_in))
        self.W_dec = W.clone().requires_grad_()
        self.W_enc = W.requires_grad_()  # (d_sae, d_in): the layout torch.nn.Linear prefers
        self.b_enc = torch.zeros(self.d_sae, requires_grad=True)
        self.b_dec = torch.zeros(self.d_in, requires_grad=True)
        self.theta = torch.zeros(self.d_sae, requires_grad=True)
        self.parameters = [self.W_enc, self.W_dec, self.b_enc, self.b_dec, self.theta]
        self.optimizer = torch.optim.Adam(self.parameters, lr=self.lr, fused=True)
        self.width = self.options.get("bandwidth", 0.05)
        self.loss = torch.compile(self._loss) if self.options.get("compiled") else self._loss

    def prepare(self, X):
        self.scale = float(self.d_in**0.5 / X.norm(dim=1).mean())
        self.b_dec.data = X.mean(0) * self.scale
        self.hold_l0(X)

    @torch.no_grad()
    def hold_l0(self, X):
        self.theta.data = threshold_at(self.preactivations(X), self.l0)

    @property
    def threshold(self):
        return self.theta.detach()

    def _loss(self, x):
        pre = torch.nn.functional.linear(x - self.b_dec, self.W_enc, self.b_enc)
        codes, l0 = _Jump.apply(pre, self.theta, self.width)
        error = codes @ self.W_dec + self.b_dec - x
        return error.float().square().sum() / len(x) + (l0 / self.l0 - 1).square()

    def step(self, x):
        with self.amp():
            loss = self.loss(x * self.scale)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)

    @torch.no_grad()
    def encode(self, x):
        with self.amp():
            pre = torch.nn.functional.linear(x * self.scale - self.b_dec, self.W_enc, self.b_enc)
            return torch.where(pre > self.theta, pre, 0)

    @torch.no_grad()
    def preactivations(self, x):
        return torch.nn.functional.linear(x * self.scale - self.b_dec, self.W_enc, self.b_enc)

    @torch.no_grad()
    def decode(self, codes):
        return (codes @ self.W_dec + self.b_dec) / self.scale

    def directions(self):
        return self.W_dec.detach().numpy()


# name on the command line: (class, keyword arguments)
PEERS = {
    "saelens-jumprelu": (SAELensJumpReLU, {}),
    "saelens-jumprelu-bf16": (SAELensJumpReLU, {"autocast": True}),
    "saelens-topk": (SAELensTopK, {}),
    "saelens-batchtopk": (SAELensBatchTopK, {}),
    "saelens-matryoshka": (SAELensMatryoshka, {}),
    "saelens-jumprelu-whitened": (SAELensJumpReLU, {"whitened": True}),
    "saelens-batchtopk-whitened": (SAELensBatchTopK, {"whitened": True}),
    "dl-jumprelu": (DictionaryLearningJumpReLU, {}),
    "dl-batchtopk": (DictionaryLearningBatchTopK, {}),
    "torch-f32": (TorchByHand, {}),
    "torch-bf16": (TorchByHand, {"autocast": True}),
    "torch-compile": (TorchByHand, {"compiled": True}),
    "torch-compile-bf16": (TorchByHand, {"compiled": True, "autocast": True}),
}


def make(name: str, d_in: int, d_sae: int, l0: int, **settings) -> Peer:
    cls, fixed = PEERS[name]
    return cls(d_in, d_sae, l0, **{**fixed, **settings})
