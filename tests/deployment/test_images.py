"""The Dockerfile and the compose files, as far as they can be checked where there is no container engine."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

import yaml

from places import DEPLOY, ROOT, SERVER, output_of
from ports import free_port

DOCKERFILE = DEPLOY / "docker" / "Dockerfile"


def stages():
    """Instructions of each stage, by its name."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    found, name = {}, ""
    for line in lines:
        if match := re.match(r"FROM \S+ AS (\S+)", line):
            name = match.group(1)
            found[name] = []
        elif name and line.strip():
            found[name].append(line.split(None, 1))
    return found


class Images(unittest.TestCase):
    def test_the_linter_has_nothing_to_say(self):
        output_of("hadolint", DOCKERFILE)

    def test_both_images_run_as_nobody_in_particular_and_ask_the_binary_for_its_health(self):
        for target in ("cpu", "cuda"):
            said = dict(stages()[target])
            self.assertEqual(said["USER"], "65532:65532", target)
            self.assertEqual(json.loads(said["ENTRYPOINT"]), ["/usr/local/bin/baichuan-server"])
            self.assertEqual(json.loads(said["CMD"]), ["serve"])
            probe = json.loads(said["HEALTHCHECK"].split("CMD", 1)[1])
            self.assertEqual(probe, ["/usr/local/bin/baichuan-server", "health"])
            output_of(SERVER, *probe[1:], "--help")
            labels = set(re.findall(r"org\.opencontainers\.image\.(\w+)", said["LABEL"]))
            self.assertLessEqual({"title", "description", "licenses", "version", "revision", "created"}, labels)

    def test_what_is_copied_exists_and_reaches_the_builder(self):
        ignored = output_of("git", "ls-files", "--cached", "--others", "--exclude-from=/dev/null", cwd=ROOT).splitlines()
        kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
        for wanted in kept:
            self.assertTrue((ROOT / wanted).exists(), wanted)
        for target in ("cpu", "cuda"):
            for word, rest in stages()[target]:
                if word == "COPY" and not rest.startswith("--from"):
                    source = rest.split()[0].rstrip("/")
                    self.assertTrue(any(source == k or source.startswith(k + "/") for k in kept), source)
                    self.assertTrue(any(f == source or f.startswith(source + "/") for f in ignored), source)

    def test_the_builder_has_every_file_that_the_workspace_names(self):
        members = re.search(r"members = \[(.*?)\]", (ROOT / "Cargo.toml").read_text(), re.DOTALL).group(1)
        kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
        for member in re.findall(r'"([^"]+)"', members):
            manifest = f"{member}/Cargo.toml"
            self.assertTrue(any(manifest == k or manifest.startswith(k + "/") for k in kept), manifest)

    @unittest.skipUnless(os.geteuid() == 0, "needs root to make a root file system")
    def test_the_program_serves_from_an_image_of_its_libraries_read_only_and_as_nobody(self):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            root.chmod(0o755)
            self.lay_out(root)
            # A mount namespace of its own, the tree read-only, user 65532, no shell: the image's `cpu` target.
            script = (
                f"mount --bind {root} {root} && mount -o remount,ro,bind {root} && mount -t proc proc {root}/proc; "
                f"exec chroot --userspec=65532:65532 {root} /usr/local/bin/baichuan-server"
            )
            address = f"127.0.0.1:{free_port()}"
            env = {"BAICHUAN_LISTEN__GRPC": address, "BAICHUAN_LISTEN__ADMIN": "off", "PATH": os.environ["PATH"]}
            server = subprocess.Popen(["unshare", "--mount", "sh", "-c", f"{script} serve"], env=env, stderr=subprocess.PIPE, text=True)
            try:
                said = []
                for line in server.stderr:
                    said.append(line)
                    if "readiness changed" in line and "ready=true" in re.sub(r"\x1b\[[0-9;]*m", "", line):
                        break
                else:
                    self.fail(f"it ended with {server.wait()} before it was ready:\n{''.join(said)}")
                output_of("unshare", "--mount", "sh", "-c", f"{script} health --server {address}", env=env)
                status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
                self.assertRegex(status, r"Uid:\s+65532\s+65532\s+65532\s+65532")
            finally:
                server.terminate()
                said = server.communicate(timeout=60)[1]
            self.assertEqual(server.returncode, 0, said)

    def lay_out(self, root):
        (root / "usr/local/bin").mkdir(parents=True)
        (root / "proc").mkdir()
        (root / "dev").mkdir()
        shutil.copy(SERVER, root / "usr/local/bin/baichuan-server")
        for library in re.findall(r"(/\S+) \(0x", output_of("ldd", SERVER)):
            place = root / library.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(os.path.realpath(library), place)
        shutil.copytree(ROOT / "models/baichuan-m1-wordnet", root / "usr/share/baichuan-serve/models/baichuan-m1-wordnet")


class Compose(unittest.TestCase):
    def setUp(self):
        self.compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())

    def test_what_is_mounted_and_built_exists(self):
        for service in self.compose["services"].values():
            for volume in service.get("volumes", []):
                source = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", volume).split(":")[0]
                if source.startswith("."):
                    self.assertTrue((DEPLOY / source).exists(), source)
                else:
                    self.assertIn(source, self.compose["volumes"])
        build = self.compose["services"]["server"]["build"]
        self.assertEqual((DEPLOY / build["context"]).resolve(), ROOT)
        self.assertTrue((ROOT / build["dockerfile"]).exists())
        self.assertIn(build["target"], stages())

    def test_only_this_machine_reaches_it_and_no_image_floats(self):
        for name, service in self.compose["services"].items():
            for port in service.get("ports", []):
                self.assertTrue(port.startswith("127.0.0.1:"), port)
            self.assertRegex(service["image"], r":[\w.\-]+$")
            self.assertNotIn("latest", service["image"])
            self.assertIs(service["read_only"], True, name)
            self.assertEqual(service["cap_drop"], ["ALL"], name)

    def test_the_server_has_longer_to_stop_than_it_takes_to_drain(self):
        server = self.compose["services"]["server"]
        drain = int(server["environment"]["BAICHUAN_SHUTDOWN__DRAIN_TIMEOUT"].removesuffix("s"))
        self.assertGreater(int(server["stop_grace_period"].removesuffix("s")), drain)

    def test_what_the_others_call_is_a_service_of_this_file(self):
        services = set(self.compose["services"])
        gpu = yaml.safe_load((DEPLOY / "compose.cuda.yaml").read_text())
        self.assertLessEqual(set(gpu["services"]) - services, {"dcgm"})
        called = re.findall(r"(?:endpoint: (?:http://)?|http://)([a-z]+):\d+", (DEPLOY / "observability/otel/collector.yaml").read_text())
        targets = re.findall(r'"([a-z]+):\d+"', (DEPLOY / "observability/prometheus/prometheus.yml").read_text())
        self.assertLessEqual(set(called) | set(targets), services | set(gpu["services"]))


if __name__ == "__main__":
    unittest.main()
