"""What one learner needs for each lab: memory of the kernel, disk for the cache, GPU memory. Writes data/needs.json.

    python3 tools/measure_needs.py [LAB ...]

Each lab runs by `python3 -m labsupport run` with a cache of its own. Memory is the largest sum of the proportional set
sizes of the kernel and its children, read twice a second: pages that processes share are counted once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from labsupport import environment, files

FILE = ROOT / "data" / "needs.json"
PERIOD_S = 0.5


def kernel_mib(processes) -> float:
    """Memory of these processes together in MiB; one that has ended meanwhile counts nothing."""
    import psutil

    total = 0
    for process in processes:
        try:
            known = process.memory_full_info()
            total += getattr(known, "pss", known.uss)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total / 2**20


def gpu_mib(pids: set[int]) -> float | None:
    """GPU memory that these processes hold in MiB, None without a GPU."""
    if not environment.has("engine execution"):
        return None
    import pynvml

    pynvml.nvmlInit()
    total = 0
    for index in range(pynvml.nvmlDeviceGetCount()):
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
        held = {one.pid: one.usedGpuMemory or 0 for one in pynvml.nvmlDeviceGetComputeRunningProcesses(device)}
        total += sum(size for pid, size in held.items() if pid in pids)
    return total / 2**20


def measure(lab: str) -> dict:
    """One lab; RuntimeError with its output where it fails."""
    import psutil

    with tempfile.TemporaryDirectory(prefix="labsupport-") as cache:
        variables = {**os.environ, "LABSUPPORT_CACHE": cache, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "labsupport", "run", lab, "--json"]
        child = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        most, most_gpu = 0.0, None
        while child.poll() is None:
            try:
                below = psutil.Process(child.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                break
            most = max(most, kernel_mib(below))
            if (held := gpu_mib({process.pid for process in below})) is not None:
                most_gpu = max(most_gpu or 0.0, held)
            time.sleep(PERIOD_S)
        result = json.loads(child.stdout.read())["labs"][0]
        if not result["ok"]:
            raise RuntimeError(f"{lab} failed: {result['error']}")
        disk = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file()) / 2**20
    needs = {"memory_mib": round(most), "disk_mib": round(disk), "seconds": round(result["seconds"], 1)}
    return needs if most_gpu is None else {**needs, "gpu_memory_mib": round(most_gpu)}


def store(lab: str, needs: dict, file: Path = FILE) -> None:
    """Beside what other labs and other classes of machines need."""
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    entry = kept.setdefault(environment.machine_class(), {"labs": {}})
    entry.update(date=date.today().isoformat(), cores=os.cpu_count(), command="python3 tools/measure_needs.py")
    entry["labs"][lab] = needs
    files.replace(file, (json.dumps(kept, indent=1, sort_keys=True) + "\n").encode("utf-8"), mode=0o644)


def main(labs: list[str]) -> None:
    """Measure the labs named, else all."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if not labs or path.stem in labs or path.stem.partition("_")[0] in labs:
            needs = measure(path.stem)
            store(path.stem, needs)
            print(f"{path.stem:26} {needs}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
