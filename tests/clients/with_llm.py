"""m40d as the command line tool `llm` sees it, by its plugin for OpenAI's API."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

URL = os.environ["M40_URL"] + "/v1"
QUESTION = "What is the capital of France? Answer briefly."
MODELS = [
    {"model_id": "chat", "model_name": "smollm2", "api_base": URL, "supports_schema": True},
    {"model_id": "calls", "model_name": "tools", "api_base": URL, "supports_tools": True},
    {"model_id": "text", "model_name": "smollm2", "api_base": URL, "completion": True},
    {"model_id": "nobody", "model_name": "nobody", "api_base": URL},
]


class Commands(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        # JSON is YAML.
        (pathlib.Path(self.folder) / "extra-openai-models.yaml").write_text(json.dumps(MODELS))

    def llm(self, *arguments):
        command = [sys.executable, "-m", "llm", *arguments]
        environment = {**os.environ, "LLM_USER_PATH": self.folder}
        return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=120)

    def ask(self, *arguments):
        done = self.llm("prompt", "-o", "temperature", "0", "-o", "max_tokens", "60", *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_an_answer_is_the_same_streamed_or_whole(self):
        streamed = self.ask("-m", "chat", QUESTION)
        self.assertIn("Paris", streamed)
        self.assertEqual(self.ask("-m", "chat", "--no-stream", QUESTION), streamed)

    def test_a_schema_is_kept(self):
        schema = {"type": "object", "properties": {"large": {"type": "boolean"}}, "required": ["large"],
                  "additionalProperties": False}
        answer = self.ask("-m", "chat", "--schema", json.dumps(schema), QUESTION)
        self.assertIsInstance(json.loads(answer)["large"], bool)

    def test_texts_are_gone_on_from(self):
        self.assertIn("Paris", self.ask("-m", "text", "The capital of France is"))

    def test_tools_are_offered(self):
        function = "def get_weather(city: str) -> str:\n    'The weather in a city.'\n    return 'sunny'\n"
        self.ask("-m", "calls", "--functions", function, "--chain-limit", "8", "--tools-debug", "Say hello.")

    def test_an_unknown_model_is_told(self):
        done = self.llm("prompt", "-m", "nobody", "hello")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("nobody", done.stderr)


if __name__ == "__main__":
    unittest.main()
