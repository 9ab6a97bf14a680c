"""What the programs of this folder that fill tables share: their arguments, and asking the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medistill.files import CACHE_VARIABLE, user_cache

ROOT = Path(__file__).resolve().parents[1]


def folder_and_sets(usage: str, sets: Sequence[str]) -> tuple[Path, list[str]]:
    """The folder of sets and the names of those to measure, from the command line; ``--help`` prints the usage."""
    arguments = sys.argv[1:]
    if "--help" in arguments:
        print(usage)
        raise SystemExit
    folder = arguments[0] if arguments else os.environ.get("MEDISTILL_DATA", ROOT.parent / "shared" / "data")
    return Path(folder), arguments[1:] or list(sets)


def distil_afresh(*words: str) -> Any:
    """What ``distill`` says, given an empty cache: its seconds hold the training of teachers and experts.

    What it trained is kept for what comes after.
    """
    with tempfile.TemporaryDirectory() as empty:
        answer = medistill_json("distill", *words, cache=empty)
        shutil.copytree(empty, user_cache(), dirs_exist_ok=True)
    return answer


def medistill_json(*words: str, cache: str | None = None) -> Any:
    """What a command prints as JSON."""
    environment = {**os.environ, **({} if cache is None else {CACHE_VARIABLE: cache})}
    command = [sys.executable, "-m", "medistill.cli", *words, "--json"]
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
