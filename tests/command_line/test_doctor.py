"""The doctor, on machines that are broken in every way that was met."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from labsupport import environment
from labsupport.command_line import doctor, import_probes
from labsupport.command_line.findings import Finding, Report
from labsupport.environment import hardware
from labsupport.environment.hardware import Gpu, GpuProbe
from labsupport.environment.machines import Machine
from labsupport.errors import LabError

H100 = GpuProbe((Gpu("NVIDIA H100 80GB HBM3", (9, 0), 81559),), "580.159", "13.0")


def statuses(findings) -> list[str]:
    return [finding.status for finding in findings]


def only(findings) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


@pytest.mark.parametrize(
    ("version", "status"), [((3, 9), "problem"), ((3, 10), "ok"), ((3, 13), "ok"), ((3, 14), "problem")]
)
def test_python(version, status):
    finding = only(doctor.check_python(version))
    assert finding.status == status
    assert ("python3.12 -m labsupport lab" in finding.fix) == (status == "problem")


def test_macos_is_told_what_it_lacks():
    finding = only(doctor.check_system("Darwin"))
    assert (finding.status, "no macOS release" in finding.value) == ("note", True)


def test_no_gpu_is_a_note_and_a_broken_driver_a_problem():
    assert only(doctor.check_gpu(GpuProbe(problem=hardware.NO_DRIVER), Machine())).status == "note"
    reboot = only(doctor.check_gpu(GpuProbe(problem=hardware.MISMATCH), Machine()))
    assert (reboot.status, reboot.fix) == ("problem", "reboot")
    stopped = only(doctor.check_gpu(GpuProbe(problem=hardware.NOT_LOADED), Machine()))
    assert "https://www.nvidia.com/drivers" in stopped.fix


def test_a_gpu_and_its_driver():
    gpu, driver = doctor.check_gpu(H100, Machine(gpu="NVIDIA H100 80GB HBM3"))
    assert gpu.value == "NVIDIA H100 80GB HBM3 (compute capability 9.0, 80 GiB)"
    assert driver == Finding("Driver", "580.159, CUDA 13.0")


@pytest.mark.parametrize(
    ("problem", "row", "fix"),
    [
        ("the NVIDIA driver 470 is too old: it knows CUDA 11.4", 1, "https://www.nvidia.com/drivers"),
        ("PyTorch 2.13.0+cpu is a CPU build and cannot use the GPU", 0, "labsupport lab --gpu"),
        ("CUDA_VISIBLE_DEVICES='' hides every GPU", 0, "unset CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_gpu_that_cannot_be_used(problem, row, fix):
    finding = doctor.check_gpu(H100, Machine(gpu="NVIDIA H100 80GB HBM3", problem=problem))[row]
    assert (finding.status, finding.value) == ("problem", problem)
    assert fix in finding.fix


def tensorrt(versions: dict, **machine) -> Finding:
    return only(doctor.check_tensorrt(versions.get, Machine(**machine)))


def test_tensorrt_absent_present_and_twice():
    absent = tensorrt({}, gpu="NVIDIA H100")
    assert (absent.status, absent.fix) == ("note", environment.INSTALL_GPU)
    assert tensorrt({}).fix == environment.INSTALL_CPU
    one = tensorrt({"tensorrt": "8.6.0"}, tensorrt="8.6.0", tensorrt_product="tensorrt", generation="8.6")
    assert one == Finding("TensorRT", "TensorRT 8.6.0, API generation 8.6")
    both = tensorrt(
        {"tensorrt": "11.0", "tensorrt_rtx": "1.7"}, tensorrt="11.0", tensorrt_product="tensorrt", generation="11"
    )
    assert both.status == "note"
    assert both.value == "TensorRT 11.0 and TensorRT-RTX 1.7; the labs use TensorRT 11.0 (LABSUPPORT_TENSORRT chooses)"


def test_two_wheels_that_fill_one_folder():
    finding = tensorrt({"tensorrt": "11.0", "tensorrt-cu12": "10.9", "tensorrt-cu13": "11.0"})
    assert finding.status == "problem"
    assert "pip uninstall -y tensorrt tensorrt-cu12 tensorrt-cu13" in finding.fix


def test_a_tensorrt_too_old_or_hidden_by_the_variable(monkeypatch):
    old = tensorrt({"tensorrt": "7.2"}, tensorrt="7.2", tensorrt_product="tensorrt")
    assert (old.status, old.fix) == ("problem", environment.INSTALL_GPU)
    hidden = tensorrt({"tensorrt_rtx": "1.7"})
    assert (hidden.status, hidden.fix) == ("problem", "unset LABSUPPORT_TENSORRT")


def test_missing_packages_are_one_problem_with_one_command():
    findings = doctor.check_packages({"numpy": "2.4.6"}.get, lambda: (None, None))
    problem = next(finding for finding in findings if finding.status == "problem")
    assert problem.value == ("not installed: PyTorch, ONNX, ONNX Runtime, pandas, matplotlib, ipykernel, nbclient")
    assert problem.fix == "python3 -m labsupport lab"
    assert Finding("NumPy", "2.4.6") in findings
    assert "optional: JupyterLab, nbval, PyCUDA" in findings[-1].value


@pytest.mark.parametrize(("cuda", "words"), [(None, "2.13.0 (CPU build)"), ("13.0", "2.13.0 (for CUDA 13.0)")])
def test_torch_says_what_it_was_built_for(cuda, words):
    assert Finding("PyTorch", words) in doctor.check_packages(lambda name: "1", lambda: ("2.13.0", cuda))


def test_two_onnxruntimes():
    assert doctor.check_onnxruntime({"onnxruntime": "1.31.1"}.get) == []
    finding = only(doctor.check_onnxruntime({"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}.get))
    assert finding.value == "onnxruntime and onnxruntime-gpu overwrite each other"
    assert finding.fix.startswith("python -m pip uninstall -y onnxruntime onnxruntime-gpu")


@pytest.mark.parametrize(
    ("versions", "requires", "fix"),
    [
        (
            {"torch-tensorrt": "2.13.0", "torch": "2.11.0"},
            {"torch-tensorrt": ["torch<2.14.0,>=2.13.0"]},
            "torch<2.14.0,>=2.13.0",
        ),
        ({"onnx": "1.17", "protobuf": "3.19"}, {"onnx": ["protobuf>=3.20.2"]}, "protobuf>=3.20.2"),
        ({"pandas": "3.1", "numpy": "1.24"}, {"pandas": ['numpy>=1.26; python_version >= "3.0"']}, "numpy>=1.26"),
    ],
)
def test_versions_that_do_not_fit_together(versions, requires, fix):
    finding = only(doctor.check_requirements(versions.get, lambda name: requires.get(name, [])))
    assert finding.status == "problem"
    assert finding.fix == f'python -m pip install "{fix}"'


def test_versions_that_fit_and_markers_that_do_not_apply():
    requires = {"onnx": ["protobuf>=3.20", 'numpy<1; extra == "old"', "absent>=9"]}
    findings = doctor.check_requirements(
        {"onnx": "1.17", "protobuf": "7.0", "numpy": "2.4"}.get, lambda name: requires.get(name, [])
    )
    assert only(findings) == Finding("Versions", "fit together")


def test_without_packaging_the_comparison_says_so(monkeypatch):
    monkeypatch.setattr(doctor, "_requirement_class", lambda: None)
    assert only(doctor.check_requirements()).status == "note"


def test_packages_compiled_for_numpy_1():
    versions = {"numpy": "2.1.0", "onnxruntime": "1.17.1", "torch": "2.13.0+cpu"}
    finding = only(doctor.check_binary_interfaces(versions.get))
    assert finding.value == "onnxruntime 1.17.1 was compiled for NumPy 1, and NumPy 2.1.0 is installed"
    assert finding.fix == 'python -m pip install "onnxruntime>=1.19"'
    assert doctor.check_binary_interfaces({"numpy": "1.26.4", "onnxruntime": "1.17.1"}.get) == []


@pytest.mark.parametrize(
    ("check", "enough"),
    [(doctor.check_disk, {"free_gib": 50}), (doctor.check_memory, {"free_gib": 8, "total_gib": 16})],
)
def test_disk_and_memory(check, enough):
    assert statuses(check(**enough)) == ["ok"]
    little = only(check(**{**enough, "free_gib": 0.5}))
    assert little.status == "problem" and little.fix


def test_memory_that_the_system_does_not_tell():
    assert statuses(doctor.check_memory(free_gib=None)) in (["ok"], ["note"], ["problem"])


def test_an_unwritable_cache():
    def refuse():
        raise LabError("the cache folder /x cannot be written; set LABSUPPORT_CACHE to a folder that can")

    finding = only(doctor.check_cache(refuse))
    assert (finding.status, finding.fix) == ("problem", "set LABSUPPORT_CACHE to a writable folder")


# --- imports in child processes ---


@pytest.fixture
def packages_that_break(tmp_path, monkeypatch):
    for name, text in {
        "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
        if os.name != "nt"
        else "import os; os._exit(3)",
        "raises": "raise ImportError('libfoo.so.9: cannot open shared object file')",
        "hangs": "import time; time.sleep(60)",
        "works": "",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda *names: import_probes.start_imports(names, installed=lambda name: True)


def test_an_import_that_raises_quotes_its_last_words(packages_that_break):
    finding = only(import_probes.finish_imports(packages_that_break("raises", "works")))
    assert finding.status == "problem"
    assert finding.value == "raises does not import: ImportError: libfoo.so.9: cannot open shared object file"
    assert finding.fix == 'python -m pip install --force-reinstall --no-deps "raises"'


@pytest.mark.skipif(os.name == "nt", reason="signals are a POSIX matter")
def test_an_import_that_crashes_takes_only_its_child(packages_that_break):
    finding = only(import_probes.finish_imports(packages_that_break("crashes")))
    assert "crashes does not import: it crashed with SIGSEGV" in finding.value


def test_an_import_that_hangs_is_stopped_at_the_deadline(packages_that_break):
    children = packages_that_break("hangs")
    finding = only(import_probes.finish_imports(children, deadline_s=0.2))
    assert (finding.status, "still importing" in finding.value) == ("note", True)
    assert children["hangs"].poll() is not None


def test_imports_that_work_and_packages_that_are_not_there(packages_that_break):
    assert only(import_probes.finish_imports(packages_that_break("works"))) == Finding("Imports", "1 packages import")
    assert import_probes.start_imports(("works",), installed=lambda name: None) == {}
    assert import_probes.finish_imports({}) == []


def test_pycuda_without_a_driver_is_a_note():
    assert import_probes._broken("pycuda.driver", 1, "ImportError: libcuda.so.1").status == "note"


# --- the whole report ---


def test_a_check_that_breaks_does_not_take_the_doctor_down(monkeypatch):
    def broken():
        raise OSError("no such device")

    monkeypatch.setattr(doctor, "check_disk", broken)
    report = doctor.examine(imports=False)
    assert Finding("Disk", "could not be examined (OSError: no such device)", "note") in report.findings


def test_a_wrong_variable_is_a_problem_with_its_fix(monkeypatch):
    monkeypatch.setenv("LABSUPPORT_TENSORRT", "nonsense")
    environment.machine.cache_clear()
    last = doctor.examine(imports=False).findings[-1]
    environment.machine.cache_clear()
    assert (last.status, last.fix) == ("problem", "unset LABSUPPORT_TENSORRT")


def test_report_text_and_json():
    report = Report(
        (Finding("Python", "3.11"), Finding("GPU", "none", "note"), Finding("Disk", "full", "problem", "tidy up"))
    )
    assert repr(report).splitlines() == [
        "ok       Python  3.11",
        "note     GPU     none",
        "problem  Disk    full",
        "                 fix: tidy up",
        "1 problem found",
    ]
    assert report.as_dict() == {
        "ok": False,
        "findings": [
            {"name": "Python", "value": "3.11", "status": "ok", "fix": ""},
            {"name": "GPU", "value": "none", "status": "note", "fix": ""},
            {"name": "Disk", "value": "full", "status": "problem", "fix": "tidy up"},
        ],
    }
    assert Report((Finding("Python", "3.11"),)).ok
    assert repr(report.problems[0]) == "Disk: problem: full\n    fix: tidy up"


def test_every_problem_has_a_fix_in_a_bare_python():
    """No site-packages at all: what a stranger's system Python looks like."""
    code = (
        "from labsupport.command_line import doctor; report = doctor.examine(imports=False); "
        "print(len(report.problems), all(finding.fix for finding in report.problems))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", code], capture_output=True, text=True, timeout=60, cwd=environment.REPOSITORY
    )
    count, fixed = done.stdout.split() or pytest.fail(done.stderr)
    assert int(count) >= 1 and fixed == "True"
