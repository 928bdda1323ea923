//! `m40ctl status`

use anstyle::{AnsiColor, Style};
use m40_control::{Client, Status};

use crate::error::CommandError;
use crate::output::Output;
use crate::text::Line;
use crate::view;

pub(crate) async fn run(client: &Client, output: &mut Output) -> Result<(), CommandError> {
    let status = client.status().await?;
    if output.json {
        return Ok(output.value(&status)?);
    }
    for line in lines(&status) {
        output.styled(&line)?;
    }
    Ok(())
}

fn lines(status: &Status) -> Vec<Line> {
    let (version, pid, up) = (&status.version, status.pid, view::uptime(status.uptime_s));
    let mut first = Line::default()
        .then(Style::new().bold(), format!("m40d {version}"))
        .plain(format!(", pid {pid}, up {up}"));
    if status.stopping {
        first = first.plain(", ").then(AnsiColor::Yellow.on_default(), "stopping");
    }
    let config = status.config_file.as_ref().map(|file| file.to_string_lossy());
    let mut lines = vec![
        first,
        about("device", &status.device),
        about(
            "http",
            format!("{}://{}", if status.tls { "https" } else { "http" }, status.http_address),
        ),
        about("control", status.control_socket.to_string_lossy()),
        about("state", status.state_dir.to_string_lossy()),
        about("config", config.unwrap_or_else(|| "defaults".into())),
        about("models", status.manifests_dir.to_string_lossy()),
    ];
    if let Some(card) = &status.card {
        lines.insert(2, about("card", view::card(card)));
        lines.extend(view::care(card));
    }
    lines.extend(status.manifest_problems.iter().map(|problem| {
        let red = AnsiColor::Red.on_default();
        let text = format!("    {problem}; {}", problem.consequence());
        Line::default().then(red, "wrong").plain(text)
    }));
    if status.models.is_empty() {
        lines.push(Line::default().plain("no model is loaded"));
        return lines;
    }
    let models: Vec<_> = status.models.iter().collect();
    let rates = view::rates_since_load(status);
    lines.push(Line::default());
    lines.extend(view::models(&models, &rates));
    lines.extend(view::remarks(&models));
    lines.push(Line::default());
    lines.push(view::totals(status, &rates));
    lines
}

fn about(what: &str, text: impl AsRef<str>) -> Line {
    Line::default().then(Style::new().dimmed(), format!("{what:<9}")).plain(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_says_what_where_and_how_fast() {
        let status = view::test_status(json!([view::test_model("tiny", 100, 1)]));
        let text: Vec<_> = lines(&status).iter().map(|line| line.show(usize::MAX, false)).collect();
        assert_eq!(text[0], "m40d 1.2.3, pid 7, up 1 h 1 min");
        assert_eq!(text[1], "device   cpu, 2 threads");
        assert!(text.iter().any(|line| line.starts_with("tiny  ready ")), "{text:#?}");
        assert!(text.last().unwrap().contains("1 running, 2 waiting"), "{text:#?}");
        let none = view::test_status(json!([]));
        assert_eq!(lines(&none).last().unwrap().show(99, false), "no model is loaded");
    }
}
