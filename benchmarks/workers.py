"""Processes that run one side of a comparison with packages that need an environment of their own."""

import json
import platform
import statistics
import subprocess
from pathlib import Path

HERE = Path(__file__).parent


class Worker:
    """A process that runs one side.

    Args:
        python: path of its Python.
        script: file beside this one.
        config: what the script reads first.
    """

    def __init__(self, python: str, script: str, config: dict):
        command = [python, str(HERE / script)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.parameters = self.ask(config)["parameters"]

    def ask(self, message):
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"A worker stopped: {self.process.args}")
        return json.loads(answer)


def interleaved(sides: dict[str, Worker], work: dict[str, int], rounds: int) -> dict:
    """Lets all sides do every kind of work in turn; returns parameters, and quartiles of seconds by work and side."""
    times = {name: {kind: [] for kind in work} for name in sides}
    for turn in range(rounds + 1):
        for kind, count in work.items():
            for name, worker in sides.items():
                seconds = worker.ask([kind, count])
                if turn:  # the first turn compiles
                    times[name][kind].append(seconds)
    for worker in sides.values():
        worker.process.stdin.close()
        worker.process.wait()
    return {
        "parameters": {name: worker.parameters for name, worker in sides.items()},
        **{kind: {name: statistics.quantiles(times[name][kind], n=4) for name in sides} for kind in work},
    }


def processor() -> str:
    """Returns the name of this machine's processor, where the system tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
