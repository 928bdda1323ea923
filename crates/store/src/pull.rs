//! What a source names comes into the store, however it is packed and wherever it is.

mod assemble;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::thread;

use tokio::sync::watch;

use crate::blobs::Blob;
use crate::client::Client;
use crate::download::error::{FetchError, shown};
use crate::download::{Job, Transfer};
use crate::error::failed;
use crate::import::Ways;
use crate::ollama::OllamaModel;
use crate::progress::{Phase, Progress};
use crate::resolve::{Remote, plain_url, resolve};
use crate::sha256::Sha256;
use crate::source::Source;
use crate::store::{Inner, Store};

/// What to get.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where it is.
    pub source: Source,
    /// Where the same file is too.
    pub mirrors: Vec<Source>,
    /// What it must hash to, where the source does not say it, or may say something else.
    pub sha256: Option<Sha256>,
    /// How long it must be.
    pub size_bytes: Option<u64>,
}

impl Request {
    /// Whatever is at this source.
    pub fn new(source: Source) -> Self {
        Self { source, mirrors: Vec::new(), sha256: None, size_bytes: None }
    }
}

/// What came.
#[derive(Debug, Clone, PartialEq)]
pub struct Pulled {
    /// One file, or all of a split in their order, each with its own name.
    pub files: Vec<PulledFile>,
    /// What an Ollama registry has beside the weights.
    pub ollama: Option<OllamaModel>,
}

/// A file that came.
#[derive(Debug, Clone, PartialEq)]
pub struct PulledFile {
    /// Its own name, without folders.
    pub name: String,
    /// It, in the store.
    pub blob: Blob,
}

/// A pull that runs, or is over. A cheap handle; without any the pull goes on.
#[derive(Debug, Clone)]
pub struct Pull {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    progress: watch::Sender<Progress>,
    outcome: watch::Sender<Option<Result<Arc<Pulled>, FetchError>>>,
    cancelled: watch::Sender<bool>,
}

impl Pull {
    /// How far it is, and news of that.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    /// Waits for its end.
    pub async fn done(&self) -> Result<Arc<Pulled>, FetchError> {
        let mut outcome = self.shared.outcome.subscribe();
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Err(FetchError::Lost)),
            Err(_) => Err(FetchError::Lost),
        }
    }

    /// Ends it. A download that another pull shares goes on for that; what came is kept.
    pub fn cancel(&self) {
        self.shared.cancelled.send_replace(true);
    }
}

impl Store {
    /// Gets what a source names. It runs by itself from here on.
    pub fn pull(&self, request: Request) -> Pull {
        let shared = Arc::new(Shared {
            progress: watch::Sender::new(Progress::START),
            outcome: watch::Sender::new(None),
            cancelled: watch::Sender::new(false),
        });
        let inner = Arc::clone(&self.inner);
        let task = Task { inner, shared: Arc::clone(&shared), current: RefCell::default() };
        let thread = thread::Builder::new().name("store-pull".to_owned());
        if let Err(source) = thread.spawn(move || task.run(&request)) {
            let error = failed("start a thread for", &self.inner.dir)(source);
            shared.outcome.send_replace(Some(Err(error.into())));
        }
        Pull { shared }
    }
}

/// A pull in its thread.
struct Task {
    inner: Arc<Inner>,
    shared: Arc<Shared>,
    /// The download that it waits for.
    current: RefCell<Option<Arc<Transfer>>>,
}

impl Task {
    fn run(self, request: &Request) {
        // Whatever happens here, the others hear of its end.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.outcome(request)));
        let outcome = outcome.unwrap_or(Err(FetchError::Lost)).map(Arc::new);
        // Who hears of the end may open the store anew.
        let Self { inner, shared, current } = self;
        drop((inner, current));
        shared.outcome.send_replace(Some(outcome));
    }

    fn outcome(&self, request: &Request) -> Result<Pulled, FetchError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(failed("start a runtime for", &self.inner.dir))?;
        let mut cancelled = self.shared.cancelled.subscribe();
        runtime.block_on(async {
            let outcome = tokio::select! {
                pulled = self.pull(request) => pulled,
                _ = cancelled.wait_for(|cancelled| *cancelled) => Err(FetchError::Cancelled),
            };
            if let Some(transfer) = self.current.take() {
                transfer.left().await;
            }
            outcome
        })
    }

    async fn pull(&self, request: &Request) -> Result<Pulled, FetchError> {
        let wanted = Wanted {
            sha256: request.sha256,
            size_bytes: request.size_bytes,
            mirrors: &request.mirrors,
        };
        let is_ollama = matches!(request.source, Source::Ollama(_));
        if let Some(blob) = wanted.sha256.and_then(|sha256| self.inner.blobs.find(&sha256))
            && !is_ollama
        {
            return Ok(Pulled { files: vec![named(&request.source, blob)], ollama: None });
        }
        let settings = &self.inner.settings;
        let client = Client::new(Arc::clone(settings))?;
        let Some(found) = resolve(&client, settings, &request.source).await? else {
            let blob = self.one(&client, &request.source, &wanted).await?;
            return Ok(Pulled { files: vec![named(&request.source, blob)], ollama: None });
        };
        let files = self.download_all(&request.source, found.files, &wanted).await?;
        Ok(Pulled { files, ollama: found.ollama })
    }

    /// The one file that a source is. A part of a source is one too, so this goes round.
    fn one<'a>(
        &'a self,
        client: &'a Client,
        source: &'a Source,
        wanted: &'a Wanted<'a>,
    ) -> Pin<Box<dyn Future<Output = Result<Blob, FetchError>> + 'a>> {
        Box::pin(async move {
            match source {
                Source::File(path) => self.import(path.path(), source, wanted),
                Source::Parts(parts) => {
                    let pieces = self.pieces(client, parts.as_slice()).await?;
                    self.assemble(source, &pieces, wanted)
                }
                Source::Member(member) => {
                    let archive = std::slice::from_ref(member.archive());
                    let pieces = self.pieces(client, archive).await?;
                    self.extract(source, member, &pieces, wanted)
                }
                Source::Web(_) | Source::HuggingFace(_) | Source::Ollama(_) => {
                    let found = resolve(client, &self.inner.settings, source).await?;
                    let files = found.map(|found| found.files).unwrap_or_default();
                    let mut files = self.download_all(source, files, wanted).await?;
                    match files.len() {
                        1 => Ok(files.swap_remove(0).blob),
                        count => Err(several(source, count)),
                    }
                }
            }
        })
    }

    async fn pieces(&self, client: &Client, sources: &[Source]) -> Result<Pieces, FetchError> {
        let known: BTreeSet<Sha256> =
            self.inner.blobs.list()?.into_iter().map(|blob| blob.sha256).collect();
        let anything = Wanted { sha256: None, size_bytes: None, mirrors: &[] };
        let mut blobs = Vec::with_capacity(sources.len());
        for source in sources {
            blobs.push(self.one(client, source, &anything).await?);
        }
        let fresh = blobs.iter().map(|blob| blob.sha256).filter(|sha256| !known.contains(sha256));
        let fresh = fresh.collect();
        Ok(Pieces { blobs, fresh })
    }

    fn import(
        &self,
        path: &Path,
        source: &Source,
        wanted: &Wanted<'_>,
    ) -> Result<Blob, FetchError> {
        self.publish(Phase::Assembling, 0, wanted.size_bytes);
        let mut done = self.done_bytes();
        let blob = self.inner.import(path, Ways::UpToCopy, vec![source.clone()], &mut |bytes| {
            done += bytes;
            self.publish(Phase::Assembling, done, wanted.size_bytes);
        })?;
        wanted.check(source, blob.sha256, blob.size_bytes)?;
        Ok(blob)
    }

    async fn download_all(
        &self,
        source: &Source,
        files: Vec<Remote>,
        wanted: &Wanted<'_>,
    ) -> Result<Vec<PulledFile>, FetchError> {
        if files.len() > 1 && wanted.sha256.is_some() {
            return Err(several(source, files.len()));
        }
        let sizes: Option<Vec<u64>> = files.iter().map(|file| file.size_bytes).collect();
        let total = sizes.map(|sizes| sizes.into_iter().sum()).or(wanted.size_bytes);
        let mut pulled = Vec::with_capacity(files.len());
        for file in files {
            if let Some((expected, found)) = wanted.sha256.zip(file.sha256)
                && expected != found
            {
                return Err(FetchError::Digest { url: shown(&file.url), expected, found });
            }
            let settings = &self.inner.settings;
            let mirrors = wanted.mirrors.iter().filter_map(|mirror| plain_url(settings, mirror));
            let job = Job {
                urls: std::iter::once(file.url).chain(mirrors).collect(),
                sha256: wanted.sha256.or(file.sha256),
                size_bytes: wanted.size_bytes.or(file.size_bytes),
                source: source.clone(),
            };
            let blob = self.download(&job, total).await?;
            pulled.push(PulledFile { name: file.name, blob });
        }
        Ok(pulled)
    }

    /// Waits for a download, and says how far it is.
    async fn download(&self, job: &Job, total: Option<u64>) -> Result<Blob, FetchError> {
        let transfer = self.inner.transfer(job).await?;
        *self.current.borrow_mut() = Some(Arc::clone(&transfer));
        let _interest = Interest { inner: &self.inner, transfer: &transfer };
        let base = self.done_bytes();
        let mut progress = transfer.progress();
        let mut done = std::pin::pin!(transfer.done());
        loop {
            let now = *progress.borrow_and_update();
            self.shared.progress.send_modify(|all| {
                all.phase = now.phase;
                all.bytes_per_s = now.bytes_per_s;
                all.done_bytes = all.done_bytes.max(base + now.done_bytes);
                all.total_bytes = total.or_else(|| now.total_bytes.map(|bytes| base + bytes));
            });
            tokio::select! {
                blob = &mut done => {
                    let blob = blob?;
                    self.publish(Phase::Downloading, base + blob.size_bytes, total);
                    return Ok(blob);
                }
                _ = progress.changed() => {}
            }
        }
    }

    fn done_bytes(&self) -> u64 {
        self.shared.progress.borrow().done_bytes
    }

    pub(crate) fn publish(&self, phase: Phase, done_bytes: u64, total_bytes: Option<u64>) {
        self.shared.progress.send_modify(|progress| {
            progress.phase = phase;
            progress.done_bytes = progress.done_bytes.max(done_bytes);
            progress.total_bytes = total_bytes.or(progress.total_bytes);
        });
    }
}

/// What a file must be.
#[derive(Debug)]
struct Wanted<'a> {
    sha256: Option<Sha256>,
    size_bytes: Option<u64>,
    mirrors: &'a [Source],
}

impl Wanted<'_> {
    fn check(&self, source: &Source, found: Sha256, found_bytes: u64) -> Result<(), FetchError> {
        let url = source.to_string();
        if let Some(expected_bytes) = self.size_bytes.filter(|&expected| expected != found_bytes) {
            return Err(FetchError::Size { url, expected_bytes, found_bytes });
        }
        match self.sha256 {
            Some(expected) if expected != found => Err(FetchError::Digest { url, expected, found }),
            _ => Ok(()),
        }
    }
}

/// Files that another is made of.
#[derive(Debug)]
struct Pieces {
    blobs: Vec<Blob>,
    /// Those that were not in the store before.
    fresh: BTreeSet<Sha256>,
}

/// That a pull waits for a download.
struct Interest<'a> {
    inner: &'a Inner,
    transfer: &'a Transfer,
}

impl Drop for Interest<'_> {
    fn drop(&mut self) {
        self.inner.leave(self.transfer);
    }
}

fn named(source: &Source, blob: Blob) -> PulledFile {
    let first = match source {
        Source::Parts(parts) => &parts.as_slice()[0],
        other => other,
    };
    PulledFile { name: first.file_name().unwrap_or("model.gguf").to_owned(), blob }
}

fn several(source: &Source, count: usize) -> FetchError {
    FetchError::NotThere {
        source_text: source.to_string(),
        reason: format!("it is {count} files, and one was wanted (with one hash)"),
    }
}
