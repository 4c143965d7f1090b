"""The same work in multiprocessing.Pool. Reads `seconds chunk count` a line, prints how long `imap` took."""

import multiprocessing
import sys
import time


def work(task):
    seconds, number = task
    end = time.perf_counter() + seconds
    while seconds and time.perf_counter() < end:
        pass
    return number


if __name__ == "__main__":
    with multiprocessing.Pool(int(sys.argv[1])) as pool:
        for line in sys.stdin:
            seconds, chunk, count = line.split()
            tasks = [(float(seconds), n) for n in range(int(count))]
            start = time.perf_counter()
            for n, result in enumerate(pool.imap(work, tasks, chunksize=int(chunk))):
                assert n == result
            print(time.perf_counter() - start, flush=True)
