//! A plot of tokens a second against sequences at a time, as SVG.
//!
//! It is some lines and texts, and follows the light or dark scheme of whoever shows it by a style
//! sheet, which libraries that draw for any format have no notion of.

use std::collections::BTreeMap;
use std::fmt::Write;

use m40_control::{BenchRow, BenchTest};

/// The picture, and the part of it that has the curves.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 640.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 380.0;

/// Space between two curves of the legend: as many as can be asked for fit beside the curves.
const LEGEND: f64 = 18.0;

/// Colours that people tell apart who do not see all, on a light and on a dark ground.
const COLORS: [(&str, &str); 6] = [
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff8c42"),
    ("#007a59", "#2dd4a0"),
    ("#a8467f", "#e69ac0"),
    ("#8f6a00", "#f0c419"),
    ("#555555", "#bbbbbb"),
];

/// What the curves are of.
#[derive(Debug, Default)]
pub(super) struct Plot {
    /// Tokens a second of all sequences, by the tokens that they hold before and their number.
    curves: BTreeMap<u32, BTreeMap<u32, f64>>,
    /// Tokens that each was given.
    tokens: u32,
}

impl Plot {
    /// Adds a row, if there is a place for it: one of generating tokens.
    pub(super) fn add(&mut self, row: &BenchRow) {
        let what = row.what;
        let (BenchTest::Tg, Some(batch @ 1..), Some(depth)) = (what.test, what.batch, what.depth)
        else {
            return;
        };
        if row.mean.is_finite() {
            self.curves.entry(depth).or_default().insert(batch, row.mean);
            self.tokens = what.tokens.unwrap_or(self.tokens);
        }
    }

    /// The picture; `None` of nothing.
    pub(super) fn svg(&self, model: &str, device: &str) -> Option<String> {
        let figures = || self.curves.values().flatten();
        let top = round_up(figures().map(|(_, rate)| *rate).reduce(f64::max)?);
        let least = f64::from(*figures().map(|(batch, _)| batch).min()?).log2();
        let most = f64::from(*figures().map(|(batch, _)| batch).max()?).log2();
        let x = |batch: u32| {
            let share = (f64::from(batch).log2() - least) / (most - least);
            // One number of sequences stands in the middle.
            LEFT + (RIGHT - LEFT) * if share.is_finite() { share } else { 0.5 }
        };
        let y = |rate: f64| BOTTOM - (BOTTOM - TOP) * rate / top;

        let mut body = self.texts(model, device);
        for rate in (0..=5).map(|step| top * f64::from(step) / 5.0) {
            let (at, rate) = (y(rate), label(rate));
            let below = at + 4.0;
            body += &format!("<path class=\"grid\" d=\"M{LEFT} {at:.1}H{RIGHT}\"/>\n");
            body += &text("end", LEFT - 8.0, below, "", &rate);
        }
        let mut batches: Vec<_> = figures().map(|(batch, _)| *batch).collect();
        batches.sort_unstable();
        batches.dedup();
        for batch in batches {
            let at = x(batch);
            body += &format!("<path class=\"grid\" d=\"M{at:.1} {BOTTOM}v5\"/>\n");
            body += &text("middle", at, BOTTOM + 20.0, "", &batch.to_string());
        }
        for (i, (depth, rates)) in self.curves.iter().enumerate() {
            let points: Vec<_> = rates.iter().map(|(&batch, &rate)| (x(batch), y(rate))).collect();
            body += &curve(i, *depth, &points);
        }
        Some(document(model, &body))
    }

    /// Titles of the picture, its axes and its legend.
    fn texts(&self, model: &str, device: &str) -> String {
        let (middle, tokens) = ((LEFT + RIGHT) / 2.0, self.tokens);
        let center = (TOP + BOTTOM) / 2.0;
        text("start", LEFT, 28.0, " class=\"title\"", model)
            + &text("start", LEFT, 48.0, "", device)
            + &text("middle", middle, BOTTOM + 44.0, "", "sequences at a time")
            + &text(
                "middle",
                -center,
                22.0,
                " transform=\"rotate(-90)\"",
                &format!("tokens/s of all sequences, tg{tokens}"),
            )
            + &text("start", RIGHT + 20.0, TOP, "", "depth, tokens")
    }
}

/// A curve with its points, and its line in the legend.
fn curve(i: usize, depth: u32, points: &[(f64, f64)]) -> String {
    let class = format!("c{}", i % COLORS.len());
    // Curves of the same colour differ in this.
    let dash = match i / COLORS.len() {
        0 => String::new(),
        again => format!(" stroke-dasharray=\"{} 4\"", 10 / again),
    };
    let line: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let line = line.join(" ");
    let mut drawn = format!("<polyline class=\"curve {class}\"{dash} points=\"{line}\"/>\n");
    for (x, y) in points {
        drawn += &format!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>\n");
    }
    let (left, at) = (RIGHT + 20.0, TOP + LEGEND * (i + 1) as f64);
    drawn += &format!("<path class=\"curve {class}\"{dash} d=\"M{left} {at}h24\"/>\n");
    drawn + &text("start", left + 32.0, at + 4.0, "", &depth.to_string())
}

fn document(title: &str, body: &str) -> String {
    let mut style = String::from(
        "text{font:13px sans-serif;fill:#222}.title{font-size:16px;font-weight:bold}.ground{fill:#fff}\
         .grid{stroke:#ccc;fill:none}.curve{fill:none;stroke-width:2}",
    );
    let mut dark = String::from("text{fill:#ddd}.ground{fill:#17191c}.grid{stroke:#444}");
    for (i, (on_light, on_dark)) in COLORS.iter().enumerate() {
        for (style, color) in [(&mut style, on_light), (&mut dark, on_dark)] {
            // Writing to a string does not fail.
            let _ = write!(style, ".curve.c{i}{{stroke:{color}}}circle.c{i}{{fill:{color}}}");
        }
    }
    let title = escaped(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n\
         <title>{title}: tokens/s against sequences at a time</title>\n\
         <style>{style}@media (prefers-color-scheme:dark){{{dark}}}</style>\n\
         <rect class=\"ground\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n{body}</svg>\n"
    )
}

/// A text at a place, with more attributes.
fn text(anchor: &str, x: f64, y: f64, more: &str, text: &str) -> String {
    let text = escaped(text);
    format!("<text text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{y:.1}\"{more}>{text}</text>\n")
}

/// The text as XML has it, which knows no other control characters than white space.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars().filter(|c| !c.is_control() && !matches!(c, '\u{fffe}' | '\u{ffff}')) {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            c => escaped.push(c),
        }
    }
    escaped
}

/// The next number from which five equal steps to zero are short.
fn round_up(most: f64) -> f64 {
    let unit = 10_f64.powf(most.max(1e-3).log10().floor());
    let steps = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0];
    steps.into_iter().map(|step| step * unit).find(|top| *top >= most).unwrap_or(10.0 * unit)
}

fn label(rate: f64) -> String {
    let text = format!("{rate:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use m40_control::BenchWhat;

    use super::*;

    fn row(batch: u32, depth: u32, mean: f64) -> BenchRow {
        let (tokens, batch, depth) = (Some(128), Some(batch), Some(depth));
        BenchRow {
            what: BenchWhat { test: BenchTest::Tg, tokens, batch, depth },
            unit: "tokens/s".into(),
            mean,
            min: mean,
            max: mean,
            per_sequence: None,
            weights_gb_per_s: None,
            copy_share: None,
            m40_tokens_per_s: None,
        }
    }

    fn plot(rows: &[BenchRow]) -> Option<String> {
        let mut plot = Plot::default();
        rows.iter().for_each(|row| plot.add(row));
        plot.svg("a<b & c\u{1b}", "cpu, \"2\" threads")
    }

    /// Where the points of each curve are.
    fn curves(svg: &str) -> Vec<Vec<(f64, f64)>> {
        let document = roxmltree::Document::parse(svg).unwrap();
        let lines = document.descendants().filter(|node| node.has_tag_name("polyline"));
        let point = |point: &str| {
            let (x, y) = point.split_once(',').unwrap();
            (x.parse().unwrap(), y.parse().unwrap())
        };
        lines
            .map(|line| line.attribute("points").unwrap().split(' ').map(point).collect())
            .collect()
    }

    #[test]
    fn a_plot_has_a_curve_for_each_depth_and_says_what_it_shows() {
        let rows = [row(1, 0, 100.0), row(8, 0, 800.0), row(1, 4096, 50.0), row(2, 4096, 80.0)];
        let svg = plot(&rows).unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let texts: Vec<_> = document.descendants().filter_map(|node| node.text()).collect();
        for shown in ["a<b & c", "cpu, \"2\" threads", "sequences at a time", "4096", "800"] {
            assert!(texts.contains(&shown), "{texts:?} lack {shown:?}");
        }
        assert!(
            svg.contains("tokens/s of all sequences, tg128") && svg.contains("color-scheme:dark")
        );
        // Each doubling takes as much room.
        let third = (RIGHT - LEFT) / 3.0;
        let middle = BOTTOM - (BOTTOM - TOP) / 8.0;
        let expected = [[(LEFT, middle), (RIGHT, TOP)], [(LEFT, 360.6), (LEFT + third, 349.0)]];
        let found = curves(&svg).concat();
        for (found, expected) in found.iter().zip(expected.concat()) {
            let distance = (found.0 - expected.0).hypot(found.1 - expected.1);
            assert!(distance < 0.1, "{found:?} is not {expected:?}");
        }
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn one_point_is_a_plot_and_none_is_not() {
        let svg = plot(&[row(4, 0, 0.02)]).unwrap();
        assert_eq!(curves(&svg), [[((LEFT + RIGHT) / 2.0, TOP)]]);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert_eq!(plot(&[]), None);
        assert_eq!(plot(&[row(0, 0, 1.0), row(1, 0, f64::NAN)]), None);
    }

    #[test]
    fn as_many_depths_as_may_be_asked_for_have_curves_of_their_own() {
        let rows: Vec<_> = (0..16).map(|depth| row(1, depth, 1.0)).collect();
        let svg = plot(&rows).unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let lines = document.descendants().filter(|node| node.has_tag_name("polyline"));
        let mut looks: Vec<_> = lines
            .map(|line| (line.attribute("class").unwrap(), line.attribute("stroke-dasharray")))
            .collect();
        looks.sort_unstable();
        looks.dedup();
        assert_eq!(looks.len(), 16);
    }

    #[test]
    fn scales_end_at_short_numbers() {
        assert_eq!(
            [0.02, 1.0, 99.0, 101.0, 790.0, 8001.0].map(round_up).map(label),
            ["0.02", "1", "100", "150", "800", "10000"]
        );
    }
}
