//! One attempt: a request, and more of them beside it where the origin sends parts of files.

use std::ops::Range;

use futures_util::future::try_join_all;
use reqwest::header::{
    CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName, IF_RANGE, LAST_MODIFIED,
    RANGE, TRANSFER_ENCODING,
};
use reqwest::{Response, StatusCode};
use url::Url;

use super::Download;
use super::error::{FetchError, shown, size_error};
use super::have::{Claim, SPAN_BYTES};
use super::partial::Origin;
use crate::client::check_status;
use crate::import::check_space;
use crate::progress::Phase;

/// So many wrong answers to ranges, and none is asked for any more.
const RANGE_FAULTS_MAX: u32 = 2;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Whole,
    From(u64),
    Part { start: u64, end: u64 },
}

/// What came back.
enum Answer {
    /// The file from its start.
    Whole(Response),
    /// These of its bytes.
    Part(Response, Range<u64>),
    /// There are no bytes behind those that are there.
    NothingMore,
}

impl Download<'_> {
    /// Fetches what is missing. The first error ends it; what has come by then stays.
    pub(super) async fn round(&self) -> Result<(), FetchError> {
        let url = self.address().clone();
        if self.frontier() > 0 && !self.may_go_on(&url) {
            self.partial.forget()?;
            self.restart()?;
        }
        let start = self.frontier();
        if self.size() == Some(start) {
            return Ok(());
        }
        self.meter.phase(Phase::Downloading);
        let (answer, at) = self.ask(&url, self.first_ask(start)).await?;
        match answer {
            Answer::NothingMore => Ok(()),
            Answer::Whole(response) => {
                if start > 0 {
                    self.restart()?;
                }
                let end = self.stream(response, &at, 0, self.size()).await?;
                self.ended(end)
            }
            Answer::Part(response, range) => {
                let total = self.size().unwrap_or(range.end);
                self.have.borrow_mut().take(range.clone());
                let first = self.work(&url, Some((response, at, range)), total);
                let others = (1..self.connections.get()).map(|_| self.work(&url, None, total));
                futures_util::future::try_join(first, try_join_all(others)).await?;
                Ok(())
            }
        }
    }

    /// Whether what is there can be told from another file at the same place.
    fn may_go_on(&self, url: &Url) -> bool {
        let origin = self.origin.borrow();
        self.job.sha256.is_some() || (origin.validator.is_some() && origin.url == url.as_str())
    }

    fn first_ask(&self, start: u64) -> Ask {
        if self.range_faults.get() >= RANGE_FAULTS_MAX {
            return Ask::Whole;
        }
        if self.connections.get() > 1 {
            let end = (start + SPAN_BYTES).min(self.size().unwrap_or(u64::MAX));
            return Ask::Part { start, end };
        }
        if start > 0 { Ask::From(start) } else { Ask::Whole }
    }

    /// Fetches one range after the other, until none is left for it.
    async fn work(
        &self,
        url: &Url,
        first: Option<(Response, Url, Range<u64>)>,
        total: u64,
    ) -> Result<(), FetchError> {
        if let Some((response, at, range)) = first {
            self.stream_range(response, &at, range).await?;
        }
        loop {
            // Before the look, or what moves between the two is missed.
            let moved = self.moved.notified();
            let claim = self.have.borrow_mut().claim(total);
            match claim {
                Claim::Nothing => return Ok(()),
                Claim::Wait => moved.await,
                Claim::Range(range) => {
                    let ask = Ask::Part { start: range.start, end: range.end };
                    match self.ask(url, ask).await? {
                        (Answer::Part(response, found), at) if found == range => {
                            self.stream_range(response, &at, range).await?;
                        }
                        _ => return Err(self.ranges_error("it sends the whole file now")),
                    }
                }
            }
        }
    }

    async fn stream_range(
        &self,
        response: Response,
        at: &Url,
        range: Range<u64>,
    ) -> Result<(), FetchError> {
        self.stream(response, at, range.start, Some(range.end)).await?;
        self.have.borrow_mut().give_back(range.start);
        self.moved.notify_waiters();
        Ok(())
    }

    /// Writes a body to its place in the file, and returns where it ended.
    async fn stream(
        &self,
        mut response: Response,
        url: &Url,
        start: u64,
        end: Option<u64>,
    ) -> Result<u64, FetchError> {
        let mut at = start;
        while let Some(piece) = self.client.piece(&mut response, url).await? {
            let next = at + piece.len() as u64;
            if let Some(end) = end.filter(|&end| next > end) {
                return Err(size_error(url, end, next));
            }
            self.throttle(piece.len() as u64).await;
            self.write(&piece, at)?;
            at = next;
        }
        match end {
            Some(end) if at < end => {
                let reason = format!("it ended after {at} of {end} bytes");
                Err(FetchError::Broken { url: shown(url), reason })
            }
            _ => Ok(at),
        }
    }

    fn write(&self, piece: &[u8], at: u64) -> Result<(), FetchError> {
        let written = self.inner.host.write_at(self.partial.data(), piece, at);
        written.map_err(|error| self.write_failed(error, at))?;
        let mut have = self.have.borrow_mut();
        let before = have.frontier();
        have.add(at..at + piece.len() as u64);
        let frontier = have.frontier();
        drop(have);
        if frontier > before {
            self.moved.notify_waiters();
            let goes_on = self.follower.borrow().as_ref().is_some_and(|f| f.advance(frontier));
            if !goes_on {
                return Err(FetchError::Lost);
            }
        }
        Ok(())
    }

    pub(super) async fn throttle(&self, bytes: u64) {
        let Some(rate) = self.inner.settings.bytes_per_s_max else { return };
        let wait = self.inner.limiter.wait(&*self.inner.host, bytes, rate);
        if !wait.is_zero() {
            self.inner.host.sleep(wait).await;
        }
    }

    /// The end of a body is the end of the file where nobody said another.
    fn ended(&self, end: u64) -> Result<(), FetchError> {
        let mut origin = self.origin.borrow_mut();
        origin.size_bytes = Some(end);
        self.partial.set_origin(&origin)?;
        Ok(())
    }

    async fn ask(&self, url: &Url, ask: Ask) -> Result<(Answer, Url), FetchError> {
        let (response, at) = self.client.get(url, &self.request_headers(ask)).await?;
        let start = match ask {
            Ask::Whole => 0,
            Ask::From(start) | Ask::Part { start, .. } => start,
        };
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            let total = content_range(&response).and_then(|(_, total)| total);
            let is_end = total == Some(start) && self.size().is_none_or(|size| size == start);
            let complete = is_end.then_some((Answer::NothingMore, at));
            return complete.ok_or_else(|| self.ranges_error("it says that there are none here"));
        }
        let response = check_status(response, &at)?;
        check_is_file(&response, &at)?;
        if ask == Ask::Whole || response.status() != StatusCode::PARTIAL_CONTENT {
            self.learn(url, &response, response.content_length())?;
            return Ok((Answer::Whole(response), at));
        }
        let found = content_range(&response).and_then(|(range, total)| Some((range?, total?)));
        let Some((range, total)) = found else {
            return Err(self.ranges_error("it does not say which part it sends"));
        };
        let end = match ask {
            Ask::Part { end, .. } => end.min(total),
            Ask::Whole | Ask::From(_) => total,
        };
        if range != (start..end) {
            return Err(
                self.ranges_error(format!("bytes {start}.. were asked for, {range:?} came"))
            );
        }
        self.learn(url, &response, Some(total))?;
        Ok((Answer::Part(response, range), at))
    }

    fn request_headers(&self, ask: Ask) -> Vec<(HeaderName, String)> {
        let range = match ask {
            Ask::Whole => return Vec::new(),
            Ask::From(start) => format!("bytes={start}-"),
            Ask::Part { start, end } => format!("bytes={start}-{}", end - 1),
        };
        let mut headers = vec![(RANGE, range)];
        // With a hash the file is known better than by its validator, which mirrors differ in.
        if let Some(validator) = self.origin.borrow().validator.clone()
            && self.job.sha256.is_none()
        {
            headers.push((IF_RANGE, validator));
        }
        headers
    }

    /// Notes what a file's headers say of it, and refuses a file that cannot be the right one, or
    /// for which there is no space.
    fn learn(&self, url: &Url, response: &Response, size: Option<u64>) -> Result<(), FetchError> {
        let found =
            Origin { url: url.clone().into(), validator: validator(response), size_bytes: size };
        let known = self.origin.borrow().clone();
        if let (Some(expected), Some(size)) = (self.job.size_bytes, size)
            && size != expected
        {
            return Err(size_error(url, expected, size));
        }
        let is_framed = size.is_some() || response.headers().contains_key(TRANSFER_ENCODING);
        if !is_framed && self.job.sha256.is_none() && self.job.size_bytes.is_none() {
            let reason = "it says neither how long the file is nor where it ends: give a hash";
            return Err(FetchError::Answer { url: shown(url), reason: reason.to_owned() });
        }
        if found == known {
            return Ok(());
        }
        let is_part = response.status() == StatusCode::PARTIAL_CONTENT;
        let is_other = found.validator != known.validator || found.size_bytes != known.size_bytes;
        if self.job.sha256.is_none() && self.frontier() > 0 && is_other {
            // The next round begins at the first byte, of the new file.
            self.partial.forget()?;
            self.origin.take();
            self.partial.set_origin(&Origin::default())?;
            if is_part {
                return Err(self.ranges_error("the file has changed meanwhile"));
            }
        }
        if let Some(size) = size {
            self.meter.total(size);
            let needed = size.saturating_sub(self.partial.taken_bytes()?);
            check_space(&*self.inner.host, self.partial.dir(), needed)?;
        }
        self.partial.set_origin(&found)?;
        *self.origin.borrow_mut() = found;
        Ok(())
    }
}

/// What tells a file from a later one: a strong ETag, or else the time of its last change.
fn validator(response: &Response) -> Option<String> {
    let text = |name| response.headers().get(name)?.to_str().ok().map(str::to_owned);
    text(ETAG).filter(|tag| !tag.starts_with("W/")).or_else(|| text(LAST_MODIFIED))
}

pub(super) fn check_is_file(response: &Response, url: &Url) -> Result<(), FetchError> {
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    if header(CONTENT_TYPE).is_some_and(|kind| kind.starts_with("text/html")) {
        return Err(FetchError::WebPage { url: shown(url) });
    }
    match header(CONTENT_ENCODING) {
        None | Some("identity") => Ok(()),
        Some(other) => {
            let reason = format!("the file came packed as {other}, which was not asked for");
            Err(FetchError::Answer { url: shown(url), reason })
        }
    }
}

/// The range and the length of the whole that `Content-Range` says, each if it does.
pub(super) fn content_range(response: &Response) -> Option<(Option<Range<u64>>, Option<u64>)> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let total: Option<u64> = total.parse().ok();
    if range == "*" {
        return Some((None, total));
    }
    let (start, last) = range.split_once('-')?;
    let (start, last): (u64, u64) = (start.parse().ok()?, last.parse().ok()?);
    let is_range = start <= last && total.is_none_or(|total| last < total);
    is_range.then_some((Some(start..last + 1), total))
}
