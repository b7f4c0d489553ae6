#!/usr/bin/env python3
"""What the files of a deployment say of each other and of the service, and what no engine is needed to find out: sources
that a COPY would miss, variables that are no settings, ports and times that do not fit. deploy/cdk has tests of its own.

    scripts/check_deploy.py                  # checks
    scripts/check_deploy.py --context DIR    # copies what `docker build .` would send into DIR, which is new
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Beyond it, something got in that no build reads.
CONTEXT_BYTES_MAX = 64 << 20

# What a process needs between the end of its own time for shutdown and SIGKILL.
EXIT_S = 10


def read(name):
    return (ROOT / name).read_text()


class Ignore:
    """The rules of .dockerignore: in order, the last that matches a path or a folder above it decides."""

    def __init__(self, text):
        lines = (line.strip() for line in text.splitlines())
        self.rules = [(line.startswith("!"), self.regex(line.lstrip("!"))) for line in lines if line and not line.startswith("#")]

    @staticmethod
    def regex(pattern):
        out, rest = "", pattern.strip("/")
        while rest:
            if rest.startswith("**/"):
                out, rest = out + "(?:.*/)?", rest[3:]
            elif rest.startswith("**"):
                out, rest = out + ".*", rest[2:]
            else:
                out += {"*": "[^/]*", "?": "[^/]"}.get(rest[0], re.escape(rest[0]))
                rest = rest[1:]
        return re.compile(out + "(?:/.*)?")

    def __call__(self, path):
        ignored = False
        for negated, regex in self.rules:
            if regex.fullmatch(path):
                ignored = not negated
        return ignored


def context():
    """The files that `docker build .` sends, by path."""
    ignore = Ignore(read(".dockerignore"))
    # Walking through these takes long; `check_context` asks whether the rules leave them out.
    skip = {"target", ".git", "node_modules"}
    found, folders = [], [ROOT]
    while folders:
        for path in folders.pop().iterdir():
            if path.is_dir() and not path.is_symlink():
                if path.name not in skip:
                    folders.append(path)
            elif not ignore(str(path.relative_to(ROOT))):
                found.append(str(path.relative_to(ROOT)))
    return sorted(found)


def stages():
    """The Dockerfile's stages in order: {name: {"base", "instructions": [(word, rest), ...]}}."""
    text = re.sub(r"^\s*#.*\n", "", read("Dockerfile"), flags=re.M)
    found = {}
    for line in re.sub(r"\\\n", " ", text).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found.setdefault(name, {"base": base, "instructions": []})
        elif word:
            stage["instructions"].append((word, rest.strip()))
    return found


def settings():
    """The service's settings and their defaults, from the README's table, which a test compares with the code."""
    table = read("README.md").split("<!-- settings -->")[1]
    found = dict(re.findall(r"^\| `([A-Z_]+)` \| `--[a-z-]+` \| `?([^`|]*)`? \|", table, re.M))
    assert len(found) > 20, "README.md: the table of settings was not found"
    return found


def environment(stage):
    pairs = " ".join(rest for word, rest in stage["instructions"] if word == "ENV")
    return dict(pair.split("=", 1) for pair in pairs.split())


def check_context(files):
    for name in ("Cargo.toml", "Cargo.lock", "models/embedder/model.safetensors", "crates/service/build.rs"):
        if name not in files:
            yield f".dockerignore: leaves out {name}, which the build reads"
    ignore = Ignore(read(".dockerignore"))
    for name in ("target", ".git", "fuzz", "bench", "deploy/cdk/node_modules", "crates/service/target", "models/node_modules"):
        if not ignore(f"{name}/file"):
            yield f".dockerignore: lets in {name}"
    size = sum((ROOT / name).stat().st_size for name in files)
    if size > CONTEXT_BYTES_MAX:
        yield f".dockerignore: the context has {size >> 20} MiB, more than {CONTEXT_BYTES_MAX >> 20}"
    # Files outside the crates that the code takes in while it compiles.
    for source in ROOT.glob("crates/*/src/**/*.rs"):
        for folder in re.findall(r'CARGO_MANIFEST_DIR"\), "/\.\./\.\./([\w-]+)/', source.read_text()):
            if not any(name.startswith(f"{folder}/") for name in files):
                yield f".dockerignore: leaves out {folder}/, which {source.relative_to(ROOT)} takes in"


def check_copies(files):
    for name, stage in stages().items():
        for word, rest in stage["instructions"]:
            if word not in ("COPY", "ADD") or "--from=" in rest:
                continue
            for source in rest.split()[:-1]:
                if not any(file == source or file.startswith(f"{source.rstrip('/')}/") for file in files):
                    yield f"Dockerfile, stage {name}: {word} {source}: not in the context"


def check_dockerfile(known):
    found = stages()
    if list(found)[-1] != "cuda":
        yield "Dockerfile: the last stage is what `docker build .` makes, and has to be cuda"
    version = re.search(r'^rust-version = "([\d.]+)"', read("Cargo.toml"), re.M)[1]
    if not found["build"]["base"].startswith(f"rust:{version}."):
        yield f"Dockerfile: builds with {found['build']['base']}, and Cargo.toml says {version}"
    if not re.search(r"cargo build --release --locked .*--bin nexus ", str(found["build"]["instructions"])):
        yield "Dockerfile: no `cargo build --release --locked ... --bin nexus`"
    for name, stage in found.items():
        if not re.search(r":[\w.]*\d[\w.-]*$|:bookworm-slim$", stage["base"]):
            yield f"Dockerfile, stage {name}: {stage['base']} is not pinned by a tag"
    for name in ("cpu", "cuda"):
        stage, where = found[name], f"Dockerfile, stage {name}"
        words = {}
        for word, rest in stage["instructions"]:
            words.setdefault(word, []).append(rest)
        variables = environment(stage)
        expected = {
            "USER": ["10001:10001"], "STOPSIGNAL": ["SIGTERM"], "ENTRYPOINT": ['["nexus"]'], "CMD": ['["serve"]'],
            "EXPOSE": [variables.get("NEXUS_PORT")], "VOLUME": [variables.get("NEXUS_CACHE_DIR")],
        }
        for word, value in expected.items():
            if words.get(word) != value:
                yield f"{where}: {word} is {words.get(word)}, expected {value}"
        if not any(rest.endswith('CMD ["nexus", "health"]') for rest in words.get("HEALTHCHECK", [])):
            yield f"{where}: HEALTHCHECK is not by `nexus health`"
        for variable, value in (("NEXUS_HOST", "0.0.0.0"), ("NEXUS_BUILTIN", "off")):
            if variables.get(variable) != value:
                yield f"{where}: {variable} is {variables.get(variable)}, expected {value}"
        for variable in variables:
            if variable not in known and not variable.startswith("NVIDIA_"):
                yield f"{where}: {variable} is no setting"
        for package in ("curl", "ca-certificates"):
            if not re.search(rf"apt-get install [^&]*\b{package}\b", " ".join(words["RUN"])):
                yield f"{where}: {package} is not installed"
        if "--from=build /out/nexus /usr/local/bin/nexus" not in words["COPY"]:
            yield f"{where}: has not the binary of stage build"


def check_compose(known):
    text = read("compose.yaml")
    for variable in set(re.findall(r"^      ([A-Z_]+):", text, re.M)):
        if variable not in known and not re.fullmatch(r"AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN)", variable):
            yield f"compose.yaml: {variable} is no setting"
    found = stages()
    targets = re.findall(r"target: (\w+)", text)
    for target in targets:
        if target not in found:
            yield f"compose.yaml: target {target} is no stage of the Dockerfile"
    folders = re.findall(r'volumes: \["cache:([^"]+)"\]', text)
    ports = re.findall(r'ports: \["127\.0\.0\.1:\d+:(\d+)"\]', text)
    for what, values, variable in (("ports", ports, "NEXUS_PORT"), ("volumes", folders, "NEXUS_CACHE_DIR")):
        expected = [environment(found[target]).get(variable) for target in targets]
        if values != expected:
            yield f"compose.yaml: {what} lead to {values}, and the images have {expected}"
    graces = [int(value) for value in re.findall(r"stop_grace_period: (\d+)s", text)]
    least = int(known["NEXUS_SHUTDOWN_TIMEOUT_MS"]) // 1000 + EXIT_S
    if len(graces) != len(targets) or min(graces) < least:
        yield f"compose.yaml: stop_grace_period is {graces}, expected {least} s or more for each service"


def check_task(known):
    name = "deploy/ecs/task-definition.json"
    task = json.loads(read(name))
    image = environment(stages()["cuda"])
    if (task["family"], task["requiresCompatibilities"]) != ("nexus-ecs-service", ["EC2"]):
        yield f"{name}: expected family nexus-ecs-service on EC2"
    [container] = task["containerDefinitions"]
    variables = {pair["name"]: pair["value"] for pair in container["environment"]}
    for variable in variables:
        if variable not in known:
            yield f"{name}: {variable} is no setting"
    ports = [mapping["containerPort"] for mapping in container["portMappings"]]
    if ports != [int(image["NEXUS_PORT"])]:
        yield f"{name}: ports {ports}, and the image listens on {image['NEXUS_PORT']}"
    if f":{ports[0]}/health" not in container["healthCheck"]["command"][1]:
        yield f"{name}: the health check does not ask /health on port {ports[0]}"
    if [mount["containerPath"] for mount in container["mountPoints"]] != [image.get("NEXUS_CACHE_DIR")]:
        yield f"{name}: nothing is mounted on {image.get('NEXUS_CACHE_DIR')}"
    if container["resourceRequirements"] != [{"type": "GPU", "value": "4"}]:
        yield f"{name}: expected 4 GPUs"

    def seconds(variable):
        return int(variables.get(variable, known[variable])) / 1000

    if container["stopTimeout"] < seconds("NEXUS_SHUTDOWN_TIMEOUT_MS") + EXIT_S:
        yield f"{name}: stopTimeout is less than NEXUS_SHUTDOWN_TIMEOUT_MS and {EXIT_S} s: SIGKILL would come first"
    if container["stopTimeout"] > 120:
        yield f"{name}: stopTimeout is more than the 120 s that ECS allows"
    if seconds("NEXUS_SHUTDOWN_TIMEOUT_MS") * 0.9 < seconds("NEXUS_REQUEST_TIMEOUT_MS"):
        yield f"{name}: NEXUS_SHUTDOWN_TIMEOUT_MS is too short for a request that takes NEXUS_REQUEST_TIMEOUT_MS"


def check_documents(known):
    for path in [*ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*.md")]:
        text = path.read_text()
        for variable in sorted(set(re.findall(r"\b(NEXUS_[A-Z_]+[A-Z])\b", text)) - set(known)):
            yield f"{path.relative_to(ROOT)}: {variable} is no setting"
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            if not (path.parent / link).exists():
                yield f"{path.relative_to(ROOT)}: {link} is not there"


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--context", metavar="DIR", type=Path)
    into = arguments.parse_args().context
    files = context()
    if into:
        for name in files:
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, into / name)
        return
    known = settings()
    problems = [
        *check_context(files), *check_copies(files), *check_dockerfile(known), *check_compose(known), *check_task(known),
        *check_documents(known),
    ]
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        sys.exit(1)
    size = sum((ROOT / name).stat().st_size for name in files) >> 20
    print(f"Dockerfile, compose.yaml and the task definition fit the service; the context has {len(files)} files, {size} MiB")


if __name__ == "__main__":
    main()
