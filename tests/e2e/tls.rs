//! The HTTP listener with a certificate.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use m40_testkit::daemon::{Builder, Daemon};
use m40_testkit::http;
use nix::sys::signal::Signal;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::{builder, check_one_line, ctl};

/// Writes a new certificate for `localhost` and its key, and returns the certificate.
fn write_certificate(dir: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]);
    let made = made.expect("a certificate can be made");
    std::fs::write(dir.join("cert.pem"), made.cert.pem()).expect("the folder of a test");
    let key = made.signing_key.serialize_pem();
    std::fs::write(dir.join("key.pem"), key).expect("the folder of a test");
    made.cert.into()
}

fn with_tls(builder: Builder) -> Builder {
    let file = |name: &str| builder.dir().join(name);
    let lines =
        format!("tls_certificate = {:?}\ntls_key = {:?}", file("cert.pem"), file("key.pem"));
    builder.http(&lines)
}

/// What `/health` answers to a client that trusts only this certificate, or why nothing.
fn health(daemon: &Daemon, trusted: &CertificateDer<'static>) -> Result<String, std::io::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("it is a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("it is a name");
    let client = ClientConnection::new(Arc::new(config), name).expect("the name is legal");
    let mut stream = StreamOwned::new(client, http::connect(daemon.http()));
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    Ok(http::exchange(stream, b""))
}

#[test]
fn a_certificate_is_shown_to_clients_and_renewed_without_a_restart() {
    let builder = with_tls(builder());
    let old = write_certificate(builder.dir());
    let mut daemon = builder.start();
    let answer = health(&daemon, &old).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("ok"), "{answer}");
    let status = ctl(&daemon, &["status"]).ok().out;
    assert!(status.contains(&format!("https://{}", daemon.http())), "{status}");

    let new = write_certificate(daemon.dir());
    assert!(health(&daemon, &new).is_err(), "the old one is still shown");
    daemon.signal(Signal::SIGHUP);
    daemon.notification("READY=1");
    assert!(health(&daemon, &new).unwrap().starts_with("HTTP/1.1 200 "));
    assert!(health(&daemon, &old).is_err());

    std::fs::write(daemon.dir().join("key.pem"), "nonsense").unwrap();
    ctl(&daemon, &["reload"]).fails(1, &["http.tls_certificate", "key.pem"]);
    assert!(health(&daemon, &new).is_ok());
}

#[test]
fn what_is_not_tls_is_dropped_there() {
    let builder = with_tls(builder()).header_timeout_s(1);
    let certificate = write_certificate(builder.dir());
    let daemon = builder.start();
    let plain = http::raw(daemon.http(), b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert!(!plain.contains("HTTP"), "{plain}");
    // It says nothing at all, and is not waited for.
    assert_eq!(http::raw(daemon.http(), b""), "");
    assert!(health(&daemon, &certificate).is_ok());
}

#[test]
fn a_certificate_that_does_not_do_is_named_at_the_start() {
    let builder = with_tls(builder());
    let fails = |says: &str| {
        let output = builder.fail();
        assert_eq!(output.status.code(), Some(78));
        check_one_line(&String::from_utf8_lossy(&output.stderr), &["http.tls_certificate", says]);
    };
    fails("cert.pem");
    write_certificate(builder.dir());
    let other = tempfile::tempdir().unwrap();
    write_certificate(other.path());
    std::fs::copy(other.path().join("key.pem"), builder.dir().join("key.pem")).unwrap();
    fails("do not do for TLS");
}
