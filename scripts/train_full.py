"""Train the tutorial's network: `python scripts/train_full.py`, see `--help`."""

from reference.errors import exit_with
from reference.run import Settings, parse, train


def main() -> int:
    return train(parse(Settings))


if __name__ == "__main__":
    exit_with(main)
