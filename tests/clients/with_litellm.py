"""m40d as the Python package `litellm` sees it, by OpenAI's API and by Ollama's."""

import json
import os
import unittest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm  # noqa: E402

URL = os.environ["M40_URL"]
OPENAI = {"model": "openai/smollm2", "api_base": URL + "/v1", "api_key": "none"}
OLLAMA = {"model": "ollama_chat/smollm2", "api_base": URL}
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer briefly."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Says how the weather is in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
        },
    },
}


def ask(way, **fields):
    fields = {"messages": QUESTION, "temperature": 0, "max_tokens": 24, "timeout": 120, "num_retries": 0, **fields}
    return litellm.completion(**{**way, **fields})


class Completions(unittest.TestCase):
    def test_a_question_is_answered_either_way(self):
        for way in (OPENAI, OLLAMA):
            answer = ask(way)
            self.assertIn("Paris", answer.choices[0].message.content)
            self.assertGreater(answer.usage.completion_tokens, 0)

    def test_streams_are_read_either_way(self):
        for way in (OPENAI, OLLAMA):
            text = "".join(chunk.choices[0].delta.content or "" for chunk in ask(way, stream=True))
            self.assertEqual(text, ask(way).choices[0].message.content)

    def test_a_schema_is_kept(self):
        schema = {"type": "object", "properties": {"large": {"type": "boolean"}}, "required": ["large"],
                  "additionalProperties": False}
        form = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}}
        answer = ask(OPENAI, response_format=form, max_tokens=100)
        self.assertIsInstance(json.loads(answer.choices[0].message.content)["large"], bool)

    def test_a_tool_that_must_be_called_is_called(self):
        way = {**OPENAI, "model": "openai/tools"}
        answer = ask(way, tools=[WEATHER], tool_choice="required", max_tokens=100)
        call = answer.choices[0].message.tool_calls[0]
        self.assertEqual(call.function.name, "get_weather")
        self.assertIn(json.loads(call.function.arguments)["city"], ["Paris", "Rome"])

    def test_embeddings_have_all_texts(self):
        answer = litellm.embedding(**{**OPENAI, "input": ["a cat", "a dog"], "encoding_format": "float"})
        self.assertEqual(len(answer.data), 2)

    def test_an_unknown_model_is_not_found(self):
        with self.assertRaises(litellm.exceptions.NotFoundError):
            ask({**OPENAI, "model": "openai/nobody"}, max_retries=0)


if __name__ == "__main__":
    unittest.main()
