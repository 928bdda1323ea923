//! All that findings are made of, and who is asked for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use m40_control::paths::Env;
use m40_control::{CardReading, Client, ClientError, ConfigCheck, ModelEntry, ModelState, Status};
use m40_nvml::{Library, NvmlError, PATH_VARIABLE};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::machine::{self, Disk, Driver, Gpu, Node, Process};
use super::service::{self, Unit};
use crate::commands::config;
use crate::error::CommandError;

/// How long anybody may take to answer: a daemon that hangs, or a card, is what a doctor is asked about.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was found out. What is absent, or an error with its reason, could not be.
#[derive(Debug)]
pub(super) struct Facts {
    pub gpus: Vec<Gpu>,
    pub driver: Option<Driver>,
    pub nodes: Vec<Node>,
    /// What the cards say of themselves.
    pub cards: Result<Vec<CardReading>, String>,
    /// NVRTC, and whether only this user has it.
    pub nvrtc: Option<(PathBuf, bool)>,
    /// What the daemon behind the socket does.
    pub status: Result<Status, String>,
    /// Bytes that models on their way here still take.
    pub wanted_bytes: u64,
    /// What m40d says of its configuration.
    pub check: Result<ConfigCheck, String>,
    /// Where models are kept.
    pub disk: Option<Disk>,
    /// Bytes that the daemon may lock; without one, those that this user's could.
    pub memlock: Option<u64>,
    /// The daemon's units; none without systemd.
    pub units: Vec<Unit>,
    pub daemons: Vec<Process>,
}

/// Asks everybody.
pub(super) async fn gather(client: &Client, env: &Env) -> Facts {
    let status = answered(client.status()).await;
    let models = answered(client.models()).await;
    let wanted_bytes = models.map_or(0, |list| wanted(&list.models));
    let file = status.as_ref().ok().and_then(|status| status.config_file.clone());
    let folder = match &status {
        Ok(status) => status.manifests_dir.parent().map(Path::to_path_buf),
        Err(_) => config::systems_folder(None, env).map(Path::to_path_buf),
    };
    let check = aside(move || config::check(file.as_deref(), folder.as_deref())).await;
    let check = match check {
        Some(check) => check.map_err(|error| error.to_string()),
        None => Err("m40d --check-config does not end".to_owned()),
    };
    let library = env.var(PATH_VARIABLE).map(PathBuf::from);
    let cards = aside(move || cards(library.as_deref())).await;
    let cards = match cards {
        Some(cards) => cards.map_err(|error| error.to_string()),
        None => Err("the driver does not answer".to_owned()),
    };

    let root = Path::new("/");
    let gpus = machine::gpus(root);
    let settings = check.as_ref().ok().and_then(|check| check.settings.as_ref());
    let state_dir = match &status {
        Ok(status) => Some(status.state_dir.clone()),
        Err(_) => settings.map(|settings| settings.state_dir.clone()),
    };
    let pid = status.as_ref().map_or_else(|_| "self".to_owned(), |status| status.pid.to_string());
    Facts {
        driver: machine::driver(root),
        nodes: machine::nodes(root, gpus.len()),
        gpus,
        cards,
        nvrtc: machine::nvrtc(root, env),
        wanted_bytes,
        disk: state_dir.and_then(|dir| machine::disk(&dir)),
        memlock: machine::memlock(root, &pid),
        units: aside(service::units).await.unwrap_or_default(),
        daemons: machine::daemons(root),
        status,
        check,
    }
}

/// What the daemon answers, or why it does not.
async fn answered<T>(answer: impl Future<Output = Result<T, ClientError>>) -> Result<T, String> {
    match timeout(PATIENCE, answer).await {
        Ok(answer) => answer.map_err(|error| CommandError::from(error).message),
        Err(_) => Err(format!("m40d does not answer within {} s", PATIENCE.as_secs())),
    }
}

/// What a thread of its own finds out; `None` if it takes too long.
async fn aside<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    timeout(PATIENCE, spawn_blocking(ask)).await.ok()?.ok()
}

/// Bytes that are not here yet of models that are wanted here.
fn wanted(models: &[ModelEntry]) -> u64 {
    let missing = |model: &ModelEntry| match &model.progress {
        Some(progress) => progress.total_bytes.unwrap_or(0).saturating_sub(progress.done_bytes),
        None => model.size_bytes,
    };
    models.iter().filter(|model| model.state == ModelState::Remote).map(missing).sum()
}

fn cards(library: Option<&Path>) -> Result<Vec<CardReading>, NvmlError> {
    let cards = Library::open(library)?.cards()?;
    cards.iter().map(|card| card.reading()).collect()
}

/// Of a machine without a GPU, systemd and a daemon, where all is well.
#[cfg(test)]
pub(super) fn bare() -> Facts {
    let check = serde_json::json!({
        "settings": {
            "device": "cpu", "http_listen": "127.0.0.1:11434", "http_keys": false, "http_tls": false,
            "control_socket": "/run/m40d/control.sock", "state_dir": "/var/lib/m40d",
            "manifests_dir": "/etc/m40d/models.d",
        },
        "models": ["a"], "problems": [],
    });
    Facts {
        gpus: vec![],
        driver: None,
        nodes: vec![],
        cards: Err("cannot load libnvidia-ml.so.1".into()),
        nvrtc: None,
        status: Err("m40d is not running".into()),
        wanted_bytes: 0,
        check: Ok(serde_json::from_value(check).expect("a check")),
        disk: Some(Disk {
            dir: "/var/lib/m40d".into(),
            free_bytes: 50_000_000_000,
            total_bytes: 100_000_000_000,
        }),
        memlock: Some(8 << 20),
        units: vec![],
        daemons: vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_what_is_not_here_yet() {
        let model = |state: &str, more: &str| -> ModelEntry {
            let json = format!(
                "{{\"name\":\"m\",\"state\":\"{state}\",\"size_bytes\":100,\"architecture\":\"\",\
                 \"quantization\":\"\",\"parameters\":0,\"source\":\"/m\"{more}}}"
            );
            serde_json::from_str(&json).expect("a model")
        };
        let coming =
            ",\"progress\":{\"phase\":\"downloading\",\"done_bytes\":30,\"total_bytes\":80}";
        assert_eq!(
            wanted(&[model("stored", ""), model("remote", coming), model("remote", "")]),
            150
        );
    }

    #[tokio::test]
    async fn a_daemon_that_is_not_there_is_a_fact() {
        let client = Client::new("/nonexistent/control.sock");
        let error = answered(client.status()).await.unwrap_err();
        assert!(error.contains("not running"), "{error}");
        assert!(cards(Some(Path::new("/nonexistent.so"))).is_err());
    }
}
