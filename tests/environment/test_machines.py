"""The machine probe, fed with fake drivers and fake installations."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest
from faces import stand_in

from labsupport import environment
from labsupport.environment import hardware, packages
from labsupport.environment.hardware import Gpu, GpuProbe
from labsupport.environment.machines import Machine
from labsupport.errors import BadInput, NotAvailable

H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 81559)
RTX4090 = Gpu("NVIDIA GeForce RTX 4090", (8, 9), 24564)


def on_gpu(**more) -> Machine:
    fields = dict(
        gpu=H100.name,
        gpus=1,
        compute_capability=(9, 0),
        driver="580.159",
        cuda="13.0",
        torch="2.11.0",
        tensorrt="8.6.0",
        tensorrt_product="tensorrt",
        generation="8.6",
        onnxruntime="1.31.1",
    )
    return Machine(**{**fields, **more})


@pytest.fixture
def here(monkeypatch):
    def become(machine: Machine) -> None:
        stand_in(monkeypatch, environment, "machine", lambda: machine)

    return become


@pytest.fixture
def probed(monkeypatch):
    """Run the real `machine()` over a fake driver and fake packages."""

    def probe(gpus: GpuProbe, versions: dict | None = None, torch=("2.13.0", "13.0"), cuda_major=13) -> Machine:
        monkeypatch.setattr(hardware, "gpus", lambda: gpus)
        stand_in(monkeypatch, environment, "package_version", lambda name: (versions or {}).get(name))
        stand_in(monkeypatch, environment, "torch_build", lambda: torch)
        stand_in(monkeypatch, environment, "tensorrt_cuda_major", lambda product, version: cuda_major)
        return environment.machine.__wrapped__()

    monkeypatch.delenv("LABSUPPORT_TENSORRT", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return probe


def test_import_is_light_and_fast():
    code = (
        "import sys, time; before = set(sys.modules); start = time.perf_counter(); import labsupport.environment; "
        "heavy = {'numpy', 'torch', 'onnx', 'onnxruntime', 'pandas', 'matplotlib', 'tensorrt', 'pynvml', 'tqdm'}; "
        "print(sorted(heavy & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=environment.REPOSITORY)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("product", "version", "generation"),
    [
        ("tensorrt", "8.6.0", "8.6"),
        ("tensorrt", "8.4.1.5", "8.6"),
        ("tensorrt", "10.16.1.11", "10"),
        ("tensorrt", "11.0.0.114", "11"),
        ("tensorrt", "12.0", "11"),
        ("tensorrt", "7.2.3", None),
        ("tensorrt_rtx", "1.7.1.116", "rtx"),
        (None, None, None),
    ],
)
def test_generation_follows_the_version(product, version, generation):
    assert packages.generation_of(product, version) == generation


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("Tesla T4", "t4"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 PCIe", "h100pcie"),
        ("Orin (nvgpu)", "orin"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", "rtx4060laptop"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000ada"),
    ],
)
def test_gpu_slug(name, slug):
    assert hardware.gpu_slug(name) == slug


BOTH = {"tensorrt": "11.0.0.114", "tensorrt_rtx": "1.7.1.116"}


def test_with_a_gpu_tensorrt_comes_before_rtx(probed):
    machine = probed(GpuProbe((H100,), "580.1", "13.0"), BOTH)
    assert (machine.tensorrt_product, machine.generation, machine.problem) == ("tensorrt", "11", None)


def test_without_a_gpu_rtx_comes_first(probed):
    machine = probed(GpuProbe(problem=hardware.NO_DRIVER), BOTH)
    assert (machine.tensorrt_product, machine.generation) == ("tensorrt_rtx", "rtx")
    assert "no NVIDIA driver was found" in machine.problem


def test_a_driver_that_tells_no_version_is_not_called_too_old(probed):
    machine = probed(GpuProbe((H100,), "580.1", ""), BOTH)
    assert (machine.tensorrt_product, machine.problem) == ("tensorrt", None)


def test_the_variable_overrides_the_choice(probed, monkeypatch):
    monkeypatch.setenv("LABSUPPORT_TENSORRT", "tensorrt_rtx")
    assert probed(GpuProbe((H100,), "580.1", "13.0"), BOTH).generation == "rtx"


def test_the_variable_must_name_a_tensorrt(probed, monkeypatch):
    monkeypatch.setenv("LABSUPPORT_TENSORRT", "trt")
    with pytest.raises(BadInput, match="LABSUPPORT_TENSORRT='trt' is no TensorRT; unset it or choose from"):
        probed(GpuProbe(), BOTH)


def test_the_variable_may_name_an_absent_one(probed, here, monkeypatch):
    monkeypatch.setenv("LABSUPPORT_TENSORRT", "tensorrt")
    here(probed(GpuProbe(problem=hardware.NO_DRIVER), {"tensorrt_rtx": "1.7.1.116"}))
    assert "LABSUPPORT_TENSORRT asks for tensorrt, which is not installed" in environment.why_not("tensorrt")


@pytest.mark.parametrize(
    ("cuda", "torch", "major", "who"),
    [("12.4", ("2.13.0", "13.0"), 12, "PyTorch"), ("12.4", ("2.13.0", "12.6"), 13, "TensorRT 11.0.0.114")],
)
def test_a_driver_too_old_is_not_no_driver(probed, here, cuda, torch, major, who):
    machine = probed(GpuProbe((H100,), "550.54", cuda), {"tensorrt": "11.0.0.114"}, torch, major)
    here(machine)
    assert machine.gpu == H100.name
    with pytest.raises(
        NotAvailable,
        match=f"driver 550.54 is too old: it knows CUDA 12.4, and {who} needs CUDA 13; install driver 580 or newer",
    ):
        environment.require("gpu")


def test_a_cpu_build_of_torch_cannot_use_the_gpu(probed, here):
    here(probed(GpuProbe((H100,), "580.1", "13.0"), BOTH, ("2.13.0+cpu", None)))
    assert "PyTorch 2.13.0+cpu is a CPU build" in environment.why_not("gpu")
    assert "labsupport lab --gpu" in environment.why_not("gpu")
    assert environment.machine_class() == "cpu-torch2.13"


@pytest.mark.parametrize(
    ("value", "gpu"), [("0", H100.name), ("1", RTX4090.name), ("GPU-1234", H100.name), ("", None), ("-1", None)]
)
def test_cuda_visible_devices(probed, monkeypatch, value, gpu):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    machine = probed(GpuProbe((H100, RTX4090), "580.1", "13.0"), BOTH)
    assert machine.gpu == gpu
    assert ("hides every GPU" in (machine.problem or "")) == (gpu is None)


NO_GPU = Machine(
    tensorrt="1.7.1.116",
    tensorrt_product="tensorrt_rtx",
    generation="rtx",
    onnxruntime="1.31.1",
    torch="2.13.0+cpu",
    problem=hardware.NO_DRIVER,
)


@pytest.mark.parametrize(
    ("machine", "has", "lacks"),
    [
        (on_gpu(), ["gpu", "tensorrt", "engine execution", "8.6", "onnxruntime"], ["10", "11", "rtx", ">=10"]),
        (on_gpu(tensorrt="11.0.0.114", generation="11"), ["engine execution", "11", ">=10"], ["8.6", "10", "rtx"]),
        (NO_GPU, ["tensorrt", "rtx", ">=10", "onnxruntime"], ["gpu", "engine execution", "8.6"]),
        (Machine(problem=hardware.NO_DRIVER), [], ["gpu", "tensorrt", "engine execution", "8.6", "rtx", ">=10"]),
        (on_gpu(tensorrt="7.2.3", generation=None), ["gpu"], ["tensorrt", "engine execution", "8.6"]),
    ],
)
def test_has_and_lacks(here, machine, has, lacks):
    here(machine)
    assert [need for need in has if not environment.has(need)] == []
    assert [need for need in lacks if environment.has(need)] == []


@pytest.mark.parametrize(
    ("product", "generation", "capability", "runs"),
    [
        ("tensorrt_rtx", "rtx", (8, 9), True),
        ("tensorrt_rtx", "rtx", (12, 0), True),
        ("tensorrt_rtx", "rtx", (9, 0), False),
        ("tensorrt_rtx", "rtx", (10, 0), False),
        ("tensorrt_rtx", "rtx", (7, 0), False),
        ("tensorrt", "8.6", (9, 0), True),
        ("tensorrt", "8.6", (12, 0), False),
        ("tensorrt", "11", (9, 0), True),
        ("tensorrt", "11", (7, 0), False),
    ],
)
def test_engine_execution_depends_on_the_compute_capability(here, product, generation, capability, runs):
    here(on_gpu(tensorrt_product=product, generation=generation, compute_capability=capability))
    assert environment.has("engine execution") is runs
    if not runs:
        assert "does not run engines on NVIDIA H100" in environment.why_not("engine execution")


@pytest.mark.parametrize(
    ("need", "fix"),
    [
        ("8.6", "pip install tensorrt==8.6.1"),
        ("11", "pip install tensorrt-cu13==11.1.0.106"),
        (">=10", "TensorRT 10 or newer"),
        ("rtx", "pip install tensorrt-rtx==1.7.1.116"),
    ],
)
def test_the_wrong_generation_names_the_package(here, need, fix):
    here(on_gpu(tensorrt="9.9", generation="10" if need != ">=10" else "8.6"))
    with pytest.raises(NotAvailable, match="this machine has TensorRT 9.9") as raised:
        environment.require(need)
    assert fix in str(raised.value)


def test_missing_packages_name_the_command(here, monkeypatch):
    here(Machine())
    stand_in(monkeypatch, environment, "package_version", lambda name: None)
    assert "triton is not installed; get it with: python3 -m labsupport lab --gpu" == environment.why_not("triton")
    assert environment.why_not("onnxruntime").endswith("pip install onnxruntime")
    with pytest.raises(NotAvailable, match="no TensorRT is installed; with an NVIDIA GPU run: .*--gpu, without.*--cpu"):
        environment.tensorrt()


def test_an_unknown_need_lists_the_needs():
    with pytest.raises(BadInput, match="'cuda' is nothing a lab can need; choose from .*'engine execution'"):
        environment.has("cuda")


def test_a_tensorrt_that_does_not_load_says_so(here, monkeypatch):
    here(on_gpu(tensorrt_product="tensorrt"))
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # what Python does with a module that failed
    with pytest.raises(NotAvailable, match="TensorRT 8.6.0 is installed but does not load .*labsupport doctor"):
        environment.tensorrt()


def test_lanes_and_names(here):
    here(on_gpu())
    assert environment.lane() == "TensorRT 8.6.0 on NVIDIA H100 80GB HBM3"
    assert environment.runtime_name() == "TensorRT 8.6.0"
    assert environment.machine_class() == "h100-trt8.6"
    here(
        on_gpu(
            gpu=RTX4090.name,
            compute_capability=(8, 9),
            tensorrt="1.7.1.116",
            tensorrt_product="tensorrt_rtx",
            generation="rtx",
        )
    )
    assert environment.lane() == "TensorRT-RTX 1.7.1.116 on NVIDIA GeForce RTX 4090"
    assert environment.machine_class() == "rtx4090-rtx1.7"
    here(NO_GPU)
    assert environment.lane() == "no GPU: ONNX Runtime executes; TensorRT-RTX builds engines without running them"
    assert environment.runtime_name() == "ONNX Runtime 1.31.1 (CPU)"
    assert environment.machine_class() == "cpu-ort1.31"
    here(Machine())
    assert (environment.lane(), environment.runtime_name()) == ("no GPU: nothing executes", "no runtime")


def test_describe_closes_with_the_lane(here):
    here(on_gpu())
    table = environment.describe()
    assert repr(table).splitlines()[-1].split("  ")[-1].strip() == environment.lane()
    assert "compute capability 9.0" in repr(table) and "580.159, CUDA 13.0" in repr(table)
    assert table._repr_html_().count("<tr>") == len(table.rows)
    assert "<style>" not in table._repr_html_()  # stored outputs have none
    here(Machine(gpu="<b>", problem="it & others"))
    assert "&lt;b&gt;" in environment.describe()._repr_html_()


def test_jupyterlab_is_told_to_wrap_between_words(here, monkeypatch):
    here(on_gpu())
    monkeypatch.setattr("labsupport.environment.description.headless", lambda: False)
    assert environment.describe()._repr_html_().startswith("<style>.jp-OutputArea-output pre {word-break: normal;")


def test_a_cell_shows_a_reason_without_quotation_marks(here):
    here(NO_GPU)
    reason = environment.why_not("gpu")
    assert repr(reason) == reason == str(reason) and reason.startswith("no GPU can be used here: ")
    here(on_gpu())
    assert environment.why_not("gpu") == ""


def test_the_real_machine_is_probed_once():
    environment.machine.cache_clear()
    assert environment.machine() is environment.machine()
    assert environment.machine().python == ".".join(map(str, sys.version_info[:3]))


# --- the drivers ---


class NvmlError(Exception):
    pass


def nvml(**more):
    class NVMLError_LibraryNotFound(NvmlError):
        pass

    class NVMLError_DriverNotLoaded(NvmlError):
        pass

    class NVMLError_LibRmVersionMismatch(NvmlError):
        pass

    fail = more.pop("fail", None)

    def start():
        if fail:
            raise locals_[fail]()

    locals_ = locals()
    base = dict(
        NVMLError=NvmlError,
        nvmlInit=start,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: b"NVIDIA H100",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=80 << 30),
        nvmlDeviceGetCudaComputeCapability=lambda handle: (9, 0),
        nvmlSystemGetDriverVersion=lambda: "580.159",
        nvmlSystemGetCudaDriverVersion=lambda: 13000,
    )
    return SimpleNamespace(**{**base, **more})


def test_nvml_answers():
    probe = hardware.from_nvml(nvml())
    assert probe == GpuProbe((Gpu("NVIDIA H100", (9, 0), 81920),), "580.159", "13.0", None)


def test_nvml_without_memory_or_without_a_device():
    def refuse(handle):
        raise NvmlError("Not Supported")

    assert hardware.from_nvml(nvml(nvmlDeviceGetMemoryInfo=refuse)).gpus[0].memory_mib is None
    assert hardware.from_nvml(nvml(nvmlDeviceGetCount=lambda: 0)).problem == hardware.NO_DEVICE
    assert "answered with an error (Not Supported)" in hardware.from_nvml(nvml(nvmlDeviceGetName=refuse)).problem


@pytest.mark.parametrize(
    ("fail", "problem"),
    [("NVMLError_DriverNotLoaded", hardware.NOT_LOADED), ("NVMLError_LibRmVersionMismatch", hardware.MISMATCH)],
)
def test_nvml_tells_what_is_wrong_with_the_driver(fail, problem):
    assert hardware.from_nvml(nvml(fail=fail)).problem == problem


def test_nvml_without_a_library_knows_nothing():
    assert hardware.from_nvml(nvml(fail="NVMLError_LibraryNotFound")) is None


def test_nvidia_smi_answers():
    def ask(*options):
        if options:
            return 0, "NVIDIA H100 80GB HBM3, 580.159.04, 81559, 9.0\nOrin, 580.159.04, [N/A], 8.7\n"
        return 0, "| NVIDIA-SMI 580.159.04   Driver Version: 580.159.04   CUDA Version: 13.0  |"

    probe = hardware.from_nvidia_smi(ask)
    assert probe.gpus == (H100, Gpu("Orin", (8, 7), None))
    assert (probe.driver, probe.cuda) == ("580.159.04", "13.0")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch", hardware.MISMATCH),
        ("No devices were found", hardware.NO_DEVICE),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", hardware.NOT_LOADED),
    ],
)
def test_nvidia_smi_fails(text, problem):
    assert hardware.from_nvidia_smi(lambda *options: (9, text)).problem == problem


class FakeCuda:
    def __init__(self, init=0, version=13000, count=1):
        self.init, self.version, self.count = init, version, count

    def cuDriverGetVersion(self, out):
        out._obj.value = self.version
        return 0

    def cuInit(self, flags):
        return self.init

    def cuDeviceGetCount(self, out):
        out._obj.value = self.count

    def cuDeviceGet(self, out, index):
        out._obj.value = index

    def cuDeviceGetName(self, buffer, size, device):
        buffer.value = b"NVIDIA Thor"

    def cuDeviceTotalMem_v2(self, out, device):
        out._obj.value = 64 << 30

    def cuDeviceGetAttribute(self, out, attribute, device):
        out._obj.value = {75: 11, 76: 0}[attribute]


def test_libcuda_answers():
    probe = hardware.from_libcuda(FakeCuda())
    assert probe.gpus == (Gpu("NVIDIA Thor", (11, 0), 65536),)
    assert probe.cuda == "13.0"


@pytest.mark.parametrize(
    ("code", "problem"),
    [(100, hardware.NO_DEVICE), (803, hardware.MISMATCH), (35, hardware.NOT_LOADED), (999, "error 999")],
)
def test_libcuda_there_but_failing_is_not_no_driver(code, problem):
    probe = hardware.from_libcuda(FakeCuda(init=code, version=11040))
    assert problem in probe.problem and probe.problem != hardware.NO_DRIVER
    assert probe.cuda == "11.4"


def test_no_tool_at_all_means_no_driver(monkeypatch):
    for name in ("from_nvml", "from_nvidia_smi", "from_libcuda"):
        monkeypatch.setattr(hardware, name, lambda: None)
    assert hardware.gpus() == GpuProbe(problem=hardware.NO_DRIVER)


def test_the_first_tool_that_knows_why_is_believed(monkeypatch):
    monkeypatch.setattr(hardware, "from_nvml", lambda: GpuProbe(problem=hardware.MISMATCH))
    monkeypatch.setattr(hardware, "from_nvidia_smi", lambda: GpuProbe(problem=hardware.NOT_LOADED))
    monkeypatch.setattr(hardware, "from_libcuda", lambda: None)
    assert hardware.gpus().problem == hardware.MISMATCH


def test_libcuda_is_absent_here_or_loads():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert sys.platform == "win32" or hardware.from_libcuda() is None
