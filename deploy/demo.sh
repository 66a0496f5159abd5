#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Eight simulated ranks shaped like DeepSeek-R1, the exporter, and every few seconds what its page says of them.
# `make demo` calls it. Ends with Ctrl-C, or after DEMO_SECONDS; leaves nothing behind.
set -eu

build=${WIDEEP_BUILD:-$(dirname "$0")/../build}
seconds=${DEMO_SECONDS:-0} # 0: until Ctrl-C
address=127.0.0.1:9464
model=deepseek-ai/DeepSeek-R1-0528

case $seconds in
'' | *[!0-9]*)
	echo "demo: DEMO_SECONDS is a whole number of seconds, not '$seconds'" >&2
	exit 2
	;;
esac
for program in wideep-exporter wideep-sim; do
	[ -x "$build/$program" ] || { echo "demo: no $build/$program, run make first" >&2; exit 1; }
done

directory='' exporter='' simulator='' summary=''

cleanup() {
	trap '' INT TERM HUP
	for pid in $summary $simulator $exporter; do
		kill "$pid" 2>/dev/null || :
		wait "$pid" 2>/dev/null || :
	done
	[ -z "$directory" ] || rm -rf "$directory"
}
trap cleanup EXIT
trap 'echo; echo "Stopped."; exit 0' INT TERM HUP

directory=$(mktemp -d /dev/shm/wideep-demo.XXXXXX) || {
	echo "demo: /dev/shm must be a writable tmpfs" >&2
	exit 1
}

fail() {
	echo "demo: $1" >&2
	tail -n 5 "$directory"/*.log >&2
	exit 1
}

# Starts the exporter on an address and waits until it listens there.
start_exporter() {
	"$build/wideep-exporter" --shm.dir="$directory" --web.listen-address="$1" 2>"$directory/exporter.log" &
	exporter=$!
	for _ in {1..100}; do
		listening=$(sed -n 's/.* msg=listening address=\([^ ]*\).*/\1/p' "$directory/exporter.log")
		[ -z "$listening" ] || return 0
		kill -0 "$exporter" 2>/dev/null || break
		sleep 0.05
	done
	kill "$exporter" 2>/dev/null || :
	wait "$exporter" 2>/dev/null || :
	exporter=''
	return 1
}

# The exporter first: what it joins is then counted from the first pass on.
if ! start_exporter "$address"; then
	echo "Port ${address##*:} is taken, another one serves."
	start_exporter 127.0.0.1:0 || fail 'the exporter does not start'
fi
"$build/wideep-sim" --shm.dir "$directory" --engines 8 --layers 58 --experts 256 --redundant 32 \
	--passes-per-second 50 --model "$model" --seconds 0 >"$directory/simulator.log" 2>&1 &
simulator=$!

cat <<EOF
8 simulated ranks of $model: 58 MoE layers, 256 experts and 32 redundant ones, 50 passes/s.
Page:     http://$listening/
Metrics:  http://$listening/metrics
Terminal: $build/wideep-top --shm.dir=$directory
Segments: $build/wideep-dump --shm.dir=$directory
$([ "$seconds" = 0 ] && echo 'Ends with Ctrl-C.' || echo "Ends after $seconds s or with Ctrl-C.")

EOF

# What one group decides, each of its engines repeats: so values are the maximum over engines, which is
# what `max by` is in PromQL. Only tokens are added up: each front end counts its own.
python3 - "http://$listening/metrics" "$seconds" <<'EOF' &
import os, re, sys, time, urllib.error, urllib.request

url, seconds = sys.argv[1], int(sys.argv[2])
INTERVAL = 3
SAMPLE = re.compile(r'([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$')
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Page:
    def __init__(self):
        self.families = {}
        with urllib.request.urlopen(url, timeout=5) as response:
            for line in response.read().decode().splitlines():
                if not line.startswith("#"):
                    name, labels, value = SAMPLE.match(line).groups()
                    self.families.setdefault(name, []).append((dict(LABEL.findall(labels or "")), float(value)))

    def max_by(self, name, *labels):
        result = {}
        for its, value in self.families.get(name, []):
            key = tuple(its[label] for label in labels)
            result[key] = max(value, result.get(key, value))
        return result

    def sum(self, name):
        return sum(value for _, value in self.families.get(name, []))

    def max(self, name):
        return max((value for _, value in self.families.get(name, [])), default=0)


def growth(page, before, name, *labels):
    old = before.max_by(name, *labels)
    return {key: value - old.get(key, 0) for key, value in page.max_by(name, *labels).items()}


def percent(part, whole):
    return f"{100 * part / whole:.1f} %" if whole else "?"


def show(page, before, at):
    elapsed = page.max("wideep_snapshot_timestamp_seconds") - before.max("wideep_snapshot_timestamp_seconds") or 1
    rate = lambda name: (page.sum(name) - before.sum(name)) / elapsed
    passes = max(growth(page, before, "wideep_eplb_passes_total", "group", "layer").values(), default=0)
    incomplete = sum(page.max_by("wideep_eplb_passes_incomplete_total", "group", "cause").values())
    now = ("none" if not page.max("vllm:eplb_rebalancing")
           else "one, which blocks the ranks" if page.max("wideep_eplb_blocked") else "one, beside the passes")
    print(f"{at:5.0f} s  now:     ranks up {page.sum('wideep_rank_up'):.0f} of {page.max('wideep_ep_size'):.0f}; "
          f"rearrangement under way: {now}")

    window = f"{elapsed:.0f} s:"
    print(f"    last {window:8} {passes / elapsed:.1f} passes joined/s; tokens/s: {rate('wideep_prompt_tokens_total'):,.0f} "
          f"prompt, {rate('wideep_generation_tokens_total'):,.0f} generated")
    average = growth(page, before, "wideep_eplb_avg_tokens_total", "group", "layer")
    slowest = growth(page, before, "wideep_eplb_max_tokens_total", "group", "layer")
    layers = {key: average[key] / value for key, value in slowest.items() if value}
    if layers:
        worst = min(layers, key=layers.get)
        ratio = sum(average.values()) / sum(slowest.values())
        print(f"{'':17} balancedness {ratio:.3f}, so {percent(1 - ratio, 1)} of expert time lost to the slowest rank; "
              f"lowest in layer {worst[1]}: {layers[worst]:.3f}")
    dbo = growth(page, before, "wideep_dbo_passes_total", "phase", "outcome")
    engaged = sum(value for (_, outcome), value in dbo.items() if outcome == "engaged")
    print(f"{'':17} DBO engaged in {percent(engaged, sum(dbo.values()))} of passes")

    fallouts = page.max_by("vllm:dbo_fallout_total", "reason")
    modes = page.max_by("wideep_eplb_rearrangements_by_mode_total", "mode")
    print("         so far:  DBO fallouts: "
          + (", ".join(f"{reason} {value:.0f}" for (reason,), value in fallouts.items() if value) or "none"))
    print(f"{'':17} rearrangements: " + ", ".join(f"{value:.0f} {mode}" for (mode,), value in modes.items())
          + f"; passes not joined: {incomplete:.0f}", flush=True)


start = time.monotonic()
while True:
    try:
        before = Page()
        break
    except urllib.error.HTTPError:  # 503: nothing was collected yet
        if time.monotonic() - start > 10:
            raise
        time.sleep(0.1)
try:
    while True:
        left = start + seconds - time.monotonic() if seconds else INTERVAL
        if left <= 0:
            break
        time.sleep(min(INTERVAL, left) if left > 1.5 * INTERVAL or left <= INTERVAL else left)
        page = Page()
        show(page, before, time.monotonic() - start)
        before = page
except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
EOF
summary=$!

# Whichever ends first: the summary when its time is up, the others only by mistake.
status=0
wait -n "$summary" "$simulator" "$exporter" || status=$?
kill -0 "$exporter" 2>/dev/null || fail "the exporter ended with $status"
kill -0 "$simulator" 2>/dev/null || fail "the simulator ended with $status"
[ "$status" = 0 ] || fail "the summary ended with $status"
