"""A coverage-guided fuzzer over every loader: atheris, which is libFuzzer for Python.

    pip install atheris
    python experiments/fuzz/fuzz.py TARGET --seconds 600          # a name in targets.py, or all

It stops at the first content that a loader neither takes nor refuses with a one-line `InputError`, or that
makes the process use more than 2 GiB, and leaves it in a file. Expected: it finds none. See NOTES.md beside
this file for the hours run and what was found.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path


def fuzz(name: str, seconds: int, corpus: Path) -> None:
    """Fuzz one loader in this process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["jaxvae", "numpy", "PIL", "safetensors", "zipfile", "json"]):
        import targets

    target = targets.TARGETS[name]
    (corpus / "seed").write_bytes(target.seed)
    directory = tempfile.TemporaryDirectory()

    def one(content: bytes) -> None:
        targets.run(target, content, Path(directory.name))

    limits = ["-rss_limit_mb=2048", "-timeout=20", "-max_len=4096", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], str(corpus), f"-max_total_time={seconds}", *limits], one)
    atheris.Fuzz()


def main() -> int:
    """Fuzz one loader here, or all of them, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=600, help="for each loader")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    if arguments.target != "all":
        with tempfile.TemporaryDirectory() as corpus:
            fuzz(arguments.target, arguments.seconds, Path(corpus))
    import targets

    failed = []
    for name in targets.TARGETS:
        print(f"== {name}", flush=True)
        command = [sys.executable, __file__, name, "--seconds", str(arguments.seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stderr.splitlines()
        print(*(line for line in lines if "stat::number_of_executed" in line or "DONE" in line), sep="\n")
        if done.returncode:
            failed.append(name)
            print(*lines[-40:], sep="\n", flush=True)
    print(f"failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
