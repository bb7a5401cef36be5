"""Where things are, and how programs are run over them."""

import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SERVER = os.environ.get("BAICHUAN_SERVER_BINARY", "")


def output_of(*command, **options):
    """What a program prints to both streams; it must succeed."""
    done = subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options
    )
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def check_config(config, **variables):
    """The effective configuration of a TOML text, as the server itself sees it; it must accept it."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("BAICHUAN_")}
    return output_of(SERVER, "check-config", "--config", config, env={**clean, **variables})
