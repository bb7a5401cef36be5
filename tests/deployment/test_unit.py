"""The systemd unit."""

import pathlib
import shutil
import tempfile
import tomllib
import unittest

from places import DEPLOY, SERVER, output_of

UNIT = DEPLOY / "systemd" / "baichuan-server.service"


class Unit(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        # The unit with the program where this test has it.
        self.unit = pathlib.Path(folder.name) / UNIT.name
        self.unit.write_text(UNIT.read_text().replace("/usr/local/bin/baichuan-server", SERVER))

    def test_systemd_takes_every_line(self):
        said = output_of("systemd-analyze", "verify", "--man=no", self.unit)
        self.assertNotIn(UNIT.name, said)

    def test_an_unknown_setting_is_found(self):
        self.unit.write_text(self.unit.read_text().replace("ProtectHome=", "ProtectHum="))
        self.assertIn("ProtectHum", output_of("systemd-analyze", "verify", "--man=no", self.unit))

    def test_what_the_service_may_do_is_little(self):
        # 0 is least exposed, 10 most; an unhardened service has 9.6.
        output_of("systemd-analyze", "security", "--offline=yes", "--threshold=20", self.unit)

    def test_it_is_killed_only_after_the_sample_configuration_has_drained(self):
        lines = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#"))
        self.assertEqual(lines["TimeoutStopSec"], "4min")
        sample = (DEPLOY / "config/cpu-server.toml").read_text()
        self.assertIn('drain_timeout = "2m"', sample)

    def test_the_sample_configuration_serves_this_machine_alone_until_somebody_says_who_may_call(self):
        sample = tomllib.loads((DEPLOY / "config/cpu-server.toml").read_text())
        self.assertEqual([address.split(":")[0] for address in sample["listen"].values()], ["127.0.0.1"] * 2)
        self.assertNotIn("auth", sample)

    def test_programs_it_starts_are_spelt_as_the_server_spells_them(self):
        commands = [line.split("=", 1)[1].split() for line in UNIT.read_text().splitlines() if line.startswith("ExecStart")]
        self.assertEqual({command[1] for command in commands}, {"check-config", "serve"})
        for command in commands:
            output_of(SERVER, command[1], "--help")


assert shutil.which("systemd-analyze"), "systemd-analyze is needed (Debian: systemd)"

if __name__ == "__main__":
    unittest.main()
