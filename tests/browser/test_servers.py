"""`lab` where the room is not as it should be: a port in use, no browser, a read-only checkout, two servers, a full disk."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.request

import lab_server
import pytest

LABS = sorted(path.stem for path in (lab_server.REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.fixture
def checkout(tmp_path):
    pytest.importorskip("jupyterlab")
    return lab_server.copy_of_checkout(tmp_path / "Räume & mehr")


def needs_mounts():
    if not lab_server.can_mount():
        pytest.skip("this machine lets no process have mounts of its own (unshare)")


def answers(address: str) -> bool:
    return urllib.request.urlopen(address, timeout=60).status == 200


def test_a_port_in_use_is_said_and_another_one_taken(checkout, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with lab_server.running(checkout, tmp_path / "one", f"--port={port}") as (address, log):
            assert answers(address) and f":{port}/" not in address
            assert re.search(rf"port {port} is already in use", log.read_text())


def test_without_a_browser_the_address_is_printed(checkout, tmp_path):
    (tmp_path / "nothing").mkdir()
    words = {"PATH": str(tmp_path / "nothing"), "BROWSER": "", "DISPLAY": ""}
    with lab_server.running(checkout, tmp_path / "one", "--port=0", browser=True, **words) as (address, log):
        assert answers(address)
        assert "No web browser found" in log.read_text()


def test_a_checkout_that_cannot_be_written_opens_the_shipped_labs(checkout, tmp_path):
    needs_mounts()
    readonly = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0"'
    with lab_server.running(checkout, tmp_path / "one", "--port=0", before=readonly) as (address, log):
        assert answers(address)
        said = log.read_text()
        assert "cannot be made (Read-only file system)" in said and "The shipped notebooks are opened" in said
    assert not (checkout / "work").exists()


def test_two_servers_on_one_checkout(checkout, tmp_path):
    with (
        lab_server.running(checkout, tmp_path / "one", "--port=0") as (first, _),
        lab_server.running(checkout, tmp_path / "two", "--port=0") as (second, _),
    ):
        assert first != second and answers(first) and answers(second)
    made = sorted((checkout / "work").iterdir())
    assert [path.stem for path in made] == LABS
    assert all(json.loads(path.read_text(encoding="utf-8"))["cells"] for path in made)


def test_a_disk_that_gets_full_leaves_no_half_copy(checkout, tmp_path):
    needs_mounts()
    program = (
        "import os\nfrom labsupport.exercises import own_copies\nfolder, said = own_copies.folder_to_open()\nimport "
        "json\nwhole = [json.loads(open('work/' + name).read())['cells'] for name in "
        "sorted(os.listdir('work'))]\nprint(json.dumps({'folder': folder, 'said': said, 'whole': len(whole)}))\n"
    )
    (checkout / "work").mkdir()
    shell = 'mount -t tmpfs -o size=200k none "$0/work" && cd "$0" && exec "$@"'
    command = [*lab_server.NAMESPACES, "sh", "-c", shell, str(checkout), sys.executable, "-c", program]
    done = subprocess.run(
        command, capture_output=True, text=True, env=lab_server.variables(checkout, tmp_path), timeout=120
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["folder"] == "notebooks" and "No space left on device" in told["said"]
    assert 0 < told["whole"] < len(LABS)
    assert os.listdir(checkout / "work") == []
