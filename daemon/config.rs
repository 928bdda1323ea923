//! The configuration file: what may be written ([`RawConfig`]) and what it means ([`Config`]).
//!
//! Every key has its unit in its name and a default; `etc/m40d.toml` lists them all and a test
//! keeps it equal to the defaults. An unknown key is an error, so that a typo is never silent.

mod care;
mod http;
mod raw;
#[cfg(test)]
mod reference;
mod secret;
mod store;

use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use m40_control::ManifestProblem;
use m40_control::paths::{self, Env};
use m40_manifest::mistake::Mistake;
use m40_sched::Rules;

use crate::exit::Failure;
use crate::logging::Filter;
pub(crate) use care::{Care, Watched};
pub(crate) use http::{Http, HttpConflict, MetricsFor, Origins, is_this_machine};
use raw::RawConfig;
pub(crate) use store::Store;

/// The configuration in its resolved form: defaults filled in, paths found, units typed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    /// The file it was read from; `None` when the defaults are used.
    pub file: Option<PathBuf>,
    pub http: Http,
    pub control: Control,
    pub device: Device,
    pub gpu: m40llm::GpuOptions,
    pub care: Care,
    /// Threads to compute with; `None` means as many as the process may use.
    pub threads: Option<usize>,
    /// Most context of a model; `None` means the engine's own limit.
    pub context_tokens_max: Option<u32>,
    pub kv_type: m40llm::KvType,
    pub store: Store,
    /// Bytes of models in the machine's own memory; `None` means a share of what there is.
    pub memory_bytes_max: Option<u64>,
    /// What the scheduler goes by.
    pub rules: Rules,
    pub shutdown_grace: Duration,
    pub state_dir: PathBuf,
    pub manifests_dir: PathBuf,
    pub log_filter: Filter,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Control {
    pub socket: PathBuf,
    /// The group that may use the socket besides root and the daemon's own user.
    pub group: Option<String>,
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Device {
    Cpu,
    Cuda,
}

/// How the GPU is given the work of generating a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Decode {
    Launch,
    Graph,
    Persistent,
}

impl From<Decode> for m40llm::Decode {
    fn from(decode: Decode) -> Self {
        match decode {
            Decode::Launch => Self::Launch,
            Decode::Graph => Self::Graph,
            Decode::Persistent => Self::Persistent,
        }
    }
}

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KvType {
    F16,
    Int8,
}

impl From<KvType> for m40llm::KvType {
    fn from(ty: KvType) -> Self {
        match ty {
            KvType::F16 => Self::F16,
            KvType::Int8 => Self::Int8,
        }
    }
}

/// What is wrong with a configuration file, in one line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration {}: {source}", file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("{0}")]
    Wrong(ManifestProblem),
    #[error("{}: {conflict}", file.display())]
    Http { file: PathBuf, conflict: HttpConflict },
}

impl ConfigError {
    /// The same for programs.
    pub(crate) fn problem(&self) -> ManifestProblem {
        let (file, message) = match self {
            Self::Wrong(problem) => return problem.clone(),
            Self::Read { file, source } => (file, format!("cannot be read: {source}")),
            Self::Http { file, conflict } => (file, conflict.to_string()),
        };
        ManifestProblem { file: file.clone(), place: None, message, serving_old: false }
    }
}

impl Config {
    /// Reads the file named on the command line, which must exist, or else the default one,
    /// which need not.
    pub(crate) fn load(named: Option<&Path>, env: &Env) -> Result<Self, Failure> {
        let (raw, file) = read(named, env)?;
        Self::resolve(raw, file, env)
    }

    /// The same, and how a file would say all of it that leaves no key out.
    pub(crate) fn load_with_text(
        named: Option<&Path>,
        env: &Env,
    ) -> Result<(Self, String), Failure> {
        let (mut raw, file) = read(named, env)?;
        let config = Self::resolve(raw.clone(), file, env)?;
        raw.control.socket = Some(config.control.socket.clone());
        raw.paths.state_dir = Some(config.state_dir.clone());
        raw.paths.manifests_dir = Some(config.manifests_dir.clone());
        let text = toml::to_string(&raw).map_err(|error| Failure::System {
            action: "write the configuration out",
            source: io::Error::other(error),
        })?;
        Ok((config, text))
    }

    fn resolve(raw: RawConfig, file: Option<PathBuf>, env: &Env) -> Result<Self, Failure> {
        let state_dir = raw.paths.state_dir.map_or_else(|| paths::state_dir(env), Ok)?;
        let beside = |dir: PathBuf| dir.join(paths::MANIFESTS_NAME);
        let manifests_dir = raw.paths.manifests_dir;
        let manifests_dir = manifests_dir.map_or_else(|| paths::config_dir(env).map(beside), Ok)?;
        let runtime_dir = raw.paths.runtime_dir.map_or_else(|| paths::runtime_dir(env), Ok);
        let socket = match raw.control.socket {
            Some(socket) => socket,
            None => runtime_dir?.join(paths::SOCKET_NAME),
        };
        let seconds = |value: u64| Duration::from_secs(value);
        let http = raw.http.resolve().map_err(|conflict| ConfigError::Http {
            file: file.clone().unwrap_or_default(),
            conflict,
        })?;
        Ok(Self {
            file,
            http,
            control: Control { socket, group: raw.control.group },
            device: raw.engine.device,
            gpu: m40llm::GpuOptions {
                vram_bytes: Some(raw.gpu.vram_mib_max.get() << 20).filter(|&bytes| bytes > 0),
                decode: raw.gpu.decode.into(),
            },
            care: Care {
                card: raw.gpu.care,
                limit_c: Some(raw.gpu.temperature_c_max.to_u32()).filter(|&limit| limit > 0),
                park_after: Some(seconds(raw.gpu.park_after_s.get()))
                    .filter(|time| !time.is_zero()),
                library: None,
            }
            .with(env),
            threads: Some(raw.engine.threads.to_usize()).filter(|&threads| threads > 0),
            context_tokens_max: Some(raw.models.context_tokens_max.to_u32())
                .filter(|&tokens| tokens > 0),
            kv_type: raw.models.kv_type.into(),
            store: raw.store.into(),
            memory_bytes_max: Some(raw.models.memory_mib_max.get() << 20)
                .filter(|&bytes| bytes > 0),
            rules: Rules {
                waiting_max: NonZeroUsize::new(raw.limits.queued_jobs_max.to_usize())
                    .unwrap_or(NonZeroUsize::MIN),
                patience: Duration::from_millis(raw.models.patience_ms.get()),
                resident_least: Duration::from_millis(raw.models.resident_ms_min.get()),
                ..Rules::default()
            },
            shutdown_grace: seconds(raw.limits.shutdown_grace_s.get()),
            state_dir,
            manifests_dir,
            log_filter: raw.log.level,
        })
    }

    /// The keys in which another configuration differs. None of them can change while the
    /// daemon runs.
    pub(crate) fn keys_changed(&self, other: &Self) -> Vec<&'static str> {
        let differences = [
            ("http", self.http != other.http),
            ("control", self.control != other.control),
            ("engine.device", self.device != other.device),
            ("gpu", self.gpu != other.gpu || self.care != other.care),
            ("engine.threads", self.threads != other.threads),
            ("models.context_tokens_max", self.context_tokens_max != other.context_tokens_max),
            ("models.kv_type", self.kv_type != other.kv_type),
            ("store", self.store != other.store),
            ("models.memory_mib_max", self.memory_bytes_max != other.memory_bytes_max),
            ("models.patience_ms", self.rules.patience != other.rules.patience),
            ("models.resident_ms_min", self.rules.resident_least != other.rules.resident_least),
            ("limits.queued_jobs_max", self.rules.waiting_max != other.rules.waiting_max),
            ("limits.shutdown_grace_s", self.shutdown_grace != other.shutdown_grace),
            ("paths.state_dir", self.state_dir != other.state_dir),
            ("paths.manifests_dir", self.manifests_dir != other.manifests_dir),
            ("log.level", self.log_filter != other.log_filter),
        ];
        differences.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}

/// What is written, and in which file.
fn read(named: Option<&Path>, env: &Env) -> Result<(RawConfig, Option<PathBuf>), Failure> {
    let file = match named {
        Some(file) => file.to_path_buf(),
        None => paths::config_dir(env)?.join(paths::CONFIG_NAME),
    };
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => {
            return Ok((RawConfig::default(), None));
        }
        Err(source) => return Err(ConfigError::Read { file, source }.into()),
    };
    match raw::parse(&text) {
        Ok(raw) => Ok((raw, Some(file))),
        Err(Mistake { place, message }) => {
            let problem = ManifestProblem { file, place, message, serving_old: false };
            Err(ConfigError::Wrong(problem).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> Env {
        Env::new([("HOME".to_owned(), "/home/u".to_owned())], false)
    }

    fn load(text: &str) -> Result<Config, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m40d.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(Some(&file), &env())
    }

    #[test]
    fn the_shipped_file_equals_the_defaults() {
        let shipped = load(include_str!("../etc/m40d.toml")).unwrap();
        let defaults = Config::load(None, &env()).unwrap();
        assert_eq!(shipped.keys_changed(&defaults), Vec::<&str>::new());
        assert_eq!(Config { file: None, ..shipped }, defaults);
    }

    #[track_caller]
    fn check_text(written: &str, says: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m40d.toml");
        std::fs::write(&file, written).unwrap();
        let (config, text) = Config::load_with_text(Some(&file), &env()).unwrap();
        for part in says {
            assert!(text.contains(part), "{text} lacks {part}");
        }
        assert_eq!(Config { file: Some(file), ..load(&text).unwrap() }, config, "{text}");
    }

    #[test]
    fn a_configuration_that_is_written_out_means_the_same() {
        let state = "[paths]\nstate_dir = \"/home/u/.local/state/m40d\"\n";
        check_text("", &["listen = \"127.0.0.1:11434\"\n", "cors_origins = []\n", state]);
        check_text(
            "[http]\nlisten = \"[::]:1\"\nkeys = \"keys.toml\"\ncors_origins = [\"*\"]\nhosts = [\"Box\"]\n\
             [gpu]\ncare = \"3b:00.0\"\n[store]\nproxy = \"none\"\ntokens = { h = \"/t\" }\n\
             [control]\nsocket = \"/s\"\ngroup = \"g\"\n[log]\nlevel = \"info,m40d=debug\"\n",
            &[
                "keys = \"keys.toml\"\n",
                "[\"*\"]",
                "\"0000:3b:00.0\"",
                "[store.tokens]\nh = \"/t\"\n",
            ],
        );
        check_text(
            "[http]\ncors_origins = [\"https://a.example\"]\nmetrics = \"anybody\"\n\
             tls_certificate = \"/c\"\ntls_key = \"/k\"\n[store]\nproxy = \"http://p:3128\"\n\
             [models]\nkv_type = \"int8\"\n[gpu]\ncare = \"off\"\ndecode = \"graph\"\n",
            &["[\"https://a.example\"]", "proxy = \"http://p:3128/\"\n", "kv_type = \"int8\"\n"],
        );
    }

    #[test]
    fn the_shipped_file_names_every_key() {
        let shipped = include_str!("../etc/m40d.toml");
        for key in raw::all_keys() {
            let named = |line: &str| {
                line.trim_start_matches("# ").split_once(" = ").is_some_and(|(k, _)| k == key)
            };
            assert!(shipped.lines().any(named), "etc/m40d.toml lacks {key}");
        }
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let config = load("").unwrap();
        assert_eq!(config.http.listen, "127.0.0.1:11434".parse().unwrap());
        assert_eq!(config.state_dir, Path::new("/home/u/.local/state/m40d"));
        assert_eq!(config.manifests_dir, Path::new("/home/u/.config/m40d/models.d"));
        assert_eq!(config.control.socket, Path::new("/home/u/.local/state/m40d/run/control.sock"));
    }

    #[test]
    fn a_missing_default_file_is_fine_and_a_missing_named_one_is_not() {
        assert!(Config::load(None, &env()).is_ok());
        let error = Config::load(Some(Path::new("/nonexistent.toml")), &env()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent.toml"), "{error}");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place_and_a_guess() {
        let error = load("[http]\nlisten = \"127.0.0.1:1\"\nbody_mb_max = 3\n").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("m40d.toml:3:1: "), "{text}");
        assert!(text.contains("unknown key `body_mb_max`"), "{text}");
        assert!(text.contains("did you mean `body_mib_max`?"), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }

    #[test]
    fn the_gpu_has_a_budget_and_a_way_to_decode() {
        let gpu = |text| load(text).unwrap().gpu;
        assert_eq!(gpu(""), m40llm::GpuOptions::default());
        let options = gpu("[gpu]\nvram_mib_max = 20000\ndecode = \"graph\"\n");
        assert_eq!(options.vram_bytes, Some(20_000 << 20));
        assert_eq!(options.decode, m40llm::Decode::Graph);
        assert_eq!(gpu("[gpu]\ndecode = \"launch\"\n").decode, m40llm::Decode::Launch);
        let error = load("[gpu]\ndecode = \"fast\"\n").unwrap_err().to_string();
        assert!(error.contains("m40d.toml:2:10: "), "{error}");
        assert!(error.contains("`graph`") && error.contains("`persistent`"), "{error}");
        let error = load("[gpu]\nvram_mib_max = 65537\n").unwrap_err().to_string();
        assert!(error.contains("from 0 to 65536"), "{error}");
    }

    #[test]
    fn the_card_that_is_looked_after_is_the_one_that_computes_or_one_that_is_named() {
        let care = |text: &str| load(&format!("[gpu]\n{text}\n")).map(|config| config.care);
        let default = care("").unwrap();
        assert_eq!((default.card, default.limit_c), (Watched::Auto, None));
        assert_eq!(default.park_after, Some(Duration::from_secs(300)));
        let set = care("care = \"3b:00.0\"\ntemperature_c_max = 75\npark_after_s = 0").unwrap();
        assert_eq!(set.card, Watched::At("0000:3b:00.0".parse().unwrap()));
        assert_eq!((set.limit_c, set.park_after), (Some(75), None));
        assert_eq!(care("care = \"off\"").unwrap().card, Watched::Off);
        let error = care("care = \"first\"").unwrap_err().to_string();
        assert!(error.contains("m40d.toml:2:8: ") && error.contains("lspci"), "{error}");
    }

    #[test]
    fn keys_and_values_are_f16_unless_told_otherwise() {
        let kv_type = |text| load(text).map(|config| config.kv_type);
        assert_eq!(kv_type("").unwrap(), m40llm::KvType::F16);
        assert_eq!(kv_type("[models]\nkv_type = \"f16\"\n").unwrap(), m40llm::KvType::F16);
        assert_eq!(kv_type("[models]\nkv_type = \"int8\"\n").unwrap(), m40llm::KvType::Int8);
        let error = kv_type("[models]\nkv_type = \"q8_0\"\n").unwrap_err().to_string();
        assert!(error.contains("`f16`") && error.contains("`int8`"), "{error}");
    }

    #[test]
    fn the_store_has_settings_and_tokens_in_files_and_no_text_of_either_in_errors() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("hub"), "hf_hidden\n").unwrap();
        let file = dir.path().join("hub");
        let text = format!(
            "[store]\nconnections = 2\nrate_mib_per_s_max = 3\nproxy = \"http://p:3128\"\n\
             tokens = {{ \"a.example\" = {file:?}, \"b.example\" = \"hub\" }}\n"
        );
        let config = load(&text).unwrap();
        let error = config.store.settings(&env()).unwrap_err().to_string();
        assert!(error.contains("\"hub\"") && error.contains("LoadCredential="), "{error}");
        let credentials = ("CREDENTIALS_DIRECTORY", dir.path().to_str().unwrap());
        let env = Env::new([credentials].map(|(a, b)| (a.to_owned(), b.to_owned())), false);
        let settings = config.store.settings(&env).unwrap();
        assert_eq!((settings.connections, settings.bytes_per_s_max), (2, Some(3 << 20)));
        let hosts: Vec<&str> = settings.tokens.iter().map(|token| token.host.as_str()).collect();
        assert_eq!(hosts, ["a.example", "b.example"]);
        assert!(!format!("{settings:?}").contains("hf_hidden"));
        let error = |line: &str| load(&format!("[store]\n{line}\n")).unwrap_err().to_string();
        for line in ["tokens = { h = \"hf_x/secret\" }", "proxy = \"http://u:secret@p\""] {
            let error = error(line);
            assert!(error.contains("m40d.toml:2:") && !error.contains("secret"), "{error}");
        }
        assert!(error("proxy = \"ftp://p\"").contains("\"environment\", \"none\""));
        let missing = load("[store]\ntokens = { h = \"/nowhere/token\" }").unwrap();
        let error = missing.store.settings(&env).unwrap_err().to_string();
        assert!(error.contains("for h: ") && error.contains("/nowhere/token"), "{error}");
    }

    #[test]
    fn a_changed_key_is_found() {
        let old = load("").unwrap();
        let new =
            load("[engine]\nthreads = 3\n[gpu]\nvram_mib_max = 9\n[log]\nlevel = \"debug\"\n")
                .unwrap();
        assert_eq!(old.keys_changed(&new), ["gpu", "engine.threads", "log.level"]);
    }
}
