"""What text classifiers and language models learn of tokens, against what counts and kernels say they should: five data sets.

    MECHFEAT_DATA=... python benchmarks/bench_text_features.py sst          # also imdb, agnews, ptb, wikitext2
    python benchmarks/bench_text_features.py sweep                          # generated data alone
    python benchmarks/bench_text_features.py all --smoke                    # everything in a minute, small and generated

Training writes checkpoints into ``--folder`` and goes on from them after a kill: the same command again. Appends to
``results/text_features.jsonl``, one row a model.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from text_features import language, sentiment, sweep, topics
from text_features.rows import RESULTS

EXPERIMENTS = ("sst", "imdb", "agnews", "ptb", "wikitext2", "sweep")


def main() -> None:
    """Run one experiment, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "all"])
    parser.add_argument("--models", nargs="+", choices=sentiment.MODELS, default=list(sentiment.MODELS))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--max-length", type=int, default=256, help="tokens of an IMDB review that are kept")
    parser.add_argument("--folder", type=Path, default=Path("text-features"), help="checkpoints")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chosen = EXPERIMENTS if args.experiment == "all" else (args.experiment,)
    for name in chosen:
        run(name, args)


def run(name: str, args: argparse.Namespace) -> None:
    """Run one experiment, on generated data where it is a smoke run."""
    smoke, out = args.smoke, args.out
    if name in {"sst", "imdb"}:
        task = sentiment.toy() if smoke else sentiment.sst() if name == "sst" else sentiment.imdb(args.max_length)
        epochs = args.epochs or (2 if smoke else 40 if name == "sst" else 10)
        for model in args.models:
            sentiment.experiment(name, task, model, epochs=epochs, folder=args.folder, out=out)
    elif name == "agnews":
        corpus = topics.toy() if smoke else topics.agnews(50, 32)
        width, steps = (128, (1, 10)) if smoke else (512, topics.STEPS)
        topics.experiment(corpus, width=width, activation="relu", steps=steps, out=out)
    elif name == "sweep":
        sweep.capacity(out)
        sweep.bias(out, width=512 if smoke else 2048, steps=10 if smoke else 100)
    else:
        text = language.toy() if smoke else language.streams(name)
        language.experiment(name, text, epochs=args.epochs or 1, folder=args.folder, out=out)


if __name__ == "__main__":
    main()
