"""Train the tutorial's network: `python scripts/train_full.py`, see `--help`."""

import tyro

from reference.errors import exit_with
from reference.run import Settings, stored_settings, train


def main() -> int:
    settings = tyro.cli(tyro.conf.FlagCreatePairsOff[Settings])
    if settings.resume is not None:  # what is not given then comes from the run, not from the defaults
        settings = tyro.cli(tyro.conf.FlagCreatePairsOff[Settings], default=stored_settings(settings.resume))
    return train(settings)


if __name__ == "__main__":
    exit_with(main)
