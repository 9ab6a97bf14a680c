"""Whatever bytes a file has: it is read, or refused in one line, soon and in little memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from mutated_files import KINDS

LONGEST, MOST_MB = 20, 1000
"""Seconds and memory that a small file may take."""


def run(kind, count, seed, folder):
    script = Path(__file__).with_name("mutated_files.py")
    command = [sys.executable, script, kind, str(count), str(seed), folder]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    left = [file for file in folder.iterdir() if not file.name.startswith("im")]
    assert done.returncode == 0, f"{left}: {done.stderr[-3000:]}"
    # No library's message reaches a user, but libtiff's, which no program can silence through Pillow.
    assert not [line for line in done.stderr.splitlines() if "tempfile.tif" not in line and "TIFF" not in line]
    seconds, megabytes, read = map(float, done.stdout.split()[-3:])
    assert seconds < LONGEST and megabytes < MOST_MB
    assert 0 < read < count


@pytest.mark.parametrize("kind", KINDS)
def test_changed_bytes_are_read_or_refused_in_one_line(kind, tmp_path):
    run(kind, 150, 0, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_changed_files(kind, tmp_path):
    run(kind, 2500, 1, tmp_path)
