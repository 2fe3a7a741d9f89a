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

from text_features import language, sentiment, topics
from text_features.rows import RESULTS


def main() -> None:
    """Run one experiment, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=["sst", "imdb", "agnews", "ptb", "wikitext2"])
    parser.add_argument("--models", nargs="+", choices=sentiment.MODELS, default=list(sentiment.MODELS))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--max-length", type=int, default=256, help="tokens of an IMDB review that are kept")
    parser.add_argument("--folder", type=Path, default=Path("text-features"), help="checkpoints")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.experiment in ("sst", "imdb"):
        task = sentiment.toy() if args.smoke else sentiment.sst() if args.experiment == "sst" else sentiment.imdb(args.max_length)
        epochs = args.epochs or (2 if args.smoke else 40 if args.experiment == "sst" else 10)
        for model in args.models:
            sentiment.experiment(args.experiment, task, model, epochs=epochs, folder=args.folder, out=args.out)
    if args.experiment == "agnews":
        corpus = topics.toy() if args.smoke else topics.agnews(50, 32)
        width, steps = (128, (1, 10)) if args.smoke else (512, topics.STEPS)
        topics.experiment(corpus, width=width, activation="relu", steps=steps, out=args.out)
    if args.experiment in language.FILES:
        text = language.toy() if args.smoke else language.streams(args.experiment)
        language.experiment(args.experiment, text, epochs=args.epochs or 1, folder=args.folder, out=args.out)


if __name__ == "__main__":
    main()
