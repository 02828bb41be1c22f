"""How many times the requests of one process several answer: a model of a loaded server, pure arithmetic.

A process handles requests on one core, and its programs compute on its share of all of them. Several
handle requests at the same time, but the programs of each have fewer threads. So several gain where handling takes
long, and where XLA's threads gain less than their number.
"""

# Times the requests below which more processes are not worth their memory.
MIN_GAIN = 1.1
# On 2 cores the programs of MiniLM took 1.5 to 1.7 times as long with one thread as with two.
_THREAD_EXPONENT = 0.65


def process_gain(
    handling_s: float, run_s: float, share_s: float, processes: float, *, overlaps: bool = False
) -> float:
    """Return how many times the requests so many processes answer, for each one that there is now.

    Args:
      handling_s: what a request takes beside its program, in seconds of one core.
      run_s: its part of a program's run, with the threads of now.
      share_s: the same with the threads that are left for each of several.
      processes: in the place of one; no whole number where those of now share the cores unevenly.
      overlaps: whether requests are handled while a program runs, rather than before and after.
    """
    now_s = max(handling_s, run_s) if overlaps else handling_s + run_s
    return processes * now_s / (handling_s + share_s)


def share_seconds(run_s: float, processes: float) -> float:
    """Return an estimate of a program's run on its share of the cores, where it was not measured.

    Args:
      run_s: seconds on all of them.
      processes: that share them.
    """
    return float(run_s * processes**_THREAD_EXPONENT)
