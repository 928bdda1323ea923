//! The name by which a client calls this machine. A page whose own name is made to lead here has the
//! browser send that name (DNS rebinding): no browser then keeps the page from reading the answers.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::header::HOST;
use axum::http::uri::Authority;

use crate::config::{Http, is_this_machine};
use crate::http::error::HttpError;

#[derive(Debug, Clone)]
pub(super) struct Hosts {
    /// Whether only this machine can connect.
    local: bool,
    /// In lower case.
    names: Arc<[String]>,
}

impl Hosts {
    pub(super) fn new(config: &Http) -> Self {
        Self { local: is_this_machine(config.listen.ip()), names: config.hosts.as_slice().into() }
    }

    pub(super) fn check(&self, request: &Request) -> Result<(), HttpError> {
        let mut sent = request.headers().get_all(HOST).iter();
        // Browsers always say it. What says none of it is no browser.
        let header = sent.next().map(|value| value.to_str().unwrap_or_default());
        let in_target = request.uri().authority().map(Authority::as_str);
        let all_known = [header, in_target].into_iter().flatten().all(|host| self.is_known(host));
        if all_known && sent.next().is_none() {
            return Ok(());
        }
        let named = header.unwrap_or_default();
        Err(HttpError::wrong_host(named))
    }

    fn is_known(&self, host: &str) -> bool {
        let Ok(host) = host.parse::<Authority>() else { return false };
        let name = host.host().trim_end_matches('.').to_ascii_lowercase();
        if name == "localhost" || name.ends_with(".localhost") || self.names.contains(&name) {
            return true;
        }
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(&name);
        match bare.parse::<IpAddr>() {
            // An address leads where it says, whoever wrote it down.
            Ok(address) => !self.local || is_this_machine(address),
            // What a machine is called on a network is known there only.
            Err(_) => !self.local && self.names.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(local: bool, names: &[&str]) -> Hosts {
        Hosts { local, names: names.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn for_this_machine_only_its_own_names_count() {
        let hosts = hosts(true, &["box.lan"]);
        for good in
            ["localhost", "LOCALHOST:11434", "127.0.0.1:1", "[::1]:1", "a.localhost", "box.lan"]
        {
            assert!(hosts.is_known(good), "{good}");
        }
        for bad in
            ["evil.example", "localhost.evil.example", "", "10.0.0.1", "box.lan.x", "[::1", "a b"]
        {
            assert!(!hosts.is_known(bad), "{bad}");
        }
    }

    #[test]
    fn on_a_network_names_count_where_some_are_configured() {
        assert!(hosts(false, &[]).is_known("anything.lan:80"));
        let hosts = hosts(false, &["box.lan"]);
        assert!(hosts.is_known("box.lan:80") && hosts.is_known("192.168.1.2"));
        assert!(!hosts.is_known("evil.example"));
    }
}
