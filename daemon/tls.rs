//! The daemon's certificate, which can be read again while connections go on.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("cannot read {}: {source}", file.display())]
    Pem { file: PathBuf, source: pem::Error },
    #[error("{} has no certificate in it", file.display())]
    Empty { file: PathBuf },
    #[error("{} and {} do not do for TLS: {source}", certificate.display(), key.display())]
    Unusable { certificate: PathBuf, key: PathBuf, source: rustls::Error },
}

/// The certificate, and where it is read from. A cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Certificate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    certificate: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    /// Reads a chain of certificates, the daemon's own first, and the private key: PEM files both.
    pub(crate) fn open(certificate: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let current = RwLock::new(read(&certificate, &key, &provider)?);
        Ok(Self(Arc::new(Inner { certificate, key, provider, current })))
    }

    /// Reads the files again, for connections from now on; where they are wrong the old ones count on.
    pub(crate) fn reload(&self) -> Result<(), TlsError> {
        let new = read(&self.0.certificate, &self.0.key, &self.0.provider)?;
        *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// What begins TLS on a connection.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor, TlsError> {
        let config = ServerConfig::builder_with_provider(Arc::clone(&self.0.provider))
            .with_safe_default_protocol_versions()
            .map_err(|source| unusable(&self.0.certificate, &self.0.key, source))?;
        let resolver = Arc::clone(&self.0);
        let mut config = config.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl ResolvesServerCert for Inner {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn read(
    certificate: &Path,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let broken = |file: &Path| {
        let file = file.to_path_buf();
        move |source| TlsError::Pem { file, source }
    };
    let chain = CertificateDer::pem_file_iter(certificate).map_err(broken(certificate))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(broken(certificate))?;
    if chain.is_empty() {
        return Err(TlsError::Empty { file: certificate.to_path_buf() });
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(broken(key))?;
    CertifiedKey::from_der(chain, private, provider)
        .map(Arc::new)
        .map_err(|source| unusable(certificate, key, source))
}

fn unusable(certificate: &Path, key: &Path, source: rustls::Error) -> TlsError {
    TlsError::Unusable { certificate: certificate.to_path_buf(), key: key.to_path_buf(), source }
}
