//! How to reach a server: address, identity, timeouts and limits of a connection.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use crate::error::Error;

/// How to reach a server.
#[derive(Clone)]
pub struct ConnectOptions {
    /// `HOST:PORT`, `http://HOST:PORT` or `https://HOST:PORT`.
    pub server: String,
    /// Sent as `authorization: Bearer …` with every call.
    pub token: Option<String>,
    /// Encrypt; an address with `https://` does so too, with the system's authorities.
    pub tls: Option<TlsOptions>,
    /// How long establishing a connection may take.
    pub connect_timeout: Duration,
    /// How often an HTTP/2 ping proves that the connection lives, also while nothing runs on it.
    pub keepalive_interval: Duration,
    /// How long a ping may go unanswered before the connection is given up.
    pub keepalive_timeout: Duration,
    /// Size of a message, either way. An F32 vector of 5120 dimensions is 20 KiB.
    pub max_message_bytes: usize,
}

/// How to encrypt, and who to believe and to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// File of who signs the server's certificate, PEM; absent: the system's authorities.
    pub ca: Option<PathBuf>,
    /// File of this client's certificate, PEM.
    pub cert: Option<PathBuf>,
    /// File of its private key, PEM.
    pub key: Option<PathBuf>,
    /// Name that the server's certificate must have; absent: the address's host.
    pub server_name: Option<String>,
}

/// Without the token.
impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("server", &self.server)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

impl ConnectOptions {
    /// Defaults for everything but the address: 5 s to connect, a ping each 30 s with 20 s to be answered,
    /// messages of up to 32 MiB.
    pub fn new(server: impl Into<String>) -> Self {
        Self {
            server: server.into(),
            token: None,
            tls: None,
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(20),
            max_message_bytes: 32 << 20,
        }
    }

    fn endpoint(&self) -> Result<Endpoint, Error> {
        let invalid = |message: String| Error::Option {
            option: "server",
            message: format!("{message}: {:?}", self.server),
        };
        let address = if self.server.contains("://") {
            self.server.clone()
        } else {
            let scheme = if self.tls.is_some() { "https" } else { "http" };
            format!("{scheme}://{}", self.server)
        };
        let endpoint = Endpoint::from_shared(address).map_err(|e| invalid(innermost(&e)))?;
        let uri = endpoint.uri();
        let encrypts = match uri.scheme_str() {
            Some("http") if self.tls.is_some() => {
                return Err(invalid("options of TLS contradict http://".into()));
            }
            Some("http") => false,
            Some("https") => true,
            _ => return Err(invalid("only http:// (h2c) and https:// are spoken".into())),
        };
        if uri.port().is_none() {
            return Err(invalid("the port is missing".into()));
        }
        let endpoint = match encrypts {
            false => endpoint,
            true => {
                let tls = self.tls.clone().unwrap_or_default();
                let identity = tls.cert.as_ref().zip(tls.key.as_ref());
                // What each part alone could be blamed for is found by `config`.
                endpoint.tls_config(tls.config()?).map_err(|e| match identity {
                    Some((cert, key)) => Error::Option {
                        option: "tls-key",
                        message: format!("{}, of {}: {}", key.display(), cert.display(), innermost(&e)),
                    },
                    None => invalid(innermost(&e)),
                })?
            }
        };
        Ok(endpoint
            .connect_timeout(self.connect_timeout)
            .http2_keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_timeout)
            .keep_alive_while_idle(true))
    }

    /// Establishes the connection.
    pub(crate) async fn connect(&self) -> Result<Channel, Error> {
        self.endpoint()?.connect().await.map_err(|e| Error::Connect {
            server: self.server.clone(),
            reason: innermost(&e),
        })
    }

    /// A channel that connects at its first call.
    pub(crate) fn connect_lazy(&self) -> Result<Channel, Error> {
        Ok(self.endpoint()?.connect_lazy())
    }

    pub(crate) fn identity(&self) -> Result<Identity, Error> {
        let authorization = self.token.as_ref().map(bearer).transpose()?;
        Ok(Identity { authorization })
    }
}

impl TlsOptions {
    fn config(&self) -> Result<ClientTlsConfig, Error> {
        let mut config = match &self.ca {
            Some(ca) => {
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(certificates("tls-ca", ca)?))
            }
            None => ClientTlsConfig::new().with_native_roots(),
        };
        config = match (&self.cert, &self.key) {
            (None, None) => config,
            (Some(cert), Some(key)) => {
                let (cert, key) = (certificates("tls-cert", cert)?, private_key("tls-key", key)?);
                config.identity(tonic::transport::Identity::from_pem(cert, key))
            }
            (one, _) => {
                let (option, other) = match one {
                    Some(_) => ("tls-cert", "tls-key"),
                    None => ("tls-key", "tls-cert"),
                };
                let message = format!("needs {other} beside it");
                return Err(Error::Option { option, message });
            }
        };
        Ok(match &self.server_name {
            Some(name) => {
                ServerName::try_from(name.as_str()).map_err(|e| Error::Option {
                    option: "tls-server-name",
                    message: format!("{e}: {name:?}"),
                })?;
                config.domain_name(name)
            }
            None => config,
        })
    }
}

fn read(option: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|e| unusable(option, path, e))
}

/// A file that holds certificates.
fn certificates(option: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    let pem = read(option, path)?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if found.is_empty() => Err(unusable(option, path, "no certificate in PEM is in it")),
        Ok(_) => Ok(pem),
        Err(e) => Err(unusable(option, path, e)),
    }
}

/// A file that holds a private key.
fn private_key(option: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    let pem = read(option, path)?;
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(_) => Ok(pem),
        Err(pem::Error::NoItemsFound) => Err(unusable(option, path, "no private key in PEM is in it")),
        Err(e) => Err(unusable(option, path, e)),
    }
}

fn unusable(option: &'static str, path: &Path, why: impl fmt::Display) -> Error {
    Error::Option {
        option,
        message: format!("{}: {why}", path.display()),
    }
}

fn bearer(token: &String) -> Result<MetadataValue<Ascii>, Error> {
    let header = MetadataValue::try_from(format!("Bearer {token}"));
    let mut header = header.map_err(|_| Error::Option {
        option: "token",
        message: "must be visible ASCII".into(),
    })?;
    header.set_sensitive(true);
    Ok(header)
}

/// Says with every call who is calling.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    authorization: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Identity {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(authorization) = &self.authorization {
            request
                .metadata_mut()
                .insert("authorization", authorization.clone());
        }
        Ok(request)
    }
}

/// The last error of a chain: transport errors say what happened only there.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_no_scheme() {
        for server in [
            "127.0.0.1:50051",
            "http://127.0.0.1:50051",
            "[::1]:50051",
            "localhost:1",
        ] {
            assert!(ConnectOptions::new(server).endpoint().is_ok(), "{server}");
        }
    }

    #[test]
    fn an_address_that_cannot_work_is_named() {
        for server in [
            "",
            "localhost",
            "ftp://localhost:1",
            "http://a b:1",
            "unix:/tmp/socket",
        ] {
            let error = ConnectOptions::new(server).endpoint().unwrap_err();
            assert!(
                matches!(error, Error::Option { option: "server", .. }),
                "{server}: {error:?}"
            );
            assert!(error.to_string().contains(&format!("{server:?}")), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_encrypted_with_is_named() {
        let with = |server: &str, tls: TlsOptions| {
            let mut options = ConnectOptions::new(server);
            options.tls = Some(tls);
            options.endpoint().unwrap_err().to_string()
        };
        let missing = TlsOptions {
            ca: Some("/nowhere/ca.pem".into()),
            ..TlsOptions::default()
        };
        assert!(with("localhost:1", missing).starts_with("tls-ca: /nowhere/ca.pem: "));
        let half = TlsOptions {
            key: Some("/nowhere/key.pem".into()),
            ..TlsOptions::default()
        };
        assert_eq!(with("localhost:1", half), "tls-key: needs tls-cert beside it");
        let misnamed = TlsOptions {
            server_name: Some("no name".into()),
            ..TlsOptions::default()
        };
        assert!(with("localhost:1", misnamed).starts_with("tls-server-name: "));
        assert!(with("http://localhost:1", TlsOptions::default()).contains("contradict"));
    }

    #[test]
    fn a_token_is_not_shown() {
        let mut options = ConnectOptions::new("localhost:1");
        options.token = Some("very secret".into());
        assert!(!format!("{options:?}").contains("secret"));
    }

    #[test]
    fn a_token_that_is_no_header_is_refused() {
        let mut options = ConnectOptions::new("localhost:1");
        options.token = Some("two\nlines".into());
        assert!(matches!(
            options.identity(),
            Err(Error::Option { option: "token", .. })
        ));
    }

    #[tokio::test]
    async fn nobody_listening_is_a_typed_error() {
        // Port 1 on loopback: reserved, and nobody's.
        let error = ConnectOptions::new("127.0.0.1:1").connect().await.unwrap_err();
        assert!(
            matches!(&error, Error::Connect { server, .. } if server == "127.0.0.1:1"),
            "{error:?}"
        );
    }
}
