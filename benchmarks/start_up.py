"""How long until the command answers? `bench --help`, and `bench plan` with 10,000 cells; neither imports torch.

python benchmarks/start_up.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

PLAN = ("plan", "device=fake", "num_beams=[1,2,3,4,5,6,7,8,9,10]", f"batch_size=[{','.join(map(str, range(1, 26)))}]",
        f"lengths=[{','.join(f'{tokens}/32' for tokens in range(1, 41))}]")  # fmt: skip
CODE = "import sys; from bench.__main__ import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"


def main() -> None:
    """Print the table."""
    print("| command | median of 5 | imports torch |")
    print("|---|---:|---|")
    for name, arguments in (("bench --help", ("--help",)), ("bench plan, 10,000 cells", PLAN)):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", CODE, *arguments], stdout=subprocess.DEVNULL, check=False)
            times.append(time.perf_counter() - start)
        print(f"| `{name}` | {median(times):.2f} s | {'yes' if done.returncode else 'no'} |")


if __name__ == "__main__":
    main()
