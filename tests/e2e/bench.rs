//! `m40ctl bench`: one schema as a table, as CSV and as JSON, and a plot of it.

use std::fs;

use serde_json::Value;

use crate::{Done, builder, check_healthy, ctl, path_str, tiny, with_tiny};

/// Short figures of the tiny model, whose context has 256 tokens.
const SMALL: [&str; 12] = [
    "bench",
    "tiny",
    "--repeats",
    "2",
    "--prompts",
    "16,512",
    "--tokens",
    "4",
    "--depths",
    "0,40",
    "--batches",
    "1,3",
];

fn measured(daemon: &m40_testkit::daemon::Daemon, options: &[&str]) -> Done {
    ctl(daemon, &[&SMALL[..], options].concat()).ok()
}

#[test]
fn a_model_is_measured_line_by_line() {
    let mut daemon = builder().start();
    let file = tiny(daemon.dir(), "tiny.gguf");
    // By default, as llama-bench has them.
    let bench = ["bench", path_str(&file), "--repeats", "1", "--batches", "1,3"];
    let out = ctl(&daemon, &bench).ok().out;
    let lines: Vec<_> = out.lines().collect();
    assert!(lines[0].starts_with("tiny on cpu, "), "{out}");
    assert!(lines[1].ends_with("M40, predicted"), "{out}");
    let rows = [
        ("pp512", "1", false),
        ("tg128", "1", true),
        ("tg128", "3", true),
        ("pp512 @ d4096", "1", false),
        ("tg128 @ d4096", "1", false),
        ("tg128 @ d4096", "3", false),
    ];
    assert_eq!(lines.len(), 2 + rows.len(), "{out}");
    for (line, (test, batch, measured)) in lines[2..].iter().zip(rows) {
        let batched = line.strip_prefix(test).map(str::trim_start);
        assert!(batched.is_some_and(|rest| rest.starts_with(batch)), "{out}");
        assert_ne!(line.contains("left out: "), measured, "{out}");
    }
    for (option, says) in [
        (["--repeats", "0"], ["repeats", "100"]),
        (["--batches", "1,65"], ["batches", "64"]),
        (["--prompts", "16,0"], ["prompts", "0"]),
        (["--tokens", "0"], ["tokens", "0"]),
    ] {
        ctl(&daemon, &[&["bench", "tiny"], &option[..]].concat()).fails(64, &says);
    }
    ctl(&daemon, &["bench", "nope"]).fails(66, &["\"nope\""]);
    check_healthy(&mut daemon);
}

#[test]
fn csv_has_the_fields_that_json_has() {
    let daemon = with_tiny();
    let json = measured(&daemon, &["--output", "json"]);
    let events: Vec<Value> =
        json.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    let of_depth = ["row", "left_out", "row", "row"];
    assert_eq!(kinds, [&["loaded"], &of_depth[..], &of_depth[..], &["done"]].concat());
    assert_eq!(events[2]["test"], "pp");
    assert_eq!(events[2]["tokens"], 512);

    let csv = measured(&daemon, &["--output", "csv"]);
    assert!(csv.err.contains("pp512") && csv.err.contains("left out: "), "{}", csv.err);
    let mut reader = csv::Reader::from_reader(csv.out.as_bytes());
    let columns = reader.headers().unwrap().clone();
    let records: Vec<_> = reader.records().collect::<Result<_, _>>().unwrap();
    let rows: Vec<_> = events.iter().filter_map(|event| event["row"].as_object()).collect();
    assert_eq!(records.len(), rows.len());
    for (record, row) in records.iter().zip(rows) {
        let value = |column: &str| {
            let at = columns.iter().position(|name| name == column);
            at.and_then(|at| record.get(at)).unwrap_or_else(|| panic!("no column {column}"))
        };
        assert_eq!((value("model"), value("unit")), ("tiny", "tokens/s"));
        assert_eq!(value("device"), events[0]["device"].as_str().unwrap());
        assert_eq!(value("test"), row["test"].as_str().unwrap());
        for (name, field) in row.iter().filter(|(_, field)| field.is_u64()) {
            assert_eq!(value(name), field.to_string());
        }
        for name in ["mean", "min", "max"] {
            assert!(value(name).parse::<f64>().unwrap() > 0.0, "{}", csv.out);
        }
        assert_eq!(value("per_sequence").is_empty(), row.get("per_sequence").is_none());
    }
    let two = [&SMALL[..], &["--json", "--output", "csv"]].concat();
    let error = ctl(&daemon, &two);
    assert_eq!(error.code, 64);
    assert!(error.err.contains("two formats"), "{}", error.err);
}

#[test]
fn a_plot_has_a_curve_for_each_depth() {
    let daemon = with_tiny();
    let file = daemon.dir().join("plot.svg");
    let done = measured(&daemon, &["--plot", path_str(&file)]);
    assert_eq!(done.err, format!("wrote {}\n", file.display()));
    let svg = fs::read_to_string(&file).unwrap();
    let document = roxmltree::Document::parse(&svg).unwrap();
    let curves = document.descendants().filter(|node| node.has_tag_name("polyline"));
    let points: Vec<_> =
        curves.map(|curve| curve.attribute("points").unwrap().split(' ').count()).collect();
    assert_eq!(points, [2, 2]);
    let texts: Vec<_> = document.descendants().filter_map(|node| node.text()).collect();
    assert!(texts.contains(&"tiny") && texts.iter().any(|text| text.starts_with("cpu, ")));

    // Where there is no place for it nothing is measured first.
    let nowhere = daemon.dir().join("nowhere/plot.svg");
    let done = ctl(&daemon, &[&SMALL[..], &["--plot", path_str(&nowhere)]].concat());
    done.fails(74, &["nowhere/plot.svg", "--plot"]);
    assert_eq!(done.out, "");
    let nothing =
        ["bench", "tiny", "--prompts", "16", "--depths", "999", "--plot", path_str(&file)];
    ctl(&daemon, &nothing).fails(1, &["nothing to plot", "--depths"]);
}
