//! Many models, one memory: what is loaded, evicted, queued and refused, and that nothing is lost.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use m40_testkit::daemon::{Builder, Daemon};
use m40_testkit::gguf::TinyModel;
use serde_json::{Value, json};

use crate::{ENDLESS_CONTEXT, builder, check_healthy, ctl, path_str};

/// Clients at a time.
const CLIENTS: usize = 64;

/// Requests of all of them, unless `M40_REQUESTS` says how many.
const REQUESTS: usize = 2000;

/// A daemon that is not started yet, for models of so many MiB, that swaps quickly.
fn small(memory_mib: u32) -> Builder {
    builder().config(&format!(
        "[models]\nmemory_mib_max = {memory_mib}\npatience_ms = 200\nresident_ms_min = 50\n"
    ))
}

/// Writes a model of its own weights, of about 9 MiB with its cache, and a manifest for it.
fn define(root: &Path, name: &str, keys: &str) {
    let seed = name.bytes().fold(0, |seed, byte| seed * 31 + u64::from(byte));
    let file =
        crate::write(root, &format!("{name}.gguf"), &TinyModel::new("llama").seed(seed).build());
    manifest(root, name, &format!("source = {:?}\n{keys}\n", path_str(&file)));
}

fn manifest(root: &Path, name: &str, text: &str) {
    let dir = root.join("models.d");
    fs::create_dir_all(&dir).expect("the folder of a test");
    let fresh = dir.join(format!(".{name}"));
    fs::write(&fresh, text).expect("a manifest");
    fs::rename(fresh, dir.join(format!("{name}.toml"))).expect("a manifest");
}

fn prompt(model: &str, prompt: &str) -> Value {
    json!({"model": model, "prompt": prompt, "max_tokens": 6, "temperature": 0,
        "ignore_eos": true})
}

/// The text of a streamed answer.
#[track_caller]
fn streamed(daemon: &Daemon, request: &Value) -> String {
    let mut request = request.clone();
    request["stream"] = json!(true);
    let mut stream = daemon.post_stream("/generate", &request);
    let status = stream.status;
    assert_eq!(status, 200, "{:?}, {request}", stream.rest());
    let mut text = String::new();
    while let Some(line) = stream.line() {
        let event: Value = serde_json::from_str(&line).expect("a line of JSON");
        match event["text"].as_str() {
            Some(piece) => text.push_str(piece),
            None => {
                assert_eq!(event["done"], true, "{event}");
                assert_eq!(event["model"], request["model"]);
                return text;
            }
        }
    }
    panic!("the stream ended without its last line, after {text:?}");
}

/// Looks at the ledger: it is the sum of its parts, and within the budget. Returns the models in it.
#[track_caller]
fn check_ledger(daemon: &Daemon) -> Vec<String> {
    let vram = ctl(daemon, &["vram", "--json"]).ok().json();
    let number = |value: &Value| value.as_u64().expect("a number of bytes");
    let parts = ["weight_bytes", "kv_bytes", "scratch_bytes"];
    let models = vram["models"].as_array().expect("a list");
    let sum_of =
        |part: &str| models.iter().map(|model| number(&model["memory"][part])).sum::<u64>();
    for part in parts {
        assert_eq!(sum_of(part), number(&vram["sum"][part]), "{vram}");
    }
    let held = number(&vram["held_bytes"]);
    assert_eq!(parts.iter().map(|part| number(&vram["sum"][*part])).sum::<u64>(), held, "{vram}");
    assert_eq!(held + number(&vram["free_bytes"]), number(&vram["budget_bytes"]), "{vram}");
    let name = |model: &Value| model["model"].as_str().expect("a name").to_owned();
    models.iter().map(name).collect()
}

#[test]
fn sixty_four_clients_of_four_models_that_do_not_all_fit_lose_and_mix_up_nothing() {
    let requests = std::env::var("M40_REQUESTS").ok();
    let requests = requests.map_or(REQUESTS, |count| count.parse().expect("a number of requests"));
    let models = ["north", "east", "south", "west"];
    let prompts = ["one", "two words", "three more words", "a fourth prompt"];
    // Two of them fit.
    let builder = small(20);
    models.iter().for_each(|model| define(builder.dir(), model, ""));
    let mut daemon = builder.start();
    let alone = models.map(|model| prompts.map(|text| streamed(&daemon, &prompt(model, text))));
    assert_ne!(alone[0], alone[1], "models are told apart by what they say");

    let (asked, busy) = (AtomicUsize::new(0), AtomicBool::new(true));
    let looks = thread::scope(|scope| {
        let client = || {
            let mut answered = 0;
            loop {
                let n = asked.fetch_add(1, Ordering::Relaxed);
                if n >= requests {
                    return answered;
                }
                // An ordinary hash: neighbours ask for different things.
                let hash = n.wrapping_mul(2_654_435_761);
                let (model, text) = ((hash >> 7) % 4, (hash >> 13) % 4);
                let answer = streamed(&daemon, &prompt(models[model], prompts[text]));
                assert_eq!(answer, alone[model][text], "{} {}", models[model], prompts[text]);
                answered += 1;
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        let looking = scope.spawn(|| {
            let mut looks = 0;
            while busy.load(Ordering::Relaxed) {
                assert!(check_ledger(&daemon).len() <= 2);
                looks += 1;
            }
            looks
        });
        let answered: Vec<_> = clients.into_iter().map(thread::ScopedJoinHandle::join).collect();
        busy.store(false, Ordering::Relaxed);
        let answered = answered.into_iter().map(|answered| answered.expect("a right answer"));
        assert_eq!(answered.sum::<usize>(), requests);
        looking.join().expect("a true ledger")
    });
    assert!(looks > 0);
    let evictions = daemon.log().matches("why=Room").count();
    assert!(evictions >= 2, "{}", daemon.log());
    println!("{requests} requests, {evictions} evictions, {looks} looks at the ledger");
    assert_eq!(ctl(&daemon, &["queue", "--json"]).ok().json()["requests"], json!([]));
    check_healthy(&mut daemon);
}

#[test]
fn the_least_important_model_leaves_first_and_a_pinned_one_never() {
    let builder = small(20);
    define(builder.dir(), "pinned", "pin = true");
    define(builder.dir(), "low", "priority = -1");
    define(builder.dir(), "high", "priority = 1");
    let daemon = builder.start();
    let ask = |model: &str| streamed(&daemon, &prompt(model, "a"));
    ask("pinned");
    ask("low");
    let plan = ctl(&daemon, &["plan", "high", "--json"]).ok().json();
    assert_eq!(plan["evicts"][0]["model"], "low", "{plan}");
    assert_eq!(plan["free_bytes"], ctl(&daemon, &["vram", "--json"]).ok().json()["free_bytes"]);
    let said = ctl(&daemon, &["plan", "high"]).ok().out;
    assert!(said.lines().any(|line| line.starts_with("evicts    low, which frees ")), "{said}");
    assert_eq!(check_ledger(&daemon), ["low", "pinned"], "a plan changes nothing");
    ask("high");
    assert_eq!(check_ledger(&daemon), ["high", "pinned"]);
    ask("low");
    assert_eq!(check_ledger(&daemon), ["low", "pinned"], "there is nothing else to leave");
    let ps = ctl(&daemon, &["ps"]).ok().out;
    assert!(ps.lines().any(|line| line.starts_with("pinned  ready  ")), "{ps}");
}

#[test]
fn what_never_fits_is_refused_with_the_arithmetic_and_disturbs_nobody() {
    let builder = small(12);
    define(builder.dir(), "small", "");
    let long = TinyModel::new("llama").context(ENDLESS_CONTEXT).build();
    let long = crate::write(builder.dir(), "long.gguf", &long);
    let keys = format!("source = {:?}\ncontext_tokens = {ENDLESS_CONTEXT}\n", path_str(&long));
    manifest(builder.dir(), "long", &keys);
    let daemon = builder.start();
    streamed(&daemon, &prompt("small", "a"));
    let reply = daemon.post("/generate", &prompt("long", "a"));
    assert_eq!(reply.status, 422, "{}", reply.body);
    let error = &reply.json()["error"];
    assert_eq!((&error["code"], &error["param"]), (&json!("model_too_large"), &json!("model")));
    let says = ["never fits", "60000 tokens", "there are 12", "a context of "];
    says.iter().for_each(|part| assert!(reply.body.contains(part), "{}", reply.body));
    ctl(&daemon, &["load", "long"]).fails(65, &says);
    let plan = ctl(&daemon, &["plan", "--json", "long"]).ok().json();
    assert_eq!(plan["outcome"], "refused", "{plan}");
    assert_eq!(check_ledger(&daemon), ["small"]);
}

#[test]
fn pinned_models_that_do_not_fit_together_are_refused_as_a_set_and_the_old_one_stays() {
    let builder = small(20);
    define(builder.dir(), "one", "pin = true");
    let mut daemon = builder.start();
    streamed(&daemon, &prompt("one", "a"));
    for name in ["two", "three"] {
        define(daemon.dir(), name, "pin = true");
    }
    let reload = ctl(&daemon, &["reload"]);
    assert_eq!(reload.code, 65, "{}", reload.out);
    assert!(reload.out.contains("pinned models need 27 MiB and there are 20"), "{}", reload.out);
    let status = ctl(&daemon, &["status"]).ok().out;
    assert!(status.contains("pinned models need "), "{status}");
    streamed(&daemon, &prompt("one", "a"));
    fs::remove_file(daemon.dir().join("models.d/three.toml")).expect("a manifest");
    ctl(&daemon, &["reload"]).ok();
    streamed(&daemon, &prompt("two", "a"));
    assert_eq!(check_ledger(&daemon), ["one", "two"]);
    assert!(!ctl(&daemon, &["status"]).ok().out.contains("wrong"));

    // At a start there is no older set: all is served, and nothing is pinned until they fit.
    define(daemon.dir(), "three", "pin = true");
    daemon = daemon.crash().start();
    for name in ["one", "two", "three"] {
        streamed(&daemon, &prompt(name, "a"));
    }
    assert!(ctl(&daemon, &["status"]).ok().out.contains("pinned models need "));
    check_healthy(&mut daemon);
}

#[test]
fn a_model_leaves_when_nobody_has_asked_for_it_for_as_long_as_it_was_to_stay() {
    let builder = small(20);
    define(builder.dir(), "brief", "idle_unload_after = \"1s\"");
    define(builder.dir(), "lasting", "");
    let daemon = builder.start();
    streamed(&daemon, &prompt("brief", "a"));
    streamed(&daemon, &prompt("lasting", "a"));
    crate::manifests::until("out of memory by itself", || check_ledger(&daemon) == ["lasting"]);
    assert!(daemon.log().contains("why=Idle"), "{}", daemon.log());
    streamed(&daemon, &prompt("brief", "a"));
}

#[test]
fn a_load_that_failed_is_not_tried_at_once_again_but_for_an_operator() {
    let builder = small(20);
    let wrong = crate::write(builder.dir(), "tokenizer.json", b"{}");
    define(builder.dir(), "m", &format!("tokenizer = {{ file = {:?} }}", path_str(&wrong)));
    let daemon = builder.start();
    let ask = || daemon.post("/generate", &prompt("m", "a"));
    let loads = || daemon.log().matches("loading").count();
    for _ in 0..3 {
        let reply = ask();
        assert_eq!(reply.status, 500, "{}", reply.body);
        assert_eq!(reply.json()["error"]["code"], "model_load_failed");
        assert!(reply.body.contains("tokenizer"), "{}", reply.body);
        assert!(reply.body.contains("failures in a row: 1"), "{}", reply.body);
    }
    assert_eq!(loads(), 1, "{}", daemon.log());
    let status = ctl(&daemon, &["status"]).ok().out;
    assert!(status.lines().any(|line| line.contains("failed: ")), "{status}");
    ctl(&daemon, &["load", "m"]).fails(65, &["tokenizer", "failures in a row: 2"]);
    assert_eq!(loads(), 2, "{}", daemon.log());
    ctl(&daemon, &["unload", "m"]).ok();
    assert!(ctl(&daemon, &["status"]).ok().out.contains("no model is loaded"));
    assert!(ask().body.contains("failures in a row: 1"), "it is forgotten");

    define(daemon.dir(), "m", "");
    ctl(&daemon, &["reload"]).ok();
    streamed(&daemon, &prompt("m", "a"));
}

#[test]
fn a_model_in_memory_goes_on_when_its_file_is_gone_and_others_are_edited() {
    let builder = small(20);
    define(builder.dir(), "m", "");
    let daemon = builder.start();
    let before = streamed(&daemon, &prompt("m", "a"));
    let file = daemon.dir().join("m.gguf");
    fs::remove_file(&file).expect("the model's file");
    define(daemon.dir(), "other", "");
    manifest(daemon.dir(), "m", &format!("source = {:?}\npriority = 3\n", path_str(&file)));
    ctl(&daemon, &["reload"]).ok();
    assert_eq!(streamed(&daemon, &prompt("m", "a")), before);
    ctl(&daemon, &["unload", "m"]).ok();
    assert_eq!(daemon.post("/generate", &prompt("m", "a")).status, 500);
    ctl(&daemon, &["load", "m"]).fails(66, &["m.gguf", "does not exist"]);
    let list = ctl(&daemon, &["list"]).ok().out;
    assert!(list.contains("failed: there is no file"), "{list}");
}

/// As [`crate::endless`], and `tiny` answers one request at a time.
fn endless_alone(builder: Builder) -> Daemon {
    let model = TinyModel::new("llama").context(ENDLESS_CONTEXT);
    let file = crate::write(builder.dir(), "tiny.gguf", &model.build());
    let keys = format!("context_tokens = {ENDLESS_CONTEXT}\nsequences_max = 1\npreload = true");
    manifest(builder.dir(), "tiny", &format!("source = {:?}\n{keys}\n", path_str(&file)));
    builder.start()
}

/// A long answer.
fn long() -> Value {
    json!({"model": "tiny", "prompt": "a", "stream": true, "ignore_eos": true, "temperature": 0})
}

#[test]
fn a_request_is_seen_in_the_queue_and_can_be_cancelled_whether_it_waits_or_runs() {
    let mut daemon = endless_alone(builder());
    let mut running = daemon.post_stream("/generate", &long());
    running.line().expect("a token");
    let requests = || {
        let queue = ctl(&daemon, &["queue", "--json"]).ok().json();
        queue["requests"].as_array().expect("a list").clone()
    };
    let patient = json!({"model": "tiny", "prompt": "b", "urgency": "batch"});
    thread::scope(|scope| {
        let waiting = scope.spawn(|| daemon.post("/generate", &patient));
        crate::manifests::until("two requests", || requests().len() == 2);
        let seen = requests();
        assert_eq!((&seen[0]["running"], &seen[1]["running"]), (&json!(true), &json!(false)));
        assert_eq!((&seen[1]["urgency"], &seen[1]["ahead"]), (&json!("batch"), &json!(0)));
        let text = ctl(&daemon, &["queue"]).ok().out;
        assert!(text.lines().nth(2).is_some_and(|line| line.contains("batch")), "{text}");
        let number = seen[1]["request"].to_string();
        let said = ctl(&daemon, &["cancel", &number]).ok().out;
        assert_eq!(said, format!("cancelled {number}, which waited for tiny\n"));
        let reply = waiting.join().expect("a reply");
        assert_eq!(reply.status, 409, "{}", reply.body);
        assert_eq!(reply.json()["error"]["code"], "cancelled");
        ctl(&daemon, &["cancel", &number]).fails(66, &["m40ctl queue"]);
    });
    // What cannot be answered is told without a wait.
    let wrong = json!({"model": "tiny", "prompt": "", "max_tokens": 1});
    assert_eq!(daemon.post("/generate", &wrong).status, 400);
    let number = requests()[0]["request"].to_string();
    let said = ctl(&daemon, &["cancel", &number]).ok().out;
    assert_eq!(said, format!("cancelled {number}, which ran on tiny\n"));
    let last = std::iter::from_fn(|| running.line()).last().expect("a last line");
    assert!(last.contains("an operator cancelled it"), "{last}");
    check_healthy(&mut daemon);
}

#[test]
fn a_request_is_over_at_its_deadline_whether_it_waits_or_runs() {
    let daemon = endless_alone(builder());
    let mut brief = long();
    brief["deadline_s"] = json!(0.3);
    let mut running = daemon.post_stream("/generate", &brief);
    let waiting =
        daemon.post("/generate", &json!({"model": "tiny", "prompt": "b", "deadline_s": 0.05}));
    assert_eq!(waiting.status, 504, "{}", waiting.body);
    assert_eq!(waiting.json()["error"]["code"], "deadline_passed");
    let last = std::iter::from_fn(|| running.line()).last().expect("a last line");
    assert!(last.contains("deadline_passed"), "{last}");
    let wrong = daemon.post("/generate", &json!({"prompt": "b", "deadline_s": 0}));
    assert_eq!((wrong.status, &wrong.json()["error"]["param"]), (400, &json!("deadline_s")));
    let wrong = daemon.post("/generate", &json!({"prompt": "b", "urgency": "asap"}));
    assert_eq!((wrong.status, &wrong.json()["error"]["param"]), (400, &json!("urgency")));
}

#[test]
fn a_client_that_waits_and_leaves_frees_its_place() {
    let daemon = endless_alone(builder().config("[limits]\nqueued_jobs_max = 1"));
    let mut running = daemon.post_stream("/generate", &long());
    running.line().expect("a token");
    let mut leaves = m40_testkit::http::connect(daemon.http());
    let body = long().to_string();
    let head = format!(
        "POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    std::io::Write::write_all(&mut leaves, head.as_bytes()).expect("a request");
    let waiting = || {
        let queue = ctl(&daemon, &["queue", "--json"]).ok().json();
        queue["requests"].as_array().expect("a list").len() - 1
    };
    crate::manifests::until("one that waits", || waiting() == 1);
    drop(leaves);
    crate::manifests::until("nobody that waits", || waiting() == 0);
}

/// The outcome of a request in the middle of everything: the right answer, or an error that says who
/// ended it.
#[track_caller]
fn check_answered_or_told(daemon: &Daemon, request: &Value, right: &str) {
    let reply = daemon.post("/generate", request);
    let body = reply.json();
    match reply.status {
        200 => assert_eq!(body["text"], right, "{request}"),
        409 => assert_eq!(body["error"]["code"], "cancelled", "{body}"),
        503 => assert_eq!(body["error"]["code"], "unloaded", "{body}"),
        other => panic!("status {other}: {body}"),
    }
}

#[test]
fn clients_that_leave_and_operators_that_interfere_leave_nothing_behind() {
    let models = ["a", "b", "c"];
    // Two of them fit.
    let builder = small(20);
    models.iter().for_each(|model| define(builder.dir(), model, ""));
    let mut daemon = builder.start();
    let right = models.map(|model| streamed(&daemon, &prompt(model, "x")));
    thread::scope(|scope| {
        let (daemon, right) = (&daemon, &right);
        for client in 0..12_u32 {
            scope.spawn(move || {
                // An ordinary linear congruential generator, another start for each client.
                let mut state = client.wrapping_mul(977);
                let mut random = |below: u32| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 16) % below
                };
                for _ in 0..40 {
                    let model = random(3) as usize;
                    let mut request = prompt(models[model], "x");
                    match random(10) {
                        0 => drop(ctl(daemon, &["unload", models[model]])),
                        1 => drop(ctl(daemon, &["unload", "--force", models[model]])),
                        2 => drop(ctl(daemon, &["load", models[model]])),
                        3 => {
                            let queue = ctl(daemon, &["queue", "--json"]).ok().json();
                            let number =
                                queue["requests"][random(3) as usize]["request"].to_string();
                            drop(ctl(daemon, &["cancel", &number]));
                        }
                        4 | 5 => {
                            request["stream"] = json!(true);
                            request["max_tokens"] = json!(100);
                            let mut stream = daemon.post_stream("/generate", &request);
                            // Leaves after a token, or before it has read any.
                            if random(2) == 0 {
                                stream.line();
                            }
                        }
                        _ => check_answered_or_told(daemon, &request, &right[model]),
                    }
                }
            });
        }
    });
    let queue = || ctl(&daemon, &["queue", "--json"]).ok().json();
    crate::manifests::until("all that was asked is over", || queue()["requests"] == json!([]));
    check_ledger(&daemon);
    for (model, right) in models.iter().zip(&right) {
        assert_eq!(streamed(&daemon, &prompt(model, "x")), *right);
        ctl(&daemon, &["unload", model]).ok();
    }
    assert_eq!(check_ledger(&daemon), [""; 0], "every byte has come back");
    check_healthy(&mut daemon);
}

#[test]
fn who_waits_for_a_load_is_told_at_once_that_the_daemon_stops_and_who_runs_may_end() {
    // Each takes 67 MiB.
    let sections = format!(
        "[models]\ncontext_tokens_max = {ENDLESS_CONTEXT}\nmemory_mib_max = 100\n\
         [limits]\nshutdown_grace_s = 3600"
    );
    let model = TinyModel::new("llama").context(ENDLESS_CONTEXT);
    let mut daemon = crate::load(builder().config(&sections), &model);
    let other = crate::write(daemon.dir(), "other.gguf", &model.build());
    let mut request = long();
    request["max_tokens"] = json!(2000);
    let mut running = daemon.post_stream("/generate", &request);
    let mut lines = vec![running.line().expect("a token")];
    let mut waits = daemon.ctl(crate::M40CTL, &["run", path_str(&other), "a"]);
    let waits = waits.stderr(Stdio::piped()).spawn().expect("m40ctl must run");
    let queue = || ctl(&daemon, &["queue", "--json"]).ok().json();
    crate::manifests::until("one that waits", || queue()["requests"][1]["running"] == false);
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    let told = waits.wait_with_output().expect("m40ctl must end");
    crate::Done::from(&told).fails(75, &["m40d is stopping"]);
    lines.extend(std::iter::from_fn(|| running.line()));
    let last: Value = serde_json::from_str(lines.last().expect("a line")).expect("JSON");
    assert_eq!(last["usage"]["completion_tokens"], 2000, "{last}");
    assert!(daemon.wait().success());
}
