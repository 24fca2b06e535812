"""The commands that docs show run as pasted, one after the other, and say what stands below them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(python|console)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", flags=re.MULTILINE)
NUMBER = re.compile(r"-?\d+\.\d+(?:e[-+]\d+)?")
PAGES = [page for page in sorted(ROOT.glob("docs/**/*.md")) if "```console\n$ " in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_say_what_the_page_says(page: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "anomnorm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m anomnorm_core "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}

    def said(command: str) -> str:
        process = subprocess.run(
            ["/bin/sh", "-c", command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env=environment,
            timeout=60,
            check=False,
        )
        return process.stdout

    for language, block in FENCE.findall(page.read_text()):
        if language == "python":
            subprocess.run([sys.executable, "-c", block], cwd=tmp_path, check=True, timeout=60)
            continue
        commands = COMMAND.findall(block)
        assert "".join(f"$ {command}\n{output}" for command, output in commands) == block
        for command, output in commands:
            found = said(command)
            # A line of dots stands for any lines, and processors differ in last digits.
            pattern = f"({NUMBER.pattern})".join(map(re.escape, NUMBER.split(output)))
            match = re.fullmatch(pattern.replace(re.escape("...\n"), "(?:.*\n)*"), found)
            assert match, f"$ {command}\n{found}"
            numbers = list(map(float, NUMBER.findall(output)))
            assert list(map(float, match.groups())) == pytest.approx(numbers, rel=1e-6)
