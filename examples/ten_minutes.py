"""From a model in bfloat16 to its latents by hooks of one's own, and back into the model: minutes on two cores.

Run: python examples/ten_minutes.py [TOKENS [DTYPE]]     (float32 where the CPU has no AVX512_BF16: four times as fast there)
"""

import sys
import tempfile
from pathlib import Path

import torch

import atoms
from atoms import activations, evaluation, theory

TOKENS, DTYPE = int((sys.argv[1:] or [28_000])[0]), (sys.argv[2:] or ["bfloat16"])[0]
LAYER, OUT = 15, Path(tempfile.mkdtemp(prefix="atoms-"))
lm, tok = activations.smollm2(dtype=DTYPE, head=True)
contexts = activations.tokenize(activations.language_reference(), tok, context_length=256, max_tokens=TOKENS)
n = len(contexts) * 6 // 7  # the text's end is held out

# ---- out: tensors go in as they are; the first token of a context is an attention sink
rows = []
hook = lm.model.layers[LAYER].register_forward_hook(lambda block, inputs, x: rows.append(x[0, 1:]))
with hook, torch.no_grad():
    for ids in contexts:
        lm.model(torch.from_numpy(ids)[None])
metric = atoms.AtomicInnerProduct().fit(rows[:n], massive="drop")
sae = atoms.SparseAutoencoder(2304, metric=metric, target_l0=16, batch_size=1024, max_steps=400)
sae.fit(rows[:n], X_val=rows[n:], massive="drop")
sae.plot().figure.savefig(OUT / "training.png")
X = torch.cat(rows[n:])
print(f"{len(X):,} {X.dtype} rows held out, mean L0 there {sae.history_['l0_val'][-1]:.1f}")
for convention in ("metric_centered", "centered"):
    ev = theory.explained_variance(X, sae.reconstruct(X), convention, metric=metric)
    print(f"explained there, {convention}: {ev.without_massive:.3f}, without {ev.n_massive} massive rows")
print(atoms.evaluate(lm, contexts[-4:], {"atoms": sae}, LAYER))

# ---- back: which latent spoke for a word, what it is, and what the model says when it is strong
ids, word = (tok(s).input_ids for s in ("A class derived from another class is called a sub", "class"))
spoke = evaluation.latent_attribution(lm, sae, ids, LAYER, word[0]).sum(axis=0)
page = sae.describe(spoke.argsort()[:-4:-1], model=lm, tokens=contexts[n:], layer=LAYER, tokenizer=tok)
page.save(OUT / "latents.html")
start = tok("I went to the market yesterday and", return_tensors="pt")
for one in page.latents:
    strong = [str(context) for context in one.contexts[:2]]
    print(f"latent {one.latent}: {spoke[one.latent]:.2f} of the logit of 'class', strong at {strong}")
    for factor in (0, 1, 2):
        with atoms.steer(lm, sae, LAYER, {one.latent: factor * one.strongest}):
            text = tok.decode(lm.generate(**start, max_new_tokens=25, do_sample=False)[0])
        print(f"    at {factor} times its strongest: {text!r}")

# ---- files: ours, and SAELens's
sae.save(OUT / "sae.safetensors")
atoms.io.save(sae, OUT / "saelens", hook_name=f"blocks.{LAYER}.hook_resid_post")
module, again = sae.to_torch().requires_grad_(False), atoms.load(OUT / "saelens").transform(X)
differ = abs(module.encode(X.float()).numpy() - again.toarray()) > 1e-3
print(f"module and SAELens's files differ at {differ.sum()} of {again.nnz:,} active latents")
print(f"in {OUT}: {', '.join(sorted(file.name for file in OUT.iterdir()))}")
