"""m40d as the Python package `anthropic` sees it."""

import json
import os
import unittest

import anthropic

MODEL = "smollm2"
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer briefly."}]
WEATHER = {
    "name": "get_weather",
    "description": "Says how the weather is in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}

client = anthropic.Anthropic(base_url=os.environ["M40_URL"], api_key="none", max_retries=0, timeout=120)


def fields(**more):
    return {"model": MODEL, "messages": QUESTION, "max_tokens": 24, "extra_body": {"temperature": 0}, **more}


class Messages(unittest.TestCase):
    def test_a_question_is_answered(self):
        message = client.messages.create(**fields(system="Be brief."))
        self.assertEqual((message.type, message.role, message.model), ("message", "assistant", MODEL))
        self.assertIn("Paris", message.content[0].text)
        self.assertGreater(message.usage.input_tokens + message.usage.cache_read_input_tokens, 10)
        self.assertGreater(message.usage.output_tokens, 0)

    def test_a_stream_says_what_the_whole_answer_says(self):
        whole = client.messages.create(**fields())
        with client.messages.stream(**fields()) as stream:
            kinds = [event.type for event in stream]
            streamed = stream.get_final_message()
        self.assertEqual(kinds[0], "message_start")
        self.assertEqual(kinds[-1], "message_stop")
        self.assertEqual(streamed.content[0].text, whole.content[0].text)
        self.assertEqual(streamed.stop_reason, whole.stop_reason)
        self.assertEqual(streamed.usage.output_tokens, whole.usage.output_tokens)

    def test_the_end_has_its_reason(self):
        cut = client.messages.create(**fields(max_tokens=2))
        self.assertEqual(cut.stop_reason, "max_tokens")
        stopped = client.messages.create(**fields(stop_sequences=["Paris"]))
        self.assertEqual((stopped.stop_reason, stopped.stop_sequence), ("stop_sequence", "Paris"))
        self.assertNotIn("Paris", stopped.content[0].text if stopped.content else "")

    def test_blocks_and_earlier_thoughts_are_understood(self):
        history = [
            {"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "That is easy.", "signature": ""},
                {"type": "text", "text": "Paris."},
            ]},
            {"role": "user", "content": "And of Italy?"},
        ]
        system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
        message = client.messages.create(**fields(messages=history, system=system))
        self.assertTrue(message.content[0].text)

    def test_tokens_are_counted_as_an_answer_counts_them(self):
        counted = client.messages.count_tokens(model=MODEL, messages=QUESTION)
        usage = client.messages.create(**fields()).usage
        self.assertEqual(counted.input_tokens, usage.input_tokens + usage.cache_read_input_tokens)


    def test_a_schema_is_kept(self):
        schema = {"type": "object", "properties": {"large": {"type": "boolean"}}, "required": ["large"],
                  "additionalProperties": False}
        form = {"format": {"type": "json_schema", "schema": schema}}
        message = client.messages.create(**fields(output_config=form, max_tokens=100))
        self.assertIsInstance(json.loads(message.content[0].text)["large"], bool)


class Tools(unittest.TestCase):
    def test_a_tool_that_must_be_called_is_called(self):
        for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
            asked = fields(model="tools", tools=[WEATHER], tool_choice=choice, max_tokens=100)
            message = client.messages.create(**asked)
            call = next(block for block in message.content if block.type == "tool_use")
            self.assertEqual((call.name, message.stop_reason), ("get_weather", "tool_use"))
            self.assertIn(call.input["city"], ["Paris", "Rome"])
            with client.messages.stream(**asked) as stream:
                streamed = stream.get_final_message()
            again = next(block for block in streamed.content if block.type == "tool_use")
            self.assertEqual((again.name, again.input), (call.name, call.input))

    def test_what_a_tool_said_is_answered(self):
        history = [
            {"role": "user", "content": "How is the weather in Paris?"},
            {"role": "assistant", "content": [
                {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "sunny"}]}]},
        ]
        asked = fields(model="tools", tools=[WEATHER], tool_choice={"type": "none"}, messages=history)
        self.assertTrue(client.messages.create(**asked).content)


class Errors(unittest.TestCase):
    def test_an_unknown_model_is_not_found(self):
        with self.assertRaises(anthropic.NotFoundError) as caught:
            client.messages.create(**fields(model="nobody"))
        self.assertEqual(caught.exception.body["type"], "error")
        self.assertEqual(caught.exception.body["error"]["type"], "not_found_error")
        self.assertTrue(caught.exception.body["request_id"])

    def test_wrong_requests_are_named(self):
        for wrong in ({"max_tokens": 0}, {"messages": []}, {"messages": [{"role": "user", "content": 7}]}):
            with self.assertRaises(anthropic.BadRequestError) as caught:
                client.messages.create(**fields(**wrong))
            self.assertEqual(caught.exception.body["error"]["type"], "invalid_request_error")
            self.assertIn(next(iter(wrong)), str(caught.exception))


if __name__ == "__main__":
    unittest.main()
