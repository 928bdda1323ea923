//! What says who may come in over HTTP: API keys and the certificate, whose files can be read again.

use m40_control::paths::Env;

use crate::config::Http;
use crate::exit::Failure;
use crate::keys::Keys;
use crate::tls::Certificate;

/// A cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Doors {
    pub keys: Option<Keys>,
    pub certificate: Option<Certificate>,
}

impl Doors {
    /// Reads the files that the configuration names.
    pub(crate) fn open(config: &Http, env: &Env) -> Result<Self, Failure> {
        let keys = match &config.keys {
            Some(file) => Some(Keys::open(file.path("http.keys", env)?)?),
            None => None,
        };
        let certificate = match &config.tls {
            Some(tls) => {
                let key = tls.key.path("http.tls_key", env)?;
                Some(Certificate::open(tls.certificate.clone(), key)?)
            }
            None => None,
        };
        Ok(Self { keys, certificate })
    }

    /// Reads them again. What is wrong goes on as it was.
    pub(crate) fn reload(&self) -> Result<(), Failure> {
        let keys = self.keys.as_ref().map_or(Ok(()), Keys::reload);
        self.certificate.as_ref().map_or(Ok(()), Certificate::reload)?;
        Ok(keys?)
    }

    /// How addresses of the listener begin.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.certificate.is_some() { "https" } else { "http" }
    }
}
