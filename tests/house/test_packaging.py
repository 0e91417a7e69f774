"""environment.yml, pyproject.toml, the installer and the doctor name the same packages with the same pins."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from labsupport import __version__
from labsupport.command_line import doctor, installation, package_sets

REPOSITORY = Path(__file__).resolve().parents[2]
CONDA_ONLY = {"python", "pip", "cuda-version"}
GPU_EXTRAS = ("gpu", "pycuda", "tensorflow", "test")


@pytest.fixture(scope="module")
def project() -> dict:
    toml = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return toml.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def conda_lines() -> list[tuple[str, bool, str, str]]:
    """(file line, whether under pip:, requirement, comment) of each package."""
    lines, pip = [], False
    text = (REPOSITORY / "environment.yml").read_text(encoding="utf-8").partition("dependencies:\n")[2]
    for line in text.splitlines():
        if line.strip() == "- pip:":
            pip = True
            continue
        requirement, _, comment = line.strip().removeprefix("- ").partition("  #")
        lines.append((line, pip, requirement.strip(), comment.strip()))
    return lines


def normal(requirement: str) -> tuple[str, str, str]:
    """("numpy", ">=1.26,<3", marker); conda's `=` is pip's `==`."""
    requirement, _, marker = requirement.partition(";")
    name, pin = re.match(r"([\w.-]+)\s*(.*)", requirement.strip()).groups()
    pin = re.sub(r"^=(?!=)", "==", pin.strip())
    return name.lower(), ",".join(sorted(pin.split(","))), marker.strip()


def test_conda_and_pip_hold_the_same_packages_with_the_same_pins(project):
    pip = list(project["dependencies"])
    for extra in GPU_EXTRAS:
        pip += project["optional-dependencies"][extra]
    conda = [requirement for _, _, requirement, _ in conda_lines()]
    assert sorted(
        set(map(normal, conda)) - {entry for entry in map(normal, conda) if entry[0] in CONDA_ONLY}
    ) == sorted(set(map(normal, pip)))


def test_the_packages_that_were_promised_are_there():
    names = {normal(requirement)[0] for _, _, requirement, _ in conda_lines()}
    assert {
        "jupyterlab",
        "tensorrt",
        "torch",
        "torch-tensorrt",
        "tensorflow",
        "matplotlib",
        "pandas",
        "pycuda",
        "nbval",
    } <= names


def test_conda_takes_packages_from_conda_forge_only():
    text = (REPOSITORY / "environment.yml").read_text(encoding="utf-8")
    assert re.search(r"channels:\n((?:  - .*\n)+)", text).group(1) == "  - conda-forge\n"


def test_every_pin_says_why():
    bare = [line for line, _, requirement, comment in conda_lines() if normal(requirement)[1] and len(comment) < 10]
    assert bare == []


def test_python_versions_agree_everywhere(project):
    oldest, newest = doctor.SUPPORTED_PYTHON
    assert project["requires-python"] == f">={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}"
    python = next(requirement for _, _, requirement, _ in conda_lines() if requirement.startswith("python "))
    assert python == f"python {project['requires-python']}"
    workflow = (REPOSITORY / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    versions = [f'"3.{minor}"' for minor in range(oldest[1], newest[1] + 1)]
    assert f"python: [{', '.join(versions)}]" in workflow


def test_each_set_pins_the_torch_that_the_installer_installs_first(project):
    for name in package_sets.SETS:
        assert package_sets.TORCH[name] in project["optional-dependencies"][name]


def test_what_the_commands_need_is_what_gets_installed(project):
    installed = {
        normal(line)[0].replace("-", "_")
        for line in (
            *project["dependencies"],
            *project["optional-dependencies"]["test"],
            *project["optional-dependencies"]["cpu"],
        )
    }
    for needs in installation.NEEDS.values():
        assert set(needs) <= installed


def test_requirements_are_well_formed_and_satisfiable_together(project):
    from packaging.requirements import Requirement

    extras = project["optional-dependencies"]
    others = [line for name, lines in extras.items() if name not in package_sets.SETS for line in lines]
    for name in package_sets.SETS:  # an environment holds one of the sets
        pins: dict[str, set] = {}
        for line in (*project["dependencies"], *extras[name], *others):
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate():
                pins.setdefault(wanted.name, set()).add(str(wanted.specifier))
        assert {package: found for package, found in pins.items() if len(found) > 1} == {}, name


def test_what_a_pin_holds_back_breaks_no_other_package_of_the_labs():
    """Lab 00 shows the doctor's rows; a release that wants more than a pin of ours allows gets a pin, too."""
    assert [finding.value for finding in doctor.check_requirements()] == ["fit together"]


def test_ci_types_the_command_that_a_contributor_types():
    script = (REPOSITORY / ".ci/run").read_text(encoding="utf-8")
    assert script.rstrip().endswith("\npython3 -m labsupport test --all")
    workflow = (REPOSITORY / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert "python -m labsupport test --cpu" in workflow
    assert "runs-on: [self-hosted, linux, gpu]" in workflow and "python3 -m labsupport test --gpu" in workflow


def test_what_is_made_here_is_not_committed():
    ignored = (REPOSITORY / ".gitignore").read_text(encoding="utf-8").split()
    assert {
        ".venv/",
        ".venv.lock",
        ".labcache/",
        ".labprogress*",
        "notebooks/my_work/",
        "work/",
        ".gpu/",
        ".scratch/",
    } <= set(ignored)


def test_the_license_and_the_citation_say_what_the_package_says(project):
    assert project["license"] == "Apache-2.0" and project["license-files"] == ["LICENSE"]
    assert (REPOSITORY / "LICENSE").read_text(encoding="utf-8").split()[:2] == ["Apache", "License"]
    assert not [line for line in project["classifiers"] if line.startswith("License ::")]  # refused beside `license`
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    stated = dict(re.findall(r"(?m)^([a-z-]+): (.+)$", citation))
    assert stated["license"] == project["license"] and stated["abstract"].rstrip(".") == project["description"]
    assert stated["version"] == __version__ and f"name: {project['authors'][0]['name']}" in citation


def test_the_classifiers_name_the_pythons_that_are_supported(project):
    oldest, newest = doctor.SUPPORTED_PYTHON
    named = [line.rpartition("3.")[2] for line in project["classifiers"] if "Python :: 3." in line]
    assert named == [str(minor) for minor in range(oldest[1], newest[1] + 1)]
