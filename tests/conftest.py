"""Fixtures that every room's tests share: the core's contexts of every kind, and language models.

The folders are the package's rooms (base: threads, forks, the binding; package: what is shipped and what is said about it).
support.py has what is no fixture. bits.py and smoke.py are run by themselves.
"""

import contextlib
import copy
import shutil
import signal
import sys

import numpy as np
import pytest
from support import BLAS, ISAS, decoder

from atoms import _config, _core

# They are run by themselves, and house.py needs what only `make lint` installs.
collect_ignore = ["bits.py", "house.py", "smoke.py"]

# A shell starts what it runs in the background with SIGINT ignored, and Python then leaves it so:
# tests of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_settings():
    """What a test sets for the package (the command line does, when it is called in-process) ends with it."""
    yield
    _config.set_num_threads(None)


@pytest.fixture(autouse=True)
def own_pictures():
    """Figures that a test leaves open are closed with it."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    """Each instruction set of this CPU in turn, in ATOMS_ISA."""
    monkeypatch.setenv("ATOMS_ISA", request.param)
    return request.param


@pytest.fixture(params=BLAS)
def blas(request, monkeypatch):
    """Each BLAS of this build in turn, in ATOMS_BLAS; SciPy's is held to one thread."""
    monkeypatch.setenv("ATOMS_BLAS", request.param)
    held = _config.serial_blas() if request.param == "scipy" else contextlib.nullcontext()
    with held:
        yield request.param


@pytest.fixture
def contexts():
    """Contexts for every instruction set and BLAS with 1, 2 and 3 threads, to be compared."""
    with _config.serial_blas():
        yield [
            _core.Context(threads, isa, blas)
            for blas in BLAS
            for isa in map(_core.ISAS.index, ISAS)
            for threads in (1, 2, 3)
        ]


# ------------------------------------------------------------------ a language model, very small

WORDS = "the a of atoms model inner product angle metric text token layer code sparse and is in to".split()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a random decoder of width 16 and a tokenizer of whole words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("tiny")
    words = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["<s>", "<unk>", *WORDS])}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", unk_token="<unk>"
    ).save_pretrained(folder)
    decoder(head=False, positions=128, vocab_size=len(WORDS) + 2, bos_token_id=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2():
    """The real model and its tokenizer, loaded once: it takes 4 to 10 s."""
    from atoms import activations

    return activations.smollm2()


@pytest.fixture
def loaded_smollm2(smollm2, request, monkeypatch):
    """Whatever loads the real model in this process gets the one that is loaded already, or another from its folder."""
    from atoms import activations

    def again(*, dtype="float32", head=False):
        if head or dtype != "float32":
            folder = request.getfixturevalue("smollm2_folder")  # 540 MB, for those alone that need another
            return activations.load_model(str(folder), dtype=dtype, head=head)
        return smollm2

    monkeypatch.setattr(activations, "smollm2", again)
    monkeypatch.setattr(activations._models, "smollm2", again)  # load_model's


@pytest.fixture(scope="session")
def smollm2_folder(smollm2, tmp_path_factory):
    """The real model as load_model takes it, for other processes: the same bits within a second."""
    folder = tmp_path_factory.mktemp("smollm2")
    model, tokenizer = smollm2
    plain = copy.copy(model)  # Transformers saves no model that remembers to have been quantised
    plain.config = copy.deepcopy(model.config)
    del plain.hf_quantizer, plain.config.quantization_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    yield folder
    shutil.rmtree(folder)  # 540 MB


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(np.random.default_rng(0).choice(WORDS, 6000)))
    return path
