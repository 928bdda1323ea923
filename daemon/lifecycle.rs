//! Start, signals, stop.
//!
//! Start: take over the sockets of the service manager, own the state folder, open the engine, bind
//! what was not handed over, and only then say READY. Stop, on SIGTERM or SIGINT: accept nothing more
//! (what comes to a socket of the service manager waits for the next daemon), let running answers
//! finish within `limits.shutdown_grace_s`, cut the rest short with an error that says why, exit 0. A
//! second signal ends the wait. A GPU that stops working for the process stops the daemon in the
//! same way, with an exit code that has systemd start it again.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use m40_control::paths::Env;
use m40_manifest::Catalog;
use m40llm::{Engine, EngineOptions};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::config::{Config, Device};
use crate::doors::Doors;
use crate::exit::Failure;
use crate::http::{BodyLimits, Guard};
use crate::inherited::Inherited;
use crate::listeners::Listeners;
use crate::logging::Levels;
use crate::manifests::Manifests;
use crate::models::{self, Models};
use crate::net::{self, Phase, TlsListener};
use crate::socket::Access;
use crate::store::Store;
use crate::{control, http, memory, systemd, watchdog};

/// How long clients have to take the last bytes of what was cut short.
const FLUSH_TIME: Duration = Duration::from_secs(1);

/// How long opening a GPU may take: for a card other than the M40 its driver compiles the kernels
/// first.
const GPU_START_TIME: Duration = Duration::from_secs(600);

/// Answers under way at a time, each of which has a thread: more than all models together have places.
const THREADS_MAX: usize = 4096;

/// Memory for models where the system does not say how much there is.
const MEMORY_BYTES: u64 = 4 << 30;

/// Control connections at a time; there is no reason for many.
const CONTROL_CONNECTIONS_MAX: usize = 64;

/// Runs the daemon until it is told to stop.
pub(crate) fn run(config: Config, levels: Levels, env: &Env) -> Result<(), Failure> {
    let inherited = Inherited::take()?;
    let opened = Opened {
        access: Access::new(&config.control)?,
        doors: Doors::open(&config.http, env)?,
        store: Store::open(&config.state_dir, config.store.settings(env)?)?,
        engine: open_engine(&config)?,
        levels,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(THREADS_MAX)
        .build()
        .map_err(|source| Failure::System { action: "start the runtime", source })?;
    let result = runtime.block_on(async {
        let listeners = Listeners::new(&config, &opened.access, inherited)?;
        serve(config, env, opened, listeners).await
    });
    // A load that cannot be interrupted must not hold up the exit.
    runtime.shutdown_background();
    result
}

/// What there is before anything runs.
struct Opened {
    access: Access,
    doors: Doors,
    store: Store,
    engine: Engine,
    levels: Levels,
}

fn open_engine(config: &Config) -> Result<Engine, Failure> {
    let device = match config.device {
        Device::Cpu => m40llm::Device::Cpu,
        Device::Cuda => {
            systemd::starting("opening the GPU", GPU_START_TIME);
            m40llm::Device::Gpu(config.gpu)
        }
    };
    let options = EngineOptions { threads: config.threads, device, ..EngineOptions::default() };
    Engine::new(options).map_err(Failure::Device)
}

async fn serve(
    config: Config,
    env: &Env,
    opened: Opened,
    listeners: Listeners,
) -> Result<(), Failure> {
    let Opened { access, engine, store, doors, levels } = opened;
    let mut signals = Signals::new()?;
    let (phase, phase_receiver) = watch::channel(Phase::Serving);
    let limits = models::Limits {
        memory_bytes: config.memory_bytes_max.unwrap_or_else(memory_share),
        rules: config.rules.clone(),
        context_tokens_max: config.context_tokens_max,
        kv_type: config.kv_type,
        care: config.care.clone(),
    };
    let manifests = Manifests::open(&config.manifests_dir);
    let pulls = store.pulls().clone();
    let models = Models::new(engine, store.clone(), &manifests, limits, phase_receiver.clone());
    let Listeners { http, control, control_file, config: effective } = listeners;
    let http_address = effective.http.listen;
    let (alive, connections) = mpsc::channel(1);
    let http_limits = net::Limits {
        connections_max: config.http.connections_max,
        client_connections_max: config.http.client_connections_max,
        header_timeout: config.http.header_timeout,
        write_timeout: Some(config.http.write_timeout),
    };
    // Whoever pages through what m40ctl prints may take their time.
    let control_limits = net::Limits {
        connections_max: CONTROL_CONNECTIONS_MAX,
        write_timeout: None,
        ..http_limits
    };
    let context = control_context(&effective, &models, &manifests, store, access, &doors, levels);
    let guard = Guard::new(&effective.http, doors.keys.clone());
    let http_router = http::router(http_context(&config, &models, context.clone()), guard);
    control::resume(&context);
    let control_router = control::router(context);
    let (seen, held) = (phase_receiver.clone(), alive.clone());
    match &doors.certificate {
        Some(certificate) => {
            let http = TlsListener { tcp: http, acceptor: certificate.acceptor()? };
            tokio::spawn(net::serve(http, http_router, http_limits, seen, held))
        }
        None => tokio::spawn(net::serve(http, http_router, http_limits, seen, held)),
    };
    tokio::spawn(net::serve(control, control_router, control_limits, phase_receiver, alive));

    watchdog::start(&models);
    tokio::spawn(manifests.clone().follow());
    tokio::spawn(judge_arrivals(pulls.arrivals(), manifests.clone()));
    tokio::spawn(pulls.follow(manifests.subscribe()));
    let serving = Serving {
        config: &config,
        env,
        address: format!("{}://{http_address}, {}", doors.scheme(), models.device()),
        manifests: &manifests,
        doors: &doors,
    };
    info!(%http_address, device = models.device(), "ready");
    let lost = tokio::select! {
        () = serving.until_stopped(&mut signals) => None,
        error = models.device_lost() => Some(error),
    };

    // First of all: from now on nothing is accepted.
    phase.send_replace(Phase::Draining);
    systemd::stopping(config.shutdown_grace.saturating_add(3 * FLUSH_TIME));
    info!("stopping");
    // So that a new daemon may be started and clients see that this one is gone.
    drop(control_file);
    drain(&models, &phase, connections, config.shutdown_grace, &mut signals).await;
    models.care().end();
    info!("stopped");
    lost.map_or(Ok(()), |error| Err(Failure::DeviceLost(error)))
}

/// What models may have of this machine's memory unless that is configured: three quarters.
fn memory_share() -> u64 {
    memory::total_bytes().map_or(MEMORY_BYTES, |bytes| bytes / 4 * 3)
}

/// Tells the scheduler of each file that has come, so that it knows the model and loads it where its
/// manifest says so. Ends with the store.
async fn judge_arrivals(mut arrivals: watch::Receiver<u64>, manifests: Manifests) {
    while arrivals.changed().await.is_ok() {
        let manifests = manifests.clone();
        // A panic is logged by its hook; the next change tries again.
        let _ = tokio::task::spawn_blocking(move || manifests.judge_again()).await;
    }
}

fn http_context(config: &Config, models: &Models, control: control::Context) -> http::Context {
    http::Context {
        models: models.clone(),
        control,
        body_limits: body_limits(config),
        allow_model_management: config.http.allow_model_management,
        started_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
    }
}

fn control_context(
    config: &Config,
    models: &Models,
    manifests: &Manifests,
    store: Store,
    access: Access,
    doors: &Doors,
    levels: Levels,
) -> control::Context {
    control::Context {
        models: models.clone(),
        manifests: manifests.clone(),
        store,
        body_limits: body_limits(config),
        access,
        doors: doors.clone(),
        started: Instant::now(),
        http_address: config.http.listen.to_string(),
        control_socket: config.control.socket.clone(),
        config_file: config.file.clone(),
        levels,
        log_filter: config.log_filter.clone(),
        state_dir: config.state_dir.clone(),
    }
}

fn body_limits(config: &Config) -> BodyLimits {
    BodyLimits { bytes_max: config.http.body_bytes_max, timeout: config.http.body_timeout }
}

struct Signals {
    term: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|source| Failure::System { action: "listen for signals", source })
        };
        Ok(Self {
            term: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The time between start and stop.
struct Serving<'a> {
    config: &'a Config,
    env: &'a Env,
    address: String,
    manifests: &'a Manifests,
    doors: &'a Doors,
}

impl Serving<'_> {
    /// Keeps the service manager's line true, and reloads on SIGHUP, until a signal says to stop.
    async fn until_stopped(&self, signals: &mut Signals) {
        let catalog = self.manifests.subscribe();
        systemd::ready(&self.status());
        tokio::select! {
            () = self.until_signalled(signals) => {}
            () = self.tell_problems(catalog) => {}
        }
    }

    async fn until_signalled(&self, signals: &mut Signals) {
        loop {
            tokio::select! {
                _ = signals.term.recv() => return,
                _ = signals.interrupt.recv() => return,
                _ = signals.hangup.recv() => {
                    systemd::reloading();
                    self.reread_config();
                    if let Err(error) = self.doors.reload() {
                        error!(%error, "going on with the old keys or certificate");
                    }
                    if let Err(error) = self.manifests.reload(false).await {
                        error!(%error, "rereading the manifests failed");
                    }
                    systemd::ready(&self.status());
                }
            }
        }
    }

    /// Tells the service manager of each change of the manifests. Never returns.
    async fn tell_problems(&self, mut catalog: watch::Receiver<Arc<Catalog>>) {
        while catalog.changed().await.is_ok() {
            let status = self.status();
            // A service manager that does not listen must not hold up signals. What it misses
            // while it does not, it need not know: the last state counts.
            let _ = tokio::task::spawn_blocking(move || systemd::status(&status)).await;
        }
    }

    fn status(&self) -> String {
        let serving = format!("serving on {}", self.address);
        let catalog = self.manifests.current();
        match catalog.problems() {
            [] => serving,
            [problem] => format!("{serving}; a manifest is wrong: {problem}"),
            [first, ..] => {
                let count = catalog.problems().len();
                format!("{serving}; {count} manifests are wrong, the first: {first}")
            }
        }
    }

    /// Says what a restart would change of the configuration. A wrong file changes nothing.
    fn reread_config(&self) {
        match Config::load(self.config.file.as_deref(), self.env) {
            Err(error) => error!(%error, "the configuration is wrong, going on with the old one"),
            Ok(new) => match self.config.keys_changed(&new).as_slice() {
                [] => info!("configuration reread, nothing changed"),
                keys => warn!(keys = keys.join(", "), "changed keys take effect after a restart"),
            },
        }
    }
}

async fn drain(
    models: &Models,
    phase: &watch::Sender<Phase>,
    mut connections: mpsc::Receiver<()>,
    grace: Duration,
    signals: &mut Signals,
) {
    models.drain();
    // Nothing is ever sent: the channel ends when the last connection is gone.
    let finished = async {
        tokio::select! {
            _ = connections.recv() => {}
            () = async { models.jobs().none().await; tokio::time::sleep(FLUSH_TIME).await } => {}
        }
    };
    let why_cut = tokio::select! {
        () = finished => None,
        () = tokio::time::sleep(grace) => Some("the grace is over"),
        () = signals.stop() => Some("told to stop again"),
    };
    models.stop();
    if let Some(why) = why_cut {
        warn!("{why}, cutting answers short");
        // They are told why; who does not listen is dropped.
        let _ = tokio::time::timeout(FLUSH_TIME, connections.recv()).await;
    }
    phase.send_replace(Phase::Closing);
    systemd::status("stopped");
}
