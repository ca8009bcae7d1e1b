"""Timing, as benches/measure/clock.rs of molora-train does it, and the line that xtask reads."""

import json
import os
import resource
import statistics
import sys
import time

THREADS = os.cpu_count() or 1
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))


def measure(run, seconds, warm_up=3, least=5):
    """Seconds of each run of `run`, at least `least` of them and for at least `seconds`."""
    for _ in range(warm_up):
        run()
    samples, begin = [], time.perf_counter()
    while len(samples) < least or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        run()
        samples.append(time.perf_counter() - start)
    return samples


def report(samples, tokens, dtype, read=None):
    """Prints the line; `tokens` is what one sample goes through, `read` the bytes of weights that it reads."""
    samples = sorted(samples)
    median = statistics.median(samples)
    last = len(samples) - 1
    middle = samples[round(0.75 * last)] - samples[round(0.25 * last)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = peak / 1024 / 1024 if sys.platform == "darwin" else peak / 1024
    line = {
        "dtype": dtype,
        "samples": len(samples),
        "median_ms": median * 1e3,
        "best_ms": samples[0] * 1e3,
        "spread": middle / median,
        "tokens_per_s": tokens / median,
        "gb_per_s": read and read / median / 1e9,
        "peak_memory_mib": peak,
    }
    print(json.dumps(line))
