//! The real SmolLM2 through the whole of it.

use m40_testkit::models;
use serde_json::{Value, json};

use crate::{builder, ctl, path_str};

#[test]
fn smollm2_is_pulled_and_answers_over_every_way_in() {
    let daemon = builder().start();
    let file = models::smollm2();
    let pulled = ctl(&daemon, &["pull", path_str(&file), "--name", "smollm2", "--json"]).ok();
    let last: Value = serde_json::from_str(pulled.out.lines().last().unwrap()).unwrap();
    assert_eq!(last["model"]["architecture"], "llama");
    assert_eq!(last["model"]["quantization"], "Q4_1");

    // As llama.cpp answers: tests/data has its golden text.
    let request = json!({"model": "smollm2", "prompt": "The capital of France is",
        "temperature": 0, "max_tokens": 4});
    let reply = daemon.post("/generate", &request);
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.json()["text"], " Paris.\n\n");

    let question = "What is 2 plus 2? Answer with a number.";
    let chat = json!({"messages": [{"role": "user", "content": question}], "temperature": 0,
        "max_tokens": 24});
    let reply = daemon.post("/v1/chat/completions", &chat).json();
    let content = reply["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(content.contains('4'), "{content}");
    let run = ["run", "--temperature", "0", "--max-tokens", "24", "smollm2", question];
    let answer = ctl(&daemon, &run).ok().out;
    assert_eq!(answer.trim_end(), content.trim_end());
}
