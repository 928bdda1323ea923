"""m40d as the Python package `openai` sees it."""

import concurrent.futures
import json
import math
import os
import unittest

import openai
from pydantic import BaseModel

URL = os.environ["M40_URL"] + "/v1"
MODEL = "smollm2"
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
            "additionalProperties": False,
        },
        "strict": True,
    },
}


class City(BaseModel):
    name: str
    large: bool


def client(**options):
    return openai.OpenAI(**{"base_url": URL, "api_key": "none", "max_retries": 0, "timeout": 120, **options})


def ask(messages=QUESTION, **fields):
    fields = {"model": MODEL, "temperature": 0, "max_tokens": 24, **fields}
    return client().chat.completions.create(messages=messages, **fields)


class Chat(unittest.TestCase):
    def test_a_question_is_answered(self):
        answer = ask()
        self.assertIn("Paris", answer.choices[0].message.content)
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)

    def test_a_stream_says_what_the_whole_answer_says(self):
        whole = ask().choices[0]
        chunks = list(ask(stream=True, stream_options={"include_usage": True}))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertEqual(text, whole.message.content)
        self.assertEqual(chunks[-2].choices[0].finish_reason, whole.finish_reason)
        self.assertGreater(chunks[-1].usage.completion_tokens, 0)

    def test_several_answers_and_logprobs_are_given(self):
        answer = ask(n=2, temperature=1.0, seed=7, logprobs=True, top_logprobs=2, max_tokens=6)
        self.assertEqual([choice.index for choice in answer.choices], [0, 1])
        for choice in answer.choices:
            for token in choice.logprobs.content:
                self.assertEqual(len(token.top_logprobs), 2)

    def test_a_stop_string_ends_an_answer(self):
        answer = ask(stop=["Paris"])
        self.assertNotIn("Paris", answer.choices[0].message.content)
        self.assertEqual(answer.choices[0].finish_reason, "stop")

    def test_parts_and_developers_are_understood(self):
        part = {"type": "text", "text": "What is the capital of France?"}
        answer = ask([{"role": "developer", "content": "Be brief."}, {"role": "user", "content": [part]}])
        self.assertIn("Paris", answer.choices[0].message.content)


class Structure(unittest.TestCase):
    def test_a_schema_is_kept(self):
        answer = client().chat.completions.parse(
            model=MODEL, messages=QUESTION, response_format=City, temperature=0, max_tokens=200,
        )
        self.assertIsInstance(answer.choices[0].message.parsed, City)

    def test_json_objects_are_objects(self):
        answer = ask(response_format={"type": "json_object"}, max_tokens=300)
        if answer.choices[0].finish_reason == "stop":
            self.assertIsInstance(json.loads(answer.choices[0].message.content), dict)


class Tools(unittest.TestCase):
    def test_a_tool_that_must_be_called_is_called(self):
        for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
            answer = ask(model="tools", tools=[WEATHER], tool_choice=choice, max_tokens=100)
            (call,) = answer.choices[0].message.tool_calls[:1]
            self.assertEqual(call.function.name, "get_weather")
            self.assertIn(json.loads(call.function.arguments)["city"], ["Paris", "Rome"])
            self.assertEqual(answer.choices[0].finish_reason, "tool_calls")

    def test_a_streamed_call_has_the_same_arguments(self):
        chunks = ask(model="tools", tools=[WEATHER], tool_choice="required", max_tokens=100, stream=True)
        name, arguments, reason = None, "", None
        for chunk in chunks:
            reason = chunk.choices[0].finish_reason or reason
            for call in chunk.choices[0].delta.tool_calls or []:
                if call.index == 0:
                    name = call.function.name or name
                    arguments += call.function.arguments or ""
        self.assertEqual((name, reason), ("get_weather", "tool_calls"))
        self.assertIn(json.loads(arguments)["city"], ["Paris", "Rome"])

    def test_what_a_tool_said_is_answered(self):
        call = {"id": "call_1", "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
        history = [
            {"role": "user", "content": "How is the weather in Paris?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ]
        answer = ask(history, model="tools", tools=[WEATHER], tool_choice="none")
        self.assertTrue(answer.choices[0].message.content)


class OtherRoutes(unittest.TestCase):
    def test_models_are_listed_and_found(self):
        self.assertIn(MODEL, [model.id for model in client().models.list()])
        self.assertEqual(client().models.retrieve(MODEL).id, MODEL)

    def test_texts_are_gone_on_from(self):
        fields = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
        whole = client().completions.create(**fields).choices[0].text
        self.assertEqual(whole, " Paris.\n\n")
        streamed = client().completions.create(stream=True, **fields)
        self.assertEqual("".join(c.choices[0].text for c in streamed if c.choices), whole)

    def test_embeddings_are_the_same_in_both_encodings(self):
        texts = ["a cat", "a dog"]
        # The package asks for base64 by itself and decodes it.
        packed = client().embeddings.create(model=MODEL, input=texts).data
        plain = client().embeddings.create(model=MODEL, input=texts, encoding_format="float").data
        self.assertEqual([item.index for item in packed], [0, 1])
        for a, b in zip(packed, plain):
            self.assertAlmostEqual(math.sqrt(sum(x * x for x in b.embedding)), 1, places=3)
            for x, y in zip(a.embedding, b.embedding):
                self.assertAlmostEqual(x, y, places=5)

    def test_responses_are_given_whole_and_streamed(self):
        fields = {"model": MODEL, "input": QUESTION[0]["content"], "max_output_tokens": 24,
                  "temperature": 0}
        whole = client().responses.create(**fields)
        self.assertIn("Paris", whole.output_text)
        events = list(client().responses.create(stream=True, **fields))
        self.assertEqual([e.sequence_number for e in events], list(range(len(events))))
        self.assertEqual(events[0].type, "response.created")
        self.assertIn(events[-1].type, ["response.completed", "response.incomplete"])
        self.assertEqual(events[-1].response.output_text, whole.output_text)


class Errors(unittest.TestCase):
    def test_an_unknown_model_is_not_found(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            ask(model="nobody")
        self.assertEqual((caught.exception.code, caught.exception.param), ("model_not_found", "model"))
        self.assertTrue(caught.exception.request_id)

    def test_a_wrong_value_is_named(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            ask(temperature=-1)
        self.assertEqual(caught.exception.param, "temperature")

    def test_a_prompt_that_is_too_long_is_refused(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            ask([{"role": "user", "content": "word " * 5000}])
        self.assertEqual(caught.exception.code, "context_length_exceeded")


class Retries(unittest.TestCase):
    def test_a_full_queue_is_tried_again_until_there_is_room(self):
        endless = {"messages": QUESTION, "model": MODEL, "max_tokens": 4000, "extra_body": {"ignore_eos": True}}
        running = [client().chat.completions.create(stream=True, **endless) for _ in range(16)]
        for stream in running:
            next(iter(stream))
        with concurrent.futures.ThreadPoolExecutor() as pool:
            # One of two waits, which is as many as may; so the other is refused.
            waiting = [pool.submit(ask) for _ in range(2)]
            done, rest = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
            with self.assertRaises(openai.RateLimitError) as caught:
                done.pop().result()
            self.assertGreaterEqual(int(caught.exception.response.headers["retry-after"]), 1)

            statuses = []

            def seen(response):
                statuses.append(response.status_code)
                for stream in running:
                    stream.close()

            http = openai.DefaultHttpxClient(event_hooks={"response": [seen]})
            patient = client(max_retries=5, http_client=http)
            answer = patient.chat.completions.create(messages=QUESTION, model=MODEL, max_tokens=4)
            self.assertTrue(answer.choices)
            self.assertEqual((statuses[0], statuses[-1]), (429, 200))
            self.assertTrue(rest.pop().result().choices)


if __name__ == "__main__":
    unittest.main()
