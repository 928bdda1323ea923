//! Start, signals, stop.
//!
//! Start: own the state folder, open the engine, bind HTTP, bind the control socket, and only
//! then say READY. Stop, on SIGTERM or SIGINT: accept nothing more, let running answers finish
//! within `limits.shutdown_grace_s`, cut the rest short with an error that says why, exit 0. A
//! second signal ends the wait. A GPU that stops working for the process stops the daemon in the
//! same way, with an exit code that has systemd start it again.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use m40_control::paths::Env;
use m40_manifest::Catalog;
use m40llm::{Engine, EngineOptions};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::config::{Config, Device};
use crate::doors::Doors;
use crate::exit::Failure;
use crate::http::{BodyLimits, Guard};
use crate::manifests::Manifests;
use crate::models::{self, Models};
use crate::net::{self, Phase, TlsListener};
use crate::socket::{self, Access, SocketFile};
use crate::store::Store;
use crate::{control, http, memory, systemd};

/// How long clients have to take the last bytes of what was cut short.
const FLUSH_TIME: Duration = Duration::from_secs(1);

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

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
pub(crate) fn run(config: Config, env: &Env) -> Result<(), Failure> {
    let access = Access::new(&config.control)?;
    let doors = Doors::open(&config.http, env)?;
    let store = Store::open(&config.state_dir, config.store.settings(env)?)?;
    let engine = open_engine(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(THREADS_MAX)
        .build()
        .map_err(|source| Failure::System { action: "start the runtime", source })?;
    let result = runtime.block_on(async {
        let bound = Bound::new(&config, &access).await?;
        serve(config, env, access, engine, store, doors, bound).await
    });
    // A load that cannot be interrupted must not hold up the exit.
    runtime.shutdown_background();
    result
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

/// Everything that listens.
struct Bound {
    http: TcpListener,
    http_address: SocketAddr,
    control: UnixListener,
    control_file: SocketFile,
}

impl Bound {
    async fn new(config: &Config, access: &Access) -> Result<Self, Failure> {
        let http = bind_http(config.http.listen)?;
        let http_address = http
            .local_addr()
            .map_err(|source| Failure::System { action: "read the bound address", source })?;
        let (control, control_file) = socket::bind(&config.control, access)?;
        Ok(Self { http, http_address, control, control_file })
    }
}

fn bind_http(address: SocketAddr) -> Result<TcpListener, Failure> {
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // So that a restart need not wait for old connections to time out.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => Failure::AddressInUse { address },
        io::ErrorKind::PermissionDenied => Failure::AddressForbidden { address },
        _ => Failure::Listen { address, source },
    })
}

async fn serve(
    config: Config,
    env: &Env,
    access: Access,
    engine: Engine,
    store: Store,
    doors: Doors,
    bound: Bound,
) -> Result<(), Failure> {
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
    let Bound { http, http_address, control, control_file } = bound;
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
    let context =
        control_context(&config, &models, &manifests, store, access, &doors, http_address);
    let guard = Guard::new(&config.http, doors.keys.clone());
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

    systemd::stopping();
    info!("stopping");
    // First of all, so that a new daemon may be started and clients see that this one is gone.
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
    http_address: SocketAddr,
) -> control::Context {
    control::Context {
        models: models.clone(),
        manifests: manifests.clone(),
        store,
        body_limits: body_limits(config),
        access,
        doors: doors.clone(),
        started: Instant::now(),
        http_address: http_address.to_string(),
        control_socket: config.control.socket.clone(),
        config_file: config.file.clone(),
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
    phase.send_replace(Phase::Draining);
    models.drain();
    // Nothing is ever sent: the channel ends when the last connection is gone.
    let finished = async {
        tokio::select! {
            _ = connections.recv() => {}
            () = async { models.jobs().none().await; tokio::time::sleep(FLUSH_TIME).await } => {}
        }
    };
    tokio::select! {
        () = finished => {}
        () = tokio::time::sleep(grace) => warn!("the grace is over, cutting answers short"),
        () = signals.stop() => warn!("told to stop again, cutting answers short"),
    }
    models.stop();
    // Those that are cut short are told why; who does not listen is dropped.
    let _ = tokio::time::timeout(FLUSH_TIME, connections.recv()).await;
    phase.send_replace(Phase::Closing);
    systemd::status("stopped");
}
