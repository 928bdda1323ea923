//! `m40ctl doctor`: looks at all that m40d needs, and says what is wrong and what helps.
//!
//! [`facts`] asks the machine, the card, systemd and the daemon, which may all be absent, by way of
//! [`machine`] and [`service`]; [`gpu`] and [`daemon`] make findings of the facts and ask nobody.

mod daemon;
mod facts;
mod gpu;
mod machine;
mod service;

use anstyle::{AnsiColor, Style};
use m40_control::Client;
use m40_control::paths::Env;
use serde::Serialize;
use serde_json::json;

use crate::error::{CommandError, Kind};
use crate::output::Output;
use crate::text::Line;
use facts::Facts;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    /// As it should be.
    Ok,
    /// Fine for some; others would rather know.
    Note,
    /// Works, and not as well as it could or not for long.
    Warning,
    /// Does not work.
    Problem,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }

    const fn style(self) -> Style {
        match self {
            Self::Ok => AnsiColor::Green.on_default(),
            Self::Note => Style::new(),
            Self::Warning => AnsiColor::Yellow.on_default(),
            Self::Problem => AnsiColor::Red.on_default().bold(),
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    level: Level,
    /// What was looked at, in a word that does not change.
    check: &'static str,
    /// What was found, in one line.
    found: String,
    /// What helps, a command where there is one; absent where nothing has to.
    #[serde(skip_serializing_if = "Option::is_none")]
    cure: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { level: Level::Ok, check, found: found.into(), cure: None }
    }

    /// Something that could be better.
    fn new(
        level: Level,
        check: &'static str,
        found: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self { level, check, found: found.into(), cure: Some(cure.into()) }
    }

    fn line(&self) -> Line {
        let cure = self.cure.as_ref().map_or_else(String::new, |cure| format!(": {cure}"));
        Line::default()
            .then(self.level.style(), format!("{:<8}", self.level.name()))
            .then(Style::new().bold(), format!(" {:<12}", self.check))
            .plain(format!(" {}{cure}", self.found))
    }
}

/// All that there is to say of the facts.
fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = gpu::findings(facts);
    findings.extend(daemon::findings(facts));
    findings
}

pub(crate) async fn run(
    client: &Client,
    env: &Env,
    output: &mut Output,
) -> Result<(), CommandError> {
    let facts = output.waiting("looking", facts::gather(client, env)).await?;
    let findings = findings(&facts);
    let problems = findings.iter().filter(|finding| finding.level == Level::Problem).count();
    if output.json {
        output.value(&json!({ "findings": findings, "problems": problems }))?;
    } else {
        for finding in &findings {
            output.styled(&finding.line())?;
        }
    }
    let found = match problems {
        0 => return Ok(()),
        1 => "1 problem was found".to_owned(),
        count => format!("{count} problems were found"),
    };
    Err(CommandError::new(Kind::Refused, found).hint("each has its cure above"))
}

/// One of these is not as it should be: it must be of this level and check, and say all of this.
#[cfg(test)]
#[track_caller]
fn check_odd(findings: &[Finding], level: Level, of: &str, says: &[&str]) {
    let odd: Vec<_> = findings.iter().filter(|finding| finding.level != Level::Ok).collect();
    let [finding] = odd[..] else { panic!("{odd:#?}") };
    assert_eq!((finding.level, finding.check), (level, of), "{finding:?}");
    let text = finding.line().show(usize::MAX, false);
    says.iter().for_each(|part| assert!(text.contains(part), "{text:?} lacks {part:?}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_line_with_its_cure() {
        let finding = Finding::new(Level::Warning, "pcie", "x8 of x16", "use another slot");
        let line = finding.line().show(usize::MAX, false);
        assert_eq!(line, "warning  pcie         x8 of x16: use another slot");
        let json = serde_json::to_value(Finding::ok("store", "all there")).unwrap();
        assert_eq!(json, json!({"level": "ok", "check": "store", "found": "all there"}));
        assert!(Level::Problem > Level::Warning && Level::Warning > Level::Note);
    }
}
