"""Answers to random JSON schemas are judged by the Python package `jsonschema`, which did not make them."""

import concurrent.futures
import json
import os
import random
import unittest

import jsonschema
import openai

SCHEMAS = int(os.environ.get("M40_SCHEMAS", "200"))
AT_A_TIME = 8
WORDS = ["red", "green", "blue", "one", "two", "a b", "ü", "quote\"s", "back\\slash"]

client = openai.OpenAI(base_url=os.environ["M40_URL"] + "/v1", api_key="none", max_retries=0, timeout=300)


def any_schema(chance, depth):
    """A schema whose values are short, so that an answer always ends."""
    leaves = [a_text, a_number, a_choice, a_constant, lambda chance, depth: {"type": "boolean"},
              lambda chance, depth: {"type": "null"}]
    inner = [an_object, an_array, an_alternative] if depth > 0 else []
    return chance.choice(leaves + inner * 2)(chance, depth)


def a_text(chance, depth):
    forms = [{"maxLength": chance.randint(0, 8)}, {"pattern": "^[a-c]{1,4}$"}, {"format": "date"}]
    return {"type": "string", **chance.choice(forms)}


def a_number(chance, depth):
    least = chance.randint(-20, 20)
    return {"type": "integer", "minimum": least, "maximum": least + chance.randint(0, 100)}


def a_choice(chance, depth):
    return {"enum": chance.sample([*WORDS, 1, 2.5, True, None], chance.randint(1, 4))}


def a_constant(chance, depth):
    return {"const": chance.choice([*WORDS, 7, False, None])}


def an_object(chance, depth):
    names = chance.sample(WORDS, chance.randint(0, 3))
    properties = {name: any_schema(chance, depth - 1) for name in names}
    required = [name for name in names if chance.random() < 0.7]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def an_array(chance, depth):
    least = chance.randint(0, 2)
    items = any_schema(chance, depth - 1)
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + chance.randint(0, 2)}


def an_alternative(chance, depth):
    return {"anyOf": [any_schema(chance, depth - 1) for _ in range(chance.randint(1, 3))]}


def answer(seed):
    schema = any_schema(random.Random(seed), 3)
    form = {"type": "json_schema", "json_schema": {"name": "value", "schema": schema, "strict": True}}
    got = client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": "Write JSON."}], response_format=form,
        temperature=1, seed=seed, max_tokens=1000,
    )
    return schema, got.choices[0]


class Schemas(unittest.TestCase):
    def test_every_answer_is_as_its_schema_says(self):
        with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
            for seed, (schema, choice) in enumerate(pool.map(answer, range(SCHEMAS))):
                with self.subTest(seed=seed, schema=schema, answer=choice.message.content):
                    self.assertEqual(choice.finish_reason, "stop")
                    jsonschema.validate(json.loads(choice.message.content), schema)


if __name__ == "__main__":
    unittest.main()
