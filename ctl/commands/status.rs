//! `m40ctl status`

use m40_control::Client;

use crate::error::CommandError;
use crate::output::{Output, model_rows};

pub(crate) async fn run(client: &Client, output: &mut Output) -> Result<(), CommandError> {
    let status = client.status().await?;
    if output.json {
        return Ok(output.value(&status)?);
    }
    let stopping = if status.stopping { ", stopping" } else { "" };
    let uptime = uptime(status.uptime_s);
    output.line(&format!("m40d {}, pid {}, up {uptime}{stopping}", status.version, status.pid))?;
    output.line(&format!("device   {}", status.device))?;
    output.line(&format!("http     http://{}", status.http_address))?;
    output.line(&format!("control  {}", status.control_socket.display()))?;
    output.line(&format!("state    {}", status.state_dir.display()))?;
    match &status.config_file {
        Some(file) => output.line(&format!("config   {}", file.display()))?,
        None => output.line("config   defaults")?,
    }
    output.line(&format!("models   {}", status.manifests_dir.display()))?;
    for problem in &status.manifest_problems {
        output.line(&format!("wrong    {problem}; {}", problem.consequence()))?;
    }
    if status.models.is_empty() {
        output.line("no model is loaded")?;
        return Ok(());
    }
    output.line("")?;
    Ok(output.table(&model_rows(&status.models))?)
}

fn uptime(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptimes_have_two_units_at_most() {
        assert_eq!(uptime(59), "59 s");
        assert_eq!(uptime(61), "1 min 1 s");
        assert_eq!(uptime(3660), "1 h 1 min");
        assert_eq!(uptime(90_000), "1 d 1 h");
    }
}
