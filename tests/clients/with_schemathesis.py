"""m40d as `schemathesis` sees it: requests of all kinds that the OpenAPI document allows, and wrong ones."""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

SECONDS = os.environ.get("M40_SCHEMATHESIS_S", "30")
CONFIG = pathlib.Path(__file__).resolve().with_name("schemathesis.toml")


class Document(unittest.TestCase):
    def test_no_request_makes_the_server_fail(self):
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)]
        command += ["run", os.environ["M40_URL"] + "/openapi.json", "--phases", "examples,coverage,fuzzing"]
        command += ["--seed", "5", "--max-time", SECONDS, "--request-timeout", "60", "--suppress-health-check", "all"]
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout[-20000:] + done.stderr[-5000:])
        cases = next(line.strip() for line in done.stdout.splitlines() if " generated, " in line)
        print(f"Ran requests: {cases}")


if __name__ == "__main__":
    unittest.main()
