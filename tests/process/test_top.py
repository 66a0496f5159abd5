# SPDX-License-Identifier: Apache-2.0
"""wideep-top in a real terminal (tmux): what it shows in each scenario and size, and how it leaves."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import unicodedata

import pytest

from exporter_helpers import BUILD, exporting, gone, wait_for

TOP, SIM = str(BUILD / "wideep-top"), str(BUILD / "wideep-sim")
SIZES = [(40, 12), (80, 24), (200, 60)]


def environment(**variables):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("WIDEEP_", "TMUX", "LC_", "LANG"))}
    return {**clean, "LC_ALL": "C.UTF-8", **variables}


def run(*arguments, **variables):
    return subprocess.run([TOP, *map(str, arguments)], capture_output=True, text=True, timeout=120,
                          stdin=subprocess.DEVNULL, env=environment(**variables))


class Terminal:
    """A tmux server of its own with one shell in it."""

    def __init__(self, directory, columns, rows):
        self.socket = str(directory / "tmux")
        self.tmux("-f", "/dev/null", "new-session", "-d", "-x", str(columns), "-y", str(rows), "sh")
        wait_for(lambda: self.text().strip())

    def tmux(self, *arguments):
        return subprocess.run(["tmux", "-u", "-S", self.socket, *arguments], capture_output=True, text=True, check=True,
                              timeout=60, env=environment(PS1="shell> ")).stdout

    def text(self):
        return self.tmux("capture-pane", "-p")

    def keys(self, *keys):
        self.tmux("send-keys", *keys)

    def type(self, line):
        self.tmux("send-keys", "-l", line)
        self.keys("Enter")

    def until(self, *words):
        """The first screen with all these words; lines that were broken are joined."""
        def shown():
            text = self.text()
            joined = " ".join(text.split())
            assert all(word in joined for word in words), text
            return text

        return wait_for(shown, seconds=90)

    def resize(self, columns, rows):
        self.tmux("resize-window", "-x", str(columns), "-y", str(rows))


@contextlib.contextmanager
def terminal(tmp_path, columns=80, rows=24):
    shown = Terminal(tmp_path, columns, rows)
    try:
        yield shown
    finally:
        shown.tmux("kill-server")


@contextlib.contextmanager
def simulating(directory, *flags, wait=True):
    process = subprocess.Popen([SIM, f"--shm.dir={directory}", *flags], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, env=environment())
    try:
        wait_for(lambda: not wait or list(pathlib.Path(directory).glob("wideep.*")))
        yield process
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def shm(tmp_path):
    directory = tmp_path / "shm"
    directory.mkdir()
    return directory


SHAPE = ("--engines=2", "--ranks=2", "--layers=4", "--experts=16", "--passes-per-second=50")
SCENARIOS = {
    "steady": ("All engines serve", "Nothing to do"),
    "hot": ("imbalance costs", "of expert time"),
    "stall": ("is blocked by a synchronous rearrangement",),
    "async": ("asynchronously", "Nothing to do"),
    "fallout": ("DBO falls out", "empty_second_ubatch"),
    "death": ("died", "restart it"),
}


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario, size, shm, tmp_path):
    passes = ["--passes=200"] if scenario == "death" else ["--seconds=300"]
    with simulating(shm, *SHAPE, f"--scenario={scenario}", *passes, "--linger=300"), terminal(tmp_path, *size) as shown:
        shown.type(f"{TOP} --shm.dir={shm} --interval=200ms")
        shown.until(*SCENARIOS[scenario])
        for key, title in (("3", "LAYER"), ("4", "RANK"), ("5", "EXPERT"), ("2", "balancedness"), ("1", "STATE")):
            shown.keys(key)
            text = shown.until(title)
            assert max(map(len, text.splitlines())) <= size[0]
        shown.keys("q")
        shown.until("$ " if os.getuid() else "# ")


def test_resize_pause_and_help(shm, tmp_path):
    with simulating(shm, *SHAPE, "--scenario=steady", "--seconds=300"), terminal(tmp_path) as shown:
        shown.type(f"{TOP} --shm.dir={shm} --interval=200ms")
        shown.until("PROMPT/s", "All engines serve")
        shown.resize(40, 12)
        wait_for(lambda: "PROMPT/s" not in shown.text() and "STATE" in shown.text())
        shown.resize(200, 60)
        shown.until("PROMPT/s", "FALLOUTS")
        shown.keys("p")
        shown.until("paused")
        shown.keys("p", "?")
        shown.until("select or scroll")
        shown.keys("3", "Down", "Enter")
        shown.until("EXPERT", "layer")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_terminal_is_restored(number, shm, tmp_path):
    with terminal(tmp_path) as shown:
        shown.type(f"cd {tmp_path}; stty -g >before")
        shown.type(f"{TOP} --shm.dir={shm} & echo $! >pid; fg")
        shown.until("No engine")
        pid = int((tmp_path / "pid").read_text())
        os.kill(pid, number)
        wait_for(lambda: gone(pid) and "No engine" not in shown.text())
        # The shell takes the terminal back a moment later.
        shown.type("until stty -g >after; do :; done; echo rest'ored'")
        shown.until("restored")
        assert (tmp_path / "after").read_text() == (tmp_path / "before").read_text()
        assert shown.tmux("display-message", "-p", "#{cursor_flag} #{alternate_on}").split() == ["1", "0"]


def test_suspended_and_continued(shm, tmp_path):
    with terminal(tmp_path) as shown:
        shown.type(f"{TOP} --shm.dir={shm}")
        shown.until("No engine")
        shown.keys("C-z")
        wait_for(lambda: "No engine" not in shown.text())
        shown.type("echo back'ground'; fg")
        shown.until("No engine")
        shown.keys("q")
        shown.until("background")


def test_no_terminal(shm, tmp_path):
    result = run(f"--shm.dir={shm}")
    assert (result.returncode, result.stdout) == (1, "") and "--once" in result.stderr
    with terminal(tmp_path) as shown:
        shown.type(f"TERM=no-such {TOP}; echo status $?")
        shown.until("the terminal that TERM names is not known here", "status 1")
        shown.type(f"clear; env -u TERM {TOP}; echo status $?")
        shown.until("TERM is not set", "status 1")
        shown.type(f"clear; TERM=vt100 {TOP} --shm.dir={shm}")
        shown.until("No engine")
        shown.keys("q")


def test_figures_are_the_exporters(shm, tmp_path):
    """Of engines that stand still: after the passes they linger."""
    books = tmp_path / "books"
    with simulating(shm, *SHAPE, "--passes=150", f"--expect={books}", "--linger=300"), exporting(shm) as exporter:
        wait_for(books.exists)

        def at_rest():
            before, state = exporter.scrape(), json.loads(exporter.get("/api/v1/state")[1])
            document = json.loads(run(f"--shm.dir={shm}", "--json", "--interval=500ms").stdout)
            page = exporter.scrape()
            names = [name for name in page if re.match("wideep_(dbo_passes|eplb_rank_tokens)_total", name)]
            assert names and all(page[name] == before[name] for name in names)
            return page, state, document

        page, state, document = wait_for(at_rest)
    model = document["engines"][0]["model_name"]
    assert sum(page[name] for name in page if name.startswith("wideep_dbo_passes_total")) > 0
    for engine in document["engines"]:
        for phase, counts in engine["dbo"].items():
            for outcome, passes in counts["passes"].items():
                assert page.one("wideep_dbo_passes_total", engine=engine["engine"], phase=phase, outcome=outcome) == passes
        for mode in ("sync", "async"):
            assert engine["rearrangements"][mode] == page.one(
                "wideep_eplb_rearrangements_by_mode_total", engine=engine["engine"], mode=mode)
        (theirs,) = [e for e in state["engines"] if e["engine"] == engine["engine"]]
        assert (theirs["state"], theirs["ranks_up"]) == (engine["state"], engine["ranks_up"])
    (group,) = document["groups"]
    for layer, ranks in enumerate(group["rank_tokens"]):
        for rank, tokens in enumerate(ranks):
            assert page.one("wideep_eplb_rank_tokens_total", model_name=model, layer=layer, ep_rank=rank) == tokens


def test_window_is_the_exporters(shm):
    """Balancedness of steady loads, read by both from the same rings at the same time, to two digits."""
    with simulating(shm, *SHAPE, "--scenario=hot", "--seconds=300"), exporting(shm, "--eplb.window=1s") as exporter:
        def alike():
            document = json.loads(run(f"--shm.dir={shm}", "--json", "--interval=3s", "--eplb.window=1s").stdout)
            theirs = exporter.scrape().one("wideep_eplb_imbalance_cost_ratio")
            assert abs(document["groups"][0]["imbalance_cost"] - theirs) < 0.05
            assert "expert_tokens" in document["groups"][0]
            return True

        wait_for(alike)


HOSTILE = [b"\x1b]0;owned\x07\x1b[2J\x1b[31m", b"\xff\xfe\xc3", "模型".encode() * 40, b"a" * 255,
           "e\u0301\u202e\u200b\x9b31m".encode(), "🚀".encode() * 60]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_hostile_names(name, locale, shm):
    with simulating(shm, "--layers=2", "--experts=4", "--passes=20", "--passes-per-second=100", "--linger=300",
                    "--model=" + os.fsdecode(name)):
        for view in ("engines", "groups"):
            result = subprocess.run([TOP, f"--shm.dir={shm}", "--once", "--interval=200ms", f"--view={view}"],
                                    capture_output=True, timeout=120, check=True,
                                    env=environment(LC_ALL=locale, COLUMNS="90", LINES="20"))
            text = result.stdout.decode("utf-8")
            assert locale != "C" or text.isascii()
            for line in text.splitlines():
                assert all(unicodedata.category(c)[0] != "C" and not unicodedata.combining(c) for c in line), repr(line)
                assert sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line) <= 90
        json.loads(run(f"--shm.dir={shm}", "--json", "--interval=200ms").stdout)


@pytest.mark.parametrize("arguments", [["--interval=1"], ["--interval"], ["--view=x"], ["--layer=-1"], ["--nonsense"],
                                       ["--shm.instance=.x"]])
def test_wrong_usage(arguments):
    result = run(*arguments)
    assert result.returncode == 2 and result.stderr.startswith("wideep-top: ") and result.stdout == ""


def test_variables_and_help(shm):
    result = run("--once", "--interval=200ms", WIDEEP_SHM_DIR=str(shm), WIDEEP_SHM_INSTANCE="other")
    assert result.returncode == 0 and f"other {shm}" in result.stdout and "No engine" in result.stdout
    assert "--interval" in run("--help").stdout and run("--version").stdout.startswith("wideep-top ")
