"""m40d as the Python package `langchain-ollama` sees it."""

import os
import unittest

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
from pydantic import BaseModel

URL = os.environ["M40_URL"]
QUESTION = "What is the capital of France? Answer briefly."


class City(BaseModel):
    """A city."""

    large: bool


@tool
def get_weather(city: str) -> str:
    """Says how the weather is in a city."""
    return f"sunny in {city}"


def chat(**options):
    return ChatOllama(**{"model": "smollm2", "base_url": URL, "temperature": 0, "num_predict": 24, **options})


class Chats(unittest.TestCase):
    def test_a_question_is_answered(self):
        answer = chat().invoke(QUESTION)
        self.assertIn("Paris", answer.content)
        self.assertGreater(answer.usage_metadata["output_tokens"], 0)

    def test_a_stream_says_what_the_whole_answer_says(self):
        text = "".join(chunk.content for chunk in chat().stream(QUESTION))
        self.assertEqual(text, chat().invoke(QUESTION).content)

    def test_a_schema_is_kept(self):
        asker = chat(num_predict=100).with_structured_output(City, method="json_schema")
        self.assertIsInstance(asker.invoke(QUESTION), City)

    def test_tools_and_what_they_said_are_taken(self):
        call = {"name": "get_weather", "args": {"city": "Paris"}, "id": "call_1"}
        history = [
            HumanMessage("How is the weather in Paris?"),
            AIMessage("", tool_calls=[call]),
            ToolMessage("sunny in Paris", tool_call_id="call_1"),
        ]
        answer = chat(model="tools").bind_tools([get_weather]).invoke(history)
        self.assertTrue(answer.content or answer.tool_calls)

    def test_texts_are_gone_on_from(self):
        model = OllamaLLM(model="smollm2", base_url=URL, temperature=0, num_predict=24)
        self.assertIn("Paris", model.invoke(QUESTION))

    def test_texts_are_embedded(self):
        rows = OllamaEmbeddings(model="smollm2", base_url=URL).embed_documents(["a cat", "a dog"])
        self.assertEqual(len(rows), 2)
        self.assertEqual(len(rows[0]), len(rows[1]))


if __name__ == "__main__":
    unittest.main()
