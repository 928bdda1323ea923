"""m40d as the Python package `ollama` sees it."""

import json
import math
import os
import unittest

import ollama

MODEL = "smollm2"
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer briefly."}]
OPTIONS = {"temperature": 0, "num_predict": 24}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "large": {"type": "boolean"}},
    "required": ["name", "large"],
    "additionalProperties": False,
}

client = ollama.Client(host=os.environ["M40_URL"], timeout=120)


def get_weather(city: str) -> str:
    """Says how the weather is in a city.

    Args:
        city: The city.
    """
    return f"sunny in {city}"


class Models(unittest.TestCase):
    def test_models_are_listed_with_their_sizes(self):
        models = {model.model: model for model in client.list().models}
        model = models[f"{MODEL}:latest"]
        self.assertGreater(model.size, 10_000_000)
        self.assertEqual(model.details.family, "llama")

    def test_a_model_is_shown_with_what_its_file_says(self):
        shown = client.show(MODEL)
        self.assertEqual(shown.modelinfo["general.architecture"], "llama")
        self.assertEqual(shown.modelinfo["llama.context_length"], 4096)
        self.assertIn("completion", shown.capabilities)

    def test_loaded_models_are_those_in_memory(self):
        client.generate(MODEL)
        running = client.ps().models
        self.assertIn(f"{MODEL}:latest", [model.model for model in running])
        self.assertGreater(running[0].size, 0)


class Answers(unittest.TestCase):
    def test_a_question_is_answered(self):
        answer = client.chat(MODEL, QUESTION, options=OPTIONS)
        self.assertIn("Paris", answer.message.content)
        self.assertTrue(answer.done)
        self.assertGreater(answer.eval_count, 0)
        self.assertGreater(answer.total_duration, answer.eval_duration)

    def test_a_stream_says_what_the_whole_answer_says(self):
        whole = client.chat(MODEL, QUESTION, options=OPTIONS)
        chunks = list(client.chat(MODEL, QUESTION, options=OPTIONS, stream=True))
        self.assertEqual("".join(chunk.message.content for chunk in chunks), whole.message.content)
        self.assertEqual([chunk.done for chunk in chunks], [False] * (len(chunks) - 1) + [True])
        self.assertEqual(chunks[-1].done_reason, whole.done_reason)

    def test_a_raw_prompt_is_gone_on_from(self):
        answer = client.generate(MODEL, "The capital of France is", raw=True,
                                 options={"temperature": 0, "num_predict": 4})
        self.assertEqual((answer.response, answer.done_reason), (" Paris.\n\n", "length"))

    def test_a_prompt_is_put_into_the_template(self):
        chunks = list(client.generate(MODEL, QUESTION[0]["content"], options=OPTIONS, stream=True))
        self.assertIn("Paris", "".join(chunk.response for chunk in chunks))

    def test_a_schema_is_kept(self):
        answer = client.chat(MODEL, QUESTION, format=SCHEMA, options={"temperature": 0, "num_predict": 200})
        value = json.loads(answer.message.content)
        self.assertEqual((type(value["name"]), type(value["large"])), (str, bool))

    def test_tools_and_what_they_said_are_taken(self):
        call = {"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
        history = [
            {"role": "user", "content": "How is the weather in Paris?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_name": "get_weather", "content": "sunny in Paris"},
        ]
        answer = client.chat("tools", history, tools=[get_weather], options=OPTIONS)
        # A model of this size may say something, or ask again.
        self.assertTrue(answer.message.content or answer.message.tool_calls)

    def test_embeddings_are_of_length_one(self):
        answer = client.embed(MODEL, ["a cat", "a dog"])
        self.assertEqual(len(answer.embeddings), 2)
        for row in answer.embeddings:
            self.assertAlmostEqual(math.sqrt(sum(x * x for x in row)), 1, places=3)
        self.assertEqual(len(client.embeddings(MODEL, "a cat").embedding), len(answer.embeddings[0]))


class Memory(unittest.TestCase):
    def test_an_empty_prompt_loads_and_unloads(self):
        loaded = client.generate("other")
        self.assertEqual((loaded.response, loaded.done_reason), ("", "load"))
        self.assertIn("other:latest", [model.model for model in client.ps().models])
        self.assertEqual(client.generate("other", keep_alive=0).done_reason, "unload")
        self.assertNotIn("other:latest", [model.model for model in client.ps().models])


class Errors(unittest.TestCase):
    def test_an_unknown_model_is_not_found(self):
        with self.assertRaises(ollama.ResponseError) as caught:
            client.chat("nobody", QUESTION)
        self.assertEqual(caught.exception.status_code, 404)
        self.assertIn("not found", caught.exception.error)

    def test_models_are_not_managed_unless_that_is_allowed(self):
        for attempt in (lambda: client.delete(MODEL), lambda: client.pull("nobody")):
            with self.assertRaises(ollama.ResponseError) as caught:
                attempt()
            self.assertIn("allow_model_management", caught.exception.error)

    def test_images_are_refused_by_a_text_model(self):
        pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
        with self.assertRaises(ollama.ResponseError) as caught:
            client.chat(MODEL, [{"role": "user", "content": "What is it?", "images": [pixel]}])
        self.assertEqual(caught.exception.status_code, 400)


if __name__ == "__main__":
    unittest.main()
