//! Rows of a benchmark: for people as columns, for programs as CSV.

use std::io;

use m40_control::{BenchRow, BenchWhat};

/// Names of [`values`]: but for the first two those of a row's fields in JSON.
pub(super) const COLUMNS: [&str; 14] = [
    "model",
    "device",
    "test",
    "tokens",
    "batch",
    "depth",
    "unit",
    "mean",
    "min",
    "max",
    "per_sequence",
    "weights_gb_per_s",
    "copy_share",
    "m40_tokens_per_s",
];

/// A row of a model, on a device, as columns; what is not known is empty.
pub(super) fn values((model, device): &(String, String), row: &BenchRow) -> [String; 14] {
    let whole = |n: Option<u32>| n.map(|n| n.to_string()).unwrap_or_default();
    let figure = |x: Option<f64>| x.map(|x| x.to_string()).unwrap_or_default();
    [
        model.clone(),
        device.clone(),
        row.what.test.name().to_owned(),
        whole(row.what.tokens),
        whole(row.what.batch),
        whole(row.what.depth),
        row.unit.clone(),
        row.mean.to_string(),
        row.min.to_string(),
        row.max.to_string(),
        figure(row.per_sequence),
        figure(row.weights_gb_per_s),
        figure(row.copy_share),
        figure(row.m40_tokens_per_s),
    ]
}

/// The values as a line of CSV, without its end.
pub(super) fn csv<T: AsRef<[u8]>, const N: usize>(values: [T; N]) -> io::Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(values)?;
    let line = writer.into_inner().map_err(|error| io::Error::other(error.to_string()))?;
    let line = String::from_utf8(line).map_err(io::Error::other)?;
    Ok(line.trim_end().to_owned())
}

/// The headings of [`cells`].
pub(super) const HEADINGS: [&str; 8] =
    ["test", "batch", "mean", "+-", "each", "GB/s", "of copy", "M40, predicted"];

/// Where columns end that follow each other; the names of tests are left of theirs.
const WIDTHS: [usize; 8] = [18, 5, 16, 7, 8, 8, 8, 15];

/// The row for people: test, sequences, the figure, half its range relative to it, tokens a second of
/// a sequence, weights read, their share of a copy, and the prediction.
pub(super) fn cells(row: &BenchRow) -> [String; 8] {
    let number = |x: f64| if x < 100.0 { format!("{x:.2}") } else { format!("{x:.0}") };
    let optional = |x: Option<f64>| x.map(number).unwrap_or_default();
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    [
        row.what.to_string(),
        row.what.batch.map(|batch| batch.to_string()).unwrap_or_default(),
        format!("{} {}", number(row.mean), row.unit),
        format!("{:.1} %", 50.0 * (row.max - row.min) / row.mean),
        optional(row.per_sequence),
        optional(row.weights_gb_per_s),
        row.copy_share.map(percent).unwrap_or_default(),
        optional(row.m40_tokens_per_s),
    ]
}

/// Cells as a line whose columns are below each other whatever lines follow.
pub(super) fn line<T: AsRef<str>>(cells: &[T; 8]) -> String {
    let cells = cells.iter().zip(WIDTHS).enumerate();
    let padded = cells.map(|(i, (cell, width))| match (i, cell.as_ref()) {
        (0, cell) => format!("{cell:<width$}"),
        (_, cell) => format!(" {cell:>width$}"),
    });
    padded.collect::<String>().trim_end().to_owned()
}

/// The first cells of something that has no others, with a gap after them.
pub(super) fn name(what: &BenchWhat) -> String {
    let mut cells = [const { String::new() }; 8];
    cells[0] = what.to_string();
    cells[1] = what.batch.map(|batch| batch.to_string()).unwrap_or_default();
    line(&cells) + "  "
}

#[cfg(test)]
mod tests {
    use m40_control::BenchTest;
    use serde_json::Value;

    use super::*;

    fn row() -> BenchRow {
        let (tokens, batch, depth) = (Some(128), Some(8), Some(4096));
        BenchRow {
            what: BenchWhat { test: BenchTest::Tg, tokens, batch, depth },
            unit: "tokens/s".into(),
            mean: 1234.56,
            min: 1200.0,
            max: 1260.0,
            per_sequence: Some(154.32),
            weights_gb_per_s: Some(87.654),
            copy_share: Some(0.5),
            m40_tokens_per_s: Some(400.0),
        }
    }

    #[test]
    fn rows_are_columns_below_each_other() {
        let text = line(&cells(&row()));
        let expected = "tg128 @ d4096          8    1235 tokens/s   2.4 %      154    87.65     50 %             400";
        assert_eq!(text, expected);
        assert!(line(&HEADINGS).ends_with("M40, predicted"));
        assert_eq!(line(&HEADINGS).len(), expected.len());
        assert_eq!(name(&row().what), "tg128 @ d4096          8  ");
    }

    #[test]
    fn csv_and_json_have_the_same_columns() {
        let json = serde_json::to_value(row()).unwrap();
        let fields: Vec<_> = json.as_object().unwrap().keys().collect();
        assert_eq!(fields, COLUMNS[2..].iter().collect::<Vec<_>>());
        let subject = ("m".to_owned(), "cpu, \"2\" threads".to_owned());
        let line = csv(values(&subject, &row())).unwrap();
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(line.as_bytes());
        let record = reader.records().next().unwrap().unwrap();
        assert_eq!(&record[1], subject.1);
        for (value, field) in record.iter().skip(2).zip(json.as_object().unwrap().values()) {
            match field {
                Value::String(text) => assert_eq!(value, text),
                number => assert_eq!(value.parse::<f64>().ok(), number.as_f64()),
            }
        }
    }
}
